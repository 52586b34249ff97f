//! A thread's kernel stack: pages of its own, mapped in a row, a page that is not mapped below.
//!
//! It lies among the system PTEs, where every run is followed by an empty page: the one before it is this stack's guard.

use core::mem::MaybeUninit;

use arch::paging::PAGE;
use sync::irql::{Below, Ipi, Irql, PageCacheAccess, SpaceLock};

use crate::mm::pages::Page;
use crate::mm::pfn::PageNumber;
use crate::mm::system_pte::{self, Mapping};
use crate::mm::tables::Access;
use crate::mm::{Exhausted, physical};

/// 32 KiB: NT's is 24; this one also carries the twelve nested handlers that `arch::trap` allows, and a bugcheck's report.
const PAGES: usize = 8;

/// See the module. Dropping it leaks it, since the end of a mapping needs a level: [`free`](Self::free).
#[must_use = "a dropped stack stays mapped for good"]
pub(crate) struct Stack {
    mapping: Mapping,
    top: u64,
    pages: [PageNumber; PAGES],
}

impl Stack {
    /// Pages and addresses for one.
    pub(crate) fn allocate<L>(at: &mut Irql<L>) -> Result<Self, Exhausted>
    where
        L: Below<PageCacheAccess> + Below<SpaceLock> + Below<Ipi>,
    {
        let mut pages = [const { MaybeUninit::<PageNumber>::uninit() }; PAGES];
        for done in 0..PAGES {
            match physical::allocate(at) {
                Ok(page) => {
                    pages[done].write(page.into_number());
                }
                Err(error) => {
                    for page in &pages[..done] {
                        // SAFETY: written above; nobody else has it.
                        physical::free(unsafe { Page::from_number(page.assume_init()) }, at);
                    }
                    return Err(error);
                }
            }
        }
        // SAFETY: all were written.
        let pages = pages.map(|page| unsafe { page.assume_init() });
        // SAFETY: the pages are this stack's alone.
        match unsafe { system_pte::map(&pages, Access::Write, at) } {
            Ok(mapping) => {
                let top = mapping.address().addr().get() as u64 + mapping.len();
                Ok(Self { mapping, top, pages })
            }
            Err(_) => {
                give_back(pages, at);
                Err(Exhausted)
            }
        }
    }

    /// Where it begins to grow down from.
    pub(crate) fn top(&self) -> u64 {
        self.top
    }

    /// Its lowest address.
    pub(crate) fn bottom(&self) -> u64 {
        self.mapping.address().addr().get() as u64
    }

    /// Is `address` in the page below it, which is not mapped?
    pub(crate) fn guards(&self, address: u64) -> bool {
        let bottom = self.bottom();
        (bottom - PAGE..bottom).contains(&address)
    }

    /// Gives it back.
    pub(crate) fn free<L>(self, at: &mut Irql<L>)
    where
        L: Below<PageCacheAccess> + Below<SpaceLock> + Below<Ipi>,
    {
        system_pte::unmap(self.mapping, at);
        give_back(self.pages, at);
    }
}

fn give_back<L: Below<PageCacheAccess>>(pages: [PageNumber; PAGES], at: &mut Irql<L>) {
    for page in pages {
        // SAFETY: this stack's own, mapped nowhere else any more.
        physical::free(unsafe { Page::from_number(page) }, at);
    }
}
