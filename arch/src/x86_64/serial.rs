//! COM1, a 16550: polled output that works from any level, from NMI and in a bugcheck.
//!
//! No lock: who may write is the caller's to arrange (the kernel's console does it with `sync::log_ring`).
//! Sources: 16550 data sheet, "Line Status Register", "FIFO Control Register".

use ::x86_64::instructions::port::{Port, PortWriteOnly};

use super::{cpu, exit};

const COM1: u16 = 0x3F8;
const FIFO_DEPTH: usize = 16;
const THR_EMPTY: u8 = 1 << 5;
/// Polls of the status register before output is given up: there is no UART, or it is stuck.
const POLL_LIMIT: u32 = 1_000_000;

/// 115200 baud, 8n1, FIFOs on, no interrupts.
///
/// # Safety
/// Nobody else drives COM1.
pub unsafe fn init() {
    // SAFETY: legacy PC ports; the order is the data sheet's: divisor behind DLAB, then line control without it.
    unsafe {
        PortWriteOnly::<u8>::new(COM1 + 1).write(0);
        PortWriteOnly::<u8>::new(COM1 + 3).write(0x80);
        PortWriteOnly::<u8>::new(COM1).write(1);
        PortWriteOnly::<u8>::new(COM1 + 1).write(0);
        PortWriteOnly::<u8>::new(COM1 + 3).write(0x03);
        PortWriteOnly::<u8>::new(COM1 + 2).write(0x07);
        PortWriteOnly::<u8>::new(COM1 + 4).write(0x0B);
    }
}

/// Writes all of `bytes`, a FIFO's worth for each poll of the status register.
///
/// # Safety
/// The caller has the port to itself, or accepts mixed output (last words).
pub unsafe fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO_DEPTH) {
        for _ in 0..POLL_LIMIT {
            // SAFETY: reading the line status register only clears error bits that nobody uses.
            if unsafe { Port::<u8>::new(COM1 + 5).read() } & THR_EMPTY != 0 {
                break;
            }
            cpu::spin_hint();
        }
        for &byte in chunk {
            // SAFETY: the FIFO was empty and takes 16 bytes.
            unsafe { PortWriteOnly::<u8>::new(COM1).write(byte) };
        }
    }
}

/// A broken invariant before the kernel could register its bugcheck: the stop code in hexadecimal, then the end.
pub(crate) fn last_words(code: u32) -> ! {
    let mut line = *b"*** STOP 0x00000000 before the kernel took over\n";
    for (place, digit) in line[11..19].iter_mut().zip((0..8).rev()) {
        *place = b"0123456789ABCDEF"[(code >> (digit * 4)) as usize & 15];
    }
    // SAFETY: nothing runs after this; mixed output is accepted.
    unsafe { write(&line) };
    exit::leave(exit::Outcome::Bugcheck)
}
