//! Random use of the locks against models of a few lines: a sorted set of addresses, counters, and a graph with a search.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use proptest::prelude::*;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};
use sync::queued::Node;
use sync::raw::{self, KSpinLock};
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

/// What the validator should know: for each lock, those that were acquired while it was held.
#[derive(Default)]
struct Orders(BTreeMap<usize, BTreeSet<usize>>);

impl Orders {
    fn leads(&self, from: usize, to: usize) -> bool {
        from == to || self.0.get(&from).is_some_and(|next| next.iter().any(|&next| self.leads(next, to)))
    }

    /// Notes that `lock` is acquired under `held`, the outermost first; false if one of them is known to come after it.
    fn acquire(&mut self, held: &[usize], lock: usize) -> bool {
        held.iter().all(|&outer| {
            let allowed = !self.leads(lock, outer);
            if allowed {
                self.0.entry(outer).or_default().insert(lock);
            }
            allowed
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire(usize),
    Try(usize),
    /// The n-th of the held, modulo how many there are: raw locks may be released in any order.
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6usize).prop_map(Step::Acquire),
        1 => (0..6usize).prop_map(Step::Try),
        3 => (0..6usize).prop_map(Step::Release),
    ]
}

proptest! {
    /// An acquire is a bugcheck exactly if the orders seen so far have the lock before one of the held.
    #[test]
    fn the_validator_reports_exactly_the_cycles(steps in prop::collection::vec(step(), 0..80)) {
        let mut locks: Vec<KSpinLock> = (0..6).map(|_| KSpinLock::new()).collect();
        // SAFETY: ours alone. The validator may know the addresses from an earlier case.
        locks.iter_mut().for_each(|lock| unsafe { raw::initialize(lock) });
        let (mut orders, mut held) = (Orders::default(), Vec::new());
        // SAFETY: the thread has no token, and nothing else relies on its level.
        let old = unsafe { raw::raise_irql(2) };
        for step in steps {
            match step {
                Step::Acquire(lock) | Step::Try(lock) if held.contains(&lock) => {}
                Step::Acquire(lock) => {
                    // SAFETY: at DISPATCH until the end.
                    let stop = arch::stop::catch(|| unsafe { raw::acquire_at_dpc_level(&locks[lock]) });
                    if orders.acquire(&held, lock) {
                        assert_eq!(stop, None, "{lock} under {held:?}");
                        held.push(lock);
                    } else {
                        let stop = stop.unwrap_or_else(|| panic!("no report of {lock} under {held:?}"));
                        assert_eq!((stop.code, stop.parameters[0]), (0xC4, 0x1001));
                        assert!(raw::is_free(&locks[lock]), "reported before it is taken");
                    }
                }
                Step::Try(lock) => {
                    // SAFETY: as above.
                    assert!(unsafe { raw::try_acquire_at_dpc_level(&locks[lock]) });
                    held.push(lock);
                }
                Step::Release(_) if held.is_empty() => {}
                Step::Release(n) => {
                    let lock = held.remove(n % held.len());
                    // SAFETY: held.
                    unsafe { raw::release_from_dpc_level(&locks[lock]) };
                }
            }
        }
        for lock in held {
            // SAFETY: held.
            unsafe { raw::release_from_dpc_level(&locks[lock]) };
        }
        // SAFETY: the thread's own level again.
        unsafe { raw::lower_irql(old) };
        // The validator's tables are fixed, and the next case's locks may be elsewhere.
        let addresses = locks.as_ptr_range();
        sync::lock_order::forget(addresses.start.addr()..addresses.end.addr());
    }
}
