use super::*;
use crate::event::hosted::ThreadEvent;
use crate::testing::at_passive;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

type Lock<T> = PushLock<T, ThreadEvent>;

#[test]
fn it_is_one_word_and_the_level_follows() {
    assert_eq!(size_of::<RawPushLock<ThreadEvent>>(), 8);
    assert_eq!(size_of::<Lock<()>>(), 8);
    let lock = Lock::new(1);
    at_passive(|at| {
        let mut guard = lock.exclusive(at);
        {
            let (value, at) = guard.parts();
            *value += 1;
            assert_eq!(at.level(), 1);
        }
        assert!(lock.is_held() && !lock.is_contended());
        drop(guard);
        assert_eq!(arch::irql::current(), 0);
        assert!(!lock.is_held());
        assert_eq!(*lock.shared(at), 2);
    });
    assert_eq!(lock.into_inner(), 2);
}

/// What a try finds, from another thread: shared, exclusive.
fn tries(lock: &Lock<u32>) -> (bool, bool) {
    std::thread::scope(|s| {
        let tries = s.spawn(|| {
            at_passive(|at| {
                let shared = lock.try_shared(at).is_some();
                let exclusive = lock.try_exclusive(at).is_some();
                (shared, exclusive)
            })
        });
        tries.join().unwrap()
    })
}

#[test]
fn tries_follow_the_table_and_leave_the_level() {
    let lock = Lock::new(0);
    assert_eq!(tries(&lock), (true, true));
    at_passive(|at| {
        let guard = lock.exclusive(at);
        assert_eq!(tries(&lock), (false, false));
        let guard = guard.into_shared();
        assert_eq!(tries(&lock), (true, false));
        let mut guard = guard.try_into_exclusive().ok().expect("the only sharer, and nobody waits");
        *guard += 1;
        assert_eq!(tries(&lock), (false, false));
        drop(guard);
        assert_eq!(tries(&lock), (true, true));
        assert_eq!(arch::irql::current(), 0);
        let guard = lock.shared(at);
        std::thread::scope(|s| {
            s.spawn(|| {
                at_passive(|at| {
                    let second = lock.shared(at);
                    assert!(second.try_into_exclusive().is_err(), "there is another sharer");
                });
            });
        });
        assert!(guard.try_into_exclusive().is_ok());
    });
}

/// Starts a thread that takes the lock and notes its number; returns when it waits.
fn queue<'s>(
    s: &'s std::thread::Scope<'s, '_>,
    lock: &'s Lock<Mutex<Vec<u32>>>,
    number: u32,
    shared: bool,
    inside: &'s AtomicUsize,
) {
    let before = lock.word();
    s.spawn(move || {
        at_passive(|at| {
            if shared {
                let guard = lock.shared(at);
                guard.lock().unwrap().push(number);
                // Sharers that are let in together meet.
                inside.fetch_sub(1, Ordering::SeqCst);
                while !inside.load(Ordering::SeqCst).is_multiple_of(2) {
                    std::thread::yield_now();
                }
            } else {
                lock.exclusive(at).lock().unwrap().push(number);
            }
        });
    });
    while lock.word() == before {
        std::thread::yield_now();
    }
}

/// In the list: two sharers, a writer, two sharers, a writer. Each pair is in together, and nobody overtakes.
#[test]
fn waiters_are_served_in_order_and_neighbouring_sharers_together() {
    let lock = Lock::new(Mutex::new(Vec::new()));
    let inside = AtomicUsize::new(4);
    std::thread::scope(|s| {
        at_passive(|at| {
            let guard = lock.exclusive(at);
            for (number, shared) in [true, true, false, true, true, false].into_iter().enumerate() {
                queue(s, &lock, number as u32, shared, &inside);
            }
            assert!(lock.is_contended());
            drop(guard);
        });
    });
    let mut order = lock.into_inner().into_inner().unwrap();
    order[0..2].sort_unstable();
    order[3..5].sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
}

/// Nobody is let in before a waiter, by a try either; whoever converts takes the sharers with it that come first.
#[test]
fn a_conversion_lets_in_the_sharers_in_front_of_the_first_writer() {
    let lock = Lock::new(Mutex::new(Vec::new()));
    let inside = AtomicUsize::new(2);
    std::thread::scope(|s| {
        at_passive(|at| {
            let guard = lock.exclusive(at);
            for (number, shared) in [true, true, false].into_iter().enumerate() {
                queue(s, &lock, number as u32, shared, &inside);
            }
            let guard = guard.into_shared();
            while guard.lock().unwrap().len() < 2 {
                std::thread::yield_now();
            }
            assert!(guard.try_into_exclusive().is_err(), "a writer waits");
        });
    });
    let mut order = lock.into_inner().into_inner().unwrap();
    order[0..2].sort_unstable();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn threads_exclude_each_other() {
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 3_000 };
    let lock = Lock::new((0, 0));
    std::thread::scope(|s| {
        for number in 0..4 {
            let lock = &lock;
            s.spawn(move || {
                at_passive(|at| {
                    for round in 0..ROUNDS {
                        match (round + number) % 3 {
                            0 => {
                                let guard = lock.shared(at);
                                assert_eq!(guard.0, guard.1);
                            }
                            1 => {
                                let mut guard = lock.exclusive(at);
                                guard.0 += 1;
                                std::thread::yield_now();
                                guard.1 += 1;
                                let guard = guard.into_shared();
                                assert_eq!(guard.0, guard.1);
                            }
                            _ => {
                                let mut guard = lock.exclusive(at);
                                guard.0 += 1;
                                guard.1 += 1;
                            }
                        }
                    }
                });
            });
        }
    });
    assert!(!lock.is_held());
    let (first, second) = lock.into_inner();
    assert_eq!(first, second);
    assert!(first > 4 * ROUNDS / 2);
}
