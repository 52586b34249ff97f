//! The scheduler, as shipped, interrupted at every point of its switches: waits, signals, yields, ends of quanta and of threads, changes of
//! priority and affinity, and the way into idleness; and another processor's part at each point of one's own, and at each pair of points of
//! both (`kernel::ke::hosted::processors`).
//!
//! A scene is played again and again, what is planned one point later each time, until it ends before that. A point is each call of
//! `arch` and each atomic operation of `sync`; between them a processor's other accesses are as one. After each: nobody is left ready or
//! standby beside halted processors, every thread has run to its end once, and at no point was a look forgotten (`processors`, M2) or a
//! thread on two processors or in two places (sched/verify.rs, in the checked build).

use std::sync::{Mutex, OnceLock};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::hosted::processors::{Act, Plan, Processors};
use kernel::ke::hosted::thread::Thread;
use kernel::ke::{sched, wait};
use sync::irql::{Dispatch, Irql, Passive};

const ONE: u64 = 1;
const OTHER: u64 = 2;
/// How far apart the second points of pairs are.
const APART: u32 = 11;

/// What a scene is played with: new for each.
struct Props {
    events: [Event; 3],
    /// Whom a scene is about, for itself.
    main: OnceLock<&'static Thread>,
    ran: Mutex<Vec<&'static str>>,
}

impl Props {
    fn new() -> &'static Self {
        let event = || Event::new(EventKind::Synchronization, false);
        Box::leak(Box::new(Self {
            events: [event(), event(), event()],
            main: OnceLock::new(),
            ran: Mutex::new(Vec::new()),
        }))
    }

    fn note(&self, who: &'static str) {
        self.ran.lock().unwrap().push(who);
    }

    fn wait(&'static self, number: usize, at: &mut Irql<Passive>) {
        let _ = wait::for_single(&self.events[number], None, at);
    }

    fn set(&'static self, number: usize, at: &mut Irql<Passive>) {
        self.events[number].set(1, at);
    }
}

type Play = fn(&'static Processors, &'static Props);
type Happens = fn(&'static Processors, &'static Props) -> Act;

/// A thread that waits for an event and notes that it has run.
fn waiter(
    p: &'static Processors,
    props: &'static Props,
    name: &'static str,
    priority: u8,
    affinity: u64,
    event: usize,
) -> &'static Thread {
    p.thread(name, priority, affinity, move |at| {
        props.wait(event, at);
        props.note(name);
    })
}

/// Starts them on processor `number`, which is then at rest.
fn start(p: &'static Processors, number: u32, threads: impl IntoIterator<Item = &'static Thread>) {
    ready(p, number, threads);
    p.run();
}

fn ready(p: &'static Processors, number: u32, threads: impl IntoIterator<Item = &'static Thread>) {
    let threads: Vec<_> = threads.into_iter().collect();
    p.interrupt(number, move |at| threads.iter().for_each(|thread| p.start(thread, at)));
}

/// Plays it with what `plans` are, and then whatever is left over; were all plans' points reached?
fn played(
    processors: u32,
    play: Play,
    plans: impl Fn(&'static Processors, &'static Props) -> Vec<Plan>,
) -> bool {
    Processors::with(processors, |p| {
        let props = Props::new();
        // High as can be, and woken by what happens, if anybody.
        start(p, 0, [waiter(p, props, "urgent", 20, ONE, 2)]);
        p.plan(plans(p, props));
        play(p, props);
        p.run();
        p.assert_at_rest();
        let reached = p.left_over() == 0;
        p.plan(Vec::new());
        p.interrupt(0, |at: &mut Irql<Dispatch>| {
            props.events.iter().for_each(|it| {
                let _ = it.set(0, at);
            });
        });
        p.run();
        p.assert_at_rest();
        let mut ran = props.ran.lock().unwrap().clone();
        let count = ran.len();
        ran.sort_unstable();
        ran.dedup();
        assert!(
            ran.len() == count && ran.contains(&"urgent") && count > 1,
            "who ran, and how often: {ran:?}"
        );
        reached
    })
}

/// What happens to processor `on` at each of its points.
fn every_point(processors: u32, on: u32, play: Play, happens: Happens) {
    for after in 0.. {
        let plans = |p, props| vec![Plan { processor: on, after, act: happens(p, props) }];
        if !played(processors, play, plans) {
            assert!(after > 10, "{after} points");
            return;
        }
    }
}

/// Turns of the other processor at each point of processor 0, and back at each [`APART`]th of its own, so that of any so many neighbours all are.
fn every_pair(play: Play) {
    for outer in 0.. {
        let mut reached = false;
        for inner in (outer % APART..).step_by(APART as usize) {
            let plans = |_, _| {
                vec![
                    Plan { processor: 0, after: outer, act: Act::TurnOf(1) },
                    Plan { processor: 1, after: inner, act: Act::TurnOf(0) },
                ]
            };
            if !played(2, play, plans) {
                break;
            }
            reached = true;
        }
        if !reached {
            assert!(outer > 10, "{outer} points");
            return;
        }
    }
}

/// A DPC wakes somebody who is above all others.
fn urgent(_: &'static Processors, props: &'static Props) -> Act {
    Act::Dpc(Box::new(|at| {
        props.events[2].set(1, at);
    }))
}

/// A DPC ends the wait that the scene is about, and wakes that one.
fn both(_: &'static Processors, props: &'static Props) -> Act {
    Act::Dpc(Box::new(|at| {
        props.events[0].set(1, at);
        props.events[2].set(1, at);
    }))
}

fn clock(_: &'static Processors, _: &'static Props) -> Act {
    Act::Clock
}

fn turn_of_the_other(_: &'static Processors, _: &'static Props) -> Act {
    Act::TurnOf(1)
}

fn waits(p: &'static Processors, props: &'static Props) {
    let low = p.thread("low", 8, ONE, |at| {
        p.begin();
        props.wait(0, at);
        props.note("low");
    });
    ready(p, 0, [low]);
}

#[test]
fn a_wait_and_what_ends_it() {
    every_point(1, 0, waits, both);
    every_point(1, 0, waits, urgent);
}

fn yields(p: &'static Processors, props: &'static Props) {
    let equal = |name| {
        p.thread(name, 8, ONE, move |at| {
            p.begin();
            for _ in 0..2 {
                let _ = sched::yield_now(at);
            }
            props.note(name);
        })
    };
    ready(p, 0, [equal("first"), equal("second")]);
}

#[test]
fn equals_that_yield() {
    every_point(1, 0, yields, urgent);
    every_point(1, 0, yields, clock);
}

fn signals(p: &'static Processors, props: &'static Props) {
    start(p, 0, [waiter(p, props, "middle", 10, ONE, 0)]);
    let low = p.thread("low", 8, ONE, |at| {
        p.begin();
        props.set(0, at);
        props.note("low");
    });
    ready(p, 0, [low]);
}

#[test]
fn a_signal_to_a_higher_thread() {
    every_point(1, 0, signals, urgent);
    every_point(1, 0, signals, clock);
}

fn ends(p: &'static Processors, props: &'static Props) {
    let dies = p.thread("dies", 8, ONE, |_| {
        p.begin();
        props.note("dies");
    });
    let joins = p.thread("joins", 9, ONE, |at| {
        let _ = wait::for_single(dies, None, at);
        props.note("joins");
        assert!(!sched::yield_now(at), "somebody was left");
    });
    ready(p, 0, [joins]);
    ready(p, 0, [dies]);
}

#[test]
fn an_end_that_is_waited_for() {
    every_point(1, 0, ends, urgent);
    every_point(1, 0, ends, clock);
}

fn lowers(p: &'static Processors, props: &'static Props) {
    let proud = p.thread("proud", 10, ONE, |at| {
        p.begin();
        sched::set_base_priority(props.main.get().unwrap(), 4, at).unwrap();
        props.note("proud");
    });
    let middle = p.thread("middle", 6, ONE, |_| props.note("middle"));
    let _ = props.main.set(proud);
    ready(p, 0, [proud, middle]);
}

#[test]
fn a_priority_that_is_lowered_below_one_that_waits() {
    every_point(1, 0, lowers, urgent);
    every_point(1, 0, lowers, clock);
}

/// Leaves for the other processor, where somebody runs, lower.
fn moves(p: &'static Processors, props: &'static Props) {
    let goes = p.thread("goes", 10, ONE | OTHER, |at| {
        p.begin();
        sched::set_affinity(props.main.get().unwrap(), OTHER, at).unwrap();
        assert_eq!(arch::pcr::number(), 1, "it runs outside of its affinity");
        props.note("goes");
    });
    let stays = p.thread("stays", 8, OTHER, |at| {
        for _ in 0..2 {
            let _ = sched::yield_now(at);
        }
        props.note("stays");
    });
    let next = p.thread("next", 6, ONE | OTHER, |_| props.note("next"));
    let _ = props.main.set(goes);
    ready(p, 0, [goes, next]);
    ready(p, 1, [stays]);
}

#[test]
fn a_thread_that_leaves_its_processor() {
    every_point(2, 0, moves, urgent);
    every_point(2, 0, moves, turn_of_the_other);
}

/// Both processors change one thread's priority. The later is told what the earlier has set.
fn change_one(p: &'static Processors, props: &'static Props) {
    const FIRST: u8 = 9;
    let changed = waiter(p, props, "changed", FIRST, ONE, 1);
    start(p, 0, [changed]);
    let changes: &'static Mutex<Vec<(u8, u8)>> = Box::leak(Box::default());
    let by = |name, processor, to| {
        p.thread(name, 10, processor, move |at| {
            if processor == ONE {
                p.begin();
            }
            let before = sched::set_base_priority(changed, to, at).unwrap();
            let mut changes = changes.lock().unwrap();
            changes.push((before, to));
            if let [one, other] = changes[..] {
                let is_order = |first: (u8, u8), second: (u8, u8)| first.0 == FIRST && second.0 == first.1;
                assert!(is_order(one, other) || is_order(other, one), "what was before: {one:?}, {other:?}");
            }
            props.note(name);
        })
    };
    ready(p, 0, [by("one", ONE, 5)]);
    ready(p, 1, [by("other", OTHER, 7)]);
}

#[test]
fn what_two_changes_replace() {
    every_point(2, 0, change_one, turn_of_the_other);
}

/// One processor goes idle as the other wakes a thread that may run on the first alone.
fn goes_idle(p: &'static Processors, props: &'static Props) {
    let sleeps = p.thread("sleeps", 8, ONE, |at| {
        p.begin();
        props.wait(0, at);
        props.note("sleeps");
    });
    let wakes = p.thread("wakes", 8, OTHER, |at| {
        props.set(0, at);
        props.note("wakes");
    });
    ready(p, 0, [sleeps]);
    ready(p, 1, [wakes]);
}

#[test]
fn idleness_against_a_remote_signal() {
    every_point(2, 0, goes_idle, turn_of_the_other);
    every_point(2, 0, goes_idle, urgent);
    every_pair(goes_idle);
}

/// One processor switches to a lower thread as the other ends the wait that it switches away from.
fn gives_way(p: &'static Processors, props: &'static Props) {
    goes_idle(p, props);
    ready(
        p,
        0,
        [p.thread("lower", 4, ONE, |at| {
            let _ = sched::yield_now(at);
            props.note("lower");
        })],
    );
}

#[test]
fn a_wait_that_ends_before_its_thread_has_left() {
    every_point(2, 0, gives_way, turn_of_the_other);
    every_point(2, 0, gives_way, urgent);
}

/// Signals at DISPATCH, where nobody runs at once.
fn signals_raised(p: &'static Processors, props: &'static Props) {
    start(p, 0, [waiter(p, props, "middle", 10, ONE, 0), waiter(p, props, "equal", 8, ONE, 1)]);
    let low = p.thread("low", 8, ONE, |at| {
        p.begin();
        {
            let mut at = at.raise::<Dispatch>();
            props.events[1].set(0, &mut at);
            props.events[0].set(0, &mut at);
        }
        props.note("low");
    });
    ready(p, 0, [low]);
}

#[test]
fn signals_that_leave_a_look() {
    every_point(1, 0, signals_raised, urgent);
    every_point(1, 0, signals_raised, clock);
}

/// One processor goes idle as the other queues a thread that may run on both, and goes on.
fn takes(p: &'static Processors, props: &'static Props) {
    start(p, 0, [waiter(p, props, "either", 8, ONE | OTHER, 0)]);
    let ends = p.thread("ends", 8, ONE, |_| {
        p.begin();
        props.note("ends");
    });
    let queues = p.thread("queues", 9, OTHER, |at| {
        props.set(0, at);
        let _ = sched::yield_now(at);
        props.note("queues");
    });
    ready(p, 0, [ends]);
    ready(p, 1, [queues]);
}

#[test]
fn idleness_against_a_thread_that_is_queued_elsewhere() {
    every_point(2, 0, takes, turn_of_the_other);
    every_point(2, 0, takes, urgent);
    every_pair(takes);
}

/// A thread is made ready for a processor as that is about to switch to another: of the two standby threads one goes back.
fn displaced(p: &'static Processors, props: &'static Props) {
    start(p, 0, [waiter(p, props, "middle", 10, ONE, 0), waiter(p, props, "high", 12, ONE, 1)]);
    let low = p.thread("low", 8, ONE, |at| {
        p.begin();
        let _ = sched::yield_now(at);
        props.note("low");
    });
    let wakes = p.thread("wakes", 8, OTHER, |at| {
        props.set(0, at);
        props.set(1, at);
        props.note("wakes");
    });
    ready(p, 0, [low]);
    ready(p, 1, [wakes]);
}

#[test]
fn two_remote_signals_against_a_switch() {
    every_point(2, 0, displaced, turn_of_the_other);
    every_point(2, 0, displaced, urgent);
}
