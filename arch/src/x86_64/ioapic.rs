//! Interrupt controllers outside the processor: the legacy PICs, masked for good, and the I/O APICs.
//!
//! An I/O APIC's registers are reached through a pair, index and data, so each access is two steps that nothing may come
//! between: the owner of an [`IoApic`] sees to that, at a level that its other users can't interrupt.
//!
//! Sources: 82093AA data sheet; 8259A data sheet.

use ::x86_64::instructions::port::PortWriteOnly;

use crate::redirection::{MASKED, REMOTE_IRR, Redirection};

/// One I/O APIC's registers.
pub struct IoApic {
    index: *mut u32,
    data: *mut u32,
}

// SAFETY: device registers, mapped alike on every processor; `&mut self` is what orders the accesses.
unsafe impl Send for IoApic {}

const VERSION: u32 = 0x01;
const TABLE: u32 = 0x10;

impl IoApic {
    /// The one whose registers are mapped at `address`.
    ///
    /// # Safety
    /// Mapped uncached for good, 0x20 bytes; nobody else accesses them.
    pub unsafe fn new(address: u64) -> Self {
        Self { index: address as *mut u32, data: (address + 0x10) as *mut u32 }
    }

    /// How many lines it has.
    pub fn lines(&mut self) -> u32 {
        (self.read(VERSION) >> 16 & 0xFF) + 1
    }

    /// The entry of `line`, which is below [`lines`](Self::lines).
    pub fn entry(&mut self, line: u32) -> u64 {
        u64::from(self.read(TABLE + 2 * line)) | u64::from(self.read(TABLE + 2 * line + 1)) << 32
    }

    /// Whether a processor has accepted a level interrupt of `line` and not yet ended it.
    pub fn is_in_flight(&mut self, line: u32) -> bool {
        u64::from(self.read(TABLE + 2 * line)) & REMOTE_IRR != 0
    }

    /// Writes the entry of `line`, masked while its halves disagree.
    ///
    /// # Safety
    /// The vector has a handler on the destination. The line is not in flight: the EOI finds it by the old vector.
    pub unsafe fn set(&mut self, line: u32, entry: Redirection) {
        let bits = entry.bits();
        self.write(TABLE + 2 * line, (bits | MASKED) as u32);
        self.write(TABLE + 2 * line + 1, (bits >> 32) as u32);
        self.write(TABLE + 2 * line, bits as u32);
    }

    /// Sets or clears the mask bit of `line` alone. A level line that is asserted is delivered at once when unmasked; an edge
    /// that came while it was masked is lost.
    pub fn set_masked(&mut self, line: u32, masked: bool) {
        let low = self.read(TABLE + 2 * line) & !(MASKED as u32);
        self.write(TABLE + 2 * line, low | if masked { MASKED as u32 } else { 0 });
    }

    /// Changes the destination of `line` alone, in use or not: one write, so that each interrupt goes to the old one or to the
    /// new one. The EOI of a level interrupt under way finds the line by the vector, which stays.
    ///
    /// # Safety
    /// The line's vector has a handler on the destination.
    pub unsafe fn set_destination(&mut self, line: u32, destination: u8) {
        self.write(TABLE + 2 * line + 1, u32::from(destination) << 24);
    }

    fn read(&mut self, register: u32) -> u32 {
        // SAFETY: mapped registers (`new`); `&mut self` keeps index and data together.
        unsafe {
            self.index.write_volatile(register);
            self.data.read_volatile()
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            self.index.write_volatile(register);
            self.data.write_volatile(value);
        }
    }
}

/// Moves both 8259s off the exception vectors and masks every line: even a spurious one then lands on a device vector.
///
/// # Safety
/// Interrupts are off; nobody uses the PICs.
pub unsafe fn mask_legacy_pics() {
    const INIT: u8 = 0x11;
    const MODE_8086: u8 = 0x01;
    const SEQUENCE: [(u16, u8); 10] = [
        (0x20, INIT),
        (0xA0, INIT),
        (0x21, 0x30),
        (0xA1, 0x38),
        (0x21, 4),
        (0xA1, 2),
        (0x21, MODE_8086),
        (0xA1, MODE_8086),
        (0x21, 0xFF),
        (0xA1, 0xFF),
    ];
    for (port, value) in SEQUENCE {
        // SAFETY: the initialisation sequence of the 8259A's data sheet, ended by masking all lines.
        unsafe { PortWriteOnly::<u8>::new(port).write(value) };
    }
}
