//! The end of translations on several processors, summed over all of them (see `park` for what is counted).

use kernel::ke::{ipi, prcb};
use kernel::mm::pages::Page;
use kernel::mm::tables::Access;
use kernel::mm::{physical, shootdown, system_pte};
use sync::irql::{Irql, Passive};

use crate::measure::{count, undisturbed};
use crate::park;
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("tlb::unmap_page_1_remote", unmap_1_remote).at_most(600),
    passive("tlb::unmap_page_3_remote", unmap_3_remote),
    passive("tlb::unmap_page_3_idle", unmap_3_idle),
    passive("tlb::flush_16_pages_1_remote", flush_16),
];

/// The page table that mappings come into; it stays.
fn prepare(at: &mut Irql<Passive>) {
    let Some(mapping) = map(at) else { return };
    system_pte::unmap(mapping, at);
}

fn map(at: &mut Irql<Passive>) -> Option<system_pte::Mapping> {
    static PAGE: sync::Once<kernel::mm::pfn::PageNumber> = sync::Once::new();
    if PAGE.get().is_none() {
        let page = physical::allocate(at).ok()?;
        PAGE.call_once(|| Page::into_number(page));
    }
    // SAFETY: a page of this area's own, that nobody uses.
    unsafe { system_pte::map(&[*PAGE.get()?], Access::Write, at) }.ok()
}

/// Declares the processors in `asleep` to be idle, as if they halted in the idle loop, while `operation` runs. They are parked, and
/// nothing wakes them meanwhile.
fn while_asleep(
    asleep: u64,
    operation: impl FnOnce(&mut Irql<Passive>) -> u32,
    at: &mut Irql<Passive>,
) -> u32 {
    let each = |f: fn(&prcb::Prcb)| {
        for (_, processor) in (0..).zip(prcb::all()).filter(|(number, _)| asleep & 1u64 << number != 0) {
            f(processor.prcb());
        }
    };
    each(|prcb| prcb.sleep.begin());
    let result = operation(at);
    // What they owe is left out: parked, they touch nothing that is mapped here.
    each(|prcb| _ = prcb.sleep.end());
    result
}

/// The second of two, so that what an interrupt before them left to a processor to execute is over: these operations last long enough to be
/// hit by one.
fn second_undisturbed(mut once: impl FnMut() -> u32) -> u32 {
    undisturbed(|| {
        once();
        once()
    })
}

/// The unmap of one page; `told`: the processors that are interrupted for it.
#[inline(always)]
fn unmap(told: u64, at: &mut Irql<Passive>) -> u32 {
    second_undisturbed(|| {
        let Some(mapping) = map(at) else { return u32::MAX };
        count(|| system_pte::unmap(mapping, at)).wrapping_sub(park::length(told))
    })
}

const ONE: u64 = 1 << park::SHORT;

fn others() -> u64 {
    ipi::online() & !1
}

#[inline(never)]
fn unmap_1_remote(at: &mut Irql<Passive>) -> u32 {
    while_asleep(others() & !ONE, |at| unmap(ONE, at), at)
}

#[inline(never)]
fn unmap_3_remote(at: &mut Irql<Passive>) -> u32 {
    unmap(others(), at)
}

#[inline(never)]
fn unmap_3_idle(at: &mut Irql<Passive>) -> u32 {
    while_asleep(others(), |at| unmap(0, at), at)
}

#[inline(never)]
fn flush_16(at: &mut Irql<Passive>) -> u32 {
    let flush = |at: &mut Irql<Passive>| {
        second_undisturbed(|| {
            let start = core::hint::black_box(kernel::mm::layout::SYSTEM_PTES);
            count(|| shootdown::flush_run(start, 16, at)).wrapping_sub(park::length(ONE))
        })
    };
    while_asleep(others() & !ONE, flush, at)
}
