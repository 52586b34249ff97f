//! `SpinLock`: exclusion, and that what one holder wrote the next one sees.
//!
//! loom reports every access to the data that is not ordered after the last one, so a lost Acquire or Release fails here as
//! much as two holders at once do.
//! The acquire is the image's `fetch_or`; the release is a swap where the image has a store (`sync/src/word.rs` says why, and
//! that nothing is hidden by it).
//! Bound: two threads with two sections each, any number of idle looks; three with one each, eight idle looks; at most three
//! preemptions.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::SpinLock;
use sync::irql::{Passive, PrcbLock};

type Lock = SpinLock<usize, PrcbLock>;

fn add(lock: &Lock, number: u32, rounds: usize) {
    on_processor::<Passive, _>(number, |at| (0..rounds).for_each(|_| *lock.lock(at) += 1));
}

fn processors_add(others: u32, rounds: usize) {
    let lock = Arc::new(Lock::new(0));
    let threads: Vec<_> = (1..=others)
        .map(|number| {
            let lock = lock.clone();
            thread::spawn(move || add(&lock, number, rounds))
        })
        .collect();
    add(&lock, 0, rounds);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let total = on_processor::<Passive, _>(0, |at| *lock.lock(at));
    assert_eq!(total, (others as usize + 1) * rounds);
}

#[test]
fn two_processors_exclude_each_other_twice() {
    explore(Some(3), || processors_add(1, 2));
}

#[test]
fn three_processors_exclude_each_other() {
    explore_looks(Some(3), 8, || processors_add(2, 1));
}

#[test]
fn try_lock_fails_only_while_held_and_never_admits_two() {
    explore(Some(3), || {
        let lock = Arc::new(Lock::new(0));
        let inside = Arc::new(AtomicUsize::new(0));
        let attempt = |lock: &Lock, inside: &AtomicUsize, number| {
            on_processor::<Passive, _>(number, |at| {
                let Some(mut guard) = lock.try_lock(at) else { return false };
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two holders");
                *guard += 1;
                inside.fetch_sub(1, Ordering::Relaxed);
                true
            })
        };
        let (theirs, flag) = (lock.clone(), inside.clone());
        let other = thread::spawn(move || attempt(&theirs, &flag, 1));
        let mine = attempt(&lock, &inside, 0);
        let theirs = other.join().unwrap();
        assert!(mine || theirs, "the first to try found the lock held by nobody");
        let successes = usize::from(mine) + usize::from(theirs);
        assert_eq!(on_processor::<Passive, _>(0, |at| *lock.lock(at)), successes);
    });
}
