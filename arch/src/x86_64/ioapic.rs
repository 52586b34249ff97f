//! Interrupt controllers outside the processor: the legacy PICs, masked for good, and the I/O APICs.

use ::x86_64::instructions::port::PortWriteOnly;
pub use x2apic::ioapic::{IoApic, IrqFlags, IrqMode, RedirectionTableEntry};

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
