//! The pool on the machine: from all processors at once, to exhaustion and back, and as Rust's allocator.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::paging::{Flags, translate};
use kernel::ke::prcb;
use kernel::mm::frames::Counts;
use kernel::mm::physical;
use kernel::mm::pool::{self, Owned, Tag, special};
use kernel::mm::system_pte;
use sync::irql::{Dispatch, Irql, Passive};

use crate::everywhere;
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal};

extern crate alloc;

pub(crate) const TESTS: &[Test] = &[
    ("memory_pool::storm_from_all_processors", storm),
    ("memory_pool::exhaustion_and_recovery_to_the_baseline", exhaustion),
    ("memory_pool::blocks_are_never_executable", never_executable),
    ("memory_pool::rust_allocates_from_it_and_fails_softly", rust),
    ("memory_pool::leaks_are_told", leaks),
    ("memory_pool::special_blocks_lie_against_guard_pages", special),
];

const TEST: Tag = Tag::new(b"Test");
const STORM: Tag = Tag::new(b"Strm");

/// Blocks that processors hand to each other.
static HANDED: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
/// What was found wrong, and where.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn wrong(what: u64, about: u64) {
    if WRONG[0].compare_exchange(0, what, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        WRONG[1].store(about, Ordering::Relaxed);
    }
}

/// Free memory, and what became page tables: those stay. Special blocks, which a whole boot can be run with, need them.
fn free_memory(at: &mut Irql<Passive>) -> (Counts, u32) {
    (physical::counts(at), system_pte::table_pages(at))
}

/// The free memory is consistent, and as much as it was but for new tables.
fn same_as((before, tables_before): (Counts, u32), at: &mut Irql<Passive>) -> Result {
    let tables = system_pte::table_pages(at) - tables_before;
    let after = physical::verify(at).map_err(|(what, page)| Verdict::Fail(what, page.into(), 0))?;
    let wanted = before.free + before.zeroed - tables;
    equal((after.free + after.zeroed).into(), wanted.into(), "pages lost or made")
}

fn drain_all(at: &mut Irql<Passive>) {
    everywhere::run(at, |at, _| pool::drain_everything(at));
}

/// The first word of a block is its size; every byte behind it is a function of its address.
const fn pattern(address: usize) -> u8 {
    (address ^ address >> 8) as u8
}

fn paint(block: NonNull<u8>, size: usize) {
    // SAFETY: a block of that size, at least a word, aligned.
    unsafe {
        block.cast::<usize>().write(size);
        for at in (8..size).step_by(if size > 512 { 61 } else { 1 }) {
            block.add(at).write(pattern(block.addr().get() + at));
        }
    }
}

fn give(block: NonNull<u8>, at: &mut Irql<Passive>) {
    // SAFETY: painted.
    let size = unsafe { block.cast::<usize>().read() };
    for at in (8..size.min(1 << 20)).step_by(if size > 512 { 61 } else { 1 }) {
        // SAFETY: within the block, if its size is what was painted; a wrong one is what this looks for.
        if unsafe { block.add(at).read() } != pattern(block.addr().get() + at) {
            wrong(2, block.addr().get() as u64);
            break;
        }
    }
    // SAFETY: a block of the storm's, and nobody else has it: it was swapped out of the common place, or never there.
    unsafe { pool::free(block, STORM, at) };
}

/// Each processor fills, checks and frees blocks of all sizes; half are freed by another one. Some of it at DISPATCH.
fn storm(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = free_memory(at);
    let counted = pool::statistics(STORM);
    WRONG.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    everywhere::run(at, |at, number| {
        let mut random = 0x2545_F491 ^ (number + 1).wrapping_mul(0x9E37_79B9);
        let mut held = [0_usize; 64];
        for round in 0..3000_u64 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let slot = random as usize % held.len();
            let size = match random >> 8 & 15 {
                0..10 => 8 + (random >> 12) as usize % 248,
                10..13 => 8 + (random >> 12) as usize % 4200,
                13 => 4096,
                _ => 4096 + (random >> 12) as usize % 20_000,
            };
            let old = core::mem::take(&mut held[slot]);
            if old != 0 {
                let incoming = HANDED[random as usize >> 26 & 63].swap(old, Ordering::AcqRel);
                if let Some(block) = NonNull::new(incoming as *mut u8) {
                    give(block, at);
                }
                continue;
            }
            let block = if round % 2 == 0 {
                pool::allocate(STORM, size, at)
            } else {
                pool::allocate(STORM, size, &mut at.raise::<Dispatch>())
            };
            match block {
                Ok(block) => {
                    let block = block.cast::<u8>();
                    paint(block, size);
                    held[slot] = block.as_ptr() as usize;
                }
                Err(_) => wrong(1, size as u64),
            }
        }
        for block in held {
            if let Some(block) = NonNull::new(block as *mut u8) {
                give(block, at);
            }
        }
    });
    for place in &HANDED {
        if let Some(block) = NonNull::new(place.swap(0, Ordering::AcqRel) as *mut u8) {
            give(block, at);
        }
    }
    drain_all(at);
    let (what, about) = (WRONG[0].load(Ordering::Relaxed), WRONG[1].load(Ordering::Relaxed));
    check(what == 0, "1: no memory, 2: a block that somebody else wrote to", what, about)?;
    let now = pool::statistics(STORM);
    equal(now.bytes, 0, "bytes that the tag still has")?;
    equal(now.allocations - counted.allocations, now.frees - counted.frees, "allocations and frees")?;
    check(
        now.allocations - counted.allocations > 1000 * u64::from(prcb::count()),
        "too few",
        now.allocations,
        0,
    )?;
    same_as(before, at)
}

/// Takes all memory in blocks of several sizes, chained through themselves, and gives it back.
fn exhaustion(at: &mut Irql<Passive>) -> Result {
    drain_all(at);
    let before = free_memory(at);
    // Most of the memory in runs of 2 MiB, straight from the page manager and only noted: touching all of it would cost the host
    // its memory.
    let mut runs = alloc::vec::Vec::new();
    runs.try_reserve_exact(1 << 14).map_err(|_| Verdict::Fail("no memory for notes", 0, 0))?;
    let mut last: *mut u8 = core::ptr::null_mut();
    // Bytes, and at most how many: some small ones while there is memory, then all that there is in ever smaller blocks.
    const ALL: u64 = u64::MAX;
    let steps = [(64, 500), (1000, 100), (64 << 10, ALL), (4096, ALL), (1000, ALL), (64, ALL)];
    let mut counts = [0_u64; 6];
    for (count, (size, most)) in counts.iter_mut().zip(steps) {
        while most == ALL
            && runs.len() < runs.capacity()
            && let Ok(page) = physical::allocate_contiguous(512, 9, None, at)
        {
            runs.push(page);
        }
        while *count < most
            && let Ok(block) = pool::allocate(TEST, size, at)
        {
            let block = block.cast::<u8>().as_ptr();
            // SAFETY: our own.
            unsafe { block.cast::<*mut u8>().write(last) };
            (last, *count) = (block, *count + 1);
        }
    }
    let refused = pool::allocate(TEST, 4096, at).is_err()
        && alloc::vec::Vec::<u64>::new().try_reserve(1 << 20).is_err();
    while let Some(block) = NonNull::new(last) {
        // SAFETY: written above.
        last = unsafe { block.as_ptr().cast::<*mut u8>().read() };
        // SAFETY: taken above, once.
        unsafe { pool::free(block, TEST, at) };
    }
    let had_runs = runs.len() as u64;
    for page in runs.drain(..) {
        // SAFETY: taken above, 512 pages each.
        unsafe { physical::free_contiguous(page, 512, at) };
    }
    drop(runs);
    drain_all(at);
    check(
        counts[0] == 500 && counts[1] == 100 && had_runs > 0,
        "sizes that could not be had",
        counts[0],
        had_runs,
    )?;
    check(refused, "memory from nowhere", 0, 0)?;
    equal(pool::statistics(TEST).bytes, 0, "bytes that the tag still has")?;
    same_as(before, at)
}

fn never_executable(at: &mut Irql<Passive>) -> Result {
    for size in [64, 4096, 100_000] {
        let Ok(block) = pool::allocate(TEST, size, at) else {
            return check(false, "no memory", size as u64, 0);
        };
        let address = block.cast::<u8>().addr().get() as u64;
        // SAFETY: a `ret`, in case that it can be executed after all.
        unsafe { block.cast::<u8>().write(0xC3) };
        let rights =
            translate(address).is_some_and(|(_, flags)| flags.contains(Flags::NO_EXECUTE | Flags::WRITABLE));
        let seen = probe::execute(address);
        // SAFETY: our own.
        unsafe { pool::free(block.cast(), TEST, at) };
        check(rights, "rights of a block", address, size as u64)?;
        // Error code 0x11: the page is there, and a fetch.
        check(seen.is_some_and(|seen| seen.vector == 14 && seen.error == 0x11), "executed", address, 0)?;
    }
    Ok(())
}

fn rust(at: &mut Irql<Passive>) -> Result {
    const RUST: Tag = Tag::new(b"Rust");
    let before = pool::statistics(RUST);
    let mut numbers = alloc::vec::Vec::new();
    for number in 0..1000_u64 {
        numbers.try_reserve(1).map_err(|_| Verdict::Fail("no memory", number, 0))?;
        numbers.push(number);
    }
    equal(numbers.iter().sum(), 999 * 500, "the sum of what was stored")?;
    check(
        pool::statistics(RUST).bytes >= before.bytes + 8000,
        "not from the pool",
        pool::statistics(RUST).bytes,
        0,
    )?;
    check(numbers.try_reserve(1 << 50).is_err(), "memory from nowhere", 0, 0)?;
    drop(numbers);
    equal(pool::statistics(RUST).bytes, before.bytes, "bytes that Rust still has")?;
    // At DISPATCH as well, with the alignment that the type asks for.
    #[repr(align(256))]
    struct Aligned([u64; 4]);
    let dropped = {
        let mut at = at.raise::<Dispatch>();
        let Ok(owned) = Owned::try_new(TEST, Aligned([1, 2, 3, 4]), &mut at) else {
            return check(false, "no memory", 0, 0);
        };
        let address = core::ptr::from_ref(&*owned).addr();
        check(address.is_multiple_of(256), "not aligned", address as u64, 256)?;
        owned.0.iter().sum::<u64>()
    };
    equal(dropped, 10, "what was stored")?;
    equal(pool::statistics(TEST).bytes, 0, "bytes that the box still has")
}

fn leaks(at: &mut Irql<Passive>) -> Result {
    pool::mark(at);
    let line = line!() + 1;
    let block = pool::allocate(TEST, 100, at);
    let mut told = (0, 0, 0);
    pool::leaks(at, |leak| told = (told.0 + 1, leak.site.line(), leak.bytes));
    if let Ok(block) = block {
        // SAFETY: our own.
        unsafe { pool::free(block.cast(), TEST, at) };
    }
    let mut left = 0;
    pool::leaks(at, |_| left += 1);
    check(told == (1, line, 100), "one leak of 100 bytes, at this line", told.1.into(), line.into())?;
    equal(left, 0, "leaks after the free")
}

fn special(at: &mut Irql<Passive>) -> Result {
    const SPECIAL: Tag = Tag::new(b"Spcl");
    drain_all(at);
    let (pages, addresses) = (free_memory(at), system_pte::free(at));
    let result = [false, true].into_iter().try_for_each(|before| {
        special::choose(Some(SPECIAL), before);
        [16, 100, 1000, 4080].into_iter().try_for_each(|size| special_block(SPECIAL, size, before, at))
    });
    special::choose_none();
    drain_all(at);
    result?;
    equal(pool::statistics(SPECIAL).bytes, 0, "bytes that the tag still has")?;
    same_as(pages, at)?;
    equal(system_pte::free(at) as u64, addresses as u64, "addresses lost")
}

fn special_block(tag: Tag, size: usize, before: bool, at: &mut Irql<Passive>) -> Result {
    let Ok(block) = pool::allocate(tag, size, at) else { return check(false, "no memory", size as u64, 0) };
    let start = block.cast::<u8>().addr().get() as u64;
    let end = start + size as u64;
    let guard = if before { start - 1 } else { end.next_multiple_of(16) };
    let inside = probe::write(start).is_none() && probe::write(end - 1).is_none();
    let beside = probe::write(guard);
    // Another processor, another level: frees like any block.
    // SAFETY: our own.
    unsafe { pool::free(block.cast(), tag, &mut at.raise::<Dispatch>()) };
    let after = probe::read(start);
    check(inside, "a block that can't be written", start, size as u64)?;
    check(beside.is_some_and(|seen| seen.address == guard), "no guard beside the block", guard, size as u64)?;
    check(after.is_some_and(|seen| seen.address == start), "still there after its free", start, size as u64)
}
