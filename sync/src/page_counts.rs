//! How often a page is used: references and shares in one word, so that its end and a new reference can't both succeed.
//!
//! ```text
//!  owner, freeing                        another processor, about to do I/O
//!  1 reference, 1 share ─► 0             references > 0 ─► one more
//!  succeeds: nobody can refer any more   succeeds: the owner's end fails, and says so
//! ```
//!
//! A page has one reference for all its shares (mappings) together, and one for each other use by physical address.
//!
//! Invariants: I1 a count that is zero leaves zero by `begin` alone, which the page's next owner calls before anybody else knows of it.
//! Ordering:   `end` and the last `drop_reference` release, a successful `try_reference` acquires what `begin` released: who has a
//!             reference sees what the owner wrote before, and who reuses a page does so after all use of it.
//! Tests:      tests/models/tests/page_counts.rs.

use crate::prim::{AtomicU64, Ordering, const_unless_loom};

/// One reference, one share.
const IN_USE: u64 = 1 | 1 << 32;

/// See the module.
#[repr(transparent)]
pub struct PageCounts(AtomicU64);

impl PageCounts {
    const_unless_loom! {
        /// No use.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// References and shares.
    #[inline]
    pub fn get(&self) -> (u32, u32) {
        let word = self.0.load(Ordering::Relaxed);
        (word as u32, (word >> 32) as u32)
    }

    /// No use, whatever was there: for memory that nobody has written to yet.
    pub fn initialise(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The page has an owner: one reference, one share (I1).
    #[inline]
    pub fn begin(&self) {
        self.0.store(IN_USE, Ordering::Release);
    }

    /// The owner gives it up. False if it has another use, or none: then nothing is changed.
    #[inline]
    #[must_use = "a page that somebody still uses is not free"]
    pub fn end(&self) -> bool {
        // Acquire: whoever had a reference is done with the page.
        self.0.compare_exchange(IN_USE, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// One more reference, unless there is none: then nobody has the page.
    #[must_use = "without a reference the page may be anybody's"]
    pub fn try_reference(&self) -> bool {
        self.change(|references, shares| (references > 0).then_some((references + 1, shares))).is_some()
    }

    /// Changes both, from what they are to what `f` says, if it says anything. Returns what they were.
    pub fn change(&self, f: impl Fn(u32, u32) -> Option<(u32, u32)>) -> Option<(u32, u32)> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let before = (word as u32, (word >> 32) as u32);
            let (references, shares) = f(before.0, before.1)?;
            let new = u64::from(references) | u64::from(shares) << 32;
            match self.0.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(before),
                Err(found) => word = found,
            }
        }
    }
}

impl Default for PageCounts {
    fn default() -> Self {
        Self::new()
    }
}
