//! Device memory by `io_space`: kinds of caching, the registers behind it, the end.

use core::ptr::NonNull;

use arch::paging::{Flags, PAGE, translate};
use kernel::boot::facts;
use kernel::mm::io_space::{self, CachingType};
use kernel::mm::physical;
use kernel::mm::system_pte::{self, MapError};
use sync::irql::{Irql, Passive};

use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory_io::kinds_of_caching_reach_the_page_tables", kinds),
    ("memory_io::registers_answer_until_unmapped", registers),
    ("memory_io::memory_is_not_mapped_uncached", memory),
];

/// Where nothing answers; never touched.
const NOTHING: u64 = (1 << 39) + 0x234;

fn kinds(at: &mut Irql<Passive>) -> Result {
    const CACHING: Flags = Flags::NO_CACHE.union(Flags::WRITE_THROUGH).union(Flags::HUGE_PAGE);
    let before = system_pte::free(at);
    for number in 0..7 {
        let Some(kind) = CachingType::from_number(number) else {
            equal(number.into(), 6, "kinds of caching")?;
            continue;
        };
        equal(kind as u64, number.into(), "another kind")?;
        // Entries of the attribute table as `set_memory_types` fills it: 0 is WB, 3 UC, 5 WC. In a leaf, bit 7 is the third bit.
        let wanted = match number {
            1 | 3 => Flags::empty(),
            0 | 4 => Flags::NO_CACHE | Flags::WRITE_THROUGH,
            _ => Flags::HUGE_PAGE | Flags::WRITE_THROUGH,
        };
        // SAFETY: never touched.
        let address = unsafe { io_space::map(NOTHING, 2 * PAGE, kind, at) };
        let address = address.map_err(|_| Verdict::Fail("not mapped", number.into(), 0))?;
        let found = [0, 2 * PAGE - 1].map(|offset| translate(address.addr().get() as u64 + offset));
        // SAFETY: what was mapped.
        unsafe { io_space::unmap(address, 2 * PAGE, at) };
        for (found, offset) in found.into_iter().zip([0, 2 * PAGE - 1]) {
            let Some((physical, flags)) = found else {
                return check(false, "not there", number.into(), offset);
            };
            equal(physical, NOTHING + offset, "another address")?;
            equal((flags & CACHING).bits(), wanted.bits(), "caching")?;
            check(flags.contains(Flags::NO_EXECUTE | Flags::WRITABLE), "rights", flags.bits(), 0)?;
        }
    }
    equal(system_pte::free(at) as u64, before as u64, "addresses at the end")
}

fn registers(at: &mut Irql<Passive>) -> Result {
    let Some(chip) = facts().firmware.io_apics.as_slice().first() else {
        return Err(Verdict::Skip("needs an I/O APIC"));
    };
    let registers = u64::from(chip.address);
    // SAFETY: the I/O APIC's registers; its version is read, and nobody else selects a register meanwhile.
    let (base, version) = unsafe {
        let base: NonNull<u8> = io_space::map(registers, 0x20, CachingType::NonCached, at)
            .map_err(|_| Verdict::Fail("not mapped", registers, 0))?;
        base.as_ptr().cast::<u32>().write_volatile(1);
        let version = base.as_ptr().wrapping_add(0x10).cast::<u32>().read_volatile();
        io_space::unmap(base, 0x20, at);
        (base, version)
    };
    let after = probe::read(base.addr().get() as u64);
    // Version 0x1X or 0x2X, and at least 24 lines.
    check(version & 0xFF >= 0x10 && version >> 16 & 0xFF >= 23, "the I/O APIC's version", version.into(), 0)?;
    check(after.is_some(), "still there after the unmap", base.addr().get() as u64, 0)
}

fn memory(at: &mut Irql<Passive>) -> Result {
    let page = physical::allocate(at).map_err(|_| Verdict::Fail("no page", 0, 0))?;
    let address = page.number().physical();
    // SAFETY: refused.
    let uncached = unsafe { io_space::map(address, 8, CachingType::NonCached, at) };
    // SAFETY: our own page.
    let cached = unsafe { io_space::map(address + 8, 8, CachingType::Cached, at) };
    let same = cached.is_ok_and(|cached| {
        let direct = physical::address(page.number()).wrapping_add(8).cast::<u64>();
        // SAFETY: our own page, mapped twice with one caching.
        let same = unsafe {
            direct.write_volatile(0x1234_5678);
            cached.cast::<u64>().as_ptr().read_volatile() == 0x1234_5678
        };
        // SAFETY: what was mapped.
        unsafe { io_space::unmap(cached, 8, at) };
        same
    });
    physical::free(page, at);
    check(uncached == Err(MapError::Memory), "memory mapped uncached", address, 0)?;
    check(same, "another memory", address, 0)
}
