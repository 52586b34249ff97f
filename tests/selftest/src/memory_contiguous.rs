//! Contiguous memory and pages for lists: where they were asked for, each once, and all given back.

use core::ptr::NonNull;

use arch::paging::PAGE;
use kernel::mm::contiguous::{self, Place};
use kernel::mm::frames::Counts;
use kernel::mm::mdl::flags;
use kernel::mm::mdl_pages::{self, Choice};
use kernel::mm::tables::{Access, Caching};
use kernel::mm::{physical, pool, system_pte};
use sync::irql::{Dispatch, Irql, Passive};

use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory_contiguous::memory_lies_where_it_was_asked_for", placed),
    ("memory_contiguous::pages_for_lists", listed),
];

const MIB: u64 = 1 << 20;

/// Free memory, and what became page tables.
fn baseline(at: &mut Irql<Passive>) -> (Counts, u32) {
    pool::drain_everything(at);
    (physical::counts(at), system_pte::table_pages(at))
}

fn same_as(before: (Counts, u32), at: &mut Irql<Passive>) -> Result {
    let (counts, tables) = baseline(at);
    let wanted = before.0.free + before.0.zeroed - (tables - before.1);
    equal((counts.free + counts.zeroed).into(), wanted.into(), "free pages at the end")?;
    check(physical::verify(at).is_ok(), "free memory is damaged", 0, 0)
}

fn placed(at: &mut Irql<Passive>) -> Result {
    let before = baseline(at);
    let at_most = |bits| Place::below_bits(bits);
    for (bytes, place) in [
        (1, Place::ANYWHERE),
        (3 * PAGE, at_most(24)),
        (12 * PAGE, Place { boundary: 64 << 10, ..Place::ANYWHERE }),
        (16 * PAGE, Place { boundary: 64 << 10, ..at_most(27) }),
        (5 * PAGE, Place { lowest: 100 * MIB, highest: 101 * MIB - 1, boundary: 0 }),
        (3 * MIB, Place { lowest: 64 * MIB, highest: 128 * MIB - 1, boundary: 16 * MIB }),
    ] {
        // Several at once, so that the second has to look elsewhere.
        let mut blocks = [None; 3];
        for slot in &mut blocks {
            *slot = contiguous::allocate(bytes, place, &mut at.raise::<Dispatch>()).ok();
        }
        let mut last = None;
        for block in blocks.iter().flatten() {
            let first = contiguous::physical_address(*block).unwrap_or(0);
            let end = first + bytes - 1;
            // SAFETY: the test's own block: its last byte lies `bytes` behind its first.
            let there = NonNull::new(unsafe { block.as_ptr().add(bytes as usize - 1) });
            let found = there.and_then(contiguous::physical_address);
            let crosses = place.boundary != 0 && first / place.boundary != end / place.boundary;
            check(first >= place.lowest && end <= place.highest, "outside of the range", first, end)?;
            check(found == Some(end), "not in a row", first, bytes)?;
            check(!crosses && last != Some(first), "over a boundary, or twice", first, place.boundary)?;
            // SAFETY: as above.
            unsafe { block.as_ptr().write_bytes(0xC7, bytes as usize) };
            last = Some(first);
        }
        let count = blocks.iter().flatten().count();
        for block in blocks.into_iter().flatten() {
            // SAFETY: the test's own.
            unsafe { contiguous::free(block, at) };
        }
        equal(count as u64, 3, "blocks that could be had")?;
    }
    for (bytes, place) in [
        (0, Place::ANYWHERE),
        (u64::MAX, Place::ANYWHERE),
        (PAGE, Place { lowest: 5 * PAGE, highest: 6 * PAGE - 2, boundary: 0 }),
        (PAGE, at_most(12)),
        (5 * PAGE, Place { boundary: 4 * PAGE, ..Place::ANYWHERE }),
        (2 * PAGE, Place { boundary: 3 * PAGE, ..Place::ANYWHERE }),
        (PAGE, Place { lowest: 1 << 45, highest: u64::MAX, boundary: 0 }),
    ] {
        check(contiguous::allocate(bytes, place, at).is_err(), "what can't be", bytes, place.boundary)?;
    }
    same_as(before, at)
}

const ANY: Choice = Choice { lowest: 0, highest: u64::MAX, skip: 0, leave_content: false, all: false };

fn listed(at: &mut Irql<Passive>) -> Result {
    let before = baseline(at);
    let no_list = |_| Verdict::Fail("no list", 0, 0);
    // Zeroed, and mapped somewhere.
    let all = Choice { all: true, ..ANY };
    let mut mdl = mdl_pages::allocate_pages(10 * PAGE as u32 - 5, &all, at).map_err(no_list)?;
    let count = mdl.page_count();
    // SAFETY: the test's own pages.
    let address = unsafe { mdl_pages::map(&mut mdl, Access::Write, Caching::WriteBack, at) };
    let Ok(address) = address else {
        // SAFETY: allocated with its pages above, and left as it was.
        unsafe { mdl_pages::free_pages(&mut mdl, at) };
        // SAFETY: as below.
        unsafe { mdl_pages::free(mdl, at) };
        return Err(Verdict::Fail("no mapping", 0, 0));
    };
    // SAFETY: mapped just now.
    let bytes = unsafe { core::slice::from_raw_parts_mut(address.as_ptr(), 10 * PAGE as usize) };
    let zero = bytes.iter().all(|&byte| byte == 0);
    bytes.fill(0x99);
    mdl_pages::unmap(&mut mdl, at);
    // SAFETY: allocated with its pages above, and left as it was.
    unsafe { mdl_pages::free_pages(&mut mdl, at) };
    let flags = mdl.header().flags & flags::PAGES_LOCKED;
    // SAFETY: made above, and empty.
    unsafe { mdl_pages::free(mdl, at) };
    check(count == 10 && zero && flags == 0, "a list of ten zero pages", count as u64, flags as u64)?;
    // Within a range, then from the next one, and not from another.
    let low = Choice { lowest: 16 * MIB, highest: 17 * MIB - 1, skip: MIB, ..ANY };
    let mut mdl = mdl_pages::allocate_pages(300 * PAGE as u32, &low, at).map_err(no_list)?;
    let (least, most) = (mdl.pages().iter().min(), mdl.pages().iter().max());
    let range = (least.map_or(0, |page| page * PAGE), most.map_or(0, |page| page * PAGE));
    let taken = mdl.page_count();
    // The ranges behind them are for what these don't have: with many processors, others have much of them.
    let both = Choice { lowest: 16 * MIB, highest: 18 * MIB - 1, all: true, ..ANY };
    let left = mdl_pages::allocate_pages(PAGE as u32, &both, at);
    let is_anything_left = left.is_ok();
    if let Ok(mut left) = left {
        // SAFETY: allocated with its page just now.
        unsafe { mdl_pages::free_pages(&mut left, at) };
        // SAFETY: as above.
        unsafe { mdl_pages::free(left, at) };
    }
    // SAFETY: allocated with its pages above, and left as it was.
    unsafe { mdl_pages::free_pages(&mut mdl, at) };
    // SAFETY: as above.
    unsafe { mdl_pages::free(mdl, at) };
    equal(taken as u64, 300, "pages of two ranges")?;
    check(range.0 >= 16 * MIB, "below both", range.0, range.1)?;
    check(range.1 < 18 * MIB || !is_anything_left, "outside of both, which have pages", range.0, range.1)?;
    // What there is, or nothing.
    let narrow = Choice { lowest: 32 * MIB, highest: 32 * MIB + 20 * PAGE - 1, ..ANY };
    let mut mdl = mdl_pages::allocate_pages(100 * PAGE as u32, &narrow, at).map_err(no_list)?;
    let taken = mdl.page_count();
    let refused = mdl_pages::allocate_pages(100 * PAGE as u32, &Choice { all: true, ..narrow }, at);
    // SAFETY: allocated with its pages above, and left as it was.
    unsafe { mdl_pages::free_pages(&mut mdl, at) };
    // SAFETY: as above.
    unsafe { mdl_pages::free(mdl, at) };
    check(taken > 0 && taken <= 20 && refused.is_err(), "part of what was wanted", taken as u64, 20)?;
    // Above the last page that there can be, at once and by a step behind one that has nothing.
    let nowhere = Choice { lowest: 1 << 50, highest: (1 << 50) + PAGE - 1, skip: u64::MAX, ..ANY };
    for above in [Choice { lowest: u64::MAX, ..ANY }, Choice { lowest: u64::MAX - PAGE + 2, ..ANY }, nowhere]
    {
        let refused = mdl_pages::allocate_pages(PAGE as u32, &above, at).is_err();
        check(refused, "a page above all memory", above.lowest, above.skip)?;
    }
    // A step from where nothing is over the end of all addresses.
    let below = Choice { lowest: 1, highest: 2, skip: u64::MAX, ..ANY };
    check(mdl_pages::allocate_pages(PAGE as u32, &below, at).is_err(), "a page from nowhere", 0, 0)?;
    same_as(before, at)
}
