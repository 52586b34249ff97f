//! Executable pool: what is written there runs, on every processor and at every level that may, and no page can be written and executed
//! at once. And pool by NT's names.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::{Flags, PAGE, translate};
use kernel::mm::executable::{self, MOST_PAGES};
use kernel::mm::pool::nt::{self, flags};
use kernel::mm::pool::{self, Tag};
use kernel::mm::{layout, paged, physical, system_pte};
use sync::irql::{Clock, DeviceLevel, Dispatch, Irql, Passive};

use crate::everywhere;
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("memory_executable::what_is_written_runs_and_is_never_both", written_and_run),
    ("memory_executable::every_processor_runs_what_was_written_last", everywhere_new),
    ("memory_executable::writers_and_runners_at_once", under_fire),
    ("memory_executable::at_every_level_below_ipi", levels),
    ("memory_executable::nt_names_lead_to_the_right_pool", nt_names),
    ("memory_executable::nt_flags_zero_refuse_and_align", nt_flags),
];

const TEST: Tag = Tag::new(b"Exec");

fn take(size: usize, at: &mut Irql<Passive>) -> core::result::Result<NonNull<u8>, Verdict> {
    let block = executable::allocate(TEST, size, at).map_err(|_| Verdict::Fail("no memory", 0, 0))?;
    Ok(block.cast())
}

fn free(block: NonNull<u8>, at: &mut Irql<Passive>) {
    // SAFETY: the tests' own.
    unsafe { executable::free(block, TEST, at) };
}

/// MOV EAX, value; RET.
fn write(block: NonNull<u8>, value: u32) {
    let [a, b, c, d] = value.to_le_bytes();
    // SAFETY: the test's own block.
    unsafe { block.cast::<[u8; 6]>().write_volatile([0xB8, a, b, c, d, 0xC3]) };
}

fn run(block: NonNull<u8>) -> u32 {
    // SAFETY: written by `write`: a function without arguments that touches nothing but EAX.
    let code = unsafe { core::mem::transmute::<NonNull<u8>, extern "sysv64" fn() -> u32>(block) };
    code()
}

/// Whether the page can be written, and executed.
fn rights(block: NonNull<u8>) -> (bool, bool) {
    let found = translate(block.addr().get() as u64);
    found.map_or((false, false), |(_, flags)| {
        (flags.contains(Flags::WRITABLE), !flags.contains(Flags::NO_EXECUTE))
    })
}

fn written_and_run(at: &mut Irql<Passive>) -> Result {
    pool::drain_everything(at);
    let before = (physical::counts(at), system_pte::table_pages(at), system_pte::free(at));
    let block = take(3 * PAGE as usize - 1, at)?;
    // SAFETY: the last page of the block.
    let last = unsafe { block.add(2 * PAGE as usize) };
    let fresh = rights(block);
    let mut seen = [(0, (false, false), (false, false)); 4];
    for (value, seen) in (1..).zip(&mut seen) {
        write(last, value);
        let written = rights(last);
        *seen = (run(last), written, rights(last));
    }
    // The other pages stay as they were.
    let others = rights(block);
    free(block, at);
    let gone = probe::read(block.addr().get() as u64).is_some();
    let too_much = executable::allocate(TEST, MOST_PAGES * PAGE as usize + 1, at).is_err();
    pool::drain_everything(at);
    let after = (physical::counts(at), system_pte::table_pages(at), system_pte::free(at));
    check(fresh == (true, false) && others == (true, false), "rights of what never ran", 0, 0)?;
    for (value, seen) in (1..).zip(seen) {
        equal(seen.0.into(), value, "what the code returned")?;
        check(seen.1 == (true, false), "rights after a write", value, 0)?;
        check(seen.2 == (false, true), "rights after a run", value, 0)?;
    }
    check(gone && too_much, "after the free, or too much", gone.into(), too_much.into())?;
    let pages = |counts: kernel::mm::frames::Counts| u64::from(counts.free + counts.zeroed);
    equal(pages(after.0) + u64::from(after.1 - before.1), pages(before.0), "pages lost or made")?;
    equal(after.2 as u64, before.2 as u64, "addresses lost")
}

static CODE: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);

/// All run it, so all have it cached as code; then one writes, and all run it again.
fn everywhere_new(at: &mut Irql<Passive>) -> Result {
    let block = take(100, at)?;
    CODE.store(block.addr().get() as u64, Ordering::Relaxed);
    for round in 1..100 {
        write(block, round);
        SUM.store(0, Ordering::Relaxed);
        everywhere::run(at, |_, _| {
            if let Some(code) = NonNull::new(CODE.load(Ordering::Relaxed) as *mut u8) {
                SUM.fetch_add(run(code).into(), Ordering::Relaxed);
            }
        });
        let expected = u64::from(round) * u64::from(kernel::ke::prcb::count());
        if SUM.load(Ordering::Relaxed) != expected {
            free(block, at);
            return check(false, "an earlier round's code ran", SUM.load(Ordering::Relaxed), expected);
        }
    }
    free(block, at);
    Ok(())
}

/// What ran and returned what nobody wrote.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Every second processor writes the code's low byte, the others run it, at PASSIVE and at DISPATCH: all faults are resolved, whoever
/// changes the page at that moment.
fn under_fire(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 200;
    need_processors(2)?;
    let block = take(100, at)?;
    write(block, 0x100);
    CODE.store(block.addr().get() as u64, Ordering::Relaxed);
    SUM.store(0, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    everywhere::run(at, |at, number| {
        let Some(code) = NonNull::new(CODE.load(Ordering::Relaxed) as *mut u8) else { return };
        for round in 0..ROUNDS {
            let _raised = (round % 2 == 1).then(|| at.raise::<Dispatch>());
            if number % 2 == 0 {
                // SAFETY: the test's own block; a byte of an operand.
                unsafe { code.add(1).write_volatile(round as u8) };
            } else {
                let found = run(code);
                WRONG.fetch_add((found >> 8 != 1).into(), Ordering::Relaxed);
            }
            SUM.fetch_add(1, Ordering::Relaxed);
        }
    });
    free(block, at);
    equal(WRONG.load(Ordering::Relaxed), 0, "returned what nobody wrote")?;
    equal(SUM.load(Ordering::Relaxed), u64::from(ROUNDS * kernel::ke::prcb::count()), "rounds")
}

fn levels(at: &mut Irql<Passive>) -> Result {
    let block = take(100, at)?;
    let change = |value| {
        write(block, value);
        run(block)
    };
    let mut found = [0; 4];
    found[0] = change(10);
    {
        let mut dispatch = at.raise::<Dispatch>();
        found[1] = change(11);
        if let Some(level) = DeviceLevel::new(7) {
            let _device = dispatch.raise_device(level);
            found[2] = change(12);
        }
        let _clock = dispatch.raise::<Clock>();
        found[3] = change(13);
    }
    free(block, at);
    check(found == [10, 11, 12, 13], "at some level", found[2].into(), found[3].into())
}

const POOL_TYPES: [(u32, u64); 4] =
    [(0, layout::SYSTEM_PTES), (1, layout::PAGED_POOL), (512, layout::DIRECT), (513, layout::PAGED_POOL)];

fn nt_names(at: &mut Irql<Passive>) -> Result {
    let tag = TEST.value();
    // With special pool for all, nonpaged blocks lie among the system PTEs as well.
    let special = |part| part == layout::DIRECT;
    for size in [100, 5000] {
        for (kind, part) in POOL_TYPES {
            let block = NonNull::new(nt::allocate_with_tag(kind, size, tag));
            let Some(block) = block else { return check(false, "no memory", kind.into(), size as u64) };
            let found = layout::part(block.addr().get() as u64);
            // SAFETY: the test's own block; at PASSIVE.
            unsafe {
                block.as_ptr().write_bytes(1, size);
                nt::free_with_tag(block, tag);
            }
            let right = found == Some(part) || (special(part) && found == Some(layout::SYSTEM_PTES));
            check(right, "another pool", kind.into(), found.unwrap_or(0))?;
        }
    }
    // At DISPATCH as well, but for paged pool.
    let _raised = at.raise::<Dispatch>();
    for kind in [0, 512] {
        let Some(block) = NonNull::new(nt::allocate_with_tag(kind, 200, tag)) else {
            return check(false, "no memory at DISPATCH", kind.into(), 0);
        };
        // SAFETY: as above.
        unsafe { nt::free_with_tag(block, tag) };
    }
    Ok(())
}

fn nt_flags(at: &mut Irql<Passive>) -> Result {
    let tag = TEST.value();
    for wanted in
        [flags::NON_PAGED, flags::NON_PAGED_EXECUTE, flags::PAGED, flags::PAGED | flags::CACHE_ALIGNED]
    {
        for size in [40, 300, 6000] {
            let Some(block) = NonNull::new(nt::allocate2(wanted, size, tag)) else {
                return check(false, "no memory", wanted, size as u64);
            };
            // SAFETY: the test's own block.
            let bytes = unsafe { core::slice::from_raw_parts_mut(block.as_ptr(), size) };
            let zero = bytes.iter().all(|&byte| byte == 0);
            bytes.fill(0xEE);
            let aligned = wanted & flags::CACHE_ALIGNED == 0 || block.addr().get().is_multiple_of(64);
            // SAFETY: as above.
            unsafe { nt::free_with_tag(block, tag) };
            check(zero && aligned, "not zero, or not aligned", wanted, size as u64)?;
        }
    }
    for (wanted, size, tag) in [
        (0, 100, tag),
        (flags::NON_PAGED | flags::PAGED, 100, tag),
        (flags::NON_PAGED, 0, tag),
        (flags::NON_PAGED, 100, 0),
        (flags::NON_PAGED | 1 << 20, 100, tag),
        (flags::PAGED, usize::MAX / 2, tag),
        (flags::NON_PAGED, usize::MAX / 2, tag),
    ] {
        check(nt::allocate2(wanted, size, tag).is_null(), "what can't be", wanted, size as u64)?;
    }
    // What isn't known may be asked for as an option.
    let block = NonNull::new(nt::allocate2(flags::NON_PAGED | 1 << 40 | flags::UNINITIALIZED, 64, tag));
    let Some(block) = block else { return check(false, "an option was refused", 0, 0) };
    // SAFETY: as above.
    unsafe { nt::free_with_tag(block, tag) };
    equal(pool::statistics(TEST).bytes + paged::statistics(TEST, at).bytes, 0, "bytes that the tag has")
}
