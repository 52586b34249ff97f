//! Which global system interrupt a device's line is, and how it is wired: ISA's defaults under the MADT's overrides, PCI's.
//!
//! Sources: ACPI, "Interrupt Source Override Structure" (MPS INTI flags); PCI Local Bus Specification, "Interrupt Pins".

use arch::redirection::{Polarity, Trigger};

/// Where an ISA line really goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// ISA IRQ.
    pub isa: u8,
    /// Global system interrupt.
    pub gsi: u32,
    /// MPS INTI flags: polarity in bits 0–1, trigger mode in bits 2–3.
    pub flags: u16,
}

/// A line into some I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Global system interrupt: a number over all I/O APICs.
    pub gsi: u32,
    /// Asserted high or low.
    pub polarity: Polarity,
    /// NT's interrupt mode: latched (edge) or level-sensitive.
    pub trigger: Trigger,
}

impl Line {
    /// ISA IRQ `irq`: edge, active high, number kept, unless an override says otherwise.
    pub fn isa(irq: u8, overrides: &[Override]) -> Self {
        let plain = Override { isa: irq, gsi: irq.into(), flags: 0 };
        let wire = overrides.iter().find(|wire| wire.isa == irq).unwrap_or(&plain);
        Self {
            gsi: wire.gsi,
            // 0: as the bus does; 1: high; 3: low.
            polarity: if wire.flags & 3 == 3 { Polarity::Low } else { Polarity::High },
            // 0: as the bus does; 1: edge; 3: level.
            trigger: if wire.flags >> 2 & 3 == 3 { Trigger::Level } else { Trigger::Edge },
        }
    }

    /// A PCI device's INTx that the chipset leads to `gsi`: level, active low.
    pub const fn pci(gsi: u32) -> Self {
        Self { gsi, polarity: Polarity::Low, trigger: Trigger::Level }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMER: Override = Override { isa: 0, gsi: 2, flags: 0 };
    const SCI: Override = Override { isa: 9, gsi: 9, flags: 0b1101 };
    const ODD: Override = Override { isa: 5, gsi: 21, flags: 0b0111 };

    #[test]
    fn isa_lines_are_edge_high_and_keep_their_number() {
        let line = Line { gsi: 4, polarity: Polarity::High, trigger: Trigger::Edge };
        assert_eq!(Line::isa(4, &[TIMER, SCI, ODD]), line);
    }

    #[test]
    fn overrides_move_and_rewire() {
        let all = [TIMER, SCI, ODD];
        assert_eq!(Line::isa(0, &all), Line { gsi: 2, polarity: Polarity::High, trigger: Trigger::Edge });
        assert_eq!(Line::isa(9, &all), Line { gsi: 9, polarity: Polarity::High, trigger: Trigger::Level });
        assert_eq!(Line::isa(5, &all), Line { gsi: 21, polarity: Polarity::Low, trigger: Trigger::Edge });
    }

    #[test]
    fn pci_lines_are_level_low() {
        assert_eq!(Line::pci(20), Line { gsi: 20, polarity: Polarity::Low, trigger: Trigger::Level });
    }
}
