//! Pages that a test has: where it ends early, since an allocation was refused on purpose (`inject`), they go back all the same.

use core::sync::atomic::{AtomicU64, Ordering};

use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use sync::irql::{Irql, Passive};

use crate::runner::Verdict;

/// Numbers plus one; zero is empty.
static HELD: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];

/// A page of zeroes.
pub(crate) fn page(at: &mut Irql<Passive>) -> Result<PageNumber, Verdict> {
    let page = physical::allocate_zeroed(at).map_err(|_| Verdict::Fail("no page", 0, 0))?.into_number();
    if let Some(slot) = HELD.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) {
        slot.store(u64::from(page.number()) + 1, Ordering::Relaxed);
    }
    Ok(page)
}

/// Takes it back; the test has no mapping of it any more.
pub(crate) fn free(page: PageNumber, at: &mut Irql<Passive>) {
    let number = u64::from(page.number()) + 1;
    if let Some(slot) = HELD.iter().find(|slot| slot.load(Ordering::Relaxed) == number) {
        slot.store(0, Ordering::Relaxed);
    }
    // SAFETY: from `page`, mapped nowhere else any more.
    physical::free(unsafe { Page::from_number(page) }, at);
}

/// Takes back what the last test still has: it ended between two of its allocations, before it mapped anything.
pub(crate) fn release(at: &mut Irql<Passive>) {
    for slot in &HELD {
        let number = slot.swap(0, Ordering::Relaxed);
        if let Some(page) = number.checked_sub(1).and_then(|number| physical::in_use(number, at)) {
            // SAFETY: taken by `page`, and not given back.
            physical::free(unsafe { Page::from_number(page) }, at);
        }
    }
}
