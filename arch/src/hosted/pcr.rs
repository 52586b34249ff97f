//! What GS leads to on the machine, where a thread of the host plays a processor that switches between threads: the running thread, the
//! request word, the interrupts that have arrived. Other threads of the host have none, and need none.
//!
//! Invariants: I1 a block is at most one thread of the host's at a time: `switch` hands it on.
//!             I2 as `x86_64::pcr`'s I3: a request is made => a look is still ahead, or its vector has arrived. What that takes is decided by
//!                [`request`].

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::cpu;
use crate::level;
use crate::request::{self, REQUEST_APC, REQUEST_DISPATCH, SENT_APC, SENT_DISPATCH};

/// A virtual processor's own words. It is run by one thread of the host at a time, so no access needs an order of its own.
pub struct Pcr {
    number: u32,
    prcb: AtomicPtr<()>,
    current_thread: AtomicPtr<()>,
    software: AtomicU32,
    depth: AtomicU32,
    /// Bit n: an interrupt of level n has arrived and was not taken. By any.
    arrived: AtomicU32,
    /// IF.
    enabled: AtomicBool,
}

std::thread_local! {
    static HERE: Cell<Option<&'static Pcr>> = const { Cell::new(None) };
}

impl Pcr {
    /// Of processor `number`.
    pub const fn new(number: u32) -> Self {
        Self {
            number,
            prcb: AtomicPtr::new(ptr::null_mut()),
            current_thread: AtomicPtr::new(ptr::null_mut()),
            software: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            arrived: AtomicU32::new(0),
            enabled: AtomicBool::new(true),
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Where its PRCB is.
    pub fn set_prcb(&self, prcb: *const ()) {
        self.prcb.store(prcb.cast_mut(), Ordering::Relaxed);
    }

    /// The running thread, for who looks from elsewhere.
    pub fn running(&self) -> *const () {
        self.current_thread.load(Ordering::Relaxed)
    }

    /// By its processor, in a switch.
    pub fn set_running(&self, thread: *const ()) {
        self.current_thread.store(thread.cast_mut(), Ordering::Relaxed);
    }

    /// An interrupt of `level` arrives, sent by whomever: it is taken at the processor's next point that lets it in.
    pub fn interrupt(&self, level: u8) {
        self.arrived.fetch_or(1 << level, Ordering::AcqRel);
    }

    /// Has one of `level` arrived that was not taken?
    pub fn has_arrived(&self, level: u8) -> bool {
        self.arrived.load(Ordering::Acquire) >> level & 1 != 0
    }

    /// Has any?
    pub fn is_interrupted(&self) -> bool {
        self.arrived.load(Ordering::Acquire) != 0
    }

    /// IF.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// The highest that has arrived above `level`: it is taken.
    pub(super) fn take_above(&self, level: u8) -> Option<u8> {
        let above = self.arrived.load(Ordering::Acquire) & !((2 << level) - 1);
        let taken = above.checked_ilog2()?;
        self.arrived.fetch_and(!(1 << taken), Ordering::AcqRel);
        Some(taken as u8)
    }

    /// One handler more is under way, or one less; how many then.
    pub(super) fn nest(&self, by: i32) -> u32 {
        let depth = self.depth.load(Ordering::Relaxed).wrapping_add_signed(by);
        self.depth.store(depth, Ordering::Relaxed);
        depth
    }

    pub(super) fn software(&self) -> u32 {
        self.software.load(Ordering::Relaxed)
    }

    fn set(&self, bits: u32) {
        self.software.store(self.software() | bits, Ordering::Relaxed);
    }

    pub(super) fn clear(&self, bits: u32) {
        self.software.store(self.software() & !bits, Ordering::Relaxed);
    }

    fn request(&self, request: u32, sent: u32, level: u8) {
        self.set(request);
        if request::sends_at_once(self.depth.load(Ordering::Relaxed)) {
            self.send(request, sent, level);
        }
    }

    fn send(&self, request: u32, sent: u32, level: u8) {
        if request::is_unsent(self.software(), request, sent) {
            self.set(sent);
            self.interrupt(level);
        }
    }

    /// The vectors of requests are requests by themselves.
    pub(super) fn request_arrived(&self, level: u8) {
        let (request, sent) = if level == level::DISPATCH {
            (REQUEST_DISPATCH, SENT_DISPATCH)
        } else {
            (REQUEST_APC, SENT_APC)
        };
        self.set(request);
        self.clear(sent);
    }

    /// On the way out of the outermost handler, which hit code at `interrupted`.
    pub(super) fn send_at_exit(&self, interrupted: u8) {
        let next = request::at_exit(interrupted, self.software());
        if next.sends_dispatch {
            self.send(REQUEST_DISPATCH, SENT_DISPATCH, level::DISPATCH);
        }
        if next.sends_apc {
            self.send(REQUEST_APC, SENT_APC, level::APC);
        }
        if next.delivers_apcs {
            self.clear(REQUEST_APC);
        }
    }
}

/// From now on this thread of the host runs the processor of `pcr`, which nobody else does (I1).
pub fn enter(pcr: &'static Pcr) {
    HERE.set(Some(pcr));
    cpu::become_number(Some(pcr.number));
}

/// This thread of the host runs no processor any more; which it was.
pub fn leave() -> Option<&'static Pcr> {
    cpu::become_number(None);
    HERE.take()
}

/// The processor that this thread of the host runs, if it is such a one.
pub fn installed() -> Option<&'static Pcr> {
    HERE.try_with(Cell::get).unwrap_or(None)
}

fn here() -> &'static Pcr {
    installed().expect("a virtual processor")
}

/// This processor's number.
pub fn number() -> u32 {
    here().number
}

/// The running thread.
pub fn current_thread() -> *const () {
    here().running()
}

/// This processor's PRCB.
pub fn prcb() -> *const () {
    here().prcb.load(Ordering::Relaxed)
}

/// Asks for the work of DISPATCH on this processor.
///
/// # Safety
/// As on the machine: the caller stays on this processor.
pub unsafe fn request_dispatch() {
    here().request(REQUEST_DISPATCH, SENT_DISPATCH, level::DISPATCH);
}

/// The same in a handler, whose exit looks.
///
/// # Safety
/// The caller is in a handler.
pub unsafe fn request_dispatch_at_exit() {
    here().set(REQUEST_DISPATCH);
}

/// As [`request_dispatch`], for kernel APCs.
///
/// # Safety
/// As [`request_dispatch`].
pub unsafe fn request_apc() {
    here().request(REQUEST_APC, SENT_APC, level::APC);
}

/// The next interrupt ends the idle time, which means nothing here.
///
/// # Safety
/// As on the machine: IF=0, and a halt follows.
pub unsafe fn set_idle() {}

/// There is no up-call that an NMI might have kept from.
pub fn end_idle() -> bool {
    false
}
