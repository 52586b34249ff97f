//! A resource's rules at random, against a list of who holds what and who waits.
//!
//! The policy is driven as `Resource` drives it, one step at a time: nobody really sleeps, so each interleaving of whole steps is
//! a sequence of operations. After each the invariants P1 to P4 hold, and owners and waiters are the reference's.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use proptest::prelude::*;
use sync::resource::policy::{Admitted, Answer, Policy};
use sync::resource::{Access, OwnerEntry};

const THREADS: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire(usize, Access, bool),
    Release(usize),
    Convert(usize),
}

fn step() -> impl Strategy<Value = Step> {
    use Access::*;
    let thread = 1..=THREADS;
    let access = prop::sample::select(vec![Exclusive, Shared, Shared, BeforeExclusive, AfterExclusive]);
    prop_oneof![
        4 => (thread.clone(), access, any::<bool>()).prop_map(|(t, a, wait)| Step::Acquire(t, a, wait)),
        4 => thread.clone().prop_map(Step::Release),
        1 => thread.prop_map(Step::Convert),
    ]
}

/// The reference: a map and two lists.
#[derive(Default)]
struct Reference {
    owners: BTreeMap<usize, u32>,
    is_exclusive: bool,
    shared: Vec<usize>,
    exclusive: Vec<usize>,
}

impl Reference {
    fn grants(&self, thread: usize, access: Access) -> bool {
        let owns = self.owners.contains_key(&thread);
        match (self.owners.is_empty(), self.is_exclusive, access) {
            (true, ..) => true,
            (_, true, _) => owns,
            (_, false, Access::Exclusive) => false,
            (_, false, Access::BeforeExclusive) => true,
            (_, false, Access::Shared) => owns || self.exclusive.is_empty(),
            (_, false, Access::AfterExclusive) => self.exclusive.is_empty(),
        }
    }

    fn give(&mut self, thread: usize, exclusive: bool) {
        if self.owners.is_empty() {
            self.is_exclusive = exclusive;
        }
        *self.owners.entry(thread).or_default() += 1;
    }

    fn waits(&self, thread: usize) -> bool {
        self.shared.contains(&thread) || self.exclusive.contains(&thread)
    }

    /// Who is let in when the last owner has left, or became a sharer.
    fn let_in(&mut self, was_exclusive: bool) -> Vec<usize> {
        if !self.shared.is_empty() && (was_exclusive || self.exclusive.is_empty()) {
            let all = std::mem::take(&mut self.shared);
            all.iter().for_each(|&thread| self.give(thread, false));
            all
        } else if self.owners.is_empty() && !self.exclusive.is_empty() {
            let first = self.exclusive.remove(0);
            self.give(first, true);
            vec![first]
        } else {
            Vec::new()
        }
    }
}

/// What is under test, with the lists that `Resource` keeps beside it and the tables that it gets.
struct Subject {
    policy: Policy<()>,
    shared: Vec<(usize, Access)>,
    exclusive: Vec<usize>,
}

impl Subject {
    fn acquire(&mut self, thread: usize, access: Access, may_wait: bool) -> Answer {
        loop {
            match self.policy.acquire(thread, access) {
                Answer::NoRoom => self.grow(),
                Answer::Wait if may_wait => {
                    self.policy.wait(access);
                    match access {
                        Access::Exclusive => self.exclusive.push(thread),
                        _ => self.shared.push((thread, access)),
                    }
                    return Answer::Wait;
                }
                answer => return answer,
            }
        }
    }

    fn grow(&mut self) {
        let entries = vec![OwnerEntry::FREE; self.policy.next_table_len() as usize];
        let table = NonNull::from(Box::leak(entries.into_boxed_slice()));
        // SAFETY: leaked just now.
        let old = unsafe { self.policy.set_table(table) };
        Self::free(old);
    }

    fn free(table: Option<NonNull<[OwnerEntry]>>) {
        if let Some(table) = table {
            // SAFETY: leaked by `grow`, and given back.
            drop(unsafe { Box::from_raw(table.as_ptr()) });
        }
    }

    fn admit(&mut self, admitted: Admitted) -> Vec<usize> {
        match admitted {
            Admitted::Nobody => Vec::new(),
            Admitted::OneExclusive => {
                let first = self.exclusive.remove(0);
                self.policy.admit(first, Access::Exclusive);
                vec![first]
            }
            Admitted::AllShared => {
                let all = std::mem::take(&mut self.shared);
                all.iter().for_each(|&(thread, access)| self.policy.admit(thread, access));
                all.into_iter().map(|(thread, _)| thread).collect()
            }
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        Self::free(self.policy.take_table());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_resource_follows_its_rules(steps in prop::collection::vec(step(), 1..120)) {
        let mut subject = Subject { policy: Policy::new((), ()), shared: Vec::new(), exclusive: Vec::new() };
        let mut reference = Reference::default();
        for step in steps {
            match step {
                Step::Acquire(thread, ..) if reference.waits(thread) => {}
                Step::Acquire(thread, access, may_wait) => {
                    let expected = if reference.grants(thread, access) {
                        reference.give(thread, access == Access::Exclusive);
                        Answer::Granted
                    } else {
                        if may_wait {
                            match access {
                                Access::Exclusive => reference.exclusive.push(thread),
                                _ => reference.shared.push(thread),
                            }
                        }
                        Answer::Wait
                    };
                    prop_assert_eq!(subject.acquire(thread, access, may_wait), expected);
                }
                Step::Release(thread) => {
                    let released = subject.policy.release(thread);
                    let Some(count) = reference.owners.get_mut(&thread) else {
                        prop_assert!(released.is_err());
                        continue;
                    };
                    *count -= 1;
                    if *count == 0 {
                        reference.owners.remove(&thread);
                    }
                    let was_exclusive = reference.is_exclusive;
                    let expected = if reference.owners.is_empty() {
                        reference.is_exclusive = false;
                        reference.let_in(was_exclusive)
                    } else {
                        Vec::new()
                    };
                    let admitted = subject.admit(released.expect("an owner"));
                    prop_assert_eq!(admitted, expected);
                }
                Step::Convert(thread) => {
                    let converted = subject.policy.convert(thread);
                    if !(reference.is_exclusive && reference.owners.contains_key(&thread)) {
                        prop_assert!(converted.is_err());
                        continue;
                    }
                    reference.is_exclusive = false;
                    let expected = reference.let_in(true);
                    let admitted = subject.admit(converted.expect("the owner"));
                    prop_assert_eq!(admitted, expected);
                }
            }
            subject.policy.verify();
            let owners: BTreeMap<_, _> = subject.policy.owner_counts().collect();
            prop_assert_eq!(&owners, &reference.owners);
            prop_assert_eq!(subject.policy.is_exclusive(), reference.is_exclusive && !reference.owners.is_empty());
            prop_assert_eq!(
                subject.policy.waiting(),
                (reference.shared.len() as u32, reference.exclusive.len() as u32)
            );
        }
    }
}
