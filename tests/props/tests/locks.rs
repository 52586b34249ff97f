//! Random use of the locks against models of a few lines: a sorted set of addresses, and counters.

use std::collections::BTreeSet;
use std::pin::pin;

use proptest::prelude::*;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};
use sync::queued::Node;
use sync::{LockSet, QueuedLock, RwSpinLock, SpinLock};

fn at_passive<R>(f: impl for<'a> FnOnce(&'a mut Irql<Passive>) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::with(f) }
}

/// Runs `f` with 0, 1, 2 on a thread each; their results.
fn on_threads<R: Send>(f: impl Fn(usize) -> R + Sync) -> [R; 3] {
    std::thread::scope(|s| {
        let f = &f;
        [0, 1, 2]
            .map(|thread| s.spawn(move || f(thread)))
            .map(|thread| thread.join().expect("a thread's run"))
    })
}

/// Threads cost more than what they do here.
fn few() -> ProptestConfig {
    ProptestConfig::with_cases(64)
}

#[derive(Clone, Copy, Debug)]
enum Section {
    Read,
    Write,
    TryRead,
    TryWrite,
}

fn sections() -> impl Strategy<Value = Vec<Section>> {
    use Section::*;
    prop::collection::vec(prop::sample::select(vec![Read, Write, TryRead, TryWrite]), 0..40)
}

/// Runs the sections; returns how many wrote. Both halves of the data are always the same to who is inside.
fn run(lock: &RwSpinLock<[u32; 2], PrcbLock>, sections: &[Section]) -> u32 {
    let look = |value: &[u32; 2]| assert_eq!(value[0], value[1], "half a write");
    let write = |value: &mut [u32; 2]| {
        look(value);
        value[0] += 1;
        arch::cpu::spin_hint();
        value[1] += 1;
        1
    };
    let one = |section: &Section| {
        at_passive(|at| match section {
            Section::Read => {
                look(&lock.shared(at));
                0
            }
            Section::TryRead => lock.try_shared(at).map_or(0, |guard| {
                look(&guard);
                0
            }),
            Section::Write => write(&mut lock.exclusive(at)),
            Section::TryWrite => lock.try_exclusive(at).map_or(0, |mut guard| write(&mut guard)),
        })
    };
    sections.iter().map(one).sum()
}

proptest! {
    #![proptest_config(few())]

    /// Alone, every try succeeds; on three threads, each success is one write that is seen whole.
    #[test]
    fn a_reader_writer_lock_counts_every_write(all in [sections(), sections(), sections()]) {
        let alone = RwSpinLock::new([0; 2]);
        let writes = all[0].iter().filter(|s| matches!(s, Section::Write | Section::TryWrite)).count() as u32;
        prop_assert_eq!(run(&alone, &all[0]), writes);
        prop_assert_eq!(alone.into_inner(), [writes; 2]);

        let shared = RwSpinLock::new([0; 2]);
        let written: u32 = on_threads(|thread| run(&shared, &all[thread])).iter().sum();
        prop_assert!(!shared.is_claimed());
        prop_assert_eq!(shared.into_inner(), [written; 2]);
    }

    /// What three threads append to a log each under the lock is there, whole, and in each one's order.
    #[test]
    fn a_queued_lock_keeps_each_processors_order(rounds in [0..40usize, 0..40, 0..40]) {
        let log = QueuedLock::<Vec<(usize, usize)>, PrcbLock>::new(Vec::new());
        on_threads(|thread| {
            for round in 0..rounds[thread] {
                at_passive(|at| {
                    let node = pin!(Node::new());
                    let mut guard = log.lock(node, at);
                    guard.push((thread, round));
                    let before = guard.len();
                    arch::cpu::spin_hint();
                    assert_eq!(guard.len(), before, "two holders");
                });
            }
        });
        let log = log.into_inner();
        for (thread, &rounds) in rounds.iter().enumerate() {
            let mine: Vec<_> = log.iter().filter(|entry| entry.0 == thread).map(|entry| entry.1).collect();
            prop_assert_eq!(mine, (0..rounds).collect::<Vec<_>>());
        }
        prop_assert_eq!(log.len(), rounds.iter().sum::<usize>());
    }

    /// The members are the sorted set of what was named: those are locked, the others not, and the data is theirs.
    #[test]
    fn a_lock_set_is_the_sorted_set_of_its_locks(named in prop::collection::vec(0..80usize, 0..=64)) {
        let locks: Vec<SpinLock<u32, ThreadLock>> = (0..80).map(|_| SpinLock::new(0)).collect();
        let expected: BTreeSet<usize> = named.iter().copied().collect();
        at_passive(|at| {
            let mut named: Vec<_> = named.iter().map(|&i| &locks[i]).collect();
            let mut set = LockSet::lock(&mut named, at);
            assert_eq!(set.len(), expected.len());
            let (members, at) = set.parts();
            assert_eq!(at.level(), 2);
            // In a vector, the order of addresses is that of the indices.
            assert!(members.iter().map(std::ptr::from_ref).eq(expected.iter().map(|&i| std::ptr::from_ref(&locks[i]))));
            for (i, lock) in locks.iter().enumerate() {
                assert_eq!(lock.is_locked(), expected.contains(&i));
                assert_eq!(members.get_mut(lock).map(|value| *value += 1).is_some(), expected.contains(&i));
            }
            drop(set);
            assert_eq!(arch::irql::current(), 0);
        });
        for (i, lock) in locks.into_iter().enumerate() {
            prop_assert!(!lock.is_locked());
            prop_assert_eq!(lock.into_inner(), u32::from(expected.contains(&i)));
        }
    }

    /// Overlapping sets on three threads: none waits for ever, none sees a member change.
    #[test]
    fn overlapping_lock_sets_exclude_each_other(sets in prop::collection::vec([0..6usize, 0..6, 0..6], 1..30)) {
        let locks: Vec<SpinLock<u32, ThreadLock>> = (0..6).map(|_| SpinLock::new(0)).collect();
        on_threads(|thread| {
            for set in &sets {
                // Each thread names them in another order.
                let named = [0, 1, 2].map(|i| &locks[set[(i + thread) % 3]]);
                at_passive(|at| {
                    let mut array = named;
                    let mut held = LockSet::lock(&mut array, at);
                    let (members, _) = held.parts();
                    let before = named.map(|lock| *members.get_mut(lock).unwrap());
                    arch::cpu::spin_hint();
                    assert_eq!(named.map(|lock| *members.get_mut(lock).unwrap()), before, "two holders");
                    for i in BTreeSet::from(*set) {
                        *members.get_mut(&locks[i]).unwrap() += 1;
                    }
                });
            }
        });
        let mut expected = [0; 6];
        sets.iter().for_each(|set| BTreeSet::from(*set).into_iter().for_each(|i| expected[i] += 3));
        prop_assert_eq!(locks.into_iter().map(SpinLock::into_inner).collect::<Vec<_>>(), expected);
    }
}
