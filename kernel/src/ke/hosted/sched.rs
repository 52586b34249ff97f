//! What begins and ends waits: of a thread that has a virtual processor, the shipped scheduler ([`processors`](super::processors)); of others,
//! the test: a switch is the passing of a baton, and who is ready is the test's to run. The hand-off is as shipped.

use arch::service::NothingInService;
use sync::handoff::Wake;
use sync::irql::{Below, Dispatch, Irql, Level, ThreadLock};

use super::super::sched::shipped;
use super::Stage;
use super::thread::{self, Thread};

/// Does the caller run on a virtual processor?
fn is_scheduled() -> bool {
    arch::pcr::installed().is_some()
}

/// The running thread waits. Returns when it runs again.
///
/// # Safety
/// Whoever ends the wait calls `handoff.wake` once.
pub(in crate::ke) unsafe fn block(at: &mut Irql<Dispatch>, nothing: NothingInService) {
    if is_scheduled() {
        // SAFETY: the caller's.
        return unsafe { shipped::block(at, nothing) };
    }
    at.check();
    let me = thread::mine();
    let machine = me.machine();
    {
        let slot = &mut machine.state().slots[me.number()];
        assert_eq!(slot.stage, Stage::Running, "it waits, and doesn't run");
        slot.stage = Stage::Waiting;
    }
    if me.handoff.saved() {
        put(me);
    }
    let state = {
        let state = machine.state();
        machine.stop(state);
        machine.state()
    };
    machine.take_turn(state, me.number());
    me.handoff.run();
    machine.state().slots[me.number()].stage = Stage::Running;
}

/// `thread` is saved, and the test's to run.
fn put(thread: &Thread) {
    let mut state = thread.machine().state();
    let slot = &mut state.slots[thread.number()];
    assert_eq!(slot.stage, Stage::Waiting, "made ready, and doesn't wait (M2)");
    slot.stage = Stage::Ready;
    state.woken.push(thread.number());
}

/// The wait of `thread` is over, by the caller, who won it.
///
/// # Safety
/// The caller ended its wait, just now, and once.
pub(in crate::ke) unsafe fn make_ready<L: Below<ThreadLock>>(
    thread: &Thread,
    increment: u8,
    at: &mut Irql<L>,
) {
    if is_scheduled() {
        // SAFETY: the caller's.
        return unsafe { shipped::make_ready(thread, increment, at) };
    }
    at.check();
    if thread.handoff.wake() == Wake::Now {
        put(thread);
    }
}

/// [`make_ready`], and what follows from it.
///
/// # Safety
/// As [`make_ready`].
pub(in crate::ke) unsafe fn make_ready_and_leave<L: Level>(
    thread: &Thread,
    increment: u8,
    at: &mut Irql<Dispatch>,
) {
    if is_scheduled() {
        // SAFETY: the caller's.
        return unsafe { shipped::make_ready_and_leave::<L>(thread, increment, at) };
    }
    // SAFETY: the caller's.
    unsafe { make_ready(thread, increment, at) };
}

/// Without the scheduler nobody is preempted.
pub(in crate::ke) fn after_signal<L: Level>(at: &mut Irql<Dispatch>) {
    if is_scheduled() {
        return shipped::after_signal::<L>(at);
    }
    at.check();
}

/// Without the scheduler, the test looks.
pub(in crate::ke) fn leave_a_look(at: &mut Irql<Dispatch>) {
    if is_scheduled() {
        return shipped::leave_a_look(at);
    }
    at.check();
}
