//! The checked build's eye on switches: a thread on two processors, outside its affinity, in two places, run while its wait goes on; threads
//! queued where no tick and no look is ahead; a switch at another level, with interrupts off, with an interrupt in service. Each is a
//! bugcheck that names both sides.
//!
//! DRIVER_VERIFIER_DETECTED_VIOLATION: one of the numbers below, the thread, what it should be with, what it was found with (below).
//! ATTEMPTED_SWITCH_FROM_DPC with parameter 4 = 3: the level, IF, the highest vector in service plus one.
//!
//! IRQL:       DISPATCH, under the `PrcbLock` of the processor that switches.
//! Invariants: I1 `Thread::stack_user` is the processor whose present stack is the thread's, plus one, from before the switch to it until
//!                behind the switch away from it; 0: nobody's.
//!             I2 `PerProcessor::leaves` is the thread that the processor is switching away from: own processor.
//! Tests:      crash `runs_twice`, `outside_its_affinity`, `in_two_places`, `runs_while_it_waits`; mutants `threads/*` that say so.

use core::sync::atomic::Ordering;

use arch::level::DISPATCH;
#[cfg(target_os = "none")]
use sync::irql::{Dispatch, Irql, Passive};

use super::super::bugcheck::{StopCode, bugcheck};
use super::super::prcb::Prcb;
use super::super::thread::Thread;
#[cfg(target_os = "none")]
use super::{Schedulable, look, ready};

/// What parameter 1 says.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
enum Violation {
    /// Processors: the one that switches to the thread, the one that is on its stack.
    OnTwoProcessors = 0x2001,
    /// The processor that switches to it, its affinity.
    OutsideItsAffinity = 0x2002,
    /// The processor that switches to it, the place that it is in, packed.
    InAnotherPlace = 0x2003,
    /// The processor that switches to it, the one that runs it by its place.
    RunsWhileItWaits = 0x2004,
    /// 0, the priorities that are queued: nothing will look at them (sched, S2).
    QueuedWithoutATick = 0x2005,
    /// The processor that switches to it, which still seems to watch: who asks it for a look sends no interrupt (`sync::watch`, I1).
    RunsWhileItWatches = 0x2006,
}

fn violated(what: Violation, thread: &Thread, expected: u64, found: u64) -> ! {
    bugcheck(
        StopCode::DriverVerifierDetectedViolation,
        [what as u64, core::ptr::from_ref(thread) as u64, expected, found],
    )
}

/// Makes `thread` ready, whatever it does, meddles with its place, and looks: for tests, which end with that.
#[cfg(target_os = "none")]
pub fn ready_again(thread: &Thread, meddle: fn(&Schedulable), at: &mut Irql<Passive>) {
    let mut at = at.raise::<Dispatch>();
    {
        let mut guard = thread.lock.lock(&mut at);
        let ((), at) = guard.parts();
        ready::place(thread, at);
        meddle(&thread.sched);
    }
    look::after_signal::<Passive>(&mut at);
}

/// `here` is about to switch to `next`, which still is in the place that it was chosen from, or just taken out of it.
#[inline(never)]
pub(super) fn before_switch(here: &Prcb, from: &Thread, next: &Thread) {
    let number = here.number();
    in_order();
    here.sched.leaves.store(core::ptr::from_ref(from).cast_mut(), Ordering::Relaxed);
    let queued = here.sched.shared.summary();
    if queued != 0 && !here.tick.has_quantum() && !here.sched.quantum_look.load(Ordering::Relaxed) {
        violated(Violation::QueuedWithoutATick, next, 0, queued.into());
    }
    if here.sched.watch.is_on() {
        violated(Violation::RunsWhileItWatches, next, number.into(), 0);
    }
    let on = next.stack_user.swap(number + 1, Ordering::Relaxed);
    if on != 0 {
        violated(Violation::OnTwoProcessors, next, number.into(), (on - 1).into());
    }
    let it = &next.sched;
    // Off the queue, standby, or placed here to run at once.
    if it.place().processor() != Some(number) {
        violated(Violation::InAnotherPlace, next, number.into(), it.packed_place().into());
    }
    if !it.may_run_on(number) {
        violated(Violation::OutsideItsAffinity, next, number.into(), it.affinity());
    }
    if next.wait.is_waiting() {
        violated(Violation::RunsWhileItWaits, next, number.into(), it.packed_place().into());
    }
}

/// `here` has left the stack of `from`, and still holds its lock.
#[inline(always)]
pub(super) fn after_switch(here: &Prcb) {
    in_order();
    // SAFETY: it stays until this processor lets go of its lock, or says that it is saved.
    let from = unsafe { &*here.sched.leaves.load(Ordering::Relaxed) };
    let on = from.stack_user.swap(0, Ordering::Relaxed);
    if on != here.number() + 1 {
        violated(Violation::OnTwoProcessors, from, here.number().into(), u64::from(on).wrapping_sub(1));
    }
}

/// DISPATCH, IF=1, no interrupt that awaits its EOI.
fn in_order() {
    let (level, enabled) = (arch::irql::current(), arch::cpu::interrupts_enabled());
    let bits = arch::apic::in_service();
    let vector = (0..=255_u8).rev().find(|&vector| bits != [0; 8] && arch::apic::bit(&bits, vector));
    if level != DISPATCH || !enabled || vector.is_some() {
        let vector = vector.map_or(0, |vector| u64::from(vector) + 1);
        bugcheck(StopCode::AttemptedSwitchFromDpc, [level.into(), enabled.into(), vector, 3]);
    }
}
