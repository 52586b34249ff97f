//! Threads that the scheduler has by hand where they must not be: each is a bugcheck at the switch to it (`kernel::ke::sched::verify`).

use kernel::ke::bugcheck::{StopCode, bugcheck};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::sched::{self, Place, Schedulable};
use kernel::ke::thread::{self, Name, Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use sync::irql::{Irql, Passive};

const MILLISECOND: u64 = 10_000;
/// Above the test's.
const HIGH: u8 = 20;

static NEVER_SET: Event = Event::new(EventKind::Notification, false);

/// Does it; false for a name that is none of these.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> bool {
    let waits: thread::Routine = |at, _| _ = wait::for_single(&NEVER_SET, None, at);
    let spins: thread::Routine = |_, _| {
        loop {
            arch::cpu::spin_hint();
        }
    };
    let (routine, affinity, meddle): (_, _, fn(&Schedulable)) = match name {
        "runs_twice" => (spins, 0b1100, |_| ()),
        "outside_its_affinity" => (waits, 1, |it| it.set_affinity(0b10)),
        "in_two_places" => (waits, 1, |it| it.set_place(Place::Ready(1))),
        "runs_while_it_waits" => (waits, 1, |_| ()),
        _ => return false,
    };
    // The test has processor 0, so what is ready there is switched to by what makes it so.
    let _ = sched::set_affinity(&thread::current(at).reference(), 1, at);
    let thread = spawn(routine, affinity, at);
    let _ = delay(Due::In(20 * MILLISECOND), at);
    sched::ready_again(&thread, meddle, at);
    let _ = delay(Due::In(1_500 * MILLISECOND), at);
    bugcheck(StopCode::ManuallyInitiatedCrash, [7, 0, 0, 0]);
}

fn spawn(routine: thread::Routine, affinity: u64, at: &mut Irql<Passive>) -> ThreadRef {
    let options = Options {
        name: Name::new("misplaced"),
        priority: HIGH,
        affinity: Some(affinity),
        ..Options::default()
    };
    match thread::spawn(&options, routine, 0, at) {
        Ok(thread) => thread,
        Err(_) => bugcheck(StopCode::ManuallyInitiatedCrash, [8, 0, 0, 0]),
    }
}
