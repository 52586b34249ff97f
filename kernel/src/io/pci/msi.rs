//! The two ways of messages as a device's configuration space has them: MSI, with address and data in a capability, and MSI-X, with a
//! table in the device's memory.
//!
//! Owns:       the capabilities' layout. Not: vectors (ke::interrupt), the table's place (messages.rs).
//! Tests:      tests/props/tests/pci.rs; selftest `pci::*`.
//! Sources:    PCI Local Bus Specification, "MSI and MSI-X Operation".

use arch::msi::Message;

use super::bar::{Bars, Space};
use super::capability::{self, id};
use super::config::Config;

/// A function's MSI capability. One message of it is used: several must have vectors in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    at: u16,
    is_wide: bool,
    /// Each message has a mask bit.
    is_maskable: bool,
}

impl Msi {
    const ENABLE: u16 = 1 << 0;
    const SEVERAL: u16 = 0b111 << 4;
    const WIDE: u16 = 1 << 7;
    const MASKABLE: u16 = 1 << 8;

    /// A function's, if it has one.
    pub fn find(config: &mut impl Config) -> Option<Self> {
        let at = capability::find(&mut *config, id::MSI)?;
        let control = config.read16(at + 2);
        let (is_wide, is_maskable) = (control & Self::WIDE != 0, control & Self::MASKABLE != 0);
        // Up to its last register.
        (at + if is_wide { 16 } else { 12 } <= 0x100).then_some(Self { at, is_wide, is_maskable })
    }

    /// From now on the device sends this message, unless it is masked.
    pub fn enable(self, config: &mut impl Config, message: Message) {
        self.disable(config);
        config.write(self.at + 4, message.address as u32);
        let data = if self.is_wide {
            config.write(self.at + 8, (message.address >> 32) as u32);
            self.at + 12
        } else {
            self.at + 8
        };
        config.write16(data, message.data as u16);
        let control = config.read16(self.at + 2) & !Self::SEVERAL;
        config.write16(self.at + 2, control | Self::ENABLE);
    }

    /// From now on it sends none.
    pub fn disable(self, config: &mut impl Config) {
        let control = config.read16(self.at + 2);
        config.write16(self.at + 2, control & !Self::ENABLE);
    }

    /// Masks its message or lets it through; false: it has no mask bit.
    pub fn set_masked(self, config: &mut impl Config, masked: bool) -> bool {
        let mask = self.at + if self.is_wide { 16 } else { 12 };
        if !self.is_maskable || mask + 4 > 0x100 {
            return false;
        }
        let bits = config.read(mask);
        config.write(mask, bits & !1 | u32::from(masked));
        true
    }
}

/// A function's MSI-X capability: its table lies within one of the function's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    at: u16,
    /// The base address register that has the table.
    pub bar: u8,
    /// Where in its range.
    pub offset: u32,
    /// Entries of 16 bytes: 1 to 2048.
    pub count: u16,
}

/// Bytes of an entry of the table.
pub const ENTRY_BYTES: u32 = 16;

impl Msix {
    const ENABLE: u16 = 1 << 15;
    const MASK_ALL: u16 = 1 << 14;

    /// A function's, if it has one whose table lies where it can.
    pub fn find(config: &mut impl Config, bars: &Bars) -> Option<Self> {
        let at = capability::find(&mut *config, id::MSIX)?;
        if at + 12 > 0x100 {
            return None;
        }
        let count = (config.read16(at + 2) & 0x7FF) + 1;
        let table = config.read(at + 4);
        let (bar, offset) = ((table & 7) as u8, table & !7);
        let range = bars.get(usize::from(bar)).copied().flatten()?;
        let end = u64::from(offset) + u64::from(count) * u64::from(ENTRY_BYTES);
        let fits = matches!(range.space, Space::Memory { .. }) && end <= range.length;
        fits.then_some(Self { at, bar, offset, count })
    }

    /// From now on what the table's entries let through is sent as messages, and the line is not used.
    pub fn enable(self, config: &mut impl Config) {
        let control = config.read16(self.at + 2);
        config.write16(self.at + 2, control & !Self::MASK_ALL | Self::ENABLE);
    }

    /// From now on no message is sent.
    pub fn disable(self, config: &mut impl Config) {
        let control = config.read16(self.at + 2);
        config.write16(self.at + 2, control & !Self::ENABLE);
    }
}

/// Words of an entry of a table: address, upper half of it, data, and a mask in bit 0.
pub trait Entry {
    /// Writes word `index` of it, 0 to 3.
    fn write(&mut self, index: usize, value: u32);
    /// Reads one.
    fn read(&self, index: usize) -> u32;
}

/// Of the last word of an entry: nothing is sent, and what would be is remembered.
pub const MASKED: u32 = 1;

/// Masks an entry, and returns when the device has seen that: the read comes behind the write.
pub fn mask(entry: &mut impl Entry) {
    let control = entry.read(3);
    entry.write(3, control | MASKED);
    let _ = entry.read(3);
}

/// Gives an entry its message and lets it through. While the words change it is masked: the device may send at any time, and would
/// take the old ones and the new ones mixed.
pub fn set(entry: &mut impl Entry, message: Message) {
    mask(entry);
    entry.write(0, message.address as u32);
    entry.write(1, (message.address >> 32) as u32);
    entry.write(2, message.data);
    let control = entry.read(3);
    entry.write(3, control & !MASKED);
}
