//! User pages made by hand in the kernel's own tables, for as long as no process has any: three tables and some pages.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::{AddressSpace, PAGE, hhdm};
use kernel::mm::pfn::PageNumber;
use kernel::mm::{physical, shootdown};
use sync::irql::{Irql, Passive};

use crate::held;
use crate::runner::Verdict;

/// Where they are.
pub(crate) const START: u64 = 0x10_0000_0000;
/// How many there are.
pub(crate) const PAGES: usize = 4;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// What a page is mapped as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    ReadOnly,
    Nothing,
    /// With a bit set that no processor has an address line for.
    Broken,
}

pub(crate) struct UserPages {
    tables: [PageNumber; 3],
    pages: [PageNumber; PAGES],
}

fn slot(table: u64, at: u64) -> &'static AtomicU64 {
    // SAFETY: a table's page, reached through the HHDM, of which `at` is one of 512 entries.
    unsafe { &*((hhdm() + table) as *const AtomicU64).add(at as usize % 512) }
}

fn top() -> &'static AtomicU64 {
    // SAFETY: only the one empty entry of the user's half is changed.
    slot(unsafe { AddressSpace::current() }.root(), START >> 39)
}

impl UserPages {
    /// All of them readable and writable, and all zeroes.
    pub(crate) fn map(at: &mut Irql<Passive>) -> Result<Self, Verdict> {
        let mut take = || held::page(at);
        let made = Self { tables: [take()?, take()?, take()?], pages: [take()?, take()?, take()?, take()?] };
        if top().load(Ordering::Relaxed) != 0 {
            return Err(Verdict::Fail("the kernel's tables have a user half", 0, 0));
        }
        let [first, second, third] = made.tables.map(PageNumber::physical);
        for (number, page) in made.pages.iter().enumerate() {
            slot(third, (START >> 12) + number as u64)
                .store(page.physical() | PRESENT | WRITABLE | USER, Ordering::Release);
        }
        slot(second, START >> 21).store(third | PRESENT | WRITABLE | USER, Ordering::Release);
        slot(first, START >> 30).store(second | PRESENT | WRITABLE | USER, Ordering::Release);
        top().store(first | PRESENT | WRITABLE | USER, Ordering::Release);
        Ok(made)
    }

    /// Maps one of them otherwise.
    pub(crate) fn remap(&self, number: usize, as_what: As, at: &mut Irql<Passive>) {
        let physical = self.pages[number].physical();
        let value = match as_what {
            As::ReadOnly => physical | PRESENT | USER,
            As::Nothing => 0,
            As::Broken => physical | PRESENT | WRITABLE | USER | 1 << 51,
        };
        slot(self.tables[2].physical(), (START >> 12) + number as u64).store(value, Ordering::Release);
        shootdown::flush_entire(at);
    }

    /// The bytes of a page, by the kernel's own mapping.
    pub(crate) fn bytes(&mut self, number: usize) -> &mut [u8] {
        // SAFETY: the test's own page, which nobody writes to while the slice is used.
        unsafe { core::slice::from_raw_parts_mut(physical::address(self.pages[number]), PAGE as usize) }
    }

    /// Ends it.
    pub(crate) fn end(self, at: &mut Irql<Passive>) {
        top().store(0, Ordering::Release);
        shootdown::flush_entire(at);
        for page in self.tables.into_iter().chain(self.pages) {
            held::free(page, at);
        }
    }
}
