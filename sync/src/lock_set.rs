//! Several locks of one rank at once, for a wait on all of up to 64 objects.
//!
//! The ladder orders ranks; within one rank it allows a single lock. A set takes its locks in the order of their addresses,
//! each once even if it is named twice, so two processors with overlapping sets meet them in the same order, and a processor
//! with a single lock of the rank waits for none while it holds it.
//!
//! IRQL:       taken with a token strictly below the rank, held at its CR8 value, yields the rank's token.
//! Invariants: I1 `members[..count]` are held, strictly ascending by address.
//! Tests:      none yet.

use core::marker::PhantomData;
use core::ptr;

use crate::irql::{Below, Fixed, Irql, Raised, stop};
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
    type Rank: Fixed;

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
unsafe impl<T, R: Fixed> Lockable for SpinLock<T, R> {
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
    members: [Option<&'a K>; MAX],
    count: usize,
    _not_send: PhantomData<*mut ()>,
}

impl<'a, K: Lockable> LockSet<'a, K> {
    /// Raises to the rank's CR8 value and takes every lock in `locks`, in the order of their addresses.
    ///
    /// # Bugchecks
    /// MAXIMUM_WAIT_OBJECTS_EXCEEDED for more than [`MAX`].
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn lock<L: Below<K::Rank>>(locks: &[&'a K], at: &'a mut Irql<L>) -> Self {
        if locks.len() > MAX {
            arch::fatal(stop::MAXIMUM_WAIT_OBJECTS_EXCEEDED, [locks.len() as u64, MAX as u64, 0, 0]);
        }
        let raised = at.raise::<K::Rank>();
        let mut sorted = [None; MAX];
        for (slot, &lock) in sorted.iter_mut().zip(locks) {
            *slot = Some(lock);
        }
        let sorted = &mut sorted[..locks.len()];
        sorted.sort_unstable_by_key(|lock| address(*lock));

        let mut members = Members { members: [None; MAX], count: 0, _not_send: PhantomData };
        for &mut lock in sorted {
            members.take_next(lock);
        }
        Self { members, raised }
    }

    /// How many locks are held: duplicates count once.
    pub fn len(&self) -> usize {
        self.members.count
    }

    /// No lock was named.
    pub fn is_empty(&self) -> bool {
        self.members.count == 0
    }

    /// The members and the rank's token at once, for nesting a lock of a higher rank under them.
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn parts(&mut self) -> (&mut Members<'a, K>, &mut Irql<K::Rank>) {
        self.raised.check();
        (&mut self.members, &mut self.raised)
    }
}

impl<'a, K: Lockable> Members<'a, K> {
    /// Takes `lock`, which is not below the last one, unless it is that one.
    fn take_next(&mut self, lock: Option<&'a K>) {
        let last = self.count.checked_sub(1).and_then(|last| self.members[last]);
        let Some(next) = lock.filter(|_| address(last) != address(lock)) else { return };
        // SAFETY: the set's `Raised` exists, borrows the lower token and is not lent while locks are being taken; it lives
        // until they are released. Members of one rank are only ever taken in ascending order, here.
        unsafe { next.acquire() };
        self.members[self.count] = lock;
        self.count += 1;
    }

    /// Is `lock` one of the held?
    pub fn contains(&self, lock: &K) -> bool {
        self.members[..self.count]
            .binary_search_by_key(&address(Some(lock)), |member| address(*member))
            .is_ok()
    }

    /// The held locks, by address.
    pub fn iter(&self) -> impl Iterator<Item = &'a K> {
        self.members[..self.count].iter().filter_map(|member| *member)
    }
}

impl<T, R: Fixed> Members<'_, SpinLock<T, R>> {
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
        for member in self.iter() {
            // SAFETY: I1; accesses to the data borrowed `self`, and are over.
            unsafe { member.release() };
        }
    }
}

fn address<K>(lock: Option<&K>) -> usize {
    lock.map_or(0, |lock| ptr::from_ref(lock).addr())
}
