//! Two interrupts at every two points of the locks and protocols, those of the handlers included: an ISR that is itself interrupted,
//! and one that comes when another has just returned.
//!
//! As in injection.rs, a handler that takes a lock first asserts that it is free: a processor that waits for what it has itself
//! interrupted would hang.
//! Bound: two interrupts for each run, of levels 5 and 7, on one processor.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use arch::inject::{Outcome, every_pair, point};
use sync::disconnect::Slot;
use sync::irql::*;
use sync::log_ring::LogRing;
use sync::queued::Node;
use sync::{InterruptLock, QueuedLock, RwSpinLock, SeqLock, SpinLock};

const LEVELS: [u8; 2] = [5, 7];

/// Runs `f` with a token for the level that this processor is at.
fn at<L: Level, R>(f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
    // SAFETY: the scenario is at PASSIVE, and a handler at the level of its interrupt; each uses this token alone, and a
    // handler's is unused when what it interrupted goes on.
    unsafe { Irql::with(f) }
}

/// Runs `scenario` under both interrupts, whose handlers are `handler` with the number of each; `check` is told how many ran. Each
/// scenario must have one handler interrupted by the other.
fn interrupted<S>(
    fresh: impl Fn() -> S,
    scenario: impl Fn(&S, &mut Irql<Passive>),
    handler: impl Fn(&S, usize, &mut Irql<Device>),
    check: impl Fn(&S, u32),
) {
    let nested = Cell::new(0);
    let handlers = [0, 1].map(|number| {
        let handler = &handler;
        move |subject: &S| at(|token| handler(subject, number, token))
    });
    let runs = every_pair(
        LEVELS,
        fresh,
        |subject| at(|token| scenario(subject, token)),
        [&handlers[0], &handlers[1]],
        |subject, outcomes| {
            assert_eq!(arch::irql::current(), 0, "the level that the scenario began at");
            assert!(!outcomes.contains(&Outcome::StillPending), "masked to the end");
            let inside = outcomes[1] == Outcome::Delivered { interrupted: LEVELS[0] };
            nested.set(nested.get() + u32::from(inside));
            let ran = |outcome: &&Outcome| matches!(outcome, Outcome::Delivered { .. });
            check(subject, outcomes.iter().filter(ran).count() as u32);
        },
    );
    assert!(nested.get() > 0, "in none of {runs} runs one handler was interrupted by the other");
}

#[test]
fn spin_lock_of_the_interrupts_section() {
    interrupted::<SpinLock<u32, LogLock>>(
        || SpinLock::new(0),
        |lock, at| *lock.lock(at) += 1,
        |lock, _, at| {
            assert!(!lock.is_locked(), "interrupted its holder");
            *lock.lock(at) += 1;
        },
        |lock, ran| at::<Passive, _>(|at| assert_eq!(*lock.lock(at), 1 + ran)),
    );
}

#[test]
fn queued_lock_of_the_interrupts_section() {
    interrupted::<QueuedLock<u32, LogLock>>(
        || QueuedLock::new(0),
        |lock, at| *lock.lock(pin!(Node::new()), at) += 1,
        |lock, _, at| {
            assert!(!lock.is_locked(), "interrupted its holder");
            *lock.lock(pin!(Node::new()), at) += 1;
        },
        |lock, ran| at::<Passive, _>(|at| assert_eq!(*lock.lock(pin!(Node::new()), at), 1 + ran)),
    );
}

#[test]
fn reader_writer_lock_of_the_interrupts_section() {
    interrupted::<RwSpinLock<u32, LogLock>>(
        || RwSpinLock::new(0),
        |lock, at| {
            let before = *lock.shared(at);
            *lock.exclusive(at) += 1;
            assert!(*lock.shared(at) > before);
        },
        |lock, _, at| {
            assert!(!lock.is_claimed(), "interrupted its writer");
            let before = *lock.shared(at);
            let mut writer = lock.try_exclusive(at).expect("held only at HIGH");
            assert!(*writer >= before);
            *writer += 1;
        },
        |lock, ran| at::<Passive, _>(|at| assert_eq!(*lock.shared(at), 1 + ran)),
    );
}

/// The ISRs of both levels share the lock, which is held at the higher one.
#[test]
fn interrupt_lock_of_two_isrs() {
    interrupted::<InterruptLock<(u32, u32)>>(
        || InterruptLock::new(DeviceLevel::new(7).unwrap(), (0, 0)),
        |lock, at| {
            let mut guard = lock.lock(at);
            guard.0 += 1;
            point();
            guard.1 += 1;
        },
        |lock, _, at| {
            assert!(!lock.is_locked(), "interrupted the holder");
            let mut guard = lock.lock(at);
            assert_eq!(guard.0, guard.1, "half a change");
            guard.0 += 1;
            point();
            guard.1 += 1;
        },
        |lock, ran| at::<Passive, _>(|at| assert_eq!(*lock.lock(at), (1 + ran, 1 + ran))),
    );
}

#[test]
fn sequence_lock_that_both_write() {
    fn count<L: Below<Clock>>(lock: &SeqLock<2, Clock>, at: &mut Irql<L>) {
        lock.write(at, |words| words.iter_mut().for_each(|word| *word += 1));
    }
    interrupted::<SeqLock<2, Clock>>(
        SeqLock::new,
        |lock, at| {
            count(lock, at);
            let [a, b] = lock.read(at);
            assert_eq!(a, b, "half a write");
        },
        |lock, _, at| {
            let [before, _] = lock.read(at);
            count(lock, at);
            let [a, b] = lock.read(at);
            assert!(a == b && a > before, "half a write, or one that is lost");
        },
        |lock, ran| assert_eq!(lock.try_read(), Some([1 + u64::from(ran); 2])),
    );
}

#[test]
fn log_lines_of_all_three_are_written_once() {
    type Log = (LogRing<4, 8>, RefCell<Vec<u8>>);
    let log = |(ring, written): &Log, line: u8| {
        ring.push(&[line]).expect("there is room");
        ring.drain(|line| written.borrow_mut().push(line[0]));
    };
    interrupted::<Log>(
        || (LogRing::new(), RefCell::default()),
        |subject, _| log(subject, 9),
        |subject, number, _| log(subject, number as u8),
        |(_, written), ran| {
            let mut written = written.take();
            written.sort_unstable();
            assert!(written.windows(2).all(|pair| pair[0] != pair[1]), "written twice: {written:?}");
            assert_eq!(written.len(), 1 + ran as usize, "a line is lost, or left behind: {written:?}");
        },
    );
}

/// One object in the slot of a vector of each level: neither ISR is inside once the withdraw has returned, interrupted or not.
#[test]
fn isrs_of_one_object_leave_before_it_goes() {
    #[derive(Default)]
    struct Subject {
        slots: [Slot<AtomicU32>; 2],
        /// 1: connected.
        object: AtomicU32,
    }
    interrupted::<Subject>(
        Subject::default,
        |Subject { slots, object }, at| {
            object.store(1, Ordering::Relaxed);
            for slot in slots {
                // SAFETY: the subject outlives the scenario, which withdraws it, and is shared only.
                assert!(unsafe { slot.publish(NonNull::from(object), at) });
            }
            for slot in slots {
                assert_eq!(slot.withdraw(at), Some(NonNull::from(object)));
            }
            object.store(0, Ordering::Relaxed);
            drop(at.raise::<Apc>());
        },
        |Subject { slots, .. }, number, at| {
            if let Some(object) = slots[number].enter(at) {
                assert_eq!(object.load(Ordering::Relaxed), 1, "inside an object that is gone");
                point();
                assert_eq!(object.load(Ordering::Relaxed), 1, "gone while inside");
            }
        },
        |Subject { slots, .. }, _| assert!(slots.iter().all(|slot| !slot.is_connected())),
    );
}
