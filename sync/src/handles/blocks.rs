//! The blocks of a table of handles, and which entries are free: growth, inheritance and the end.

use core::ptr::{self, NonNull};

use super::entry::{BELOW_ADDRESS, Entry, Name, SEQUENCE, word_of};
use super::{Closed, Counted, Table};
use crate::irql::{Below, Irql, Rank};
use crate::prim::{AtomicPtr, AtomicU64, Ordering};

/// Entries of a leaf: a page of them.
#[cfg(not(loom))]
pub(super) const LEAF: usize = 256;
/// Leaves of a branch.
#[cfg(not(loom))]
pub(super) const BRANCH: usize = 512;
/// Branches of a table.
#[cfg(not(loom))]
pub(super) const BRANCHES: usize = 8;
#[cfg(loom)]
pub(super) const LEAF: usize = 2;
#[cfg(loom)]
pub(super) const BRANCH: usize = 3;
#[cfg(loom)]
pub(super) const BRANCHES: usize = 1;

/// The last two entries are not used: handles there could look like NT's -1 to -6, which stand for the caller's process, thread and tokens.
const MOST: usize = LEAF * BRANCH * BRANCHES - 2;

/// Entries side by side; one page.
pub struct Leaf<T>(pub(super) [Entry<T>; LEAF]);

/// Where leaves are; one page.
pub struct Branch<T>(pub(super) [AtomicPtr<Leaf<T>>; BRANCH]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Leaf<u128>>() == 4096 && size_of::<Branch<u128>>() == 4096);

impl<T> Leaf<T> {
    /// Makes one of the memory at `place`.
    ///
    /// # Safety
    /// `place` is the caller's, and as large and aligned as one.
    pub unsafe fn write(place: NonNull<Self>) {
        let entries = place.cast::<Entry<T>>();
        for index in 0..LEAF {
            let empty = Entry { word: AtomicPtr::new(ptr::null_mut()), info: AtomicU64::new(0) };
            // SAFETY: the caller's: an array of so many.
            unsafe { entries.add(index).write(empty) };
        }
    }
}

impl<T> Branch<T> {
    /// As [`Leaf::write`].
    ///
    /// # Safety
    /// As [`Leaf::write`].
    pub unsafe fn write(place: NonNull<Self>) {
        let leaves = place.cast::<AtomicPtr<Leaf<T>>>();
        for index in 0..BRANCH {
            // SAFETY: the caller's: an array of so many.
            unsafe { leaves.add(index).write(AtomicPtr::new(ptr::null_mut())) };
        }
    }
}

/// What a table grows by. Whatever of it wasn't used is the caller's still.
pub struct Blocks<T> {
    /// Needed each time.
    pub leaf: Option<NonNull<Leaf<T>>>,
    /// Needed where [`Growth::Branch`] was said.
    pub branch: Option<NonNull<Branch<T>>>,
}

/// How a growth went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a table that hasn't grown has no entry"]
pub enum Growth {
    /// There is a free entry, or was; by these blocks or by another one's.
    Done,
    /// A leaf is needed.
    Leaf,
    /// A branch is needed, too.
    Branch,
    /// The table is as large as it gets.
    Full,
}

pub(super) struct Free {
    /// The first and the last free entry; 0: none.
    pub(super) first: u32,
    pub(super) last: u32,
    /// Leaves that are published.
    pub(super) leaves: u32,
}

impl<T: Counted, R: Rank> Table<T, R> {
    #[inline(always)]
    pub(super) fn entry(&self, index: usize) -> Option<&Entry<T>> {
        let branch = self.branches.get(index / (LEAF * BRANCH))?.load(Ordering::Acquire);
        // SAFETY: published once, by `grow`, and there until the table ends (H4).
        let branch = unsafe { branch.as_ref() }?;
        let leaf = branch.0[index / LEAF % BRANCH].load(Ordering::Acquire);
        // SAFETY: as above.
        let leaf = unsafe { leaf.as_ref() }?;
        Some(&leaf.0[index % LEAF])
    }

    /// At the end of the free list; `index`'s entry has 0 for its next.
    pub(super) fn append(&self, free: &mut Free, index: u32) {
        if free.first == 0 {
            free.first = index;
        } else if let Some(last) = self.entry(free.last as usize) {
            last.info.store(index.into(), Ordering::Relaxed);
        }
        free.last = index;
    }

    /// Adds a leaf's entries, unless some are free meanwhile.
    ///
    /// # Safety
    /// The blocks were written, and are the caller's; what is used of them is the table's until [`end`](Self::end).
    pub unsafe fn grow<L: Below<R>>(&self, blocks: &mut Blocks<T>, at: &mut Irql<L>) -> Growth {
        let mut free = self.free.lock(at);
        if free.first != 0 {
            return Growth::Done;
        }
        // SAFETY: the caller's.
        unsafe { self.extend(&mut free, blocks) }
    }

    /// # Safety
    /// As [`grow`](Self::grow).
    unsafe fn extend(&self, free: &mut Free, blocks: &mut Blocks<T>) -> Growth {
        let (number, first) = (free.leaves as usize, free.leaves as usize * LEAF);
        let Some(branch) = self.branches.get(number / BRANCH) else { return Growth::Full };
        if branch.load(Ordering::Relaxed).is_null() {
            let Some(new) = blocks.branch.take() else { return Growth::Branch };
            // Release: as it was written.
            branch.store(new.as_ptr(), Ordering::Release);
        }
        let Some(leaf) = blocks.leaf.take() else { return Growth::Leaf };
        // SAFETY: published above, or before (H4).
        let Some(branch) = (unsafe { branch.load(Ordering::Relaxed).as_ref() }) else {
            return Growth::Branch;
        };
        // Release: as it was written.
        branch.0[number % BRANCH].store(leaf.as_ptr(), Ordering::Release);
        free.leaves += 1;
        // Entry 0 is never free: no handle is 0.
        (first.max(1)..(first + LEAF).min(MOST)).for_each(|index| self.append(free, index as u32));
        Growth::Done
    }

    /// Entries that there are, free or not: one more than the highest.
    pub fn limit<L: Below<R>>(&self, at: &mut Irql<L>) -> u32 {
        ((self.free.lock(at).leaves as usize * LEAF).min(MOST)) as u32
    }

    /// The name that leads somewhere by entry `index`; stale at once.
    pub fn name_at(&self, index: u32) -> Option<Name> {
        let word = self.entry(index as usize)?.word.load(Ordering::Relaxed).addr();
        (word > BELOW_ADDRESS).then(|| Name::new(index, word))
    }

    /// Forgets which entries are free, so that the table grows; for [`fill`](Self::fill), which finds them again.
    pub fn forget_free(&mut self) {
        let free = self.free.get_mut();
        (free.first, free.last) = (0, 0);
    }

    /// Enters, in a table that has no handles, what `entry` says of each index, by those very names; a reference of each is the table's.
    ///
    /// # Safety
    /// Each object is valid as long as it has references, of which `entry` gives one away.
    pub unsafe fn fill(&mut self, mut entry: impl FnMut(u32) -> Option<(Name, NonNull<T>, u64)>) {
        let leaves = self.free.get_mut().leaves;
        let mut free = Free { first: 0, last: 0, leaves };
        for index in 1..(leaves as usize * LEAF).min(MOST) as u32 {
            let Some(place) = self.entry(index as usize) else { continue };
            place.info.store(0, Ordering::Relaxed);
            match entry(index) {
                Some((name, object, info)) => {
                    let sequence = (name.0 >> Name::INDEX_BITS) as usize * SEQUENCE;
                    place.info.store(info, Ordering::Relaxed);
                    place.word.store(word_of(object, sequence), Ordering::Release);
                }
                None => self.append(&mut free, index),
            }
        }
        *self.free.get_mut() = free;
    }

    /// Closes all handles, whatever they are. The entries are not used again.
    pub fn sweep(&mut self, mut closed: impl FnMut(Closed<T>)) {
        for index in 1..self.free.get_mut().leaves as usize * LEAF {
            let Some(entry) = self.entry(index) else { return };
            if let Some(it) = Self::empty(entry, entry.info.load(Ordering::Relaxed)) {
                closed(it);
            }
        }
    }

    /// The table's blocks, one or two at a time: the caller's again. It is as new then.
    pub fn end(&mut self, mut given_back: impl FnMut(Blocks<T>)) {
        for number in 0..BRANCHES {
            let branch = self.branches[number].load(Ordering::Relaxed);
            self.branches[number].store(ptr::null_mut(), Ordering::Relaxed);
            let Some(branch) = NonNull::new(branch) else { continue };
            for leaf in 0..BRANCH {
                // SAFETY: a branch of this table, which nobody else uses, and which is given back below.
                let leaf = unsafe { branch.as_ref() }.0[leaf].load(Ordering::Relaxed);
                if let Some(leaf) = NonNull::new(leaf) {
                    given_back(Blocks { leaf: Some(leaf), branch: None });
                }
            }
            given_back(Blocks { leaf: None, branch: Some(branch) });
        }
        *self.free.get_mut() = Free { first: 0, last: 0, leaves: 0 };
    }
}
