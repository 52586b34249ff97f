//! Ports, model-specific registers, CPUID, and physical memory through the identity map.

use core::arch::asm;
use core::slice;

use boot::memory::Physical;

/// The end of the identity map that entry.rs builds.
pub(super) const IDENTITY_END: u64 = 4 << 30;

/// Writes a byte to a port.
///
/// # Safety
/// The write must not make a device touch memory that Rust code uses.
pub(super) unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller answers for the device; the instruction itself touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes a double word to a port.
///
/// # Safety
/// As for [`out8`].
pub(super) unsafe fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

/// Reads a byte from a port.
///
/// # Safety
/// As for [`out8`]: reading may have effects, too.
pub(super) unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor must have it.
pub(super) unsafe fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says that it exists, so that nothing faults.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register. Omits `nomem`: an interrupt command must not move before the memory it announces.
///
/// # Safety
/// The processor must have it, and the value must not break what Rust code relies on.
pub(super) unsafe fn write_msr(number: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for both.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack, preserves_flags))
    }
}

/// The physical address of the page tables in use.
pub(super) fn page_table_root() -> u64 {
    let root: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) }
    root & !0xfff
}

/// Stops this processor for good.
pub(super) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing follows but a non-maskable interrupt, and then the loop.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

unsafe extern "C" {
    /// First byte of the loader; boot.ld.
    safe static image_start: u8;
    /// After its last byte; a page boundary.
    safe static image_end: u8;
}

/// Where the loader itself is: base and length.
pub(super) fn image() -> (u64, u64) {
    let base = (&raw const image_start).addr() as u64;
    (base, (&raw const image_end).addr() as u64 - base)
}

/// The first 4 GiB, except for the loader itself, which changes while it runs, and address 0, which Rust takes for a
/// null pointer. The rest of page 0 is readable: QEMU puts the memory map there.
#[derive(Clone, Copy)]
pub(super) struct Identity;

impl Physical for Identity {
    fn bytes(&self, addr: u64, len: u64) -> Option<&[u8]> {
        let end = addr.checked_add(len).filter(|end| *end <= IDENTITY_END)?;
        let (image, image_len) = image();
        if addr == 0 || (addr < image + image_len && image < end) {
            return None;
        }
        // SAFETY: 1. entry.rs has mapped the range. 2. Until processors.rs starts others nothing else runs, and the
        //         loader writes only to its image, left out here, and to memory that the map gave it (see
        //         `owned`): the map never gives out what the initrd occupies, and the start info is copied
        //         before the map exists.
        Some(unsafe { slice::from_raw_parts(addr as *const u8, len as usize) })
    }
}

/// Memory that was allocated from the map, as bytes.
///
/// # Safety
/// The map must have given out the range, below [`IDENTITY_END`], and nothing else may use it.
pub(super) unsafe fn owned(addr: u64, len: u64) -> &'static mut [u8] {
    // SAFETY: mapped, exclusive and below the end by the caller's word; any bytes are valid.
    unsafe { slice::from_raw_parts_mut(addr as *mut u8, len as usize) }
}
