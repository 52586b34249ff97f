//! Random use of raw locks against a graph with a search: what the lock-order validator, a part of the checked build, reports.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sync::raw::{self, KSpinLock};

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
