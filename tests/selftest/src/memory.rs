//! W^X and guard pages: by the page tables, and by really faulting.

use arch::paging::{Flags, PAGE, hhdm, translate};
use kernel::boot::facts;
use kernel::boot::limine::EntryType;
use kernel::ke::prcb;
use kernel::mm::layout::Segment;
use kernel::mm::stacks::{self, Kind};
use sync::irql::{Irql, Passive};

use crate::probe::{self, Seen};
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory::image_pages_have_their_segments_rights", image_rights),
    ("memory::hhdm_is_never_executable_and_leaves_the_image_out", hhdm_rights),
    ("memory::writing_text_or_rodata_faults", write_faults),
    ("memory::executing_data_faults", execute_faults),
    ("memory::guard_pages_and_page_zero_fault", guards_fault),
];

const PAGE_FAULT: u8 = 14;
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

fn image_rights(_: &mut Irql<Passive>) -> Result {
    for segment in Segment::ALL {
        let (write, execute) = match segment {
            Segment::Text => (false, true),
            Segment::Rodata => (false, false),
            Segment::Data => (true, false),
        };
        for page in segment.range().step_by(PAGE as usize) {
            let Some((_, flags)) = translate(page) else { return Err(Verdict::Fail("not mapped", page, 0)) };
            check(flags.contains(Flags::WRITABLE) == write, "write right of a page", page, flags.bits())?;
            check(
                flags.contains(Flags::NO_EXECUTE) != execute,
                "execute right of a page",
                page,
                flags.bits(),
            )?;
        }
    }
    Ok(())
}

fn hhdm_rights(_: &mut Irql<Passive>) -> Result {
    let (image, linked) = facts().info.image;
    let end = image + Segment::Data.range().end - linked;
    for page in (image..end).step_by(PAGE as usize) {
        check(translate(hhdm() + page).is_none(), "the image is reachable through the HHDM", page, end)?;
    }
    let usable = facts().info.memory_map.iter().filter(|entry| entry.entry_type == EntryType::USABLE);
    let mut seen = 0;
    // Every page of the first 64 MiB of each range, then one in each 2 MiB: no larger page can hide between.
    for entry in usable {
        let mut at = entry.base;
        while at < entry.base + entry.length {
            let Some((physical, flags)) = translate(hhdm() + at) else {
                return Err(Verdict::Fail("memory that the HHDM doesn't map", at, 0));
            };
            equal(physical, at, "the HHDM leads elsewhere")?;
            check(flags.contains(Flags::NO_EXECUTE), "executable memory", at, flags.bits())?;
            at += if at - entry.base < 64 << 20 { PAGE } else { 2 << 20 };
            seen += 1;
        }
    }
    check(seen > 0, "no memory looked at", 0, 0)
}

fn expect(seen: Option<Seen>, address: u64, error: u64) -> Result {
    match seen {
        Some(seen) if seen.vector != PAGE_FAULT => {
            Err(Verdict::Fail("another exception", seen.vector.into(), address))
        }
        Some(seen) => {
            equal(seen.address, address, "another address")?;
            equal(seen.error, error, "another error code")
        }
        None => Err(Verdict::Fail("no fault", address, error)),
    }
}

fn write_faults(_: &mut Irql<Passive>) -> Result {
    for segment in [Segment::Text, Segment::Rodata] {
        let address = segment.range().start;
        expect(probe::write(address), address, PRESENT | WRITE)?;
    }
    let data = Segment::Data.range().end - 1;
    check(probe::write(data).is_none(), "data can't be written", data, 0)
}

fn execute_faults(_: &mut Irql<Passive>) -> Result {
    let memory =
        facts().info.memory_map.iter().find(|entry| entry.entry_type == EntryType::USABLE && entry.base != 0);
    let memory = hhdm() + memory.map_or(0, |entry| entry.base);
    let stack = stacks::bottom(0, Kind::Kernel);
    for address in [Segment::Data.range().start, Segment::Rodata.range().start, memory, stack] {
        expect(probe::execute(address), address, PRESENT | FETCH)?;
    }
    Ok(())
}

fn guards_fault(_: &mut Irql<Passive>) -> Result {
    for number in 0..prcb::count() {
        for kind in [Kind::Kernel, Kind::DoubleFault, Kind::Nmi, Kind::MachineCheck, Kind::Debug] {
            let guard = stacks::bottom(number, kind) - 8;
            expect(probe::read(guard), guard, 0)?;
            check(probe::read(guard + 8).is_none(), "the stack above its guard isn't there", guard, 0)?;
        }
    }
    expect(probe::read(0), 0, 0)?;
    expect(probe::store(8), 8, WRITE)
}
