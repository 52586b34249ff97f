//! Device memory by `io_space`: kinds of caching, the registers behind it, the end.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use arch::paging::{Flags, PAGE, translate};
use kernel::boot::facts;
use kernel::ke::apc::ProcessorMode;
use kernel::mm::io_space::{self, CachingType};
use kernel::mm::mdl_pages::{self, Operation};
use kernel::mm::physical;
use kernel::mm::system_pte::{self, MapError};
use sync::irql::{Irql, Passive};

use crate::held::List;
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("memory_io::kinds_of_caching_reach_the_page_tables", kinds),
    ("memory_io::registers_answer_until_unmapped", registers),
    ("memory_io::memory_is_not_mapped_uncached", memory),
    ("memory_io::code_and_constants_are_mapped_to_be_read_alone", image),
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

static CONSTANT: u64 = 0x0123_4567_89AB_CDEF;
static VARIABLE: AtomicU64 = AtomicU64::new(CONSTANT);

/// Neither a list nor a device's mapping gives an address by which the image's code or constants can be written; variables can be.
fn image(at: &mut Irql<Passive>) -> Result {
    let code = image as fn(&mut Irql<Passive>) -> Result as usize as u64;
    let places = [code, (&raw const CONSTANT) as u64, (&raw const VARIABLE) as u64];
    let before = system_pte::free(at);
    for (place, is_variable) in places.into_iter().zip([false, false, true]) {
        let mut list = List::new(place as *mut u8, 8, at)?;
        mdl_pages::probe_and_lock(&mut list, ProcessorMode::Kernel, Operation::Read, at)
            .map_err(|_| Verdict::Fail("not locked", place, 0))?;
        // SAFETY: the image's own bytes, which are read.
        let listed = unsafe { mdl_pages::system_address(&mut list, at) }.map(found);
        mdl_pages::unlock(&mut list, at);
        let physical = translate(place).map_or(0, |(physical, _)| physical);
        // SAFETY: as above.
        let mapped = unsafe { io_space::map(physical, 8, CachingType::Cached, at) };
        let device = mapped.map(found);
        if let Ok(mapped) = mapped {
            // SAFETY: mapped just now.
            unsafe { io_space::unmap(mapped, 8, at) };
        }
        // SAFETY: as above.
        let word = unsafe { (place as *const u64).read_unaligned() };
        for (number, alias) in (0..).zip([listed, device]) {
            let (same, flags) = alias.map_err(|_| Verdict::Fail("not mapped", place, number))?;
            equal(same, word, "another content")?;
            check(flags.contains(Flags::NO_EXECUTE), "an alias that can be executed", place, number)?;
            equal(
                flags.contains(Flags::WRITABLE).into(),
                is_variable.into(),
                "an alias that can be written",
            )?;
        }
    }
    equal(system_pte::free(at) as u64, before as u64, "addresses at the end")
}

/// What lies there, and with which rights.
fn found(alias: NonNull<u8>) -> (u64, Flags) {
    let flags = translate(alias.addr().get() as u64).map_or(Flags::empty(), |(_, flags)| flags);
    // SAFETY: the caller's mapping, of 8 bytes.
    (unsafe { alias.cast::<u64>().read_unaligned() }, flags)
}
