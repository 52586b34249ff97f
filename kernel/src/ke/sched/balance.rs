//! Between processors: an idle one takes a thread that waits elsewhere; the tick of one with a queue hands threads to those that run
//! something lower, and sees to it that none starves.

use core::sync::atomic::Ordering;

use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql, Passive, PrcbLock};
use sync::spin::SpinGuard;

use super::super::prcb::{self, Prcb};
use super::super::{clock, thread::Thread};
use super::decide::{PUSHED_AT_ONCE, belongs_elsewhere, keeps_its_boost_from};
use super::local::IDLE;
use super::queues::{Admitted, Queues, ThreadPtr};
use super::schedulable::{Place, Schedulable};
use super::{look, ready};

/// A thread that was found queued so often, once a second, is relieved: after four to five seconds.
const STARVES_AFTER: u8 = 5;
/// How many at once.
const RELIEVED_AT_ONCE: u32 = 16;

/// This processor has nothing to run: is there a thread that waits for another one and may run here? Then it is given a processor,
/// mostly this one. With the idle bit set first, by the idle loop. True: something was found.
pub(in crate::ke) fn go_idle_look(here: &Prcb, at: &mut Irql<Dispatch>) -> bool {
    let me = here.number();
    // Before the bit: who clears that tells anew.
    here.sched.told.store(false, Ordering::Relaxed);
    IDLE.enter(me);
    if here.sched.shared.has_standby() || here.sched.shared.summary() != 0 {
        return take_own(here, at);
    }
    let count = prcb::count();
    (me + 1..count).chain(0..me).any(|other| {
        // SAFETY: numbers below the count are registered.
        let there = unsafe { prcb::get_unchecked(other) }.prcb();
        there.sched.shared.summary() != 0 && steal(there, me, at)
    })
}

/// So often a processor looks whether somebody asks it, before it halts: some microseconds, in which a thread that was signalled there has
/// answered. A halt and its end take longer than that on a virtual machine.
const LOOKS: u32 = 32;

/// Watches for a moment, as nothing was found to do, and makes the look that it is asked for. True: there was something. By the idle thread.
pub(in crate::ke) fn watch(here: &Prcb, at: &mut Irql<Passive>) -> bool {
    if prcb::count() == 1 {
        return false;
    }
    let watch = &here.sched.watch;
    watch.begin();
    let mut left = LOOKS;
    while watch.is_unasked() && left > 0 {
        left -= 1;
        arch::cpu::spin_hint();
    }
    if !watch.end() {
        return false;
    }
    let mut at = at.raise::<Dispatch>();
    // SAFETY: the idle thread, raised from PASSIVE: no handler is half-way here.
    look::look(unsafe { NothingInService::assume() }, &mut at);
    true
}

/// With IF=0: has this processor nothing to do since its look, and has nobody told it of a thread? What comes from here on
/// interrupts it.
pub(in crate::ke) fn may_halt(here: &Prcb) -> bool {
    // A bit that is clear says that somebody did, or that a thread has run since the look.
    IDLE.get() >> here.number() & 1 != 0 && !here.sched.wants_look() && here.sched.shared.summary() == 0
}

/// A thread is queued here, and the idle thread runs: it is what runs next.
fn take_own(here: &Prcb, at: &mut Irql<Dispatch>) -> bool {
    let shared = &here.sched.shared;
    let mut guard = here.sched.queues.lock(at);
    if !shared.has_standby()
        && let Some(next) = guard.take_best(shared, 0)
    {
        guard.set_standby(shared, here.number(), next);
    }
    true
}

fn steal(there: &Prcb, me: u32, at: &mut Irql<Dispatch>) -> bool {
    let guard = there.sched.queues.lock(&mut *at);
    let Some(found) = take_out(guard, there, |it| it.may_run_on(me)) else { return false };
    replace(found, at);
    true
}

/// Takes the first thread that `wanted` says yes to out of the queues of `there`: it is the caller's then.
fn take_out(
    mut guard: SpinGuard<'_, Queues, PrcbLock>,
    there: &Prcb,
    wanted: impl FnMut(&Schedulable) -> bool,
) -> Option<ThreadPtr> {
    let found = guard.take_if(&there.sched.shared, wanted)?;
    // Under the lock: who looks for it where it was finds that it isn't.
    // SAFETY: taken out just now.
    unsafe { found.as_ref() }.set_place(Place::Waiting(there.number()));
    Some(found)
}

/// Gives a thread that was taken out a processor.
fn replace(found: ThreadPtr, at: &mut Irql<Dispatch>) {
    // SAFETY: the caller has it to itself, so it stays.
    let thread = unsafe { Thread::of(found) };
    let mut guard = thread.lock.lock(at);
    let ((), at) = guard.parts();
    ready::place(thread, at);
}

/// Threads that are queued here, above what some processor runs that they may run on, go there: up to [`PUSHED_AT_ONCE`], the highest first.
/// Each that has gone is what its processor shows, so the next one looks elsewhere.
pub(super) fn push(here: &Prcb, at: &mut Irql<Dispatch>) {
    let me = here.number();
    // SAFETY: affinities hold registered processors only.
    let level = |other| unsafe { prcb::get_unchecked(other) }.prcb().sched.level();
    let runs_lower = |it: &Schedulable| belongs_elsewhere(it, me, level);
    for _ in 0..PUSHED_AT_ONCE {
        if here.sched.shared.summary() == 0 {
            return;
        }
        let guard = here.sched.queues.lock(&mut *at);
        let Some(found) = take_out(guard, here, runs_lower) else { return };
        replace(found, at);
    }
}

/// What runs alone has no tick that would take its boost from it. Where a thread waits here that is above its base, it is asked to look:
/// when it shows less, the next tick here finds it.
pub(super) fn ask_the_boosted(here: &Prcb, at: &mut Irql<Dispatch>) {
    let shared = &here.sched.shared;
    let Some(highest) = shared.summary().checked_ilog2() else { return };
    let mut others = here.sched.queues.lock(&mut *at).affinities(shared) & !(1 << here.number());
    while others != 0 {
        // SAFETY: affinities hold registered processors only.
        let there = unsafe { prcb::get_unchecked(others.trailing_zeros()) }.prcb();
        others &= others - 1;
        if there.tick.has_quantum() {
            continue;
        }
        let asks = {
            let _guard = there.sched.queues.lock(&mut *at);
            // SAFETY: its lock is held.
            unsafe { there.running() }.is_some_and(|it| keeps_its_boost_from(it, highest as u8))
        };
        if asks {
            there.sched.ask_quantum_look();
            ready::ask_to_look(there);
        }
    }
}

/// Once a second: threads that have been ready for long get the highest dynamic priority, for a quantum.
pub(super) fn relieve_starved(here: &Prcb, now: u64, at: &mut Irql<Dispatch>) {
    let second = clock::tsc_hz();
    if now.wrapping_sub(here.sched.starved_at.load(Ordering::Relaxed)) < second {
        return;
    }
    here.sched.starved_at.store(now, Ordering::Relaxed);
    let shared = &here.sched.shared;
    here.sched.queues.lock(&mut *at).count_waits(shared);
    for _ in 0..RELIEVED_AT_ONCE {
        let mut guard = here.sched.queues.lock(&mut *at);
        let Some(admitted) = guard.relieve_one(shared, here.number(), STARVES_AFTER) else { return };
        // Standby or queued, the look that this is goes on to it.
        if let Admitted::Standby { displaced } = admitted {
            ready::tell_idle_of(displaced);
        }
    }
}
