//! Interrupt controllers, masked as the protocol wants them, and the clock that knows the date.
//!
//! Sources: 8259A data sheet; 82093AA I/O APIC data sheet, "I/O Redirection Table Registers"; MC146818 data sheet.

use core::ptr;

use boot::date::Registers;

use super::machine::{in8, out8};

const PIC_MASKS: [u16; 2] = [0x21, 0xa1];
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
/// In the redirection entry's low word: masked; the delivery mode, of which 0 and 1 are ordinary interrupts.
const MASKED: u32 = 1 << 16;
const DELIVERY_MODE: u32 = 7 << 8;
const LOWEST_PRIORITY: u32 = 1 << 8;

/// Masks every line of the two old interrupt controllers.
pub(super) fn mask_pics() {
    for port in PIC_MASKS {
        // SAFETY: a PIC's mask register touches no memory; where there is no PIC nothing happens.
        unsafe { out8(port, 0xff) };
    }
}

/// Masks the ordinary interrupts of the I/O APIC at physical address `base`.
///
/// # Safety
/// There is an I/O APIC at `base`.
pub(super) unsafe fn mask_io_apic(base: u32) {
    let index = base as usize as *mut u32;
    let data = (base as usize + 0x10) as *mut u32;
    let select = |register: u32| {
        // SAFETY: by the caller's word this is the index register; entry.rs maps the first 4 GiB.
        unsafe { ptr::write_volatile(index, register) }
    };
    select(1);
    // SAFETY: as above, the data register of the version register.
    let last = unsafe { ptr::read_volatile(data) } >> 16 & 0xff;
    for line in 0..=last {
        select(0x10 + 2 * line);
        // SAFETY: as above, the low word of a redirection entry.
        let entry = unsafe { ptr::read_volatile(data) };
        if entry & DELIVERY_MODE <= LOWEST_PRIORITY {
            // SAFETY: as above; a masked entry delivers nothing.
            unsafe { ptr::write_volatile(data, entry | MASKED) };
        }
    }
}

/// The date: the same registers twice in a row, none of them read during an update.
pub(super) fn date() -> Option<i64> {
    // An update takes 2 ms at most and comes once a second; a clock that is never ready is none.
    let mut last = None;
    for _ in 0..100_000 {
        if cmos(10) & 0x80 != 0 {
            continue;
        }
        let now = Registers {
            second: cmos(0),
            minute: cmos(2),
            hour: cmos(4),
            day: cmos(7),
            month: cmos(8),
            year: cmos(9),
            century: cmos(0x32),
            status_b: cmos(11),
        };
        if last == Some(now) {
            return now.unix_time();
        }
        last = Some(now);
    }
    None
}

fn cmos(register: u8) -> u8 {
    // SAFETY: the clock's ports touch no memory.
    unsafe {
        out8(CMOS_INDEX, register);
        in8(CMOS_DATA)
    }
}
