//! Memory: pairs of an allocation and its free, from what this processor keeps for itself.
//!
//! What goes by the machine's lists takes as many steps as it finds blocks to split and to merge there, which depends on where the
//! image ends. So what is not a whole block of 2 MiB is taken away first: then each pair splits one, and merges it again.

use kernel::mm::frames::ORDERS;
use kernel::mm::pool::{self, Tag};
use kernel::mm::tables::Access;
use kernel::mm::{paged, physical, system_pte, zeroing};
use sync::irql::{Below, Dispatch, Irql, Level, Passive, PoolAccess};

use crate::measure::{consume, count, failed};
use crate::rows::{Area, Row, dispatch, passive};

/// The lists are filled by the runs before the first sample.
pub(crate) const AREA: Area = Area { prepare: take_odd_ends, rows: ROWS };

/// Takes, for good, what is free in less than whole blocks.
pub(crate) fn take_odd_ends(at: &mut Irql<Passive>) {
    pool::drain_everything(at);
    for order in 0..ORDERS - 1 {
        while physical::blocks(at)[order] > 0 {
            let Ok(block) = physical::allocate_contiguous(1 << order, order as u8, None, at) else { break };
            consume(block.into_number().physical());
        }
    }
}

const ROWS: &[Row] = &[
    dispatch("memory::page", page).at_most(60),
    dispatch("memory::pool_64", pool_pair::<Dispatch, 64>).at_most(70),
    passive("memory::pool_64_from_passive", pool_pair::<Passive, 64>),
    dispatch("memory::pool_1000", pool_pair::<Dispatch, 1000>).at_most(70),
    dispatch("memory::pool_4096", pool_pair::<Dispatch, 4096>).at_most(150),
    dispatch("memory::pool_8192", pool_pair::<Dispatch, 8192>).at_most(180),
    passive("memory::map_and_unmap_page", map_and_unmap).at_most(400),
    passive("memory::demand_zero_fault", demand_zero).at_most(900),
    passive("memory::paged_pool_64", paged_pair::<64>),
];

/// With other processors: one operation that they all have to answer, and some that know nothing of them, as in the boot with one.
pub(crate) const BETWEEN: Area = Area {
    prepare: take_odd_ends,
    rows: &[
        passive("memory::unmap_page_on_all_of_4", unmap),
        dispatch("memory::page_of_4", page).at_most(60),
        dispatch("memory::pool_64_of_4", pool_pair::<Dispatch, 64>).at_most(70),
        dispatch("memory::pool_4096_of_4", pool_pair::<Dispatch, 4096>).at_most(150),
    ],
};

const TAG: Tag = Tag::new(b"Bnch");

#[inline(never)]
fn page(at: &mut Irql<Dispatch>) -> u32 {
    count(|| {
        if let Ok(page) = physical::allocate(at) {
            physical::free(core::hint::black_box(page), at);
        } else {
            failed();
        }
    })
}

#[inline(never)]
fn pool_pair<L: Level + Below<PoolAccess>, const SIZE: usize>(at: &mut Irql<L>) -> u32 {
    // Not known to the compiler, as in most calls.
    let size = core::hint::black_box(SIZE);
    count(|| {
        if let Ok(block) = pool::allocate(TAG, size, at) {
            // SAFETY: just allocated, with this tag.
            unsafe { pool::free(core::hint::black_box(block.cast()), TAG, at) };
        } else {
            failed();
        }
    })
}

/// From the store that faults to the next instruction. The page was cleared ahead of need.
#[inline(never)]
fn demand_zero(at: &mut Irql<Passive>) -> u32 {
    zeroing::fill(at);
    let Ok(block) = paged::allocate(TAG, 4096, at) else { return u32::MAX };
    let start = block.cast::<u8>();
    let taken = count(|| {
        // SAFETY: just allocated.
        unsafe {
            core::arch::asm!("mov byte ptr [{}], 1", in(reg) start.as_ptr(), options(nostack, preserves_flags))
        };
    });
    // SAFETY: just allocated, with this tag.
    unsafe { paged::free(start, TAG, at) };
    taken
}

#[inline(never)]
fn paged_pair<const SIZE: usize>(at: &mut Irql<Passive>) -> u32 {
    // So that the block is not its page's first and last.
    let Ok(other) = paged::allocate(TAG, SIZE, at) else { return u32::MAX };
    let size = core::hint::black_box(SIZE);
    let taken = count(|| {
        if let Ok(block) = paged::allocate(TAG, size, at) {
            // SAFETY: just allocated, with this tag.
            unsafe { paged::free(core::hint::black_box(block.cast()), TAG, at) };
        } else {
            failed();
        }
    });
    // SAFETY: as above.
    unsafe { paged::free(other.cast(), TAG, at) };
    taken
}

#[inline(never)]
fn map_and_unmap(at: &mut Irql<Passive>) -> u32 {
    let Ok(page) = physical::allocate(at) else { return u32::MAX };
    let number = [page.number()];
    let taken = count(|| {
        // SAFETY: our own page.
        if let Ok(mapping) = unsafe { system_pte::map(&number, Access::Write, at) } {
            consume(mapping.address().addr().get() as u64);
            system_pte::unmap(mapping, at);
        } else {
            failed();
        }
    });
    physical::free(page, at);
    taken
}

#[inline(never)]
fn unmap(at: &mut Irql<Passive>) -> u32 {
    let Ok(page) = physical::allocate(at) else { return u32::MAX };
    let number = [page.number()];
    // SAFETY: our own page.
    let Ok(mapping) = (unsafe { system_pte::map(&number, Access::Write, at) }) else { return u32::MAX };
    let taken = count(|| system_pte::unmap(mapping, at));
    physical::free(page, at);
    taken
}
