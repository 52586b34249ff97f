//! Capability lists: each entry says where the next one is, and what it says is not to be trusted.
//!
//! Invariants: I1 an iterator gives each place once, so it ends, whatever the links are: a link to a place that was there before, or
//!                to one where no capability can be, is the end of the list.
//! Tests:      tests/props/tests/pci.rs.
//! Sources:    PCI Local Bus Specification, "Capabilities List"; PCI Express Base Specification, "Extended Capabilities".

use super::config::{Config, register};

/// Ids of capabilities.
pub mod id {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// What the vendor says.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// Message-signalled interrupts by a table.
    pub const MSIX: u8 = 0x11;
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Which: of [`id`]; of an extended one 16 bits.
    pub id: u16,
    /// Its first register.
    pub at: u16,
}

/// The first 256 bytes' list.
pub struct Capabilities<C> {
    config: C,
    next: u16,
    /// Bit n: a capability at word n was given (I1).
    seen: u64,
}

/// The capabilities of a function.
pub fn capabilities<C: Config>(mut config: C) -> Capabilities<C> {
    const HAS_LIST: u32 = 1 << 20;
    let has_list = config.read(register::COMMAND) & HAS_LIST != 0;
    let next = if has_list { config.read8(register::CAPABILITIES).into() } else { 0 };
    Capabilities { config, next, seen: 0 }
}

impl<C: Config> Iterator for Capabilities<C> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        // The lowest two bits are reserved; in the header there is no capability.
        let at = self.next & 0xFC;
        let bit = 1 << (at / 4);
        if at < 0x40 || self.seen & bit != 0 {
            return None;
        }
        self.seen |= bit;
        let word = self.config.read(at);
        self.next = (word >> 8) as u16 & 0xFF;
        Some(Capability { id: (word & 0xFF) as u16, at })
    }
}

/// The first capability of this id.
pub fn find(config: impl Config, id: u8) -> Option<u16> {
    capabilities(config).find(|capability| capability.id == id.into()).map(|capability| capability.at)
}

/// The list behind the first 256 bytes.
pub struct Extended<C> {
    config: C,
    next: u16,
    /// As of [`Capabilities`], for 1024 words.
    seen: [u64; 16],
}

/// The extended capabilities of a function that is reached by ECAM.
pub fn extended<C: Config>(config: C) -> Extended<C> {
    Extended { config, next: 0x100, seen: [0; 16] }
}

impl<C: Config> Iterator for Extended<C> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        let at = self.next & 0xFFC;
        let (word, bit) = (usize::from(at / 4 / 64), 1 << (at / 4 % 64));
        if at < 0x100 || self.seen[word] & bit != 0 {
            return None;
        }
        self.seen[word] |= bit;
        let head = self.config.read(at);
        // Where there are none, the first word is all zeroes, or all ones.
        if head == 0 || head == u32::MAX {
            return None;
        }
        self.next = (head >> 20) as u16;
        Some(Capability { id: head as u16, at })
    }
}
