//! A redirection entry of an I/O APIC: what one line turns into. Pure; `x86_64::ioapic` writes it, host tests check it.
//!
//! ```text
//!  63      56 55             17  16   15     14    13   12   11  10-8      7-0
//!  destination  0          masked  level  remote  low  busy  phys fixed  vector
//!  (APIC id)                       (1)    IRR     (1)        (0)  (0)
//! ```
//!
//! Sources: 82093AA data sheet, "I/O Redirection Table Registers"; ACPI, "Interrupt Source Override Structure".

/// Which voltage means "asserted".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// ISA's.
    High,
    /// PCI's.
    Low,
}

/// What makes a line interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Its becoming asserted, once; NT's "latched".
    Edge,
    /// Its being asserted: again after each EOI for as long as it is.
    Level,
}

/// Physical destinations that an I/O APIC or an MSI can name are 8 bits wide, and 255 means all processors; only interrupt
/// remapping reaches further. The APIC id that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfReach(pub u32);

/// `apic_id` as the 8-bit physical destination of a device's interrupt.
pub const fn destination(apic_id: u32) -> Result<u8, OutOfReach> {
    if apic_id < 0xFF { Ok(apic_id as u8) } else { Err(OutOfReach(apic_id)) }
}

/// An entry: fixed delivery, physical destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// What is delivered.
    pub vector: u8,
    /// To whom; see [`destination`].
    pub destination: u8,
    /// The line's.
    pub polarity: Polarity,
    /// The line's.
    pub trigger: Trigger,
    /// Nothing is delivered.
    pub masked: bool,
}

/// The mask bit.
pub const MASKED: u64 = 1 << 16;
/// Read-only: a processor has accepted the level interrupt and not yet ended it.
pub const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const ACTIVE_LOW: u64 = 1 << 13;

impl Redirection {
    /// As the register holds it.
    pub const fn bits(self) -> u64 {
        let mut bits = self.vector as u64 | (self.destination as u64) << 56;
        if let Trigger::Level = self.trigger {
            bits |= LEVEL;
        }
        if let Polarity::Low = self.polarity {
            bits |= ACTIVE_LOW;
        }
        if self.masked {
            bits |= MASKED;
        }
        bits
    }

    /// What the register says; delivery mode and status are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            vector: bits as u8,
            destination: (bits >> 56) as u8,
            polarity: if bits & ACTIVE_LOW != 0 { Polarity::Low } else { Polarity::High },
            trigger: if bits & LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
            masked: bits & MASKED != 0,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_are_the_data_sheets_bits() {
        let edge = Redirection {
            vector: 0x31,
            destination: 0,
            polarity: Polarity::High,
            trigger: Trigger::Edge,
            masked: false,
        };
        assert_eq!(edge.bits(), 0x31);
        let level = Redirection {
            vector: 0xB7,
            destination: 0xFE,
            polarity: Polarity::Low,
            trigger: Trigger::Level,
            masked: true,
        };
        assert_eq!(level.bits(), 0xFE00_0000_0001_A0B7);
    }

    #[test]
    fn entries_survive_the_way_through_the_register() {
        for bits in 0..16_u32 {
            let entry = Redirection {
                vector: 0x30 + bits as u8,
                destination: 3 * bits as u8,
                polarity: if bits & 1 != 0 { Polarity::Low } else { Polarity::High },
                trigger: if bits & 2 != 0 { Trigger::Level } else { Trigger::Edge },
                masked: bits & 4 != 0,
            };
            // What the chip adds by itself changes nothing.
            assert_eq!(Redirection::from_bits(entry.bits() | REMOTE_IRR | 1 << 12), entry);
        }
    }

    #[test]
    fn ids_from_255_on_are_refused() {
        assert_eq!(destination(254), Ok(254));
        assert_eq!(destination(255), Err(OutOfReach(255)));
        assert_eq!(destination(256), Err(OutOfReach(256)));
    }
}
