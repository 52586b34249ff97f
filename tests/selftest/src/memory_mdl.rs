//! Memory descriptor lists on the machine: pages found, held, mapped, let go.

use core::ptr::NonNull;

use arch::paging::{Flags, PAGE, translate};
use kernel::boot::facts;
use kernel::ke::apc::ProcessorMode;
use kernel::mm::mdl::{MdlError, flags};
use kernel::mm::mdl_pages::{self, LockError, Operation};
use kernel::mm::paged;
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use kernel::mm::pool::Tag;
use kernel::mm::system_pte;
use kernel::mm::tables::{Access, Caching};
use sync::irql::{Irql, Passive};

use crate::held::{Block, List, Run};
use crate::memory_paged::{self, Baseline};
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory_mdl::nonpaged_memory_is_described", nonpaged),
    ("memory_mdl::locked_pages_are_referenced_until_unlocked", locked),
    ("memory_mdl::a_locked_buffer_is_mapped_and_unmapped", mapped),
    ("memory_mdl::parts_rely_on_the_whole", parts),
    ("memory_mdl::what_can_not_be_locked_leaves_nothing_held", refused),
    ("memory_mdl::paged_pool_is_had_to_be_locked", paged_pool),
    ("memory_mdl::device_pages_are_mapped_as_asked", device),
];

const TAG: Tag = Tag::new(b"TMdl");
const BYTES: u32 = 3 * PAGE as u32;

type Found<T> = core::result::Result<T, Verdict>;

fn no<E>(what: &'static str) -> impl Fn(E) -> Verdict {
    move |_| Verdict::Fail(what, 0, 0)
}

fn references(page: PageNumber) -> u64 {
    physical::references(page).0.into()
}

fn nonpaged(at: &mut Irql<Passive>) -> Result {
    let block = Block::new(TAG, 6000, at)?;
    let mut mdl = List::new(block.as_ptr().wrapping_add(10), 5990, at)?;
    mdl_pages::build_for_nonpaged(&mut mdl);
    let right = (0..mdl.page_count()).all(|page| {
        let address = mdl.header().start_va.addr() as u64 + page as u64 * PAGE;
        translate(address).is_some_and(|(physical, _)| physical / PAGE == mdl.pages()[page])
    });
    // SAFETY: nothing is mapped: the pool has it mapped.
    let address = unsafe { mdl_pages::system_address(&mut mdl, at) };
    let same = address.is_ok_and(|address| address.as_ptr() == block.as_ptr().wrapping_add(10));
    let advanced = mdl.advance_unlocked(4096) == Ok(()) && mdl.header().mapped_system_va == mdl.address();
    check(right, "other pages", 0, 0)?;
    check(same, "another address than the pool's", 0, 0)?;
    check(advanced, "advanced to another place", 0, 0)
}

fn locked(at: &mut Irql<Passive>) -> Result {
    let run = Run::<3>::new(at)?;
    let (memory, pages) = (run.as_ptr(), run.numbers());
    // The last byte of the first page to the first of the third.
    let mut mdl = List::new(memory.wrapping_add(4095), 4098, at)?;
    let mut second = List::new(memory, BYTES, at)?;
    mdl_pages::probe_and_lock_nonpaged(&mut mdl, Operation::Write, at).map_err(no("not locked"))?;
    let once = pages.map(references);
    mdl_pages::probe_and_lock_nonpaged(&mut second, Operation::Read, at).map_err(no("not locked twice"))?;
    let twice = pages.map(references);
    let numbers = pages.map(|page| u64::from(page.number()));
    let right = mdl.pages() == numbers && second.pages() == numbers;
    let written = mdl.has(flags::WRITE_OPERATION) && !second.has(flags::WRITE_OPERATION);
    let advanced = mdl_pages::advance(&mut mdl, 4097, at);
    let after = pages.map(references);
    let too_far = mdl_pages::advance(&mut mdl, 2, at);
    mdl_pages::unlock(&mut mdl, at);
    mdl_pages::unlock(&mut second, at);
    let end = pages.map(references);
    check(right && written, "other pages, or flags", 0, 0)?;
    for (found, wanted, what) in [
        (once, [2, 2, 2], "references of a locked page"),
        (twice, [3, 3, 3], "references of a page locked twice"),
        (after, [2, 2, 3], "references after an advance"),
        (end, [1, 1, 1], "references at the end"),
    ] {
        for (found, wanted) in found.into_iter().zip(wanted) {
            equal(found, wanted, what)?;
        }
    }
    check(advanced == Ok(()) && too_far == Err(MdlError::Range), "advances", 0, 0)
}

fn mapped(at: &mut Irql<Passive>) -> Result {
    let run = Run::<3>::new(at)?;
    let free = system_pte::free(at);
    let start = run.as_ptr().wrapping_add(100);
    let mut mdl = List::new(start, 9000, at)?;
    mdl_pages::probe_and_lock_nonpaged(&mut mdl, Operation::Modify, at).map_err(no("not locked"))?;
    // SAFETY: our own pages.
    let address = unsafe { mdl_pages::map(&mut mdl, Access::Write, Caching::Uncached, at) };
    let address = address.map_err(no("not mapped"))?;
    let rights = translate(address.addr().get() as u64).map_or(Flags::empty(), |(_, flags)| flags);
    let mut same = true;
    for at in [0, 1, 3995, 3996, 8999] {
        // SAFETY: both are the buffer, `at` bytes behind its start.
        unsafe {
            start.add(at).write_volatile(at as u8 ^ 0x55);
            same &= address.as_ptr().add(at).read_volatile() == at as u8 ^ 0x55;
            address.as_ptr().add(at).write_volatile(at as u8);
            same &= start.add(at).read_volatile() == at as u8;
        }
    }
    // SAFETY: our own pages.
    let again = unsafe { mdl_pages::system_address(&mut mdl, at) };
    let refused = mdl_pages::advance(&mut mdl, 1, at);
    mdl_pages::unmap(&mut mdl, at);
    let after = probe::read(address.addr().get() as u64);
    // Once more, ended by the unlock.
    // SAFETY: our own pages.
    let second = unsafe { mdl_pages::system_address(&mut mdl, at) }.map_err(no("not mapped again"))?;
    mdl_pages::unlock(&mut mdl, at);
    let at_end = probe::read(second.addr().get() as u64);
    check(same, "another memory", 0, 0)?;
    // Memory stays cached whatever is asked.
    let wrong = Flags::NO_CACHE | Flags::WRITE_THROUGH;
    check(rights.contains(Flags::NO_EXECUTE) && !rights.intersects(wrong), "rights", rights.bits(), 0)?;
    check(again == Ok(address) && refused == Err(MdlError::Mapped), "a mapped list", 0, 0)?;
    check(after.is_some() && at_end.is_some(), "still there after the unmap", 0, 0)?;
    equal(system_pte::free(at) as u64, free as u64, "system PTEs at the end")
}

fn parts(at: &mut Irql<Passive>) -> Result {
    let run = Run::<3>::new(at)?;
    let (memory, pages) = (run.as_ptr(), run.numbers());
    let mut whole = List::new(memory, BYTES, at)?;
    let mut part = List::new(memory.wrapping_add(4000), 200, at)?;
    mdl_pages::probe_and_lock_nonpaged(&mut whole, Operation::Write, at).map_err(no("not locked"))?;
    whole.build_partial(&mut part, memory.wrapping_add(4000), 200).map_err(no("no part"))?;
    // SAFETY: our own pages.
    let first = unsafe { mdl_pages::system_address(&mut part, at) }.map_err(no("not mapped"))?;
    // SAFETY: both lead to the buffer's byte 4000 + 150, in its second page.
    let same = unsafe {
        memory.add(4150).write_volatile(0x77);
        first.as_ptr().add(150).read_volatile() == 0x77
    };
    let own = part.has(flags::PARTIAL_HAS_BEEN_MAPPED | flags::MAPPED_TO_SYSTEM_VA);
    // Its mapping would be nobody's any more; nor would be the whole's pages.
    let mapped = whole.build_partial(&mut part, memory, 100);
    let locked = part.build_partial(&mut whole, memory.wrapping_add(4000), 100);
    mdl_pages::prepare_for_reuse(&mut part, at);
    let ended = probe::read(first.addr().get() as u64).is_some();
    // Of a whole that is mapped, a part knows the address.
    // SAFETY: our own pages.
    let base = unsafe { mdl_pages::system_address(&mut whole, at) }.map_err(no("not mapped"))?;
    whole.build_partial(&mut part, memory.wrapping_add(8000), 192).map_err(no("no second part"))?;
    let known = part.has(flags::PARENT_MAPPED_SYSTEM_VA)
        && part.header().mapped_system_va == base.as_ptr().wrapping_add(8000);
    let held = pages.map(references);
    drop(part);
    mdl_pages::unlock(&mut whole, at);
    let end = pages.map(references);
    check(mapped == Err(MdlError::Mapped), "a mapped list made a part", 0, 0)?;
    check(locked == Err(MdlError::Locked), "a locked list made a part", 0, 0)?;
    check(same && own && ended, "the mapping of a part", same.into(), ended.into())?;
    check(known, "a part of a mapped list", 0, 0)?;
    check(held == [2; 3] && end == [1; 3], "references with a part, at the end", held[1], end[1])
}

static CONSTANT: [u64; 4] = [1, 2, 3, 4];

fn refused(at: &mut Irql<Passive>) -> Result {
    let run = Run::<3>::new(at)?;
    let (memory, pages) = (run.as_ptr(), run.numbers());
    let lock = |address: *mut u8, bytes, operation, at: &mut Irql<Passive>| -> Found<_> {
        let mut mdl = List::new(address, bytes, at)?;
        Ok(mdl_pages::probe_and_lock_nonpaged(&mut mdl, operation, at))
    };
    let constant = core::ptr::from_ref(&CONSTANT).cast_mut().cast::<u8>();
    let read = lock(constant, 32, Operation::Read, at)?;
    let write = lock(constant, 32, Operation::Write, at)?;
    let user = lock(NonNull::<u8>::dangling().as_ptr().wrapping_add(0x10_0000), 8, Operation::Read, at)?;
    // Two pages mapped, and the empty one behind them.
    // SAFETY: our own pages.
    let mapping = unsafe { system_pte::map(&pages[..2], Access::Write, at) }.map_err(no("not mapped"))?;
    let behind = lock(mapping.address().as_ptr(), BYTES, Operation::Read, at);
    let inside = lock(mapping.address().as_ptr(), 2 * PAGE as u32, Operation::Write, at);
    system_pte::unmap(mapping, at);
    let (behind, inside) = (behind?, inside?);
    let held = pages.map(references);
    drop(run);
    // Nobody's pages now, though the HHDM has them mapped.
    let free = lock(memory, 8, Operation::Read, at)?;
    check(read.is_ok() && inside.is_ok(), "not locked", 0, 0)?;
    for (result, which) in [(write, 1), (user, 2), (behind, 3), (free, 4)] {
        check(result == Err(LockError::AccessViolation), "locked", which, 0)?;
    }
    check(held == [1, 1, 1], "a reference left behind", held[0], held[1])
}

/// Untouched, trimmed, trimmed while it is locked; and no more once it was given back.
fn paged_pool(at: &mut Irql<Passive>) -> Result {
    let baseline = Baseline::take(at);
    let block = memory_paged::take(BYTES as usize, at)?;
    let locked = locked_in_paged_pool(block, at);
    memory_paged::free(block, at);
    paged::drain(at);
    let (made, same_and_held, seen, users) = locked?;
    let freed = lock_paged(block, ProcessorMode::Kernel, at)?.err();
    let violation = Some(LockError::AccessViolation);
    equal(made.into(), 3, "pages made")?;
    check(same_and_held, "other pages after a trim, or not held", 0, 0)?;
    equal(seen.into(), 0x5A, "what was written through the list")?;
    check(users == violation && freed == violation, "locked for the user, or freed", 0, 0)?;
    baseline.compare(at)
}

/// A list for most of `block`, if it can be locked.
fn lock_paged(
    block: NonNull<u8>,
    mode: ProcessorMode,
    at: &mut Irql<Passive>,
) -> Found<core::result::Result<List, LockError>> {
    let mut mdl = List::new(block.as_ptr().wrapping_add(16), BYTES - 32, at)?;
    Ok(mdl_pages::probe_and_lock(&mut mdl, mode, Operation::Modify, at).map(|()| mdl))
}

/// Pages made by the first lock; whether a second one, behind a trim, has the same, and all are held; what was written through the list;
/// how a lock for the user is refused.
fn locked_in_paged_pool(
    block: NonNull<u8>,
    at: &mut Irql<Passive>,
) -> Found<(u32, bool, u8, Option<LockError>)> {
    let before = paged::usage(at).resident;
    let mut first = lock_paged(block, ProcessorMode::Kernel, at)?.map_err(no("not locked"))?;
    let made = paged::usage(at).resident - before;
    paged::trim(at);
    let second = lock_paged(block, ProcessorMode::Kernel, at)?.map_err(no("not locked after a trim"))?;
    paged::trim(at);
    let same = first.pages() == second.pages();
    let held = first.pages().iter().all(|&number| {
        let page = physical::in_use(number, at);
        page.is_some_and(|page| physical::references(page).0 >= 2)
    });
    // SAFETY: our own block.
    let address = unsafe { mdl_pages::system_address(&mut first, at) }.map_err(no("not mapped"))?;
    // SAFETY: both are byte 5000 of the block.
    let seen = unsafe {
        address.as_ptr().add(5000 - 16).write_volatile(0x5A);
        block.as_ptr().add(5000).read_volatile()
    };
    Ok((made, same && held, seen, lock_paged(block, ProcessorMode::User, at)?.err()))
}

fn device(at: &mut Irql<Passive>) -> Result {
    let Some(chip) = facts().firmware.io_apics.as_slice().first() else {
        return Err(Verdict::Skip("needs an I/O APIC"));
    };
    let registers = u64::from(chip.address);
    // SAFETY: the I/O APIC's registers, which are not touched.
    let mapping = unsafe { system_pte::map_io(registers, 0x20, Caching::Uncached, at) };
    let mapping = mapping.map_err(no("not mapped"))?;
    let found = device_list(mapping.address().as_ptr(), at);
    system_pte::unmap(mapping, at);
    let (is_device, found) = found?;
    let uncached = Flags::NO_CACHE | Flags::WRITE_THROUGH;
    let right = found.is_some_and(|(physical, flags)| physical == registers && flags.contains(uncached));
    check(is_device && right, "a device's page", found.map_or(0, |(_, flags)| flags.bits()), 0)
}

/// Whether registers are a device's, and where a list's own mapping of them leads.
fn device_list(registers: *mut u8, at: &mut Irql<Passive>) -> Found<(bool, Option<(u64, Flags)>)> {
    let mut mdl = List::new(registers, 0x20, at)?;
    mdl_pages::probe_and_lock_nonpaged(&mut mdl, Operation::Modify, at).map_err(no("not locked"))?;
    // SAFETY: the caller's registers, which are not touched.
    let address = unsafe { mdl_pages::map(&mut mdl, Access::Write, Caching::Uncached, at) };
    let found = address.ok().and_then(|address| translate(address.addr().get() as u64));
    Ok((mdl.has(flags::IO_SPACE), found))
}
