//! A local APIC of which only the EOI exists, counted so that a test can ask for exactly one.

use core::cell::Cell;

use super::{inject, per_processor};

per_processor! {
    static EOIS: Cell<u64> = Cell::new(0)
}

/// Ends the interrupt in service with the highest priority.
///
/// # Safety
/// As for the hardware: called once for each delivered interrupt that needs one.
pub unsafe fn eoi() {
    inject::point();
    EOIS.with(|eois| eois.set(eois.get() + 1));
}

/// How many EOIs this processor has issued.
pub fn eois() -> u64 {
    EOIS.with(Cell::get)
}

/// The vectors in service: none, as a virtual processor's handlers end before anything else.
pub fn in_service() -> [u32; 8] {
    [0; 8]
}

/// Is the bit of `vector` set?
pub fn bit(bits: &[u32; 8], vector: u8) -> bool {
    bits[usize::from(vector / 32)] >> (vector % 32) & 1 != 0
}
