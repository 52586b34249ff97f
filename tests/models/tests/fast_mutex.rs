//! `FastMutex`: exclusion, publication, no lost wakeup, and that its last holder may free it.
//!
//! A lost wakeup is a deadlock to loom; the guarded value is a loom cell.
//! Bound: two threads with two sections each, any number of preemptions; three with one each, four; four, three.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use models::{explore, on_processor};
use sync::FastMutex;
use sync::event::Event as _;
use sync::event::hosted::ThreadEvent;
use sync::fast_mutex::RawFastMutex;
use sync::irql::Passive;

type Lock = FastMutex<usize, ThreadEvent>;

fn threads(others: u32, rounds: usize, tries: bool) {
    let lock = Arc::new(Lock::new(0, ThreadEvent::new()));
    let add = move |lock: &Lock, number| {
        on_processor::<Passive, _>(number, |at| {
            let mut added = 0;
            for _ in 0..rounds {
                if tries && number == 1 {
                    if let Some(mut guard) = lock.try_lock(at) {
                        *guard += 1;
                        added += 1;
                    }
                } else {
                    *lock.lock(at) += 1;
                    added += 1;
                }
            }
            added
        })
    };
    let threads: Vec<_> = (1..=others)
        .map(|number| {
            let lock = lock.clone();
            thread::spawn(move || add(&lock, number))
        })
        .collect();
    let mut added: usize = add(&lock, 0);
    added += threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>();
    assert!(!lock.is_held());
    assert_eq!(on_processor::<Passive, _>(0, |at| *lock.lock(at)), added);
}

#[test]
fn two_threads_exclude_each_other_twice() {
    explore(None, || threads(1, 2, false));
}

#[test]
fn three_threads_exclude_each_other() {
    explore(Some(4), || threads(2, 1, false));
}

#[test]
fn four_threads_exclude_each_other() {
    explore(Some(3), || threads(3, 1, false));
}

#[test]
fn a_try_neither_steps_in_nor_counts() {
    explore(Some(5), || threads(2, 1, true));
}

/// An object with its own mutex and count of references: whoever ends the last one frees it, mutex included.
struct Counted {
    mutex: RawFastMutex<ThreadEvent>,
    references: loom::cell::UnsafeCell<u32>,
}

/// A pointer that may be sent.
#[derive(Clone, Copy)]
struct Shared(*mut Counted);

// SAFETY: the object is used under its mutex and freed once: what the model checks.
unsafe impl Send for Shared {}

impl Shared {
    fn dereference(self, number: u32) {
        on_processor::<Passive, _>(number, |at| {
            // SAFETY: we have a reference.
            let object = unsafe { &*self.0 };
            object.mutex.acquire(at);
            let last = object.references.with_mut(|references| {
                // SAFETY: under the mutex; loom checks it.
                unsafe {
                    *references -= 1;
                    *references == 0
                }
            });
            // SAFETY: held.
            unsafe { object.mutex.release(at) };
            if last {
                // SAFETY: nobody has a reference: who came before has left the mutex, or is about to touch nothing.
                drop(unsafe { Box::from_raw(self.0) });
            }
        });
    }
}

#[test]
fn its_last_holder_may_free_it() {
    explore(None, || {
        let object = Counted {
            mutex: RawFastMutex::new(ThreadEvent::new()),
            references: loom::cell::UnsafeCell::new(2),
        };
        let object = Shared(Box::into_raw(Box::new(object)));
        let other = thread::spawn(move || {
            let object = object;
            object.dereference(1);
        });
        object.dereference(0);
        other.join().unwrap();
    });
}
