//! Timers of a machine for tests: one table, no clock, no DPCs. The protocol and the wheel are as shipped; what a set stores and an expiry does
//! are the steps of set.rs.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use sync::bit_lock::{HeldBit, LockWord};
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};
use sync::timer::{self, After};

use super::wheel::Wheel;
use super::{Due, KDpc, KTimer, Options, Timer, flag};
use crate::ke::hosted::prcb::Prcb;
use crate::ke::hosted::{clock, thread};
use crate::ke::wait::signal::Woken;

/// A machine's timers.
pub(in crate::ke) struct Table {
    timers: timer::Table<Wheel>,
    /// Threads whose waits expired timers have ended: of a look.
    woken: UnsafeCell<Woken>,
}

// SAFETY: `woken` is used by a look, and a machine makes one at a time; the rest is locked.
unsafe impl Sync for Table {}
// SAFETY: as above.
unsafe impl Send for Table {}

impl Table {
    pub(in crate::ke) fn new() -> Self {
        Self { timers: timer::Table::new(Wheel::new()), woken: UnsafeCell::new(Woken::new()) }
    }
}

// SAFETY: a timer is set by threads of one machine only, which have one table; it is looked for by them as well.
unsafe impl timer::Timed for KTimer {
    type Wheel = Wheel;

    fn word(&self) -> &LockWord<ObjectLock> {
        &self.header.word
    }

    unsafe fn table(&self) -> &timer::Table<Wheel> {
        &thread::machine_of_current().timers().timers
    }
}

// SAFETY: the slots' lists are those of what is linked (wheel.rs, I1, I2).
unsafe impl timer::Wheel for Wheel {
    type Timer = KTimer;

    fn next_due(&mut self, now: u64) -> Option<NonNull<KTimer>> {
        NonNull::new(self.next_due(now))
    }

    fn earliest(&self) -> u64 {
        self.earliest()
    }

    unsafe fn remove(&mut self, timer: NonNull<KTimer>) {
        // SAFETY: the caller's.
        unsafe { self.remove(timer.as_ptr()) };
    }

    unsafe fn refuse(&mut self, timer: NonNull<KTimer>, now: u64) {
        // SAFETY: the caller's.
        unsafe { self.refuse(timer.as_ptr(), now) };
    }
}

struct Setting<'a> {
    table: &'a timer::Table<Wheel>,
    due: Due,
    options: Options,
}

// SAFETY: 1. see `arm`, and `Timed`. 2. ABSOLUTE alone.
unsafe impl timer::Setting<KTimer> for Setting<'_> {
    const FLAGS: u32 = flag::ABSOLUTE;

    fn table(&self) -> &timer::Table<Wheel> {
        self.table
    }

    fn flags(&self) -> u32 {
        if matches!(self.due, Due::At(_)) { flag::ABSOLUTE } else { 0 }
    }

    unsafe fn arm(&self, timer: NonNull<KTimer>, wheel: &mut Wheel) -> Option<u64> {
        let due = match self.due {
            Due::In(after) => clock::interrupt_time_precise() + after,
            Due::At(system) => wheel.interrupt_time_of(system, clock::first_offset()),
        };
        let options = KTimer::options(self.options.tolerance, matches!(self.due, Due::At(_)));
        // SAFETY: both locks are held, and it is in no table; valid as long as it is in one (`set`'s caller).
        unsafe {
            let it = timer.as_ref();
            it.header.set_signal_state(0);
            it.period.store(self.options.period_ms, Ordering::Relaxed);
            wheel.arm(timer.as_ptr(), due, options)
        }
    }
}

/// As the shipped one.
///
/// # Safety
/// `timer` stays valid until it is in no table any more. By a thread of a machine.
pub unsafe fn set<L>(
    timer: NonNull<KTimer>,
    due: Due,
    options: Options,
    dpc: Option<NonNull<KDpc>>,
    at: &mut Irql<L>,
) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    assert!(dpc.is_none(), "there are no DPCs");
    let table = &thread::machine_of_current().timers().timers;
    // SAFETY: the caller's.
    let set = unsafe { timer::set::<_, _, _, false>(timer, Setting { table, due, options }, at) };
    set.is_some_and(|set| set.was_set)
}

/// As the shipped one.
///
/// # Safety
/// `timer` is valid until this returns.
pub unsafe fn cancel<L: Below<ObjectLock>>(timer: NonNull<KTimer>, at: &mut Irql<L>) -> bool {
    // SAFETY: the caller's.
    unsafe { timer::cancel(timer, at) }
}

/// Expires what is due at `now`, and makes the threads ready whose waits that ends.
pub(in crate::ke) fn expire(table: &Table, now: u64, at: &mut Irql<Dispatch>) {
    let expired = |it: &KTimer, wheel: &mut Wheel, _: &mut HeldBit<'_, ObjectLock>| {
        it.header.set_signal_state(1);
        // SAFETY: its lock is held; a machine makes one look at a time.
        unsafe { (*table.woken.get()).satisfy(&it.header) };
        let period = it.period.load(Ordering::Relaxed);
        if period == 0 {
            return (After::Out, ());
        }
        // SAFETY: taken off the wheel, and still INSERTED.
        unsafe { wheel.arm_again(ptr::from_ref(it).cast_mut(), u64::from(period) * 10_000) };
        (After::Again, ())
    };
    // SAFETY: 1. the one processor's. 2. `arm_again` links it in this wheel.
    let _ = unsafe { table.timers.expire(now, at, expired, |(), _| None::<()>) };
    // SAFETY: as above.
    let woken = core::mem::replace(unsafe { &mut *table.woken.get() }, Woken::new());
    woken.finish(0, at);
}

/// An expiry leaves nothing to the look.
pub(in crate::ke) fn finish_waits(_: &Prcb, at: &mut Irql<Dispatch>) {
    at.check();
}

impl Timer {
    /// As the shipped one, without a DPC.
    pub fn set<L>(&'static self, due: Due, options: Options, at: &mut Irql<L>) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        // SAFETY: it is `'static`.
        unsafe { set(self.as_raw(), due, options, None, at) }
    }

    /// As the shipped one.
    pub fn cancel<L: Below<ObjectLock>>(&'static self, at: &mut Irql<L>) -> bool {
        // SAFETY: it is `'static`.
        unsafe { cancel(self.as_raw(), at) }
    }
}
