//! Several locks of one rank at once, for a wait on all of up to 64 objects.
//!
//! The ladder orders ranks; within one rank it allows a single lock. A set takes its locks in the order of their addresses,
//! each once even if it is named twice, so two processors with overlapping sets meet them in the same order, and a processor
//! with a single lock of the rank waits for none while it holds it.
//!
//! IRQL:       taken with a token strictly below the rank, held at its CR8 value, yields the rank's token.
//! Invariants: I1 those in `held` are, strictly ascending by address.
//! Tests:      the unit tests below; tests/props/tests/locks.rs (against a sorted set; processors with overlapping sets).

use core::marker::PhantomData;
use core::ptr;

use crate::irql::{Below, Irql, Raised, Rank, stop};
use crate::spin::SpinLock;

/// MAXIMUM_WAIT_OBJECTS.
pub const MAX: usize = 64;

/// A lock that can be a member: one whose acquire needs no memory of its own.
///
/// # Safety
/// Between `acquire` and `release` nobody else's `acquire` returns; what one holder did before its `release` is seen by the
/// next after its `acquire`.
pub unsafe trait Lockable {
    /// The rank of all such locks.
    type Rank: Rank;

    /// Spins until the lock is ours.
    ///
    /// # Safety
    /// This processor is at the rank's CR8 value until the release, and holds no token from which the lock, or one of a lower
    /// rank, could be taken meanwhile.
    unsafe fn acquire(&self);

    /// Gives it back.
    ///
    /// # Safety
    /// The caller holds it by `acquire`, and uses nothing that it protects any more.
    unsafe fn release(&self);
}

// SAFETY: the word excludes, and orders by Acquire and Release (word.rs).
unsafe impl<T, R: Rank> Lockable for SpinLock<T, R> {
    type Rank = R;

    unsafe fn acquire(&self) {
        self.word().acquire();
    }

    unsafe fn release(&self) {
        // SAFETY: the caller's.
        unsafe { self.word().release() };
    }
}

/// Locks that are all held; released, then lowered, when dropped.
#[must_use = "dropping it at once releases the locks"]
pub struct LockSet<'a, K: Lockable> {
    members: Members<'a, K>,
    /// After `members`, so that its drop comes after theirs: the level is lowered when all are released.
    raised: Raised<'a, K::Rank>,
}

/// The held locks of a set: what of it gives access to the data.
pub struct Members<'a, K: Lockable> {
    held: &'a [&'a K],
    _not_send: PhantomData<*mut ()>,
}

impl<'a, K: Lockable> LockSet<'a, K> {
    /// Raises to the rank's CR8 value and takes every lock in `locks`, in the order of their addresses. The caller's array is
    /// where the set keeps them, so that a set of two costs nothing for the sixty-four that it could have.
    ///
    /// # Bugchecks
    /// MAXIMUM_WAIT_OBJECTS_EXCEEDED for more than [`MAX`].
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn lock<L: Below<K::Rank>>(locks: &'a mut [&'a K], at: &'a mut Irql<L>) -> Self {
        if locks.len() > MAX {
            too_many(locks.len());
        }
        let raised = at.raise::<K::Rank>();
        // An array in order, as objects made together are, costs one pass.
        locks.sort_unstable_by_key(|lock| ptr::from_ref(*lock).addr());
        let mut count = 0;
        for index in 0..locks.len() {
            let lock = locks[index];
            if count > 0 && ptr::eq(locks[count - 1], lock) {
                continue;
            }
            // SAFETY: the set's `Raised` exists, borrows the lower token and is not lent while locks are being taken; it lives
            // until they are released. Members of one rank are only ever taken in ascending order, here.
            unsafe { lock.acquire() };
            locks[count] = lock;
            count += 1;
        }
        let members = Members { held: &locks[..count], _not_send: PhantomData };
        Self { members, raised }
    }

    /// How many locks are held: duplicates count once.
    pub fn len(&self) -> usize {
        self.members.held.len()
    }

    /// No lock was named.
    pub fn is_empty(&self) -> bool {
        self.members.held.is_empty()
    }

    /// The members and the rank's token at once, for nesting a lock of a higher rank under them.
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn parts(&mut self) -> (&mut Members<'a, K>, &mut Irql<K::Rank>) {
        self.raised.check();
        (&mut self.members, &mut self.raised)
    }
}

#[cold]
fn too_many(count: usize) -> ! {
    arch::fatal(stop::MAXIMUM_WAIT_OBJECTS_EXCEEDED, [count as u64, MAX as u64, 0, 0])
}

impl<'a, K: Lockable> Members<'a, K> {
    /// Is `lock` one of the held?
    pub fn contains(&self, lock: &K) -> bool {
        let address = ptr::from_ref(lock).addr();
        self.held.binary_search_by_key(&address, |member| ptr::from_ref(*member).addr()).is_ok()
    }

    /// The held locks, by address.
    pub fn iter(&self) -> impl Iterator<Item = &'a K> {
        self.held.iter().copied()
    }
}

impl<T, R: Rank> Members<'_, SpinLock<T, R>> {
    /// The data of `lock`, if it is one of the held.
    pub fn get_mut(&mut self, lock: &SpinLock<T, R>) -> Option<&mut T> {
        if !self.contains(lock) {
            return None;
        }
        // SAFETY: I1: it is held; `&mut self` lends the data of one member at a time.
        Some(unsafe { &mut *lock.value_ptr() })
    }
}

impl<K: Lockable> Drop for Members<'_, K> {
    fn drop(&mut self) {
        // In reverse, as single locks would be.
        for member in self.held.iter().rev() {
            // SAFETY: I1; accesses to the data borrowed `self`, and are over.
            unsafe { member.release() };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::{PrcbLock, ThreadLock};
    use crate::testing::at_passive;
    use std::cell::RefCell;

    /// A lock that notes what is done with it, and at which level.
    struct Noted<'a> {
        number: usize,
        notes: &'a RefCell<Vec<(&'static str, usize, u8)>>,
    }

    // SAFETY: of one thread only, which has no other acquire to exclude.
    unsafe impl Lockable for Noted<'_> {
        type Rank = ThreadLock;

        unsafe fn acquire(&self) {
            self.notes.borrow_mut().push(("acquire", self.number, arch::irql::current()));
        }

        unsafe fn release(&self) {
            self.notes.borrow_mut().push(("release", self.number, arch::irql::current()));
        }
    }

    #[test]
    fn by_address_each_once_released_in_reverse_and_all_at_the_ranks_level() {
        let notes = RefCell::new(Vec::new());
        let locks = [0, 1, 2, 3].map(|number| Noted { number, notes: &notes });
        at_passive(|at| {
            let mut named = [2, 0, 2, 3, 0].map(|number| &locks[number]);
            let set = LockSet::lock(&mut named, at);
            assert_eq!((set.len(), set.is_empty(), arch::irql::current()), (3, false, 2));
            drop(set);
            assert_eq!(arch::irql::current(), 0);
        });
        let expected = [0, 2, 3].map(|number| ("acquire", number, 2)).into_iter();
        let expected = expected.chain([3, 2, 0].map(|number| ("release", number, 2)));
        assert_eq!(notes.take(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn the_data_of_members_only_and_a_higher_rank_under_them() {
        let locks: [SpinLock<u32, ThreadLock>; 3] = [0, 1, 2].map(SpinLock::new);
        let higher = SpinLock::<_, PrcbLock>::new(0);
        at_passive(|at| {
            let mut named = [&locks[2], &locks[0]];
            let mut set = LockSet::lock(&mut named, at);
            let (members, under) = set.parts();
            *members.get_mut(&locks[0]).unwrap() += 10;
            *members.get_mut(&locks[2]).unwrap() += 10;
            assert!(members.get_mut(&locks[1]).is_none(), "not a member");
            assert!(!members.contains(&locks[1]) && !locks[1].is_locked());
            *higher.lock(under) += 1;
            drop(set);
            assert!(locks.iter().all(|lock| !lock.is_locked()));
            assert_eq!(locks.each_ref().map(|lock| *lock.lock(at)), [10, 1, 12]);
        });
    }

    #[test]
    fn none_and_sixty_four_but_not_more() {
        let locks: Vec<SpinLock<(), ThreadLock>> = (0..=MAX).map(|_| SpinLock::new(())).collect();
        let all = || locks.iter().collect::<Vec<_>>();
        at_passive(|at| {
            let none = LockSet::<SpinLock<(), ThreadLock>>::lock(&mut [], at);
            assert!(none.is_empty());
            drop(none);
            assert_eq!(LockSet::lock(&mut all()[..MAX], at).len(), MAX);
            let mut too_many = all();
            let stop = arch::stop::catch(|| drop(LockSet::lock(&mut too_many, at)));
            let stop = stop.expect("a bugcheck");
            assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0x0C, 65, 64));
        });
        assert!(locks.iter().all(|lock| !lock.is_locked()));
    }
}
