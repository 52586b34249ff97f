//! Waits, as shipped, against what ends them, at every point of both: on another processor, and by an interrupt of their own.
//!
//! Two processors: one thread runs up to a point of its code (an atomic operation of `sync`, a change of the level), then the other up to
//! one of its own, then the first to its end, then what is left; so does the other first. Each pair of points is tried. Who spins lets
//! the other go on. That is two preemptions, of sequentially consistent executions: what order of memory would add is the models'.
//! One processor: an interrupt, whose DISPATCH work is the other's part, at each point below DISPATCH.
//!
//! A wait that has returned frees the object that ended it, by writing over it: whoever touches it later is found by what it leaves there.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::inject::{Outcome, run_at};
use kernel::ke::apc::{self, ProcessorMode, alert};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::hosted::{Machine, Stage, at_dispatch};
use kernel::ke::mutant::Mutant;
use kernel::ke::queue::{End, Queue, QueueEntry};
use kernel::ke::semaphore::Semaphore;
use kernel::ke::thread;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, Alertable, Waitable};
use kernel::rtl::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};

const TICK: u64 = 256;
const FREED: [u8; 8] = [0x55; 8];
/// The waiter, and who ends its wait.
const WAITER: usize = 0;
const OTHER: usize = 1;

/// What a run is about: new for each. It lives for ever, as whoever was left waiting may still lead to it.
struct Scene {
    machine: &'static Machine,
    events: [*mut Event; 2],
    mutants: [Mutant; 2],
    semaphore: Semaphore,
    queue: Queue,
    entry: QueueEntry,
    /// Bit n: event n was freed.
    freed: AtomicU64,
}

// SAFETY: events are reached by shared references, but for the freeing, of which the test checks that it comes after all of them.
unsafe impl Sync for Scene {}
// SAFETY: as above.
unsafe impl Send for Scene {}

impl Scene {
    fn new(machine: &'static Machine) -> &'static Self {
        let event = || Box::into_raw(Box::new(Event::new(EventKind::Synchronization, false)));
        Box::leak(Box::new(Self {
            machine,
            events: [event(), event()],
            // SAFETY: leaked, so they stay.
            mutants: [const { unsafe { Mutant::new() } }; 2],
            semaphore: Semaphore::new(0, 2),
            queue: Queue::new(1),
            entry: QueueEntry::new(),
            freed: AtomicU64::new(0),
        }))
    }

    fn event(&self, number: usize) -> &Event {
        // SAFETY: never given back to the host.
        unsafe { &*self.events[number] }
    }

    /// The event's owner, for whom a wait for it has returned, has no more use for it.
    fn free(&self, number: usize) {
        // SAFETY: a lock that is free, and no list: as harmless as can be to whoever still is at it, which the test finds.
        unsafe {
            ptr::write_bytes(self.events[number].cast::<u8>(), 0, size_of::<Event>());
            self.events[number].cast::<[u8; 8]>().write(FREED);
        }
        self.freed.fetch_or(1 << number, Ordering::Relaxed);
    }

    fn was_freed(&self, number: usize) -> bool {
        self.freed.load(Ordering::Relaxed) & 1 << number != 0
    }

    /// Nobody has touched what was freed; the states of the others: signalled or not.
    fn left(&self) -> [Option<bool>; 2] {
        [0, 1].map(|number| {
            if self.was_freed(number) {
                // SAFETY: as above; everybody stands.
                let found = unsafe { self.events[number].cast::<[u8; 8]>().read() };
                assert_eq!(found, FREED, "an object is touched after the wait has returned");
                return None;
            }
            Some(self.event(number).is_signalled())
        })
    }
}

/// A part of a scene.
type Part = fn(&'static Scene, &mut Irql<Passive>) -> i64;

/// What a scene has come to: the waiter has returned with this.
type Judge = fn(&'static Scene, i64);

struct Script {
    /// What the other does before.
    before: Option<Part>,
    waiter: Part,
    other: Part,
    /// The threads of a machine are used again.
    again: bool,
    judge: Judge,
}

fn machine() -> &'static Machine {
    let machine = Machine::new();
    machine.spawn();
    machine.spawn();
    machine
}

/// Runs `script` with the baton passed on at point `points[n]` of thread n, `first` first. Did they come to their points?
fn run(script: &'static Script, machine: &mut &'static Machine, first: usize, points: [u32; 2]) -> [bool; 2] {
    let scene = Scene::new(machine);
    if let Some(before) = script.before {
        machine.tell(OTHER, move |at| before(scene, at));
    }
    let reached = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    for (number, part) in [(WAITER, script.waiter), (OTHER, script.other)] {
        let reached = reached[number].clone();
        scene.machine.prepare(number, move |at| {
            let mut said = 0;
            let outcome = run_at(points[number], 15, &|| scene.machine.switch_to(1 - number), || {
                said = part(scene, at)
            });
            reached.store(outcome != Outcome::NotReached, Ordering::Relaxed);
            said
        });
    }
    machine.run_thread(first);
    machine.run_all();
    let what = format!("thread {first} first, points {points:?}");
    judge(script, scene, machine, &what);
    reached.map(|it| it.load(Ordering::Relaxed))
}

fn judge(script: &Script, scene: &'static Scene, machine: &mut &'static Machine, what: &str) {
    let Stage::Done(said) = machine.stage(WAITER) else { panic!("{what}: the wait goes on") };
    assert!(matches!(machine.stage(OTHER), Stage::Done(_)), "{what}: the other waits");
    (script.judge)(scene, said);
    let _ = scene.left();
    machine.take_woken();
    if !script.again {
        machine.take_apart();
        *machine = self::machine();
    }
}

/// At all pairs of points.
fn every_schedule(script: &'static Script) {
    let mut machine = machine();
    let mut runs = 0;
    for first in [WAITER, OTHER] {
        let second = 1 - first;
        for outer in 0.. {
            let mut reached = [false; 2];
            for inner in 0.. {
                let mut points = [0; 2];
                (points[first], points[second]) = (outer, inner);
                reached = run(script, &mut machine, first, points);
                runs += 1;
                // Without a point of the first there is one order only, and that of the second makes no difference.
                if !reached[first] || !reached[second] {
                    break;
                }
            }
            if !reached[first] {
                break;
            }
        }
    }
    machine.take_apart();
    assert!(runs > 50, "{runs} runs");
}

/// By an interrupt of the waiter's processor at each of its points.
fn every_interrupt(waiter: Part, interrupt: fn(&'static Scene, &mut Irql<Dispatch>), judge: Judge) {
    let script = Script { before: None, waiter, other: |_, _| 0, again: true, judge };
    let mut machine = machine();
    for point in 0.. {
        let scene = Scene::new(machine);
        let [came, reached] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        // Masked when the thread switches away, it is for whoever runs next on the processor.
        let once = {
            let came = came.clone();
            move |at: &mut Irql<Dispatch>| {
                if !came.swap(true, Ordering::Relaxed) {
                    interrupt(scene, at);
                }
            }
        };
        let (handler, arrived) = (once.clone(), reached.clone());
        machine.tell(WAITER, move |at| {
            let mut said = 0;
            // SAFETY: the interrupted code is below DISPATCH, where this thread is now; its token isn't used meanwhile.
            let handler = || unsafe { Irql::<Dispatch>::lend(|at| handler(at)) };
            let outcome = run_at(point, 2, &handler, || said = waiter(scene, at));
            arrived.store(outcome != Outcome::NotReached, Ordering::Relaxed);
            said
        });
        if machine.stage(WAITER) == Stage::Waiting {
            at_dispatch(once);
        }
        machine.run_all();
        // One that comes after the last point has nothing to interrupt; the wait was ended all the same, unless it had not to wait.
        self::judge(&script, scene, &mut machine, &format!("interrupted at point {point}"));
        if !reached.load(Ordering::Relaxed) {
            assert!(point > 4, "{point} points");
            break;
        }
    }
    machine.take_apart();
}

fn said(status: NtStatus) -> i64 {
    status.0.into()
}

const TIMEOUT: i64 = NtStatus::TIMEOUT.0 as i64;
const ALERTED: i64 = NtStatus::ALERTED.0 as i64;
const ABANDONED: i64 = NtStatus::ABANDONED_WAIT_0.0 as i64;

fn set_both(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
    scene.event(0).set(0, at);
    scene.event(1).set(0, at);
    0
}

fn for_any(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
    let status = wait::for_any(&[scene.event(0), scene.event(1)], None, None, at);
    scene.free(status.0 as usize);
    said(status)
}

fn judge_any(scene: &'static Scene, said: i64) {
    let mut expected = [Some(true); 2];
    expected[said as usize] = None;
    assert_eq!(scene.left(), expected, "the other signal is lost, or taken as well");
}

#[test]
fn any_against_two_signals() {
    static SCRIPT: Script =
        Script { before: None, waiter: for_any, other: set_both, again: true, judge: judge_any };
    every_schedule(&SCRIPT);
}

#[test]
fn any_with_a_timeout_against_a_signal_and_the_time() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let objects: [&dyn Waitable; 2] = [scene.event(0), scene.event(1)];
        let status = wait::for_any(&objects, None, Some(Due::In(TICK)), at);
        if status == NtStatus(1) {
            scene.free(1);
        }
        said(status)
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.machine.advance_here(2 * TICK, &mut at.raise::<Dispatch>());
        scene.event(1).set(0, at);
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        match said {
            1 => assert_eq!(scene.left(), [Some(false), None]),
            TIMEOUT => assert_eq!(scene.left(), [Some(false), Some(true)], "a loser takes the signal"),
            _ => panic!("it returned {said:#x}"),
        }
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: true, judge };
    every_schedule(&SCRIPT);
}

fn for_all(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
    let status = wait::for_all(&[scene.event(0), scene.event(1)], None, None, at);
    // Who signalled the first has been and gone only if it has signalled the second, which it has.
    scene.free(0);
    said(status)
}

fn judge_all(scene: &'static Scene, said: i64) {
    assert_eq!((said, scene.left()), (0, [None, Some(false)]), "not all was taken");
}

#[test]
fn all_against_two_signals() {
    static SCRIPT: Script =
        Script { before: None, waiter: for_all, other: set_both, again: true, judge: judge_all };
    every_schedule(&SCRIPT);
}

#[test]
fn all_with_a_timeout_against_signals_and_the_time() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let objects: [&dyn Waitable; 2] = [scene.event(0), scene.event(1)];
        said(wait::for_all(&objects, None, Some(Due::In(TICK)), at))
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.event(1).set(0, at);
        scene.machine.advance_here(2 * TICK, &mut at.raise::<Dispatch>());
        scene.event(0).set(0, at);
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        match said {
            0 => assert_eq!(scene.left(), [Some(false); 2]),
            TIMEOUT => assert_eq!(scene.left(), [Some(true); 2], "a loser takes a signal"),
            _ => panic!("it returned {said:#x}"),
        }
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: true, judge };
    every_schedule(&SCRIPT);
}

fn hold_both(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
    scene.mutants.iter().map(|it| said(wait::for_single(it, None, at))).sum()
}

fn release_both(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
    scene.mutants.iter().for_each(|it| assert!(it.release(0, at).is_ok(), "not its own any more"));
    0
}

fn judge_mutants(scene: &'static Scene, _: i64) {
    assert_eq!(scene.mutants.each_ref().map(Mutant::state), [1, 1], "a mutant is held");
    assert!([WAITER, OTHER].iter().all(|&it| !scene.machine.thread(it).holds_mutants()));
}

#[test]
fn any_of_two_mutants_against_their_releases() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let status = wait::for_any(&[&scene.mutants[0], &scene.mutants[1]], None, None, at);
        assert!(scene.mutants[status.0 as usize].release(0, at).is_ok(), "it was given to another");
        said(status)
    }
    static SCRIPT: Script =
        Script { before: Some(hold_both), waiter, other: release_both, again: true, judge: judge_mutants };
    every_schedule(&SCRIPT);
}

#[test]
fn all_of_two_mutants_against_their_releases() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let status = wait::for_all(&[&scene.mutants[0], &scene.mutants[1]], None, None, at);
        release_both(scene, at);
        said(status)
    }
    static SCRIPT: Script =
        Script { before: Some(hold_both), waiter, other: release_both, again: true, judge: judge_mutants };
    every_schedule(&SCRIPT);
}

#[test]
fn two_mutants_and_a_thread_against_its_end() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let other = scene.machine.thread(OTHER);
        let objects: [&dyn Waitable; 3] = [&scene.mutants[1], &scene.mutants[0], other];
        let status = wait::for_all(&objects, None, None, at);
        release_both(scene, at);
        said(status)
    }
    fn other(_: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        thread::end(at);
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        assert_eq!(said, ABANDONED);
        judge_mutants(scene, said);
    }
    static SCRIPT: Script = Script { before: Some(hold_both), waiter, other, again: false, judge };
    every_schedule(&SCRIPT);
}

#[test]
fn one_against_a_signal_and_an_alert() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let alertable = Alertable::Yes(ProcessorMode::Kernel);
        let status = wait::for_single_alertable(scene.event(0), alertable, None, at);
        let left = alert::test_alert(ProcessorMode::Kernel, at);
        assert!(status != NtStatus::ALERTED || !left, "felt twice");
        said(status)
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        alert::alert(scene.machine.thread(WAITER), ProcessorMode::Kernel, at);
        scene.event(0).set(0, at);
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        let signalled = scene.event(0).is_signalled();
        assert!(said == 0 && !signalled || said == ALERTED && signalled, "{said:#x}, {signalled}");
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: false, judge };
    every_schedule(&SCRIPT);
}

#[test]
fn any_against_an_apc_and_a_signal() {
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        apc::interrupt(scene.machine.thread(WAITER), at);
        set_both(scene, at)
    }
    static SCRIPT: Script = Script { before: None, waiter: for_any, other, again: false, judge: judge_any };
    every_schedule(&SCRIPT);
}

#[test]
fn all_against_an_apc_between_the_signals() {
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.event(0).set(0, at);
        apc::interrupt(scene.machine.thread(WAITER), at);
        scene.event(1).set(0, at);
        0
    }
    static SCRIPT: Script = Script { before: None, waiter: for_all, other, again: false, judge: judge_all };
    every_schedule(&SCRIPT);
}

#[test]
fn a_semaphore_twice_against_two_releases() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        said(wait::for_single(&scene.semaphore, None, at))
            + said(wait::for_single(&scene.semaphore, None, at))
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        (0..2).for_each(|_| assert!(scene.semaphore.release(0, 1, at).is_ok()));
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        assert_eq!((said, scene.semaphore.count()), (0, 0));
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: true, judge };
    every_schedule(&SCRIPT);
}

#[test]
fn a_queue_with_a_timeout_against_an_entry_and_the_time() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.queue.remove(Some(Due::In(TICK)), Alertable::No, at).map_or_else(said, |_| 0)
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.queue.insert(&scene.entry, End::Tail, at);
        scene.machine.advance_here(2 * TICK, &mut at.raise::<Dispatch>());
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        let expected = match said {
            0 => 0,
            TIMEOUT => 1,
            _ => panic!("it returned {said:#x}"),
        };
        assert_eq!((scene.queue.len(), scene.queue.running()), (expected, 1), "{said:#x}");
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: false, judge };
    every_schedule(&SCRIPT);
}

/// Offered to a wait that may be over by then, it is taken by that or stays.
#[test]
fn a_queue_with_a_timeout_against_the_time_and_an_entry() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.queue.remove(Some(Due::In(TICK)), Alertable::No, at).map_or_else(said, |_| 0)
    }
    fn other(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        scene.machine.advance_here(2 * TICK, &mut at.raise::<Dispatch>());
        scene.queue.insert(&scene.entry, End::Tail, at);
        0
    }
    fn judge(scene: &'static Scene, said: i64) {
        let expected = match said {
            0 => 0,
            TIMEOUT => 1,
            _ => panic!("it returned {said:#x}"),
        };
        assert_eq!((scene.queue.len(), scene.queue.running()), (expected, 1), "the entry and who runs");
    }
    static SCRIPT: Script = Script { before: None, waiter, other, again: false, judge };
    every_schedule(&SCRIPT);
}

#[test]
fn interrupts_that_signal() {
    fn interrupt(scene: &'static Scene, at: &mut Irql<Dispatch>) {
        scene.event(0).set(0, at);
        scene.event(1).set(0, at);
    }
    every_interrupt(for_any, interrupt, judge_any);
    every_interrupt(for_all, interrupt, judge_all);
}

#[test]
fn interrupts_that_end_the_time_or_signal_before() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        said(wait::for_all(&[scene.event(0), scene.event(1)], None, Some(Due::In(TICK)), at))
    }
    fn judge(scene: &'static Scene, said: i64) {
        let taken = said == 0 && scene.left() == [Some(false); 2];
        assert!(taken || said == TIMEOUT && scene.left() == [Some(true); 2], "{said:#x}, {:?}", scene.left());
    }
    every_interrupt(
        waiter,
        |scene, at| {
            scene.event(0).set(0, at);
            scene.machine.advance_here(2 * TICK, at);
            scene.event(1).set(0, at);
        },
        judge,
    );
}

#[test]
fn interrupts_of_waits_and_releases_in_a_row() {
    fn waiter(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let mut status = said(wait::for_single(&scene.mutants[0], None, at));
        status += said(wait::for_single(scene.event(0), None, at));
        assert!(scene.mutants[0].release(0, at).is_ok());
        scene.event(1).set(0, at);
        status
    }
    fn judge(scene: &'static Scene, said: i64) {
        assert_eq!((said, scene.left()), (0, [Some(false), Some(true)]));
        judge_mutants(scene, said);
    }
    every_interrupt(
        waiter,
        |scene, at| {
            scene.event(0).set(0, at);
        },
        judge,
    );
}

#[test]
fn interrupts_with_an_apc_and_a_signal() {
    every_interrupt(
        for_any,
        |scene, at| {
            apc::interrupt(scene.machine.thread(WAITER), at);
            scene.event(0).set(0, at);
            scene.event(1).set(0, at);
        },
        judge_any,
    );
}

/// A thread ends, with what it holds, while its processor is interrupted: who waits for all of that and for its end, no longer than until the
/// interrupt's work says that it is late, has all or nothing.
#[test]
fn interrupts_of_an_exit() {
    fn joins(scene: &'static Scene, at: &mut Irql<Passive>) -> i64 {
        let ends = scene.machine.thread(WAITER);
        let objects: [&dyn Waitable; 3] = [&scene.mutants[1], &scene.mutants[0], ends];
        let status = wait::for_all(&objects, None, Some(Due::In(TICK)), at);
        if status != NtStatus::TIMEOUT {
            release_both(scene, at);
        }
        said(status)
    }
    let mut results = Vec::new();
    for point in 0.. {
        let machine = machine();
        let scene = Scene::new(machine);
        machine.tell(WAITER, |at| hold_both(scene, at));
        assert_eq!(machine.tell(OTHER, |at| joins(scene, at)), Stage::Waiting);
        let [came, reached] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let once = {
            let came = came.clone();
            move |at: &mut Irql<Dispatch>| {
                if !came.swap(true, Ordering::Relaxed) {
                    scene.machine.advance_here(2 * TICK, at);
                }
            }
        };
        let (handler, arrived) = (once.clone(), reached.clone());
        machine.tell(WAITER, move |at| {
            // SAFETY: the interrupted code is below DISPATCH, where this thread is now; its token isn't used meanwhile.
            let handler = || unsafe { Irql::<Dispatch>::lend(|at| handler(at)) };
            let outcome = run_at(point, 2, &handler, || thread::end(at));
            arrived.store(outcome != Outcome::NotReached, Ordering::Relaxed);
            0
        });
        // For whoever runs next on the processor that the thread has left.
        at_dispatch(once);
        machine.run_all();
        let Stage::Done(said) = machine.stage(OTHER) else { panic!("point {point}: who joins still waits") };
        assert!(said == ABANDONED || said == TIMEOUT, "point {point}: {said:#x}");
        assert!(machine.thread(WAITER).header().is_signalled(), "point {point}: it ended, and says nothing");
        judge_mutants(scene, said);
        results.push(said);
        machine.take_apart();
        if !reached.load(Ordering::Relaxed) {
            break;
        }
    }
    assert!(results.len() > 4 && [ABANDONED, TIMEOUT].iter().all(|it| results.contains(it)), "{results:x?}");
}
