//! Timers: set and cancel on any processor, expiry on the one whose table a timer is in.
//!
//! Owns:       [`KTimer`], [`Timer`], the [`wheel`]. Not: the protocol of set, cancel and expiry (`sync::timer`), the clock
//!             interrupt (tick.rs).
//! IRQL:       set and cancel at or below DISPATCH; expiry from the DISPATCH work, before DPCs are retired.
//! Locks:      the timer's own (`ObjectLock`, in its header), then a table's (`TimerTableLock`), then a DPC queue's. Who may
//!             touch a timer when is `sync::timer`'s business.
//! Invariants: I1 `period`, `dpc`, `processor`, `due` and `options` are written as `sync::timer`'s I2 says; the last two by who
//!                holds the lock of the table that it is in, too: a change of the system time.
//!             I2 a table's `earliest` is at most the wheel's; when it falls below what the processor's clock is armed for, that
//!                clock is armed anew by its own processor, which is asked for a look if it isn't the one that sets.
//! Expiry:     from the retire loop, timer by timer, by `sync::timer`; then the timer's DPC is queued or, where it would be the
//!             next to run, taken to be called at once. The table's lock is let go of for each call, so a look is many short
//!             holds of it. What a DPC sets is not due in the same look, so a look ends.
//! Not as NT:  a timer expires at most 25.6 µs late (plus what the processor was busy with at or above DISPATCH), not a clock
//!             tick; tolerance is rounded down to 2ⁿ − 1 units of 100 ns. A set that is due already expires with the next
//!             25.6 µs; absolute or not, it is due then, whatever becomes of the system time.
//! Tests:      tests/props/tests/timers.rs; tests/models/tests/timer.rs; selftest `timers::*`; bench rows `timer_*`.
//! Sources:    WDK, `KeSetTimerEx`, `KeSetCoalescableTimer`, `KeCancelTimer`, "Timer Objects and DPCs".

pub mod wheel;

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::object::{Header, kind};

#[cfg(not(target_os = "none"))]
pub(in crate::ke) mod hosted;
#[cfg(target_os = "none")]
mod set;
#[cfg(not(target_os = "none"))]
pub(in crate::ke) use hosted::finish_waits;
#[cfg(not(target_os = "none"))]
pub use hosted::{cancel, set};
#[cfg(target_os = "none")]
pub use set::{Table, cancel, set, set_system_time};
#[cfg(target_os = "none")]
pub(in crate::ke) use set::{finish_waits, look};

use sync::deferred::Entry as KDpc;

/// Header bits; object.rs has the table.
mod flag {
    pub(super) const ABSOLUTE: u32 = 1 << 8;
    pub(super) use sync::timer::INSERTED;
}

/// In `options`: the due time moves with the system time. The header has it as well, for who reads that.
const ABSOLUTE: u8 = 1 << 7;

/// NT's KTIMER, byte for byte.
#[repr(C)]
pub struct KTimer {
    header: Header,
    /// Interrupt time, 100 ns.
    due: AtomicU64,
    /// Under the table's lock (wheel.rs, I4).
    links: UnsafeCell<Links>,
    /// Queued at each expiry; null: none.
    dpc: AtomicPtr<KDpc>,
    /// Whose table it is in.
    processor: UnsafeCell<u16>,
    /// Where in the wheel. Under the table's lock.
    slot: UnsafeCell<u8>,
    /// Bits 0–5: n, where it may be late by 2ⁿ − 1 units of 100 ns. [`ABSOLUTE`]. As `due`.
    options: UnsafeCell<u8>,
    /// Milliseconds; 0: not periodic.
    period: AtomicU32,
}

struct Links {
    next: *mut KTimer,
    previous: *mut KTimer,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<KTimer>() == 64);
    assert!(offset_of!(KTimer, due) == 24 && offset_of!(KTimer, links) == 32);
    assert!(offset_of!(KTimer, dpc) == 48 && offset_of!(KTimer, processor) == 56);
    assert!(offset_of!(KTimer, period) == 60);
};

sync::nt_layout! {
    [] KTimer = "KTIMER" {
        header => "Header", due => "DueTime", links => "TimerListEntry", dpc => "Dpc", processor => "Processor",
        slot => "TimerType", options => "TimerFlags", period => "Period",
    }
}

// SAFETY: `links` and `slot` are accessed under a table's lock alone (wheel.rs, I4), `processor` and `options` as I1 says; the
// rest is atomics.
unsafe impl Sync for KTimer {}
// SAFETY: as above; a timer that is moved is in no table.
unsafe impl Send for KTimer {}

/// What waiters find after an expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimerKind {
    /// Signalled until it is set again.
    Notification = kind::NOTIFICATION_TIMER,
    /// Releases one waiter.
    Synchronization = kind::SYNCHRONIZATION_TIMER,
}

/// When a timer expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// That many units of 100 ns from now.
    In(u64),
    /// When the system time reaches that many units of 100 ns since 1601; moves with the system time.
    At(u64),
}

impl Due {
    /// NT's form: negative is relative, else absolute.
    pub fn from_nt(due: i64) -> Self {
        if due < 0 { Self::In(due.unsigned_abs()) } else { Self::At(due as u64) }
    }
}

/// How a timer is set, besides its due time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Milliseconds between expiries; 0: expires once.
    pub period_ms: u32,
    /// It may be late by this many units of 100 ns, so that it can share an interrupt with others.
    pub tolerance: u64,
}

impl KTimer {
    /// A timer that is in no table and not signalled.
    #[doc(alias = "KeInitializeTimerEx")]
    pub const fn new(kind: TimerKind) -> Self {
        Self {
            header: Header::new(kind as u8, 0),
            due: AtomicU64::new(0),
            links: UnsafeCell::new(Links { next: ptr::null_mut(), previous: ptr::null_mut() }),
            dpc: AtomicPtr::new(ptr::null_mut()),
            processor: UnsafeCell::new(0),
            slot: UnsafeCell::new(0),
            options: UnsafeCell::new(0),
            period: AtomicU32::new(0),
        }
    }

    /// The header, for who waits or looks.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// As `set` and `cancel` take it.
    #[inline(always)]
    pub fn pointer(&self) -> NonNull<Self> {
        NonNull::from(self)
    }

    /// Is it in a table? Stale at once.
    pub fn is_set(&self) -> bool {
        self.header.word.bits() & flag::INSERTED != 0
    }

    /// When it is due next, in interrupt time (100 ns): what a periodic timer adds its period to. Stale at once.
    pub fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    /// The due time, moved on to where it shares an interrupt with others that are as tolerant: at most its tolerance.
    #[inline(always)]
    fn effective_due(&self) -> u64 {
        let due = self.due.load(Ordering::Relaxed);
        // SAFETY: I1.
        match unsafe { *self.options.get() } {
            0 => due,
            options => Self::tolerant(due, options),
        }
    }

    /// `due` moved on as `options` allow. At the end of the range there is no such time: then the due time itself,
    /// never an earlier one.
    #[cold]
    fn tolerant(due: u64, options: u8) -> u64 {
        let mask = (1_u64 << (options & 0x3F)) - 1;
        (due.saturating_add(mask) & !mask).max(due)
    }

    /// The exponent for a tolerance: the greatest that makes it late by no more.
    #[inline(always)]
    fn tolerance_bits(tolerance: u64) -> u8 {
        tolerance.saturating_add(1).ilog2() as u8
    }

    /// The options of a timer that may be late by `tolerance`: what [`wheel::Wheel::arm`] takes.
    #[inline(always)]
    pub fn options(tolerance: u64, absolute: bool) -> u8 {
        Self::tolerance_bits(tolerance) | if absolute { ABSOLUTE } else { 0 }
    }
}

/// A timer that safe code can set: it lives for ever, so none is dropped while it is in a table.
#[repr(transparent)]
pub struct Timer {
    raw: KTimer,
}

impl Timer {
    /// A timer that is not set and not signalled.
    #[doc(alias = "KeInitializeTimerEx")]
    pub const fn new(kind: TimerKind) -> Self {
        Self { raw: KTimer::new(kind) }
    }

    /// Has it expired since it was last set? Stale at once.
    #[doc(alias = "KeReadStateTimer")]
    pub fn is_signalled(&self) -> bool {
        self.raw.header.is_signalled()
    }

    /// Is it in a table? Stale at once.
    pub fn is_set(&self) -> bool {
        self.raw.is_set()
    }

    /// When it is due next, in interrupt time (100 ns). Stale at once.
    pub fn due(&self) -> u64 {
        self.raw.due()
    }

    /// NT's structure inside.
    #[inline(always)]
    pub fn as_raw(&'static self) -> NonNull<KTimer> {
        NonNull::from(&self.raw)
    }
}

impl super::wait::Waitable for Timer {
    #[inline(always)]
    fn header(&self) -> &Header {
        &self.raw.header
    }
}
