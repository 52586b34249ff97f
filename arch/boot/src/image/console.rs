//! COM1, and the end of a boot that cannot go on.

use core::fmt::{self, Write};

use super::machine::{halt, in8, out8, out32};

pub(super) const COM1: u16 = 0x3f8;
/// QEMU's isa-debug-exit: it ends with status 2 * value + 1.
pub(super) const EXIT_PORT: u16 = 0xf4;
/// This machine or this kernel cannot be booted: QEMU's status 39.
pub(super) const EXIT_CANNOT_RUN: u32 = 0x13;

struct Com1;

impl Com1 {
    fn put(byte: u8) {
        // A port without a UART reads as all ones, thus ready; a stuck one shall not hang the refusal.
        for _ in 0..100_000 {
            // SAFETY: COM1's registers touch no memory.
            if unsafe { in8(COM1 + 5) } & 0x20 != 0 {
                break;
            }
        }
        // SAFETY: as above.
        unsafe { out8(COM1, byte) };
    }
}

impl fmt::Write for Com1 {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().for_each(Com1::put);
        Ok(())
    }
}

/// 115200 baud, 8 data bits, no parity, FIFO on, interrupts off: what PC firmware need not have set.
pub(super) fn initialize() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        // SAFETY: COM1's registers touch no memory.
        unsafe { out8(COM1 + register, value) };
    }
}

/// Prints `boot: ` and a line.
pub(super) fn say(line: &dyn fmt::Display) {
    // Writing to COM1 never fails.
    let _ = writeln!(Com1, "boot: {line}");
}

/// Says why the boot ends, and ends it.
pub(super) fn refuse(reason: &dyn fmt::Display) -> ! {
    say(reason);
    // SAFETY: the port ends QEMU, or is none.
    unsafe { out32(EXIT_PORT, EXIT_CANNOT_RUN) };
    halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // The place alone: a message may have several lines.
    match info.location() {
        Some(place) => refuse(&format_args!("internal error at {}:{}", place.file(), place.line())),
        None => refuse(&"internal error"),
    }
}
