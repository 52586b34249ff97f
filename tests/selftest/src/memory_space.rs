//! Mappings after bring-up: rights, guard slots, and that no processor keeps a translation that ended.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::{Flags, PAGE, translate};
use kernel::boot::facts;
use kernel::ke::{ipi, prcb};
use kernel::mm::pfn::PageNumber;
use kernel::mm::space::is_address_valid;
use kernel::mm::system_pte::{self, MapError, Mapping};
use kernel::mm::tables::{Access, Caching};
use kernel::mm::{layout, physical};
use sync::irql::{Dispatch, Irql, Passive};

use crate::held::{free, page};
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory_space::mapped_pages_have_the_rights_asked_for", rights),
    ("memory_space::device_registers_are_uncached_and_memory_is_refused", devices),
    ("memory_space::what_ended_faults_and_is_reused", ended),
    ("memory_space::no_processor_keeps_an_ended_translation", shootdown),
    ("memory_space::running_out_of_addresses_leaves_nothing_behind", exhausted),
];

fn map(
    pages: &[PageNumber],
    access: Access,
    at: &mut Irql<Passive>,
) -> core::result::Result<Mapping, Verdict> {
    // SAFETY: the tests' own pages.
    unsafe { system_pte::map(pages, access, at) }.map_err(|_| Verdict::Fail("no mapping", 0, 0))
}

fn address(mapping: &Mapping) -> u64 {
    mapping.address().addr().get() as u64
}

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

fn rights(at: &mut Irql<Passive>) -> Result {
    let pages = [page(at)?, page(at)?];
    for access in [Access::Read, Access::Write, Access::Execute] {
        // A `ret`, for the one that may be executed.
        // SAFETY: our own page.
        unsafe { physical::address(pages[1]).write(0xC3) };
        let mapping = map(&pages, access, at)?;
        let second = address(&mapping) + PAGE;
        let found = translate(second);
        let written = probe::write(second);
        let executed = probe::execute(second);
        system_pte::unmap(mapping, at);
        let Some((physical, flags)) = found else { return check(false, "not mapped", second, 0) };
        equal(physical, pages[1].physical(), "another page")?;
        check(
            flags.contains(Flags::GLOBAL) && !flags.contains(Flags::USER_ACCESSIBLE),
            "flags",
            second,
            flags.bits(),
        )?;
        let write_error = written.map_or(0, |seen| seen.error);
        let fetch_error = executed.map_or(0, |seen| seen.error);
        equal(
            write_error,
            if access == Access::Write { 0 } else { PRESENT | WRITE },
            "a write's error code",
        )?;
        equal(
            fetch_error,
            if access == Access::Execute { 0 } else { PRESENT | FETCH },
            "a fetch's error code",
        )?;
    }
    pages.into_iter().for_each(|page| free(page, at));
    Ok(())
}

fn devices(at: &mut Irql<Passive>) -> Result {
    let Some(chip) = facts().firmware.io_apics.as_slice().first() else {
        return Err(Verdict::Skip("needs an I/O APIC"));
    };
    let registers = u64::from(chip.address);
    // SAFETY: the I/O APIC's registers: selecting and reading one changes nothing that anybody relies on here.
    let Ok(mapping) = (unsafe { system_pte::map_io(registers + 0x10, 16, Caching::Uncached, at) }) else {
        return check(false, "no mapping", registers, 0);
    };
    let found = translate(address(&mapping));
    system_pte::unmap(mapping, at);
    let wanted = Flags::NO_CACHE | Flags::WRITE_THROUGH | Flags::NO_EXECUTE | Flags::WRITABLE;
    let right = found.is_some_and(|(physical, flags)| physical == registers + 0x10 && flags.contains(wanted));
    check(right, "registers with other rights", registers, found.map_or(0, |(_, flags)| flags.bits()))?;
    let page = page(at)?;
    // SAFETY: our own page, and refused.
    let refused = unsafe { system_pte::map_io(page.physical(), PAGE, Caching::Uncached, at) };
    free(page, at);
    check(matches!(refused, Err(MapError::Memory)), "memory mapped uncached", page.physical(), 0)?;
    // SAFETY: refused.
    let empty = unsafe { system_pte::map_io(registers, 0, Caching::Uncached, at) };
    check(matches!(empty, Err(MapError::Range)), "nothing mapped", 0, 0)
}

fn ended(at: &mut Irql<Passive>) -> Result {
    let (first, second) = (page(at)?, page(at)?);
    let mapping = map(&[first], Access::Write, at)?;
    let where_ = address(&mapping);
    // SAFETY: our own page, mapped there.
    unsafe { (where_ as *mut u64).write_volatile(0x1111) };
    // SAFETY: the same, by the HHDM.
    let seen = unsafe { physical::address(first).cast::<u64>().read_volatile() };
    let (inside, behind) = (is_address_valid(where_, at), is_address_valid(where_ + PAGE, at));
    let guard = probe::read(where_ + PAGE);
    system_pte::unmap(mapping, at);
    let after = probe::read(where_);
    let mapping = map(&[second], Access::Write, at)?;
    let again = address(&mapping);
    // SAFETY: as above.
    let fresh = unsafe { (again as *const u64).read_volatile() };
    system_pte::unmap(mapping, at);
    free(first, at);
    free(second, at);
    equal(seen, 0x1111, "what was written by the mapping")?;
    check(inside && !behind, "validity of the page and its guard", where_, 0)?;
    check(guard.is_some_and(|seen| seen.error == 0), "no guard behind the run", where_ + PAGE, 0)?;
    check(after.is_some_and(|seen| seen.error == 0), "still there after the unmap", where_, 0)?;
    // The lowest run is the one that came back: what follows relies on that to look for stale translations.
    equal(again, where_, "the address is not reused")?;
    equal(fresh, 0, "the page mapped before")
}

/// What processors saw at the address instead of the round's mark.
static STALE: AtomicU64 = AtomicU64::new(0);

/// One page after another is mapped at the same address; in each round every processor reads and writes there. One that kept
/// its translation would see the mark of an earlier round, or write into a page that is somebody else's by then.
fn shootdown(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u64 = 200;
    STALE.store(0, Ordering::Relaxed);
    let pages = [page(at)?, page(at)?, page(at)?, page(at)?];
    let processors = prcb::count();
    // Of each kind of round: a hole that holds a page may be lower than one that holds a run.
    let (mut addresses_before, mut moves) = ([None; 2], 0);
    for round in 1..=ROUNDS {
        let current = pages[round as usize % pages.len()];
        let words = physical::address(current).cast::<AtomicU64>();
        // SAFETY: our own page; a word for the round's mark, then one for each processor.
        let word = |at: usize| unsafe { &*words.add(at) };
        word(0).store(round, Ordering::Relaxed);
        (0..processors as usize).for_each(|number| word(1 + number).store(0, Ordering::Relaxed));
        // Every third round is a run of pages, so that it ends by a flush of everything.
        let run = [current; 40];
        let is_run = round % 3 == 0;
        let mapping = map(&run[..if is_run { 40 } else { 1 }], Access::Write, at)?;
        let base = address(&mapping);
        let before = addresses_before[usize::from(is_run)].replace(base);
        moves += u64::from(before.is_some_and(|before| before != base));
        ipi::call(
            ipi::online(),
            &|at| {
                let number = arch::cpu::number() as usize;
                // SAFETY: mapped until `unmap`, which is called after all have answered.
                let (mark, mine) =
                    unsafe { (&*(base as *const AtomicU64), &*(base as *const AtomicU64).add(1 + number)) };
                at.check();
                if mark.load(Ordering::Relaxed) != round {
                    STALE.store(round << 32 | mark.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                mine.store(round, Ordering::Relaxed);
            },
            at,
        );
        // Some are ended at DISPATCH.
        if round % 2 == 0 {
            system_pte::unmap(mapping, &mut at.raise::<Dispatch>());
        } else {
            system_pte::unmap(mapping, at);
        }
        for number in 0..processors as usize {
            equal(word(1 + number).load(Ordering::Relaxed), round, "a write that went to another page")?;
        }
    }
    pages.into_iter().for_each(|page| free(page, at));
    // It may move where a thread that ended earlier gives its stack back meanwhile; a round that reuses it is what the test is about.
    check(moves <= ROUNDS / 20, "the address is not reused", moves, ROUNDS)?;
    let stale = STALE.load(Ordering::Relaxed);
    check(stale == 0, "a processor saw the page of an earlier round", stale >> 32, stale & 0xFFFF_FFFF)
}

fn exhausted(at: &mut Irql<Passive>) -> Result {
    let before = system_pte::free(at);
    // SAFETY: device addresses that nothing answers at; never touched.
    let too_much = unsafe { system_pte::map_io(1 << 39, before as u64 * PAGE, Caching::Uncached, at) };
    check(matches!(too_much, Err(MapError::Exhausted)), "more than there is", before as u64, 0)?;
    equal(system_pte::free(at) as u64, before as u64, "addresses left after the failure")?;
    // As much as there may be, then all of it back: needs a table for each 2 MiB, which stay.
    let bytes = 64 << 20;
    for _ in 0..2 {
        // SAFETY: as above.
        let Ok(mapping) = (unsafe { system_pte::map_io(1 << 39, bytes, Caching::WriteCombining, at) }) else {
            return check(false, "64 MiB can't be mapped", bytes, 0);
        };
        let within =
            address(&mapping) >= layout::SYSTEM_PTES && address(&mapping) < layout::SYSTEM_PTES + (1 << 30);
        let found = translate(address(&mapping) + bytes - 1).map(|(physical, _)| physical);
        system_pte::unmap(mapping, at);
        check(within, "outside of the system PTEs", 0, 0)?;
        check(found == Some((1 << 39) + bytes - 1), "another address", found.unwrap_or(0), 0)?;
    }
    equal(system_pte::free(at) as u64, before as u64, "addresses left at the end")
}
