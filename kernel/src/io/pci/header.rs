//! A function's header: what it is, and, of a bridge, which bus is behind it.
//!
//! Sources: PCI Local Bus Specification, "Configuration Space Header"; PCI-to-PCI Bridge Architecture Specification.

use super::config::{Config, register};

/// What kind of header it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Type 0: a device's function, with six base address registers.
    Function,
    /// Type 1: a bridge to this bus, with two.
    Bridge {
        /// The bus behind it; 0 is none yet.
        secondary: u8,
    },
    /// Another one, of which nothing more is known.
    Other(u8),
}

impl Kind {
    /// How many base address registers it has.
    pub const fn bars(self) -> usize {
        match self {
            Self::Function => 6,
            Self::Bridge { .. } => 2,
            Self::Other(_) => 0,
        }
    }
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who made it.
    pub vendor: u16,
    /// What the vendor calls it.
    pub device: u16,
    /// Base class, subclass and interface, from bit 16 down.
    pub class: u32,
    /// Of the device.
    pub revision: u8,
    /// Vendor in the lower half, device in the upper one; 0 where there is none.
    pub subsystem: u32,
    /// Of the header.
    pub kind: Kind,
    /// Its device has more than function 0.
    pub is_multifunction: bool,
    /// 1 to 4 for INTA to INTD; 0: it has no line.
    pub pin: u8,
}

impl Header {
    /// Reads it; `None`: there is no function here.
    pub fn read(config: &mut impl Config) -> Option<Self> {
        let identity = config.read(register::IDENTITY);
        // A vendor of 0 is what some bridges answer with for nothing.
        if matches!(identity as u16, 0xFFFF | 0) {
            return None;
        }
        let class = config.read(register::CLASS);
        let header_type = config.read8(register::HEADER_TYPE);
        let kind = match header_type & 0x7F {
            0 => Kind::Function,
            1 => Kind::Bridge { secondary: (config.read(register::BUSES) >> 8) as u8 },
            other => Kind::Other(other),
        };
        Some(Self {
            vendor: identity as u16,
            device: (identity >> 16) as u16,
            class: class >> 8,
            revision: class as u8,
            subsystem: if kind == Kind::Function { config.read(register::SUBSYSTEM) } else { 0 },
            kind,
            is_multifunction: header_type & 0x80 != 0,
            pin: match config.read8(register::INTERRUPT + 1) {
                pin @ 1..=4 => pin,
                _ => 0,
            },
        })
    }
}
