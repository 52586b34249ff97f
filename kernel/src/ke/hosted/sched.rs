//! The scheduler's place in a machine for tests: a switch is the passing of a baton, and who is ready is the test's to run. The hand-off
//! is as shipped.

use arch::service::NothingInService;
use sync::handoff::Wake;
use sync::irql::{Below, Dispatch, Irql, Level, ThreadLock};

use super::Stage;
use super::thread::{self, Thread};

/// The running thread waits. Returns when the test runs it again.
///
/// # Safety
/// Whoever ends the wait calls `handoff.wake` once.
pub(in crate::ke) unsafe fn block(at: &mut Irql<Dispatch>, _: NothingInService) {
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
pub(in crate::ke) unsafe fn make_ready<L: Below<ThreadLock>>(thread: &Thread, _: u8, at: &mut Irql<L>) {
    at.check();
    if thread.handoff.wake() == Wake::Now {
        put(thread);
    }
}

/// [`make_ready`], and nobody runs at once.
///
/// # Safety
/// As [`make_ready`].
pub(in crate::ke) unsafe fn make_ready_and_leave<L: Level>(
    thread: &Thread,
    increment: u8,
    at: &mut Irql<Dispatch>,
) {
    // SAFETY: the caller's.
    unsafe { make_ready(thread, increment, at) };
    after_signal::<L>(at);
}

/// Nobody is preempted here.
#[expect(clippy::extra_unused_type_parameters, reason = "the shipped one asks for the level")]
pub(in crate::ke) fn after_signal<L: Level>(at: &mut Irql<Dispatch>) {
    at.check();
}

/// The test looks.
pub(in crate::ke) fn leave_a_look(at: &mut Irql<Dispatch>) {
    at.check();
}
