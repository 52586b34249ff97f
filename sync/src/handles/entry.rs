//! An entry of a table of handles: its word, and what is done to that. The picture is in the table's module.

use core::ptr::NonNull;

use super::Counted;
use crate::prim::{AtomicPtr, AtomicU64, Backoff, Ordering};

/// References counted ahead at a time.
#[cfg(not(loom))]
pub(super) const CREDITS: usize = 31;
#[cfg(loom)]
pub(super) const CREDITS: usize = 1;

pub(super) const LOCK: usize = 1;
pub(super) const CREDIT: usize = 1 << 1;
pub(super) const CREDIT_MASK: usize = 31 * CREDIT;
pub(super) const SEQUENCE: usize = 1 << 6;
pub(super) const SEQUENCE_MASK: usize = 0x3FFF * SEQUENCE;
pub(super) const BELOW_ADDRESS: usize = LOCK | CREDIT_MASK | SEQUENCE_MASK;
const _: () = assert!(BELOW_ADDRESS == (1 << 20) - 1 && CREDITS * CREDIT <= CREDIT_MASK);

/// What a handle says: which entry, and which of the objects that are there one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(pub(super) u32);

impl Name {
    /// Bits that a name has.
    pub const BITS: u32 = 29;
    pub(super) const INDEX_BITS: u32 = 20;

    /// The name with these bits, whether anything has it or not; those above [`BITS`](Self::BITS) are ignored.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    /// Its bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    pub(super) fn new(index: u32, word: usize) -> Self {
        Self::from_bits(index | (((word & SEQUENCE_MASK) / SEQUENCE) as u32) << Self::INDEX_BITS)
    }

    #[inline(always)]
    pub(super) fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }

    /// Does `word` have an object, of this name?
    #[inline(always)]
    pub(super) fn is_of(self, word: usize) -> bool {
        let differ = (word / SEQUENCE) ^ (self.0 >> Self::INDEX_BITS) as usize;
        word > BELOW_ADDRESS && differ & ((1 << (Self::BITS - Self::INDEX_BITS)) - 1) == 0
    }
}

pub(super) struct Entry<T> {
    /// See the module. A pointer whose address is the word, so that it keeps what it may reach.
    pub(super) word: AtomicPtr<T>,
    /// The caller's; of a free entry: the next free one, 0: none. Written by who emptied or took the entry, or has its lock.
    pub(super) info: AtomicU64,
}

/// An entry without an object, nobody else's until it is filled or given back to its table. One that is dropped is never used again.
#[must_use = "an entry that is neither filled nor given back is lost"]
pub struct Vacant<'a, T> {
    pub(super) index: u32,
    pub(super) entry: &'a Entry<T>,
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

#[inline(always)]
pub(super) fn object_of<T>(word: *mut T) -> Option<NonNull<T>> {
    NonNull::new(word.map_addr(|word| ((word & !BELOW_ADDRESS) as isize >> 16) as usize))
}

pub(super) fn word_of<T>(object: NonNull<T>, sequence: usize) -> *mut T {
    let word = object.as_ptr().map_addr(|address| address << 16 | sequence & SEQUENCE_MASK);
    assert_eq!(object_of(word), Some(object), "not an object's address");
    word
}

impl<T: Counted> Entry<T> {
    /// Exchanges `word` for what `change` makes of it, until it was what was read.
    pub(super) fn change(&self, change: impl Fn(usize) -> usize) {
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
    pub(super) fn lock(&self, name: Name) -> Option<*mut T> {
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

    pub(super) fn unlock(&self) {
        self.change(|word| word & !LOCK);
    }
}
