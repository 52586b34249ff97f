//! Page allocation on the machine: from all processors at once, to exhaustion and back, where devices want it.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::{PAGE, hhdm, translate};
use kernel::boot::facts;
use kernel::boot::limine::EntryType;
use kernel::ke::prcb;
use kernel::mm::frames::Counts;
use kernel::mm::layout::PFN_DATABASE;
use kernel::mm::pages::Page;
use kernel::mm::pfn::{PageNumber, Pfn};
use kernel::mm::pool::Tag;
use kernel::mm::{physical, pool, system_pte};
use sync::irql::{Dispatch, Irql, Passive};

use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("memory_pages::storm_from_all_processors", storm),
    ("memory_pages::exhaustion_and_recovery_to_the_baseline", exhaustion),
    ("memory_pages::what_others_keep_is_there_when_memory_runs_out", exhaustion_with_caches),
    ("memory_pages::contiguous_and_below_a_limit", contiguous),
    ("memory_pages::zeroed_pages_are_zero", zeroed),
    ("memory_pages::a_retired_page_is_nobodys_for_good", retired),
    ("memory_pages::every_page_is_somewhere", accounted),
    ("memory_pages::database_is_backed_where_memory_is", backed),
];

/// The first thing found wrong on any processor, plus one; what it was about.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn wrong(what: u64, about: u64) {
    if WRONG[0].compare_exchange(0, what, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        WRONG[1].store(about, Ordering::Relaxed);
    }
}

/// Words of a page that are written: both ends and some between, so that a storm is about allocation and not about `memset`.
const MARKS: [usize; 4] = [0, 1, 255, 511];

fn mark(page: PageNumber, value: u64) {
    let words = physical::address(page).cast::<u64>();
    for at in MARKS {
        // SAFETY: the caller's page.
        unsafe { words.add(at).write_volatile(value ^ at as u64) };
    }
}

fn is_marked(page: PageNumber, value: u64) -> bool {
    let words = physical::address(page).cast::<u64>();
    // SAFETY: as above.
    MARKS.into_iter().all(|at| unsafe { words.add(at).read_volatile() } == value ^ at as u64)
}

/// Pages that processors hand to each other: number plus one; zero is empty.
static HANDED: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn drain_all(at: &mut Irql<Passive>) {
    everywhere::run(at, |at, _| physical::drain(at));
}

/// The free memory is consistent, and as much as it was, zeroed or not.
fn same_as(before: Counts, at: &mut Irql<Passive>) -> Result {
    let after = physical::verify(at).map_err(|(what, page)| Verdict::Fail(what, page.into(), 0))?;
    equal((after.free + after.zeroed).into(), (before.free + before.zeroed).into(), "pages lost or made")
}

/// Takes and marks a page, swaps it with whatever lies in a common place, checks what came and frees it: half of all pages
/// are freed by another processor than the one that took them.
fn storm(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = physical::counts(at);
    WRONG.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    everywhere::run(at, |at, number| {
        let mut random = 0x9E37_79B9 ^ (number + 1).wrapping_mul(0x85EB_CA6B);
        let mut held = [0_u64; 48];
        for round in 0..4000_u64 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let slot = random as usize % held.len();
            let old = core::mem::take(&mut held[slot]);
            if old != 0 {
                let incoming = HANDED[random as usize >> 8 & 63].swap(old, Ordering::AcqRel);
                if incoming != 0 {
                    give(incoming, at);
                }
            } else {
                // Half at DISPATCH, as a DPC would.
                let page = if round % 2 == 0 {
                    physical::allocate(at)
                } else {
                    physical::allocate(&mut at.raise::<Dispatch>())
                };
                match page {
                    Ok(page) => {
                        let page = page.into_number();
                        mark(page, u64::from(page.number()));
                        held[slot] = u64::from(page.number()) + 1;
                        KNOWN.store(true, page);
                    }
                    Err(_) => wrong(1, round),
                }
            }
        }
        held.into_iter().filter(|&held| held != 0).for_each(|held| give(held, at));
    });
    for place in &HANDED {
        let left = place.swap(0, Ordering::AcqRel);
        if left != 0 {
            give(left, at);
        }
    }
    drain_all(at);
    let blocks = physical::blocks(at);
    let pages = |orders: core::ops::Range<usize>| orders.map(|order| u64::from(blocks[order]) << order).sum();
    let (all, whole): (u64, u64) = (pages(0..10), pages(9..10));
    kernel::info!(
        "fragmentation: {} % of what was opened is in whole 2 MiB; blocks {blocks:?}",
        whole * 100 / all
    );
    equal(WRONG[0].load(Ordering::Relaxed), 0, "1: no page, 2: a page with another's mark, 3: taken twice")?;
    same_as(before, at)
}

/// One bit a page below 2 GiB: who hands out a page that is out finds it set.
struct Bits([AtomicU64; (2 << 30) / PAGE as usize / 64]);
static KNOWN: Bits = Bits([const { AtomicU64::new(0) }; (2 << 30) / PAGE as usize / 64]);

impl Bits {
    fn store(&self, taken: bool, page: PageNumber) {
        let number = page.number() as usize;
        let Some(word) = self.0.get(number / 64) else { return };
        let bit = 1 << (number % 64);
        let before =
            if taken { word.fetch_or(bit, Ordering::AcqRel) } else { word.fetch_and(!bit, Ordering::AcqRel) };
        if (before & bit != 0) == taken {
            wrong(3, number as u64);
        }
    }
}

fn give(held: u64, at: &mut Irql<Passive>) {
    let page = Page::known((held - 1) as u32);
    if !is_marked(page, held - 1) {
        wrong(2, held - 1);
    }
    KNOWN.store(false, page);
    // SAFETY: as above.
    physical::free(unsafe { Page::from_number(page) }, at);
}

fn exhaustion(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = physical::counts(at);
    take_everything(before.free + before.zeroed, at)?;
    same_as(before, at)
}

const PAIR: Tag = Tag::new(b"Pair");

/// The same, but each processor keeps some pages, which are had all the same.
fn exhaustion_with_caches(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    drain_all(at);
    let before = physical::counts(at);
    everywhere::run(at, |at, _| {
        let mut taken = [const { None }; 9];
        taken.fill_with(|| physical::allocate(at).ok());
        taken.into_iter().flatten().for_each(|page| physical::free(page, at));
        // Of a block of two pages, the processor keeps both.
        if let Ok(block) = pool::allocate(PAIR, 2 * PAGE as usize, at) {
            // SAFETY: allocated just now.
            unsafe { pool::free(block.cast(), PAIR, at) };
        }
    });
    check(physical::cached() >= 11 * prcb::count(), "nothing is kept", physical::cached().into(), 0)?;
    take_everything(before.free + before.zeroed, at)?;
    equal(physical::cached().into(), 0, "still kept by processors")?;
    same_as(before, at)
}

/// Takes everything, 2 MiB at a time and then page by page, and gives it back. What was taken is noted in pages of it, chained by
/// their first words: there is no other place left, and touching all of it would cost the host its memory.
fn take_everything(all: u32, at: &mut Irql<Passive>) -> Result {
    let (mut notes, mut noted, mut count) = (None, NOTES, 0);
    for size in [512, 1] {
        loop {
            let page = if size > 1 {
                physical::allocate_contiguous(size, 9, None, at)
            } else {
                physical::allocate(at)
            };
            let Ok(page) = page else { break };
            count += size;
            let page = page.into_number();
            let note = u64::from(size) << 32 | u64::from(page.number());
            if noted == NOTES {
                // A full sheet: this page is the next one, and notes itself.
                set_word(page, 0, notes.map_or(0, |old: PageNumber| u64::from(old.number()) + 1));
                (notes, noted) = (Some(page), 1);
            }
            if let Some(sheet) = notes {
                set_word(sheet, noted, note);
                noted += 1;
            }
        }
    }
    let none_left = physical::counts(at).free;
    let more = [physical::allocate_contiguous(1, 0, None, at), physical::allocate_zeroed(at)];
    let refused = more.iter().all(|page| page.is_err());
    more.into_iter().flatten().for_each(|page| physical::free(page, at));
    let mut freed = 0;
    while let Some(sheet) = notes {
        let older = word(sheet, 0);
        // The sheet's own note is its first; it goes last.
        for at_word in (1..noted).rev() {
            let note = word(sheet, at_word);
            let (size, page) = ((note >> 32) as u32, Page::known(note as u32));
            // SAFETY: taken above, once; that many.
            unsafe {
                match size {
                    1 => physical::free(Page::from_number(page), at),
                    size => physical::free_contiguous(Page::from_number(page), size, at),
                }
            }
            freed += size;
        }
        notes = older.checked_sub(1).map(|number| Page::known(number as u32));
        noted = NOTES;
    }
    physical::drain(at);
    equal(count.into(), all.into(), "pages that could be had")?;
    equal(freed.into(), count.into(), "pages that were noted")?;
    equal(none_left.into(), 0, "free pages after exhaustion")?;
    check(refused, "a page from nowhere", 0, 0)
}

/// Words of a sheet.
const NOTES: usize = PAGE as usize / 8;

fn word(page: PageNumber, at: usize) -> u64 {
    // SAFETY: the caller's page.
    unsafe { physical::address(page).cast::<u64>().add(at).read_volatile() }
}

fn set_word(page: PageNumber, at: usize, value: u64) {
    // SAFETY: the caller's page.
    unsafe { physical::address(page).cast::<u64>().add(at).write_volatile(value) };
}

/// A number that was noted becomes one that is known.
trait Known {
    fn known(number: u32) -> PageNumber;
}

impl Known for Page {
    fn known(number: u32) -> PageNumber {
        // SAFETY: transparent; the number of a page that was handed out, so it has an entry.
        unsafe { core::mem::transmute::<u32, PageNumber>(number) }
    }
}

fn contiguous(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = physical::counts(at);
    const LIMIT: u64 = 64 << 20;
    for (count, align, limit) in
        [(1, 0, None), (3, 4, None), (17, 0, Some(LIMIT)), (512, 9, None), (1500, 9, Some(LIMIT * 4))]
    {
        let Ok(page) = physical::allocate_contiguous(count, align, limit, at) else {
            return check(false, "no run of pages", count.into(), align.into());
        };
        let first = page.number();
        let end = first.physical() + u64::from(count) * PAGE;
        check(limit.is_none_or(|limit| end <= limit), "above the limit", first.physical(), end)?;
        check(first.number().is_multiple_of(1 << align), "not aligned", first.physical(), align.into())?;
        // SAFETY: all of them are ours, and one goes after the other as far as the address shows.
        unsafe {
            core::ptr::write_bytes(physical::address(first), 0x5A, count as usize * PAGE as usize);
            physical::free_contiguous(page, count, at);
        }
    }
    check(physical::allocate_contiguous(1, 0, Some(1 << 20), at).is_err(), "a page of the firmware's", 0, 0)?;
    same_as(before, at)
}

fn zeroed(at: &mut Irql<Passive>) -> Result {
    for _ in 0..64 {
        let Ok(page) = physical::allocate_zeroed(at) else { return check(false, "no page", 0, 0) };
        let words = physical::address(page.number()).cast::<u64>();
        for at in 0..512 {
            // SAFETY: our own page.
            let word = unsafe { words.add(at).read_volatile() };
            equal(word, 0, "a word of a zeroed page")?;
        }
        // SAFETY: as above: dirty for the next one.
        unsafe { core::ptr::write_bytes(words.cast::<u8>(), 0xFF, PAGE as usize) };
        physical::free(page, at);
    }
    Ok(())
}

/// Memory of the map is free, in use by this kernel since bring-up, or in the first MiB; nothing else is missing.
/// A page whose memory is broken: it is counted, and not among all that can be had afterwards. Each run costs a page.
fn retired(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = physical::counts(at);
    let page = physical::allocate(at).map_err(|_| Verdict::Fail("no page", 0, 0))?;
    let number = u64::from(page.number().number());
    physical::retire(page, at);
    drain_all(at);
    let after = physical::counts(at);
    let in_use = physical::in_use(number, at).is_some();
    equal((after.bad - before.bad).into(), 1, "pages retired")?;
    equal((before.free + before.zeroed - after.free - after.zeroed).into(), 1, "pages lost or kept")?;
    check(!in_use, "a retired page that somebody has", number, 0)?;
    check(physical::verify(at).is_ok(), "damage", number, 0)?;
    take_everything(after.free + after.zeroed, at)?;
    same_as(after, at)
}

fn accounted(at: &mut Irql<Passive>) -> Result {
    let owned = [EntryType::USABLE, EntryType::BOOTLOADER_RECLAIMABLE];
    let all = facts().info.memory_map.iter().filter(|entry| owned.contains(&entry.entry_type));
    let bytes: u64 =
        all.map(|entry| (entry.base + entry.length).saturating_sub(entry.base.max(1 << 20))).sum();
    let available = u64::from(physical::available(at)) * PAGE;
    check(available + facts().early_bytes <= bytes, "more than there is", available, bytes)?;
    // What was allocated since: tables, counted, and pages that the kernel holds by design: 172 KiB, and the stacks and pool pages of each
    // processor's own threads, 66 KiB. This is some way above, and far below a forgotten range.
    let held = (384 + 68 * u64::from(prcb::count())) << 10;
    let known = available + facts().early_bytes + u64::from(system_pte::table_pages(at)) * PAGE;
    check(known + held > bytes, "memory that nobody has", known, bytes)
}

fn backed(_: &mut Irql<Passive>) -> Result {
    let entry = |page: u64| PFN_DATABASE + page * size_of::<Pfn>() as u64;
    let mut backed = 0;
    for range in facts().info.memory_map.iter().filter(|entry| entry.entry_type == EntryType::USABLE) {
        for page in (range.base..range.base + range.length).step_by(64 * PAGE as usize) {
            check(translate(entry(page / PAGE)).is_some(), "memory without an entry", page, 0)?;
            check(translate(hhdm() + page).is_some(), "memory out of reach", page, 0)?;
        }
        backed += range.length;
    }
    check(backed > 0, "no memory", 0, 0)?;
    // 0.8 % of memory, but for the edges of its ranges: a chunk of entries at each end.
    let ranges = facts().info.memory_map.len() as u64;
    let entries = backed / PAGE * size_of::<Pfn>() as u64;
    let edges = 2 * ranges * 512 * size_of::<Pfn>() as u64;
    let chunks = (0..64_u64 << 30).step_by(2 << 20);
    let found = chunks.filter(|&at| translate(entry(at / PAGE)).is_some()).count() as u64 * 512 * 32;
    check(entries * 1000 <= backed * 8, "entries of more than 0.8 %", entries, backed)?;
    check(found <= entries + edges, "more entries than there are pages", found, entries + edges)?;
    // 3 to 4 GiB is where devices are; 1 TiB is behind any memory that this is run with.
    for hole in [0xFEE0_0000_u64, 1 << 40] {
        check(translate(entry(hole / PAGE)).is_none(), "an entry for no memory", hole, 0)?;
    }
    Ok(())
}
