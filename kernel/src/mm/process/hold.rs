//! Pages of a user buffer that stay for I/O, whatever becomes of the address: what MDLs lock.
//!
//! ```text
//! hold       made, or copied, as by an access of that kind; then, under the same hold of the lock, one more reference
//! decommit, unmap, protect, the space's end       as ever: the address leads there no more, the page stays
//! let go     the last reference frees a page that nobody has any more (`frames/sharing.rs`)
//! ```
//!
//! IRQL:       PASSIVE and APC.
//! Locks:      the space's for each page by itself: a long buffer doesn't keep others' faults out.
//! Invariants: I1 between the entry that leads to a page and its reference nobody can end the entry: both are under the lock. So what
//!                is held is what the process reaches there at that moment.
//! Later:      what the process then does with its address is its own affair. A page that is shared for reading and copied by a later
//!             write stays the section's for whoever holds it. A page without an address is no longer charged (`space`, I4), though
//!             it is still in use.
//! Not as NT:  no count of a process's locked pages, whose end is therefore no bugcheck 0x76 while there are any.
//! Tests:      tests/props/tests/mm_process.rs; selftest `process_locked::*`; mutants `mm/held_*`.
//! Sources:    WDK, `MmProbeAndLockPages`.

use core::sync::atomic::Ordering::Relaxed;

use sync::irql::{AddressSpaceLock, Below, Irql, MayBlock};

use super::entry::Entry;
use super::fault::Resolution;
use super::machine::Machine;
use super::protection::Access;
use super::space::{AddressSpace, Inner, address};
use crate::mm::pfn::PageNumber;

/// Why pages are not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What an access of that kind ended with; never [`Resolution::Resolved`].
    pub why: Resolution,
    /// At which of the pages. Those before it were made, or copied, and are held no more.
    pub page: usize,
}

impl<M: Machine> AddressSpace<M> {
    /// Holds the pages from address `first` on, one for each of `pages`, which is given their numbers. Each is there as if it had been
    /// accessed: a write has copied what is copied on write. Each is let go by [`Machine::let_go`], in whatever context.
    ///
    /// # Errors
    /// Nothing is held then. A guard page is none any more.
    pub fn hold<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        first: u64,
        access: Access,
        pages: &mut [u64],
        at: &mut Irql<L>,
    ) -> Result<(), Refused> {
        for page in 0..pages.len() {
            let here = first.wrapping_add(address(page as u64));
            let held = self.resolve_then(here, access, at, |inner, page, at| {
                let number = inner.page_there(page)?;
                inner.machine.hold(number, access == Access::Write, at);
                Some(number)
            });
            match held {
                Ok(Some(number)) => pages[page] = number.number().into(),
                other => {
                    debug_assert!(other.is_err(), "resolved, and nothing is there");
                    self.let_all_go(&pages[..page], at);
                    return Err(Refused { why: other.err().unwrap_or(Resolution::AccessViolation), page });
                }
            }
        }
        Ok(())
    }

    fn let_all_go<L: Below<AddressSpaceLock>>(&self, pages: &[u64], at: &mut Irql<L>) {
        let mut at = at.raise::<AddressSpaceLock>();
        for &number in pages {
            // SAFETY: held by `hold`, so it is in use.
            self.machine.let_go(unsafe { PageNumber::new(number as u32) }, &mut at);
        }
    }
}

impl<M: Machine> Inner<M> {
    /// The page behind `page`'s entry, whatever may be done with it.
    fn page_there(&self, page: u64) -> Option<PageNumber> {
        match Entry::decode(self.tables.leaf(page)?.load(Relaxed)) {
            // SAFETY: an entry's page is in use (`space`, I2).
            Entry::Page { number, .. } => Some(unsafe { PageNumber::new(number) }),
            _ => None,
        }
    }
}
