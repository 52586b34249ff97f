//! Tags, and the small table that gives each a number for its counters.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Four characters that say whose a block is. NT writes the first one into the lowest byte.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tag(u32);

impl Tag {
    /// A tag of four printable characters.
    ///
    /// # Panics
    /// At compile time, where it is used as meant: for others.
    pub const fn new(name: &[u8; 4]) -> Self {
        let mut at = 0;
        while at < 4 {
            assert!(name[at] >= 0x20 && name[at] < 0x7F, "a tag is four printable characters");
            at += 1;
        }
        Self(u32::from_le_bytes(*name))
    }

    /// A driver's, whatever characters it has.
    pub const fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// As drivers pass it.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_le_bytes().iter().try_for_each(|&byte| fmt::Write::write_char(f, byte.into()))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tags that are told apart; number 0 counts all others together. Miri looks at every one at each borrow of the table.
pub const TAGS: usize = if cfg!(miri) { 16 } else { 256 };

/// A hash table that only grows: a tag keeps its number.
pub(super) struct TagTable([AtomicU32; TAGS]);

impl TagTable {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; TAGS])
    }

    /// The tag's number, if it has one at the place that is looked at first.
    #[inline]
    pub(super) fn known(&self, tag: Tag) -> Option<u16> {
        let home = Self::home(tag);
        (self.0[home].load(Relaxed) == tag.0).then_some(home as u16)
    }

    /// The tag's number.
    #[inline]
    pub(super) fn index(&self, tag: Tag) -> u16 {
        self.known(tag).unwrap_or_else(|| self.find(tag, Self::home(tag)))
    }

    const fn home(tag: Tag) -> usize {
        (tag.0.wrapping_mul(0x9E37_79B9) >> 24) as usize % TAGS
    }

    #[cold]
    #[inline(never)]
    fn find(&self, tag: Tag, home: usize) -> u16 {
        for at in (home..home + TAGS).map(|at| at % TAGS).filter(|&at| at != 0) {
            // Relaxed: a place holds one word, and goes from zero to a tag once.
            match self.0[at].compare_exchange(0, tag.0, Relaxed, Relaxed) {
                Ok(_) => return at as u16,
                Err(taken) if taken == tag.0 => return at as u16,
                Err(_) => {}
            }
        }
        0
    }
}
