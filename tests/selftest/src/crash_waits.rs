//! Threads that wait for each other: the report of it (`kernel::ke::wait::chain`) is in the log before the bugcheck that ends the run. And
//! wakeups that are lost, and waits for too many objects, which are bugchecks by themselves (`kernel::ke::wait::lost`, `multiple`).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use kernel::ex::{GuardedMutex, Resource};
use kernel::ke::bugcheck::{StopCode, bugcheck};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::object::Header;
use kernel::ke::queue::Queue;
use kernel::ke::thread::{self, Name, Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::block::WaitBlock;
use kernel::ke::wait::{self, Alertable, CanWait, MAXIMUM_WAIT_OBJECTS, Waitable, delay, lost};
use sync::irql::{Irql, Passive};
use sync::resource::Access;

const MILLISECOND: u64 = 10_000;

// SAFETY: statics.
static MUTANTS: [Mutant; 2] = [const { unsafe { Mutant::new() } }; 2];
/// Threads that hold what they are to hold.
static READY: AtomicU32 = AtomicU32::new(0);

/// Does it; false for a name that is none of these. Otherwise a bugcheck follows when there was time for the report.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> bool {
    match name {
        "mutants_in_a_circle" => circle(|at, _| both_mutants(1, at, for_all), at),
        "circle_with_a_timeout" => circle(|at, _| both_mutants(1, at, for_a_minute), at),
        "locks_in_a_chain" => {
            let ends = spawn("ends", wants_the_mutex, 0, at);
            spawn("joins", joins_with_the_resource, ends.into_raw().as_ptr().expose_provenance(), at);
            spawn("has both", wants_the_resource, 0, at);
        }
        "wait_for_65_objects" => {
            let mut blocks = [const { WaitBlock::new() }; MAXIMUM_WAIT_OBJECTS + 1];
            let objects: [&dyn Waitable; MAXIMUM_WAIT_OBJECTS + 1] = [&MUTANTS[0]; MAXIMUM_WAIT_OBJECTS + 1];
            let _ = wait::for_any(&objects, Some(&mut blocks), None, at);
        }
        "wait_for_4_objects_without_blocks" => {
            let objects: [&dyn Waitable; 4] = [&MUTANTS[0]; 4];
            let _ = wait::for_any(&objects, None, None, at);
        }
        "signalled_behind_its_lock" => {
            static SIGNALLED_BY_HAND: Event = Event::new(EventKind::Notification, false);
            spawn("waits", |at, _| _ = wait::for_single(&SIGNALLED_BY_HAND, None, at), 0, at);
            let _ = delay(Due::In(20 * MILLISECOND), at);
            signal_by_hand(SIGNALLED_BY_HAND.header(), at);
        }
        "queue_entry_behind_its_lock" => {
            static FILLED_BY_HAND: Queue = Queue::new(1);
            spawn("waits", |at, _| _ = FILLED_BY_HAND.remove(None, Alertable::No, at).is_ok(), 0, at);
            let _ = delay(Due::In(20 * MILLISECOND), at);
            // SAFETY: its header, which it starts with.
            let header = unsafe { &*(&raw const FILLED_BY_HAND).cast::<Header>() };
            signal_by_hand(header, at);
        }
        "all_signalled_by_hand" => {
            static BOTH: [Event; 2] = [const { Event::new(EventKind::Notification, false) }; 2];
            spawn("waits", |at, _| _ = wait::for_all(&[&BOTH[0], &BOTH[1]], None, None, at), 0, at);
            let _ = delay(Due::In(20 * MILLISECOND), at);
            BOTH.iter().for_each(|it| signal_by_hand(it.header(), at));
            // However long that takes to be found.
            let _ = wait::for_single(&MUTANTS[0], None, at);
            let _ = delay(Due::In(60_000 * MILLISECOND), at);
        }
        "queue_wakeup_dropped" => {
            static EMPTY: Queue = Queue::new(1);
            let waits = spawn("waits", |at, _| _ = EMPTY.remove(None, Alertable::No, at).is_ok(), 0, at);
            let _ = delay(Due::In(20 * MILLISECOND), at);
            lost::drop_the_wakeup_of(&waits);
            let _ = delay(Due::In(60_000 * MILLISECOND), at);
        }
        "wakeup_dropped" => {
            static NEVER_SET: Event = Event::new(EventKind::Notification, false);
            let waits = spawn("waits", |at, _| _ = wait::for_single(&NEVER_SET, None, at), 0, at);
            let _ = delay(Due::In(20 * MILLISECOND), at);
            lost::drop_the_wakeup_of(&waits);
            // However long that takes to be found.
            let _ = wait::for_single(&NEVER_SET, None, at);
        }
        "held_for_long" => {
            spawn("sleeper", |at, _| sleeps_with(&MUTANTS[0], at), 0, at);
            spawn("waits", |at, _| waits_behind(&MUTANTS[0], at), 0, at);
        }
        _ => return false,
    }
    let _ = delay(Due::In(1_500 * MILLISECOND), at);
    bugcheck(StopCode::ManuallyInitiatedCrash, [7, 0, 0, 0]);
}

fn spawn(name: &'static str, routine: thread::Routine, argument: usize, at: &mut Irql<Passive>) -> ThreadRef {
    match thread::spawn(&Options { name: Name::new(name), ..Options::default() }, routine, argument, at) {
        Ok(thread) => thread,
        Err(_) => bugcheck(StopCode::ManuallyInitiatedCrash, [8, 0, 0, 0]),
    }
}

/// Signals the object that `header` heads, and tells nobody.
fn signal_by_hand(header: &Header, at: &mut Irql<Passive>) {
    // SAFETY: its signal state, an atomic, as NT's layout has it.
    let state = unsafe { &*core::ptr::from_ref(header).byte_add(4).cast::<AtomicI32>() };
    state.store(1, Ordering::Relaxed);
    // It takes the lock, and takes nothing: so who lets go of it is found.
    let _ = wait::poll(header, at);
}

/// Two threads, each with the mutant that the other waits for: the first for ever, the second as it says.
fn circle(second: thread::Routine, at: &mut Irql<Passive>) {
    let first =
        |at: &mut Irql<Passive>, _| both_mutants(0, at, |other, at| _ = wait::for_single(other, None, at));
    spawn("first", first, 0, at);
    spawn("second", second, 0, at);
}

/// Returns when as many threads hold what they are to hold.
fn all_hold<L: CanWait>(count: u32, at: &mut Irql<L>) {
    READY.fetch_add(1, Ordering::Relaxed);
    while READY.load(Ordering::Relaxed) < count {
        let _ = delay(Due::In(MILLISECOND), at);
    }
}

/// Takes the mutant of that number, and, when both threads have theirs, the other.
fn both_mutants(number: usize, at: &mut Irql<Passive>, take_other: impl Fn(&Mutant, &mut Irql<Passive>)) {
    let _ = wait::for_single(&MUTANTS[number], None, at);
    all_hold(2, at);
    take_other(&MUTANTS[1 - number], at);
}

/// Waits for it and an event that is signalled.
fn for_all(mutant: &Mutant, at: &mut Irql<Passive>) {
    static SIGNALLED: Event = Event::new(EventKind::Notification, true);
    let both: [&dyn Waitable; 2] = [&SIGNALLED, mutant];
    let _ = wait::for_all(&both, None, None, at);
}

fn for_a_minute(mutant: &Mutant, at: &mut Irql<Passive>) {
    let _ = wait::for_single(mutant, Some(Due::In(60_000 * MILLISECOND)), at);
}

static MUTEX: GuardedMutex<()> = GuardedMutex::new(());
static RESOURCE: Resource = Resource::new();

fn wants_the_resource(at: &mut Irql<Passive>, _: usize) {
    let mut held = MUTEX.lock(at);
    let at = held.parts().1;
    all_hold(2, at);
    RESOURCE.acquire(Access::Shared, at);
}

/// It holds the resource alone.
fn joins_with_the_resource(at: &mut Irql<Passive>, thread: usize) {
    let Some(thread) = NonNull::new(core::ptr::with_exposed_provenance_mut(thread)) else { return };
    RESOURCE.acquire(Access::Exclusive, at);
    all_hold(2, at);
    // SAFETY: the reference that was made a number of.
    let thread = unsafe { ThreadRef::from_raw(thread) };
    let _ = wait::for_single(&thread, None, at);
}

fn wants_the_mutex(at: &mut Irql<Passive>, _: usize) {
    while READY.load(Ordering::Relaxed) < 2 {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    drop(MUTEX.lock(at));
}

fn sleeps_with(mutant: &Mutant, at: &mut Irql<Passive>) {
    let _ = wait::for_single(mutant, None, at);
    all_hold(1, at);
    let _ = delay(Due::In(60_000 * MILLISECOND), at);
}

fn waits_behind(mutant: &Mutant, at: &mut Irql<Passive>) {
    while READY.load(Ordering::Relaxed) < 1 {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    let _ = wait::for_single(mutant, None, at);
}
