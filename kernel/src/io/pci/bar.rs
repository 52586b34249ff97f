//! Base address registers: what of a device answers where, and how much of it.
//!
//! A register's fixed bits tell its size: all ones are written, what reads as zero is the size. For that time the device must
//! answer nothing, so decoding is off.
//!
//! Tests:      tests/props/tests/pci.rs.
//! Sources:    PCI Local Bus Specification, "Base Addresses"; PCI Express Base Specification, "Base Address Registers".

use super::config::{Config, command, read_command, register, write_command};
use super::header::Kind;

/// Registers that a header can have.
pub const MOST: usize = 6;

/// How a range is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// As ports.
    Io,
    /// As memory.
    Memory {
        /// It may lie above 4 GiB.
        is_wide: bool,
        /// Reading changes nothing, and writes may be merged.
        is_prefetchable: bool,
    },
}

/// A range that a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// How.
    pub space: Space,
    /// Where; 0: nobody has said.
    pub base: u64,
    /// Bytes: a power of two, of which `base` is a multiple, and which end within the space.
    pub length: u64,
}

/// The ranges by register. The upper half of a wide one has none of its own.
pub type Bars = [Option<Bar>; MOST];

/// Finds what a function answers, and leaves its registers as they were. Nobody may use the device meanwhile.
pub fn probe(config: &mut impl Config, kind: Kind) -> Bars {
    let mut bars = [None; MOST];
    let before = read_command(config);
    write_command(config, before & !(command::IO | command::MEMORY));
    let mut index = 0;
    while index < kind.bars() {
        let width = probe_one(config, index, kind.bars(), &mut bars[index]);
        index += width;
    }
    write_command(config, before);
    bars
}

/// Looks at register `index`; returns how many registers it takes.
fn probe_one(config: &mut impl Config, index: usize, count: usize, found: &mut Option<Bar>) -> usize {
    const IO: u32 = 1;
    const WIDE: u32 = 0b100;
    const TYPE: u32 = 0b110;
    const PREFETCHABLE: u32 = 0b1000;
    let at = register::BARS + 4 * index as u16;
    let (low, mask) = ones_and_back(config, at);
    if low & IO != 0 {
        // The upper half of the mask may be missing: ports have 16 bits.
        let mask = if mask & 0xFFFF_0000 == 0 { mask | 0xFFFF_0000 } else { mask };
        *found = range(Space::Io, (low & !3).into(), (mask & !3).into(), 1 << 16);
        return 1;
    }
    let is_prefetchable = low & PREFETCHABLE != 0;
    match low & TYPE {
        WIDE if index + 1 < count => {
            let (high, high_mask) = ones_and_back(config, at + 4);
            let base = u64::from(high) << 32 | u64::from(low & !0xF);
            let mask = u64::from(high_mask) << 32 | u64::from(mask & !0xF);
            let space = Space::Memory { is_wide: true, is_prefetchable };
            // Page tables hold addresses of 52 bits.
            *found = range(space, base, mask, 1 << 52);
            2
        }
        // The type for below 1 MiB is of another time, and answers like the narrow one. The fourth means nothing.
        0 | 0b010 => {
            let space = Space::Memory { is_wide: false, is_prefetchable };
            *found = range(space, (low & !0xF).into(), (mask & !0xF).into(), 1 << 32);
            1
        }
        _ => 1,
    }
}

/// A register's value, and which of its bits can be changed.
fn ones_and_back(config: &mut impl Config, at: u16) -> (u32, u32) {
    let value = config.read(at);
    config.write(at, u32::MAX);
    let mask = config.read(at);
    config.write(at, value);
    (value, mask)
}

/// The lowest bit that can be changed is the size. Nothing where none can, or the range would leave its space.
fn range(space: Space, base: u64, mask: u64, end: u64) -> Option<Bar> {
    let length = mask & mask.wrapping_neg();
    if length == 0 || length > end {
        return None;
    }
    let base = base & !(length - 1);
    (base.checked_add(length)? <= end).then_some(Bar { space, base, length })
}
