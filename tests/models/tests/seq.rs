//! `SeqLock`: no reader sees half a write, none goes back in time, and a write publishes what its writer did before.
//!
//! The writer is the model's first thread, the readers come after it: the other way round loom would miss their races
//! (tests/models/src/lib.rs).
//! Bound: one writer with two writes and one reader with two reads; two writers and a reader with one each, eight idle looks;
//! at most three preemptions with two threads, two with three.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::SeqLock;
use sync::irql::{Clock, Passive};

type Lock = SeqLock<2, Clock>;

/// Counts both words up, from what the write before left.
fn write(lock: &Lock, number: u32) {
    on_processor::<Passive, _>(number, |at| {
        lock.write(at, |words| {
            assert_eq!(words[0], words[1], "a writer found half a write");
            words.iter_mut().for_each(|word| *word += 1);
        });
    });
}

/// What a snapshot counted to.
fn whole([a, b]: [u64; 2]) -> u64 {
    assert_eq!(a, b, "half a write");
    a
}

#[test]
fn no_read_is_torn_and_none_goes_back() {
    explore(Some(3), || {
        let lock = Arc::new(Lock::new());
        let theirs = lock.clone();
        let reader = thread::spawn(move || {
            let seen: Vec<_> = (0..2).filter_map(|_| theirs.try_read().map(whole)).collect();
            assert!(seen.is_sorted(), "{seen:?}");
        });
        (0..2).for_each(|_| write(&lock, 0));
        reader.join().unwrap();
        assert_eq!(lock.try_read(), Some([2, 2]));
    });
}

#[test]
fn a_waiting_read_ends_with_a_whole_snapshot() {
    explore(Some(3), || {
        let lock = Arc::new(Lock::new());
        let theirs = lock.clone();
        let reader = thread::spawn(move || {
            on_processor::<Passive, _>(1, |at| {
                let first = whole(theirs.read(at));
                assert!(first <= whole(theirs.read(at)));
            });
        });
        (0..2).for_each(|_| write(&lock, 0));
        reader.join().unwrap();
    });
}

#[test]
fn writers_exclude_each_other() {
    explore_looks(Some(2), 8, || {
        let lock = Arc::new(Lock::new());
        let theirs = lock.clone();
        let writer = thread::spawn(move || write(&theirs, 1));
        let theirs = lock.clone();
        let reader = thread::spawn(move || theirs.try_read().map(whole));
        write(&lock, 0);
        reader.join().unwrap();
        writer.join().unwrap();
        assert_eq!(lock.try_read(), Some([2, 2]));
    });
}

/// Something that is filled in before the snapshot announces it.
struct Announced(UnsafeCell<u32>);

// SAFETY: written before the announcement, read after it: what the model checks.
unsafe impl Sync for Announced {}

#[test]
fn a_write_publishes_what_was_done_before_it() {
    explore(Some(3), || {
        let shared = Arc::new((Lock::new(), Announced(UnsafeCell::new(0))));
        let theirs = shared.clone();
        let reader = thread::spawn(move || {
            if theirs.0.try_read().map(whole) == Some(1) {
                // SAFETY: announced; loom checks it.
                theirs.1.0.with(|value| assert_eq!(unsafe { *value }, 1));
            }
        });
        // SAFETY: nobody reads it before the announcement; loom checks it.
        shared.1.0.with_mut(|value| unsafe { *value = 1 });
        write(&shared.0, 0);
        reader.join().unwrap();
    });
}
