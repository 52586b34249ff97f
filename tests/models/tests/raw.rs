//! The raw `KSPIN_LOCK` functions, as a driver calls them: exclusion, publication, and release in any order.
//!
//! Bound: two threads with two sections each; two locks that are released in the order of their acquires; at most three preemptions.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, on_processor};
use sync::irql::Passive;
use sync::raw::{self, KSpinLock};

/// What a driver protects, each word by one lock.
struct Protected {
    locks: [KSpinLock; 2],
    words: [UnsafeCell<u32>; 2],
}

// SAFETY: a word is accessed by the holder of its lock alone: that is what the models are about, and loom finds what is not so.
unsafe impl Sync for Protected {}
// SAFETY: as above.
unsafe impl Send for Protected {}

impl Protected {
    fn new() -> Self {
        Self { locks: [KSpinLock::new(), KSpinLock::new()], words: [UnsafeCell::new(0), UnsafeCell::new(0)] }
    }

    fn add(&self, word: usize) {
        // SAFETY: the word's lock is held.
        self.words[word].with_mut(|word| unsafe { *word += 1 });
    }
}

fn run(number: u32, section: impl Fn()) {
    // The token isn't used: it is the raw functions that move the level.
    on_processor::<Passive, _>(number, |_| section());
    assert_eq!(arch::irql::current(), 0);
}

fn two_processors(section: impl Fn(&Protected) + Clone + Send + 'static) -> [u32; 2] {
    let shared = Arc::new(Protected::new());
    let (theirs, there) = (shared.clone(), section.clone());
    let other = thread::spawn(move || run(1, || there(&theirs)));
    run(0, || section(&shared));
    other.join().unwrap();
    // SAFETY: the other thread is over.
    [0, 1].map(|word| shared.words[word].with(|word| unsafe { *word }))
}

#[test]
fn acquires_exclude_each_other_twice() {
    explore(Some(3), || {
        let words = two_processors(|shared| {
            for _ in 0..2 {
                // SAFETY: no token is used; the lock is held when it is released.
                unsafe {
                    let old = raw::acquire(&shared.locks[0]);
                    shared.add(0);
                    raw::release(&shared.locks[0], old);
                }
            }
        });
        assert_eq!(words, [4, 0]);
    });
}

#[test]
fn locks_may_be_released_in_the_order_of_their_acquires() {
    explore(Some(3), || {
        let words = two_processors(|shared| {
            let [first, second] = &shared.locks;
            // SAFETY: as above.
            unsafe {
                let old = raw::acquire(first);
                raw::acquire_at_dpc_level(second);
                shared.add(0);
                raw::release_from_dpc_level(first);
                shared.add(1);
                raw::release(second, old);
            }
        });
        assert_eq!(words, [2, 2]);
    });
}

#[test]
fn a_try_takes_a_free_lock_and_never_admits_two() {
    explore(Some(3), || {
        let words = two_processors(|shared| {
            let lock = &shared.locks[0];
            // SAFETY: as above.
            unsafe {
                let old = raw::raise_irql(2);
                if raw::try_acquire_at_dpc_level(lock) {
                    shared.add(0);
                    raw::release_from_dpc_level(lock);
                }
                raw::lower_irql(old);
            }
        });
        assert!(words[0] == 1 || words[0] == 2, "the first to try found the lock held by nobody");
    });
}
