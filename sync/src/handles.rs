//! A table of handles: names for objects, looked up without a lock while others enter, close and grow.
//!
//! ```text
//! branches ─► branch ─► leaf ─► entry: word │ info
//!
//! word: bits 20–63  address of the object, from bit 4 on; zero: no object
//!            6–19   sequence: how many objects were here before, modulo 2^14
//!            1–5    credits: references to the object that lookups may take along
//!            0      lock
//!
//! lookup                                    close
//! word: of this name, a credit left         lock: nobody else changes the entry now, but for credits
//! info                                      word -> empty, sequence + 1             (AcqRel)
//! word: credits - 1, if it still is that    what credits are left, and one more reference, are the closer's
//!                               (AcqRel)    then the entry is free, and gets another info and another object
//! ```
//!
//! A lookup must not touch an object to which it has no reference, so references are counted ahead: the entry has some, and who takes one
//! along does so by the exchange that finds the entry unchanged. Who finds no credit left takes the entry's lock, under which the handle's
//! own reference stays, and adds to the object's count for all who come next.
//!
//! Owns:       [`Table`], [`Name`]. Not: the memory of its blocks, what info means, nor the objects' counts ([`Counted`]).
//! IRQL:       all below R; an entry's lock and the free list's are held at R's CR8 value, never both.
//! Invariants: H1 an entry with an object has one reference to it, and one for each credit. Who takes a credit, or empties the entry, has
//!                what he took. So an object is there while a word that leads to it can still be exchanged.
//!             H2 the lock bit is set by who will clear it, or empty the entry. Under it nobody else does anything but take credits.
//!             H3 an entry is empty <=> it is on the free list, or about to be put there by who emptied it, or to be filled or put back by who took it ([`Vacant`]).
//!             H4 a block that was published stays where it is until the table ends.
//! Ordering:   a word is published with Release behind its info. A lookup's exchange is Release and the emptying one Acquire: what a lookup
//!             has read of info comes before what is written there for the next object, so it belongs to the object that it got.
//! Reuse:      the free list is first in, first out, and a name has 9 bits of the sequence. A closed handle leads to nothing until its entry
//!             was reused 512 times, for which at least all that were free have to be. NT's handles have no sequence.
//! Tests:      tests/models/tests/handles.rs (H1, H2, H4); the unit tests below.

use core::ptr::{self, NonNull};

use crate::irql::{Below, Irql, Rank};
use crate::prim::{AtomicPtr, AtomicU64, Backoff, Ordering};
use crate::spin::SpinLock;

/// What handles lead to.
///
/// # Safety
/// Aligned to 16 bytes, and its address is one of 48 bits, sign-extended.
pub unsafe trait Counted {
    /// Counts `count` references more.
    ///
    /// # Safety
    /// Somebody has one, and keeps it until this returns.
    unsafe fn acquire(object: NonNull<Self>, count: u32);
}

/// Entries of a leaf: a page of them.
#[cfg(not(loom))]
const LEAF: usize = 256;
/// Leaves of a branch.
#[cfg(not(loom))]
const BRANCH: usize = 512;
/// Branches of a table.
#[cfg(not(loom))]
const BRANCHES: usize = 8;
/// References counted ahead at a time.
#[cfg(not(loom))]
const CREDITS: usize = 31;
#[cfg(loom)]
const LEAF: usize = 2;
#[cfg(loom)]
const BRANCH: usize = 3;
#[cfg(loom)]
const BRANCHES: usize = 1;
#[cfg(loom)]
const CREDITS: usize = 1;

/// The last two entries are not used: handles there could look like NT's -1 to -6, which stand for the caller's process, thread and tokens.
const MOST: usize = LEAF * BRANCH * BRANCHES - 2;

const LOCK: usize = 1;
const CREDIT: usize = 1 << 1;
const CREDIT_MASK: usize = 31 * CREDIT;
const SEQUENCE: usize = 1 << 6;
const SEQUENCE_MASK: usize = 0x3FFF * SEQUENCE;
const BELOW_ADDRESS: usize = LOCK | CREDIT_MASK | SEQUENCE_MASK;
const _: () = assert!(BELOW_ADDRESS == (1 << 20) - 1 && CREDITS * CREDIT <= CREDIT_MASK);

/// What a handle says: which entry, and which of the objects that are there one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(u32);

impl Name {
    /// Bits that a name has.
    pub const BITS: u32 = 29;
    const INDEX_BITS: u32 = 20;

    /// The name with these bits, whether anything has it or not; those above [`BITS`](Self::BITS) are ignored.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    /// Its bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    fn new(index: u32, word: usize) -> Self {
        Self::from_bits(index | (((word & SEQUENCE_MASK) / SEQUENCE) as u32) << Self::INDEX_BITS)
    }

    #[inline(always)]
    fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }

    /// Does `word` have an object, of this name?
    #[inline(always)]
    fn is_of(self, word: usize) -> bool {
        let differ = (word / SEQUENCE) ^ (self.0 >> Self::INDEX_BITS) as usize;
        word > BELOW_ADDRESS && differ & ((1 << (Self::BITS - Self::INDEX_BITS)) - 1) == 0
    }
}

struct Entry<T> {
    /// See the module. A pointer whose address is the word, so that it keeps what it may reach.
    word: AtomicPtr<T>,
    /// The caller's; of a free entry: the next free one, 0: none. Written by who emptied or took the entry, or has its lock.
    info: AtomicU64,
}

/// Entries side by side; one page.
pub struct Leaf<T>([Entry<T>; LEAF]);

/// Where leaves are; one page.
pub struct Branch<T>([AtomicPtr<Leaf<T>>; BRANCH]);

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

/// A handle that is one no more.
#[must_use = "its references are the caller's"]
pub struct Closed<T> {
    /// What it led to.
    pub object: NonNull<T>,
    /// References that were the entry's: at least one. The caller's now.
    pub references: u32,
    /// As it was.
    pub info: u64,
}

/// Why a handle was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotClosed {
    /// There is no such handle.
    Unknown,
    /// The caller's question was answered with no.
    Kept,
}

/// An entry without an object, nobody else's until it is filled or given back to its table. One that is dropped is never used again.
#[must_use = "an entry that is neither filled nor given back is lost"]
pub struct Vacant<'a, T> {
    index: u32,
    entry: &'a Entry<T>,
}

impl<T> Vacant<'_, T> {
    /// Has it lead to `object`, of which a reference becomes the table's; by which name.
    ///
    /// # Safety
    /// The object is valid as long as it has references, of which the caller gives one away.
    #[inline]
    pub unsafe fn fill(self, object: NonNull<T>, info: u64) -> Name {
        let Self { index, entry } = self;
        // H3: the caller's, and empty.
        let sequence = entry.word.load(Ordering::Relaxed).addr();
        entry.info.store(info, Ordering::Relaxed);
        // Release: info, and what came before, for who looks it up.
        entry.word.store(word_of(object, sequence), Ordering::Release);
        Name::new(index, sequence)
    }
}

struct Free {
    /// The first and the last free entry; 0: none.
    first: u32,
    last: u32,
    /// Leaves that are published.
    leaves: u32,
}

/// See the module.
pub struct Table<T, R: Rank> {
    branches: [AtomicPtr<Branch<T>>; BRANCHES],
    free: SpinLock<Free, R>,
}

// SAFETY: objects are reached by who has a reference, which is `Counted`'s and the caller's to say; the rest are atomics.
unsafe impl<T: Send + Sync, R: Rank> Sync for Table<T, R> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, R: Rank> Send for Table<T, R> {}

#[inline(always)]
fn object_of<T>(word: *mut T) -> Option<NonNull<T>> {
    NonNull::new(word.map_addr(|word| ((word & !BELOW_ADDRESS) as isize >> 16) as usize))
}

fn word_of<T>(object: NonNull<T>, sequence: usize) -> *mut T {
    let word = object.as_ptr().map_addr(|address| address << 16 | sequence & SEQUENCE_MASK);
    assert_eq!(object_of(word), Some(object), "not an object's address");
    word
}

impl<T: Counted> Entry<T> {
    /// Exchanges `word` for what `change` makes of it, until it was what was read.
    fn change(&self, change: impl Fn(usize) -> usize) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            match self.word.compare_exchange(
                word,
                word.map_addr(&change),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(found) => word = found,
            }
        }
    }

    /// Takes the lock, if the entry has an object of that name; the word then, without the lock.
    ///
    /// The caller is at the rank's level, so that no holder is ever preempted.
    fn lock(&self, name: Name) -> Option<*mut T> {
        let backoff = Backoff::new();
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if !name.is_of(word.addr()) {
                return None;
            }
            if word.addr() & LOCK != 0 {
                backoff.spin();
                continue;
            }
            let locked = word.map_addr(|word| word | LOCK);
            if self.word.compare_exchange(word, locked, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(word);
            }
        }
    }

    fn unlock(&self) {
        self.change(|word| word & !LOCK);
    }
}

impl<T: Counted, R: Rank> Table<T, R> {
    #[cfg(not(loom))]
    /// An empty one, without blocks.
    #[expect(clippy::new_without_default, reason = "it is a part of what has a default or not")]
    pub const fn new() -> Self {
        Self {
            branches: [const { AtomicPtr::new(ptr::null_mut()) }; BRANCHES],
            free: SpinLock::new(Free { first: 0, last: 0, leaves: 0 }),
        }
    }

    #[cfg(loom)]
    /// An empty one, without blocks.
    #[expect(clippy::new_without_default, reason = "it is a part of what has a default or not")]
    pub fn new() -> Self {
        Self {
            branches: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            free: SpinLock::new(Free { first: 0, last: 0, leaves: 0 }),
        }
    }

    #[inline(always)]
    fn entry(&self, index: usize) -> Option<&Entry<T>> {
        let branch = self.branches.get(index / (LEAF * BRANCH))?.load(Ordering::Acquire);
        // SAFETY: published once, by `grow`, and there until the table ends (H4).
        let branch = unsafe { branch.as_ref() }?;
        let leaf = branch.0[index / LEAF % BRANCH].load(Ordering::Acquire);
        // SAFETY: as above.
        let leaf = unsafe { leaf.as_ref() }?;
        Some(&leaf.0[index % LEAF])
    }

    /// What `name` leads to, and its info; a reference to it is the caller's.
    #[inline]
    pub fn lookup<L: Below<R>>(&self, name: Name, at: &mut Irql<L>) -> Option<(NonNull<T>, u64)> {
        let entry = self.entry(name.index())?;
        loop {
            // Acquire: info, as it was when the object came.
            let word = entry.word.load(Ordering::Acquire);
            if !name.is_of(word.addr()) {
                return None;
            }
            if word.addr() & CREDIT_MASK == 0 {
                return Self::lookup_without_credit(entry, name, at);
            }
            let info = entry.info.load(Ordering::Relaxed);
            let less = word.map_addr(|word| word - CREDIT);
            // Release: info was read before the entry is emptied. Acquire: what came before the object was entered.
            if entry.word.compare_exchange(word, less, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return object_of(word).map(|object| (object, info));
            }
        }
    }

    #[cold]
    fn lookup_without_credit<L: Below<R>>(
        entry: &Entry<T>,
        name: Name,
        at: &mut Irql<L>,
    ) -> Option<(NonNull<T>, u64)> {
        let _at = at.raise::<R>();
        let word = entry.lock(name)?;
        // Others may take of these, none adds (H2).
        let more = CREDITS - (word.addr() & CREDIT_MASK) / CREDIT;
        let object = object_of(word)?;
        // SAFETY: the entry's own reference stays while it is locked (H1, H2).
        unsafe { T::acquire(object, more as u32 + 1) };
        let info = entry.info.load(Ordering::Relaxed);
        entry.change(|word| (word + more * CREDIT) & !LOCK);
        Some((object, info))
    }

    /// A free entry, the caller's alone. None: there is none.
    #[inline]
    pub fn take<L: Below<R>>(&self, at: &mut Irql<L>) -> Option<Vacant<'_, T>> {
        let mut free = self.free.lock(at);
        let index = free.first;
        let entry = (index != 0).then(|| self.entry(index as usize)).flatten()?;
        free.first = entry.info.load(Ordering::Relaxed) as u32;
        Some(Vacant { index, entry })
    }

    /// Gives one back that was not filled.
    ///
    /// # Panics
    /// If it is another table's.
    pub fn give_back<L: Below<R>>(&self, vacant: Vacant<'_, T>, at: &mut Irql<L>) {
        let own = self.entry(vacant.index as usize).is_some_and(|entry| core::ptr::eq(entry, vacant.entry));
        assert!(own, "an entry of another table");
        self.put_back(vacant.index, vacant.entry, at);
    }

    /// Ends the handle `name`, if `may` says so of its info.
    ///
    /// # Errors
    /// Why it was not.
    #[inline]
    pub fn close<L: Below<R>>(
        &self,
        name: Name,
        may: impl FnOnce(u64) -> bool,
        at: &mut Irql<L>,
    ) -> Result<Closed<T>, NotClosed> {
        let entry = self.entry(name.index()).ok_or(NotClosed::Unknown)?;
        let closed = {
            let _at = at.raise::<R>();
            entry.lock(name).ok_or(NotClosed::Unknown)?;
            let info = entry.info.load(Ordering::Relaxed);
            if !may(info) {
                entry.unlock();
                return Err(NotClosed::Kept);
            }
            Self::empty(entry, info).ok_or(NotClosed::Unknown)?
        };
        self.put_back(name.index() as u32, entry, at);
        Ok(closed)
    }

    /// The lock is the caller's, or the table is.
    fn empty(entry: &Entry<T>, info: u64) -> Option<Closed<T>> {
        // H2: the sequence stays, credits may go.
        let sequence = entry.word.load(Ordering::Relaxed).addr() & SEQUENCE_MASK;
        let next = sequence.wrapping_add(SEQUENCE) & SEQUENCE_MASK;
        // AcqRel: behind it are the lookups that have found the entry, with what they have read of info.
        let word = entry.word.swap(ptr::without_provenance_mut(next), Ordering::AcqRel);
        let credits = (word.addr() & CREDIT_MASK) / CREDIT;
        object_of(word).map(|object| Closed { object, references: credits as u32 + 1, info })
    }

    fn put_back<L: Below<R>>(&self, index: u32, entry: &Entry<T>, at: &mut Irql<L>) {
        entry.info.store(0, Ordering::Relaxed);
        let mut free = self.free.lock(at);
        self.append(&mut free, index);
    }

    /// At the end of the free list; `index`'s entry has 0 for its next.
    fn append(&self, free: &mut Free, index: u32) {
        if free.first == 0 {
            free.first = index;
        } else if let Some(last) = self.entry(free.last as usize) {
            last.info.store(index.into(), Ordering::Relaxed);
        }
        free.last = index;
    }

    /// Changes the info of `name`, for lookups from now on. False: there is no such handle.
    #[inline]
    pub fn change_info<L: Below<R>>(
        &self,
        name: Name,
        change: impl FnOnce(u64) -> u64,
        at: &mut Irql<L>,
    ) -> bool {
        let Some(entry) = self.entry(name.index()) else { return false };
        let _at = at.raise::<R>();
        if entry.lock(name).is_none() {
            return false;
        }
        entry.info.store(change(entry.info.load(Ordering::Relaxed)), Ordering::Relaxed);
        entry.unlock();
        true
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

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;
    use crate::irql::{ObjectLock, Passive};
    use crate::testing::at_passive;

    #[repr(align(16))]
    struct Object(AtomicU32);

    // SAFETY: aligned; a host's address.
    unsafe impl Counted for Object {
        unsafe fn acquire(object: NonNull<Self>, count: u32) {
            // SAFETY: a test's, which outlives the table.
            unsafe { object.as_ref() }.0.fetch_add(count, Relaxed);
        }
    }

    type Tested = Table<Object, ObjectLock>;

    fn grow(table: &Tested, at: &mut Irql<Passive>) -> Growth {
        let leaf = NonNull::from(Box::leak(Box::<Leaf<Object>>::new_uninit())).cast();
        let branch = NonNull::from(Box::leak(Box::<Branch<Object>>::new_uninit())).cast();
        // SAFETY: fresh memory for them; `free` gives back what is used.
        unsafe {
            Leaf::write(leaf);
            Branch::write(branch);
            let mut blocks = Blocks { leaf: Some(leaf), branch: Some(branch) };
            let grown = table.grow(&mut blocks, at);
            free(blocks);
            grown
        }
    }

    fn free(blocks: Blocks<Object>) {
        // SAFETY: of `grow`'s boxes, and no table's.
        unsafe {
            blocks.leaf.into_iter().for_each(|leaf| drop(Box::from_raw(leaf.as_ptr())));
            blocks.branch.into_iter().for_each(|branch| drop(Box::from_raw(branch.as_ptr())));
        }
    }

    fn end(mut table: Tested, object: &Object, kept: u32) {
        table.sweep(|closed| _ = object.0.fetch_sub(closed.references, Relaxed));
        table.end(free);
        assert_eq!(object.0.load(Relaxed), kept, "references that nobody gave back");
    }

    #[test]
    fn an_entry_has_512_names_one_after_the_other() {
        const NAMES: usize = if cfg!(miri) { 10 } else { 512 };
        at_passive(|at| {
            let (table, object) = (Tested::new(), Object(AtomicU32::new(0)));
            let pointer = NonNull::from(&object);
            assert!(table.take(at).is_none() && table.lookup(Name::from_bits(1), at).is_none());
            assert_eq!(grow(&table, at), Growth::Done);
            // All but one entry are taken, so that one is used again and again.
            for index in 1..255 {
                object.0.fetch_add(1, Relaxed);
                // SAFETY: it outlives the table.
                assert_eq!(unsafe { table.take(at).unwrap().fill(pointer, 7) }.bits(), index);
            }
            let mut names = Vec::new();
            for _ in 0..NAMES {
                object.0.fetch_add(1, Relaxed);
                // SAFETY: it outlives the table.
                let name = unsafe { table.take(at).unwrap().fill(pointer, 8) };
                assert!(table.take(at).is_none());
                assert_eq!(table.lookup(name, at), Some((pointer, 8)));
                object.0.fetch_sub(1, Relaxed);
                assert!(names.iter().all(|&old| table.lookup(old, at).is_none()));
                names.push(name);
                let closed = table.close(name, |info| info == 8, at).ok().unwrap();
                assert_eq!(closed.references, 32, "the handle's, and the credits of the lookup's round");
                object.0.fetch_sub(closed.references, Relaxed);
                assert!(table.close(name, |_| true, at).is_err());
            }
            assert_eq!(object.0.load(Relaxed), 254);
            end(table, &object, 0);
        });
    }

    #[test]
    fn credits_are_counted_and_info_changes() {
        at_passive(|at| {
            let (table, object) = (Tested::new(), Object(AtomicU32::new(1)));
            let pointer = NonNull::from(&object);
            assert_eq!(grow(&table, at), Growth::Done);
            assert_eq!(grow(&table, at), Growth::Done, "entries are free: the blocks come back");
            // SAFETY: it outlives the table.
            let name = unsafe { table.take(at).unwrap().fill(pointer, 1) };
            for round in 1..=100 {
                assert_eq!(table.lookup(name, at), Some((pointer, round)));
                assert!(table.change_info(name, |info| info + 1, at));
            }
            // 100 that the test has, the handle's own, and 28 credits of the fourth 32.
            assert_eq!(object.0.load(Relaxed), 129);
            assert!(matches!(table.close(name, |info| info != 101, at), Err(NotClosed::Kept)));
            let vacant = table.take(at).unwrap();
            table.give_back(vacant, at);
            end(table, &object, 100);
        });
    }

    #[test]
    fn processors_look_up_and_close() {
        const ROUNDS: u32 = if cfg!(miri) { 20 } else { 3_000 };
        let (table, object) = (Tested::new(), Object(AtomicU32::new(0)));
        at_passive(|at| assert_eq!(grow(&table, at), Growth::Done));
        let last = AtomicU32::new(1);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    at_passive(|at| {
                        for _ in 0..ROUNDS {
                            object.0.fetch_add(1, Relaxed);
                            // SAFETY: it outlives the table.
                            let name = unsafe { table.take(at).unwrap().fill(NonNull::from(&object), 3) };
                            let other = last.swap(name.bits(), Relaxed);
                            for name in [Name::from_bits(other), name] {
                                if table.lookup(name, at).is_some() {
                                    object.0.fetch_sub(1, Relaxed);
                                }
                            }
                            if let Ok(closed) = table.close(Name::from_bits(other), |_| true, at) {
                                object.0.fetch_sub(closed.references, Relaxed);
                            }
                        }
                    });
                });
            }
        });
        end(table, &object, 0);
    }
}
