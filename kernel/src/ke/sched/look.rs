//! The look: what DISPATCH level does for the scheduler, and the two ways there besides interrupts, a signal and a yield.

use core::hint::cold_path;
use core::mem;
use core::sync::atomic::Ordering;

use arch::level::DISPATCH;
use arch::service::NothingInService;
use sync::handoff::Wake;
use sync::irql::{Dispatch, Irql, Level};

use super::super::prcb::Prcb;
use super::super::wait::CanWait;
use super::super::{tick, timer};
use super::decide::{Next, Turns};
use super::local::{IDLE, charge, running, switch_to};
use super::queues::ThreadPtr;
#[cfg(all(target_os = "none", feature = "verifier"))]
use super::{super::torment, change::set_ideal_processor};
use super::{balance, local, ready};
use crate::ke::thread::{self, Thread};

/// The work of DISPATCH: quantum end, then preemption. On the stack of the thread that it may switch away from.
#[inline(never)]
pub(in crate::ke) fn look(nothing: NothingInService, at: &mut Irql<Dispatch>) {
    look_with::<false>(nothing, at);
}

/// The same where IF=1: on the way out of an interrupt.
#[inline(always)]
pub(in crate::ke) fn look_uninterrupted(nothing: NothingInService, at: &mut Irql<Dispatch>) {
    look_with::<true>(nothing, at);
}

#[inline(always)]
fn look_with<const IF_SET: bool>(nothing: NothingInService, at: &mut Irql<Dispatch>) {
    let (here, at) = Prcb::here(at);
    let turn_over = here.sched.quantum_look.load(Ordering::Relaxed) && quantum(here, at);
    preempt::<IF_SET>(here, turn_over, at, nothing);
}

/// Somebody was made ready: if that asks for a switch here, it is made now, or, from DISPATCH, by a look that is ahead.
///
/// The caller raised from L, and holds no lock.
#[inline(always)]
pub(in crate::ke) fn after_signal<L: Level>(at: &mut Irql<Dispatch>) {
    let (here, at) = Prcb::here(at);
    if L::HIGHEST < DISPATCH {
        if here.sched.wants_look() {
            // SAFETY: the caller's code is below DISPATCH, where no handler is half-way on this processor
            //         (Irql::nothing_in_service).
            look(unsafe { NothingInService::assume() }, at);
        }
    } else if !here.dpc.is_under_way() && here.sched.wants_look() {
        // SAFETY: at DISPATCH. Where a DPC is under way, the retire loop looks when it ends.
        unsafe { arch::pcr::request_dispatch() };
    }
}

/// The clock's look at the running thread. True: its turn is over.
#[cold]
fn quantum(here: &Prcb, at: &mut Irql<Dispatch>) -> bool {
    timer::finish_waits(here, at);
    let me = running();
    let now = charge(here, me);
    // What they make ready, `preempt` or a processor that is told sees to.
    balance::relieve_starved(here, now, at);
    balance::push(here, at);
    balance::ask_the_boosted(here, at);
    // Behind all that, which may ask for a tick: it is armed below, or by who gives way to what is queued here. Left set, the request would
    // outlast this look, and keep the processor from halting. Before `told` and the queue are looked at: who asks from here on interrupts.
    here.sched.quantum_look.store(false, Ordering::Relaxed);
    if is_idle(here, me) {
        return false;
    }
    if here.sched.told.load(Ordering::Relaxed) {
        ready::pass_on(here);
    }
    let mut guard = me.lock.lock(at);
    let ((), at) = guard.parts();
    let mut queues = here.sched.queues.lock(at);
    let shared = &here.sched.shared;
    let it = &me.sched;
    let turn_over = queues.end_quantum(shared, here.number(), it);
    if shared.summary() != 0 || shared.has_standby() {
        // For who runs from here on.
        // SAFETY: standby here, so it stays.
        let next = queues.standby(shared).map_or(it, |next| unsafe { next.as_ref() });
        tick::arm_quantum(here, next.quantum().min(next.quantum_reset()));
    }
    turn_over
}

#[inline(always)]
fn is_idle(here: &Prcb, thread: &Thread) -> bool {
    core::ptr::eq(thread, &here.sched.idle)
}

/// The running thread, as the queues have it; the idle one is in none.
#[inline(always)]
pub(super) fn part_unless_idle(here: &Prcb, me: &Thread) -> Option<ThreadPtr> {
    (!is_idle(here, me)).then(|| me.part())
}

/// Switches to the standby thread, if there is one; leaves a processor that the thread may not run on any more. That is looked at under
/// the lock that a change of it holds: what is queued here may run here.
#[inline(always)]
fn preempt<const IF_SET: bool>(
    here: &Prcb,
    turn_over: bool,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) {
    let me = running();
    #[cfg(all(target_os = "none", feature = "verifier"))]
    if let Some(to) = torment::sends_away(here, &me.sched) {
        let _ = set_ideal_processor(me, to, at);
        return vacate(me, at, nothing);
    }
    let mut guard = here.sched.queues.lock(&mut *at);
    let shared = &here.sched.shared;
    // Each with a way of its own, so that who runs is asked for once.
    if is_idle(here, me) {
        if let Next::Switch { next, .. } = guard.preempt(shared, here.number(), None, turn_over) {
            charge(here, me);
            idle_gave_way(here);
            mem::forget(guard);
            // SAFETY: 1. it is idle. 2. taken just now. 3. the guard was forgotten.
            unsafe { switch_to::<IF_SET>(here, me, None, next, nothing) };
        }
        return;
    }
    match guard.preempt(shared, here.number(), Some(me.part()), turn_over) {
        Next::Stay => {}
        Next::Leave => {
            cold_path();
            drop(guard);
            vacate(me, at, nothing);
        }
        Next::Switch { next, .. } => {
            charge(here, me);
            busy_gave_way(here, me);
            mem::forget(guard);
            // SAFETY: 1. it was queued just now. 2. taken just now. 3. the guard was forgotten.
            unsafe { switch_to::<IF_SET>(here, me, None, next, nothing) };
        }
    }
}

/// The running thread is about to be switched away from for a higher one: it was queued, and whoever may have it instead is told. Under
/// the lock.
#[inline(always)]
pub(super) fn gave_way(here: &Prcb, me: &Thread) {
    charge(here, me);
    if is_idle(here, me) {
        idle_gave_way(here);
    } else {
        busy_gave_way(here, me);
    }
}

#[inline(always)]
fn idle_gave_way(here: &Prcb) {
    // Before what it may have been asked for is looked at.
    if here.sched.watch.is_on() && here.sched.watch.end() {
        cold_path();
        // What this switch is not for: there is another look behind it.
        // SAFETY: DISPATCH.
        unsafe { arch::pcr::request_dispatch() };
    }
    if IDLE.get() >> here.number() & 1 != 0 {
        IDLE.leave(here.number());
    }
    if here.sched.told.load(Ordering::Relaxed) {
        ready::pass_on(here);
    }
    // What was queued behind the standby thread may have relied on a tick that ended with the idle time.
    if here.sched.shared.summary() != 0 {
        has_queued(here);
    }
}

#[inline(always)]
fn busy_gave_way(here: &Prcb, me: &Thread) {
    if IDLE.after_queueing() & me.sched.affinity() != 0 {
        cold_path();
        // SAFETY: such a function, and a scheduling part.
        unsafe { arch::call_aside!(ready::tell_idle, &me.sched) };
    }
    has_queued(here);
}

/// Something is queued here: S2.
#[inline(always)]
fn has_queued(here: &Prcb) {
    // There is a tick mostly: somebody was queued before, within a quantum.
    if !here.tick.has_quantum() {
        cold_path();
        // SAFETY: such a function, and this processor's block.
        unsafe { arch::call_aside!(arm_quantum, here) };
    }
}

/// This processor has queued a thread, and no tick: there is one at the end of a quantum; not of the running thread's, which may be the
/// idle one still.
#[cold]
extern "sysv64" fn arm_quantum(here: &Prcb) {
    tick::arm_quantum(here, thread::quantum());
}

/// The running thread may not run on this processor any more: it is made ready elsewhere as soon as it is saved.
#[cold]
fn vacate(me: &Thread, at: &mut Irql<Dispatch>, nothing: NothingInService) {
    me.increment.store(0, Ordering::Relaxed);
    let woken = me.handoff.wake();
    debug_assert_eq!(woken, Wake::Later, "it runs here");
    // SAFETY: woken just now, once.
    unsafe { local::block(at, nothing) };
    #[cfg(all(target_os = "none", feature = "verifier"))]
    super::super::wait::lost::wait_is_over(me);
}

/// Lets another ready thread of the same priority, or above, run. False: there was none on this processor.
#[doc(alias = "ZwYieldExecution")]
#[inline]
pub fn yield_now<L: CanWait>(at: &mut Irql<L>) -> bool {
    let nothing = at.nothing_in_service();
    let mut at = at.raise::<Dispatch>();
    let (here, at) = Prcb::here(&mut at);
    let me = running();
    let shared = &here.sched.shared;
    let mut guard = here.sched.queues.lock(&mut *at);
    // Standby, or told that it may not run here any more: both ask for a look, under this lock.
    if !here.sched.wants_look() {
        match guard.take_turns(shared, here.number(), me.part()) {
            Turns::Nobody => return false,
            Turns::Taken { next, left_behind } => {
                charge(here, me);
                if left_behind {
                    cold_path();
                    ready::left_behind(here, &me.sched);
                }
                mem::forget(guard);
                // SAFETY: 1. it was queued just now. 2. taken just now. 3. the guard was forgotten.
                unsafe { switch_to::<false>(here, me, None, next, nothing) };
                return true;
            }
            Turns::Otherwise => {}
        }
    }
    drop(guard);
    yield_anyhow(here, me, at, nothing)
}

/// [`yield_now`] where there is more to look at than equals.
#[cold]
#[inline(never)]
fn yield_anyhow(here: &Prcb, me: &Thread, at: &mut Irql<Dispatch>, nothing: NothingInService) -> bool {
    let mut guard = here.sched.queues.lock(&mut *at);
    match guard.yield_to(&here.sched.shared, here.number(), me.part()) {
        Next::Stay => return false,
        Next::Leave => {
            drop(guard);
            vacate(me, at, nothing);
        }
        Next::Switch { next, .. } => {
            charge(here, me);
            ready::left_behind(here, &me.sched);
            mem::forget(guard);
            // SAFETY: 1. it was queued just now. 2. taken just now. 3. the guard was forgotten.
            unsafe { switch_to::<false>(here, me, None, next, nothing) };
        }
    }
    true
}
