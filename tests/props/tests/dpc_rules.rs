//! DPC queues: who is asked for a look when, in which order calls run, and the same with an interrupt inside every step.
//!
//! The reference is the table in kernel/src/ke/dpc.rs's header, with a list for each queue: an insert is due at once or with a
//! tick; a queue of four is due at once; nobody is asked for what is already ahead. The second half runs short scenarios with an
//! ISR at every point of them (`arch::inject`), which inserts, removes and queues again what the scenario is busy with.

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use arch::inject::{Outcome, every_pair, every_point};
use proptest::prelude::*;
use proptest::test_runner::Config;
use sync::deferred::{Entry, Importance, Inserted, Queue, Recipient};
use sync::irql::{Below, Device, Dispatch, DpcQueueLock, Irql};

const CALLS: usize = 10;
const QUEUES: usize = 2;
const CASES: u32 = if cfg!(miri) { 10 } else { 500 };

unsafe extern "win64" fn routine(_: *mut Entry, _: *mut c_void, _: *mut c_void, _: *mut c_void) {}

fn at_dispatch<R>(f: impl for<'a> FnOnce(&'a mut Irql<Dispatch>) -> R) -> R {
    // SAFETY: a test's thread is a processor of its own, at PASSIVE, and has no other token in use.
    unsafe {
        arch::irql::set(2);
        let result = Irql::<Dispatch>::with(f);
        arch::irql::set(0);
        result
    }
}

/// Calls that outlive the queues, by number.
struct Calls(Vec<Entry>);

impl Calls {
    fn new() -> Self {
        Self((0..CALLS).map(|_| Entry::new(Entry::ORDINARY, routine, ptr::null_mut())).collect())
    }

    fn insert<L: Below<DpcQueueLock>>(
        &self,
        queue: &Queue,
        call: usize,
        recipient: Recipient,
        tag: usize,
        at: &mut Irql<L>,
    ) -> Inserted {
        let entry = &self.0[call];
        let arguments = [call, tag].map(ptr::without_provenance_mut);
        // SAFETY: it outlives the queue; nobody calls the routine.
        unsafe { queue.insert(NonNull::from(entry), arguments, entry.importance().urgency(recipient), at) }
    }

    fn remove<L: Below<DpcQueueLock>>(&self, call: usize, at: &mut Irql<L>) -> bool {
        // SAFETY: as above.
        unsafe { Queue::remove(NonNull::from(&self.0[call]), at) }
    }

    fn pass(&self, queue: &Queue, call: usize) -> bool {
        // SAFETY: as above; this thread is the one that takes.
        unsafe { queue.pass(NonNull::from(&self.0[call])) }.is_some()
    }
}

fn take(queue: &Queue, at: &mut Irql<Dispatch>) -> Option<(usize, usize)> {
    queue.take(at).map(|call| (call.arguments[0].addr(), call.arguments[1].addr()))
}

#[derive(Clone, Debug)]
enum Operation {
    Insert {
        queue: usize,
        call: usize,
        importance: Importance,
        recipient: Recipient,
    },
    Remove(usize),
    /// The queue's processor takes one call; none: its look is over.
    Take(usize),
    /// It takes all.
    Look(usize),
    /// What expires finds out whether its call may be made without the queue.
    Pass {
        queue: usize,
        call: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let importance = prop::sample::select(
        &[Importance::Low, Importance::Medium, Importance::MediumHigh, Importance::High][..],
    );
    let recipient = prop::sample::select(&[Recipient::Own, Recipient::Busy, Recipient::Idle][..]);
    prop_oneof![
        8 => (0..QUEUES, 0..CALLS, importance, recipient).prop_map(
            |(queue, call, importance, recipient)| Operation::Insert { queue, call, importance, recipient }
        ),
        2 => (0..CALLS).prop_map(Operation::Remove),
        2 => (0..QUEUES).prop_map(Operation::Take),
        1 => (0..QUEUES).prop_map(Operation::Look),
        2 => (0..QUEUES, 0..CALLS).prop_map(|(queue, call)| Operation::Pass { queue, call }),
    ]
}

/// One queue as the table tells it.
#[derive(Default)]
struct Reference {
    /// Call and tag, in the order in which they run.
    calls: Vec<(usize, usize)>,
    look_is_ahead: bool,
    tick_is_ahead: bool,
}

impl Reference {
    fn insert(&mut self, call: usize, tag: usize, importance: Importance, recipient: Recipient) -> Inserted {
        let position = if importance == Importance::High { 0 } else { self.calls.len() };
        self.calls.insert(position, (call, tag));
        // | importance | for this processor | for another |
        let at_once = match (importance, recipient) {
            (Importance::Low, Recipient::Own) => false,
            (Importance::Medium, Recipient::Own) => true,
            (Importance::Low | Importance::Medium, other) => other == Recipient::Idle,
            (Importance::MediumHigh | Importance::High, _) => true,
        };
        if self.look_is_ahead {
            Inserted::Quietly
        } else if at_once || self.calls.len() >= 4 {
            self.look_is_ahead = true;
            Inserted::Request
        } else if self.tick_is_ahead {
            Inserted::Quietly
        } else {
            self.tick_is_ahead = true;
            Inserted::NeedsTick
        }
    }

    fn take(&mut self) -> Option<(usize, usize)> {
        let taken = (!self.calls.is_empty()).then(|| self.calls.remove(0));
        self.look_is_ahead = taken.is_some();
        self.tick_is_ahead &= taken.is_some();
        taken
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn queues_do_what_the_table_says(operations in prop::collection::vec(operation(), 1..200)) {
        let calls = Calls::new();
        let queues: [Queue; QUEUES] = Default::default();
        let mut reference: [Reference; QUEUES] = Default::default();
        at_dispatch(|at| for (tag, operation) in operations.iter().enumerate() {
            match *operation {
                Operation::Insert { queue, call, importance, recipient } => {
                    let queued = reference.iter().any(|queue| queue.calls.iter().any(|&(other, _)| other == call));
                    let expected = if queued {
                        Inserted::Already
                    } else {
                        calls.0[call].set_importance(importance);
                        reference[queue].insert(call, tag, importance, recipient)
                    };
                    assert_eq!(calls.insert(&queues[queue], call, recipient, tag, at), expected);
                }
                Operation::Remove(call) => {
                    let mut removed = false;
                    for queue in &mut reference {
                        let before = queue.calls.len();
                        queue.calls.retain(|&(other, _)| other != call);
                        removed |= queue.calls.len() != before;
                    }
                    assert_eq!(calls.remove(call, at), removed);
                }
                Operation::Take(queue) => assert_eq!(take(&queues[queue], at), reference[queue].take()),
                Operation::Look(queue) => loop {
                    let expected = reference[queue].take();
                    assert_eq!(take(&queues[queue], at), expected);
                    if expected.is_none() {
                        break;
                    }
                },
                Operation::Pass { queue, call } => {
                    let queued = reference.iter().any(|queue| queue.calls.iter().any(|&(other, _)| other == call));
                    let expected = !queued && reference[queue].calls.is_empty();
                    assert_eq!(calls.pass(&queues[queue], call), expected);
                }
            }
            for (queue, reference) in queues.iter().zip(&reference) {
                let ahead = reference.look_is_ahead || reference.tick_is_ahead;
                assert!(ahead || reference.calls.is_empty(), "calls that nobody will look at");
                assert_eq!(queue.depth() as usize, reference.calls.len());
                assert_eq!(queue.is_pending(), ahead, "whether a look takes");
            }
        });
    }
}

/// One processor: its queue, its vector 0x2F, and a book of what was inserted, run and removed.
struct Processor {
    calls: Calls,
    queue: Queue,
    requested: Cell<bool>,
    inserted: Cell<u32>,
    removed: Cell<u32>,
    ran: RefCell<Vec<(usize, usize)>>,
}

impl Processor {
    fn new() -> Self {
        Self {
            calls: Calls::new(),
            queue: Queue::new(),
            requested: Cell::new(false),
            inserted: Cell::new(0),
            removed: Cell::new(0),
            ran: RefCell::default(),
        }
    }

    fn insert<L: Below<DpcQueueLock>>(&self, call: usize, tag: usize, at: &mut Irql<L>) {
        match self.calls.insert(&self.queue, call, Recipient::Own, tag, at) {
            Inserted::Already => return,
            Inserted::Quietly => {}
            Inserted::Request => self.requested.set(true),
            Inserted::NeedsTick => unreachable!("medium importance"),
        }
        self.inserted.set(self.inserted.get() + 1);
    }

    fn remove<L: Below<DpcQueueLock>>(&self, call: usize, at: &mut Irql<L>) {
        let removed = self.calls.remove(call, at);
        self.removed.set(self.removed.get() + u32::from(removed));
    }

    /// Takes 0x2F if it is pending.
    fn look(&self, at: &mut Irql<Dispatch>) {
        while self.requested.take() {
            if self.queue.is_pending() {
                while let Some(call) = take(&self.queue, at) {
                    self.ran.borrow_mut().push(call);
                }
            }
        }
    }

    /// After it has taken what is pending: as many ended as began, each insert at most once, and nothing is left.
    fn check(&self) {
        at_dispatch(|at| self.look(at));
        let mut ran = self.ran.borrow_mut();
        assert_eq!(ran.len() as u32 + self.removed.get(), self.inserted.get(), "{ran:?}");
        ran.sort_by_key(|&(_, tag)| tag);
        assert!(ran.windows(2).all(|pair| pair[0].1 != pair[1].1), "ran twice: {ran:?}");
        assert!(!self.queue.is_pending());
    }

    /// Work of a processor at DISPATCH: all operations, with the queue in each state.
    fn work(&self) {
        at_dispatch(|at| {
            self.insert(0, 0, at);
            self.insert(1, 1, at);
            self.remove(0, at);
            self.insert(2, 2, at);
            self.look(at);
            self.insert(0, 3, at);
        });
    }

    /// Every point of [`work`](Self::work) with `isr` as an interrupt at device level 5.
    fn interrupted_by(isr: impl Fn(&Self, &mut Irql<Device>)) {
        let handler = |processor: &Self| {
            // SAFETY: the injection runs it at level 5; what it interrupted doesn't go on until it returns.
            unsafe { Irql::<Device>::with(|at| isr(processor, at)) }
        };
        let points = every_point(5, Self::new, Self::work, handler, |subject, _: Outcome| subject.check());
        assert!(points > 30, "only {points} points");
    }
}

#[test]
fn an_isr_that_inserts_at_any_point_loses_nothing() {
    Processor::interrupted_by(|processor, at| {
        processor.insert(3, 10, at);
        processor.insert(4, 11, at);
    });
}

#[test]
fn an_isr_may_queue_again_what_is_being_queued_or_taken() {
    Processor::interrupted_by(|processor, at| (0..3).for_each(|call| processor.insert(call, 10 + call, at)));
}

#[test]
fn an_isr_may_remove_what_is_being_queued_or_taken() {
    Processor::interrupted_by(|processor, at| (0..3).for_each(|call| processor.remove(call, at)));
}

/// An ISR that inserts and removes is itself interrupted by one that does, at every two points.
#[test]
fn isrs_that_interrupt_each_other_lose_and_double_nothing() {
    let isr = |first: usize| {
        move |processor: &Processor| {
            // SAFETY: the injection runs it at a device's level; what it interrupted doesn't go on until it returns.
            unsafe {
                Irql::<Device>::with(|at| {
                    processor.insert(first, 10 + first, at);
                    processor.remove(first - 1, at);
                });
            }
        }
    };
    let (lower, higher) = (isr(2), isr(4));
    let nested = core::cell::Cell::new(0);
    every_pair([5, 7], Processor::new, Processor::work, [&lower, &higher], |processor, outcomes| {
        nested.set(nested.get() + u32::from(outcomes[1] == Outcome::Delivered { interrupted: 5 }));
        processor.check();
    });
    assert!(nested.get() > 0);
}
