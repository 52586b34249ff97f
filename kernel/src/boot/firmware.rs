//! What ACPI knows: of the MADT, the processors that should be there, the I/O APICs, how ISA lines are wired; of the MCFG, where PCI
//! Express configuration space is.
//!
//! The tables are parsed by the `acpi` crate; they are mapped on demand, read-only.

use core::cell::RefCell;
use core::ptr::NonNull;

use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};

use super::Refusal;
use crate::ke::interrupt::wiring::Override;
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;

/// I/O APICs, ISA overrides and processors beyond these are not kept; more than 64 processors are not run either.
pub(crate) const MAX_IO_APICS: usize = 8;
const MAX_OVERRIDES: usize = 24;
const MAX_SEGMENTS: usize = 4;
const MAX_PROCESSORS: usize = 256;

/// An I/O APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApicFacts {
    /// Physical address of its registers.
    pub address: u32,
    /// The first global system interrupt that it takes.
    pub gsi_base: u32,
}

/// Where the configuration space of a range of buses is mapped: 1 MiB a bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EcamFacts {
    /// Physical address of `first`'s.
    pub base: u64,
    /// Segment group.
    pub segment: u16,
    /// The first bus.
    pub first: u8,
    /// The last one.
    pub last: u8,
}

/// A list with a bound.
#[derive(Clone, Copy, Debug)]
pub struct Bounded<T, const N: usize> {
    items: [T; N],
    len: usize,
    /// Items that found no room.
    pub dropped: usize,
}

impl<T: Copy + Default, const N: usize> Bounded<T, N> {
    fn new() -> Self {
        Self { items: [T::default(); N], len: 0, dropped: 0 }
    }

    fn push(&mut self, item: T) {
        match self.items.get_mut(self.len) {
            Some(slot) => {
                *slot = item;
                self.len += 1;
            }
            None => self.dropped += 1,
        }
    }

    /// What was kept.
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.len]
    }
}

/// MADT and MCFG, condensed.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    /// APIC ids of the processors that are enabled.
    pub processors: Bounded<u32, MAX_PROCESSORS>,
    /// I/O APICs.
    pub io_apics: Bounded<IoApicFacts, MAX_IO_APICS>,
    /// ISA lines that aren't wired one to one.
    pub overrides: Bounded<Override, MAX_OVERRIDES>,
    /// PCI Express configuration space; nothing on a machine without.
    pub ecam: Bounded<EcamFacts, MAX_SEGMENTS>,
}

impl Firmware {
    /// Reads the tables that `rsdp` leads to.
    pub fn read(rsdp: u64, space: &mut KernelSpace, pages: &mut EarlyPages) -> Result<Self, Refusal> {
        let mapper = RefCell::new((space, pages));
        let handler = OnDemand(&mapper);
        // SAFETY: the loader found the RSDP there; the crate checks signatures and checksums.
        let tables = unsafe { AcpiTables::from_rsdp(handler, rsdp as usize) }
            .map_err(|_| Refusal::Firmware("ACPI tables"))?;
        let madt = tables.find_table::<Madt>().map_err(|_| Refusal::Firmware("ACPI MADT"))?;
        let mut facts = Self {
            processors: Bounded::new(),
            io_apics: Bounded::new(),
            overrides: Bounded::new(),
            ecam: Bounded::new(),
        };
        const ENABLED: u32 = 1;
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => {
                    facts.processors.push(cpu.apic_id.into())
                }
                MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => {
                    facts.processors.push(cpu.x2apic_id)
                }
                MadtEntry::IoApic(chip) => facts.io_apics.push(IoApicFacts {
                    address: chip.io_apic_address,
                    gsi_base: chip.global_system_interrupt_base,
                }),
                MadtEntry::InterruptSourceOverride(wire) => facts.overrides.push(Override {
                    isa: wire.irq,
                    gsi: wire.global_system_interrupt,
                    flags: wire.flags,
                }),
                _ => {}
            }
        }
        // A machine may have none: its PCI, if it has any, is reached by ports.
        if let Ok(mcfg) = tables.find_table::<Mcfg>() {
            for entry in mcfg.get().entries() {
                facts.ecam.push(EcamFacts {
                    base: entry.base_address,
                    segment: entry.pci_segment_group,
                    first: entry.bus_number_start,
                    last: entry.bus_number_end,
                });
            }
        }
        Ok(facts)
    }
}

/// Maps what the parser asks for, for good.
#[derive(Clone)]
struct OnDemand<'a, 'b>(&'a RefCell<(&'b mut KernelSpace, &'b mut EarlyPages)>);

impl AcpiHandler for OnDemand<'_, '_> {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let (space, pages) = &mut *self.0.borrow_mut();
        // Out of pages this early is a machine far below the minimum: said by name, as the crate's interface has no error.
        let Ok(address) = space.map_firmware(physical_address as u64, size as u64, pages) else {
            Refusal::NoMemory.report()
        };
        // SAFETY: the address is in the upper half, so not null.
        let address = unsafe { NonNull::new_unchecked(address as *mut T) };
        // SAFETY: mapped for `size` bytes just now.
        unsafe { PhysicalMapping::new(physical_address, address, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}
