//! ACPI, as far as starting processors needs it: RSDP, XSDT or RSDT, and the MADT's processors and I/O APICs.
//!
//! Invariants: I1 every table is read within its own length, and only after its checksum was right.
//!             I2 a processor is listed once, though old and new MADT entries may both name it.
//! Tests:      tests/suite/acpi.rs, fuzz target `madt`.   Sources: ACPI, "Root System Description Pointer", "MADT".

use core::fmt;

use crate::memory::{Physical, u32_at, u64_at};

/// The largest number of processors.
pub const MAX_PROCESSORS: usize = 1024;

const HEADER_SIZE: u64 = 36;
/// No real table is longer; a wrong length shall not make the checksum run over gigabytes.
const MAX_TABLE: u64 = 1 << 20;
const MADT_ENTRIES: usize = 44;
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_X2APIC: u8 = 9;
const ENABLED: u32 = 1;

/// Why a table was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiError {
    /// The table is not in readable memory, or its length is impossible.
    Unreadable(&'static str),
    /// The table's signature is another.
    Signature(&'static str),
    /// The table's bytes do not add up to 0.
    Checksum(&'static str),
    /// A MADT entry has an impossible length.
    Entry(usize),
    /// More than [`MAX_PROCESSORS`].
    TooManyProcessors,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(table) => write!(f, "ACPI: the {table} is not readable"),
            Self::Signature(table) => write!(f, "ACPI: the {table} has the wrong signature"),
            Self::Checksum(table) => write!(f, "ACPI: the {table} has a wrong checksum"),
            Self::Entry(at) => write!(f, "ACPI: the MADT entry at offset {at} has an impossible length"),
            Self::TooManyProcessors => write!(f, "ACPI: more than {MAX_PROCESSORS} processors"),
        }
    }
}

/// A processor that the firmware says can be started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processor {
    /// ACPI's number for it.
    pub uid: u32,
    /// Its APIC id, 32 bits.
    pub apic_id: u32,
}

/// The processors and I/O APICs of a MADT.
#[derive(Debug, Clone)]
pub struct Madt {
    processors: [Processor; MAX_PROCESSORS],
    processor_count: usize,
    io_apics: [u32; 16],
    io_apic_count: usize,
}

impl Madt {
    /// A machine with no MADT: nothing listed.
    pub const fn empty() -> Self {
        Self {
            processors: [Processor { uid: 0, apic_id: 0 }; MAX_PROCESSORS],
            processor_count: 0,
            io_apics: [0; 16],
            io_apic_count: 0,
        }
    }

    /// Adds what the table reached from the RSDP at `rsdp` lists. A machine without a MADT has one processor and adds none.
    pub fn read(&mut self, memory: &impl Physical, rsdp: u64) -> Result<(), AcpiError> {
        match find_madt(memory, rsdp)? {
            Some(address) => self.parse(table(memory, address, b"APIC", "MADT")?),
            None => Ok(()),
        }
    }

    /// Adds what `madt`, a whole table, lists.
    pub fn parse(&mut self, madt: &[u8]) -> Result<(), AcpiError> {
        let mut at = MADT_ENTRIES;
        while at < madt.len() {
            let length = usize::from(*madt.get(at + 1).ok_or(AcpiError::Entry(at))?);
            // Two bytes are the entry's own type and length; fewer would never end.
            let entry = match length {
                2.. => madt.get(at..at + length).ok_or(AcpiError::Entry(at))?,
                _ => return Err(AcpiError::Entry(at)),
            };
            self.parse_entry(entry).ok_or(AcpiError::Entry(at))??;
            at += length;
        }
        Ok(())
    }

    /// The processors, in the table's order.
    pub fn processors(&self) -> &[Processor] {
        &self.processors[..self.processor_count]
    }

    /// Physical addresses of the I/O APICs.
    pub fn io_apics(&self) -> &[u32] {
        &self.io_apics[..self.io_apic_count]
    }

    /// Adds a processor, unless its APIC id is there already (I2).
    pub fn add(&mut self, processor: Processor) -> Result<(), AcpiError> {
        if self.processors().iter().any(|known| known.apic_id == processor.apic_id) {
            return Ok(());
        }
        let slot = self.processors.get_mut(self.processor_count).ok_or(AcpiError::TooManyProcessors)?;
        *slot = processor;
        self.processor_count += 1;
        Ok(())
    }

    /// `None` when the entry is too short for its type.
    fn parse_entry(&mut self, entry: &[u8]) -> Option<Result<(), AcpiError>> {
        let (uid, apic_id, flags) = match *entry.first()? {
            LOCAL_APIC => {
                let (uid, id) = (*entry.get(2)?, *entry.get(3)?);
                // 255 is the old broadcast id: firmware uses it for "none".
                let id = if id == 0xff { u32::MAX } else { u32::from(id) };
                (u32::from(uid), id, u32_at(entry, 4)?)
            }
            LOCAL_X2APIC => (u32_at(entry, 12)?, u32_at(entry, 4)?, u32_at(entry, 8)?),
            IO_APIC => {
                let address = u32_at(entry, 4)?;
                // Sixteen are masked; a machine with more starts with the rest as the firmware left it.
                if let Some(slot) = self.io_apics.get_mut(self.io_apic_count) {
                    *slot = address;
                    self.io_apic_count += 1;
                }
                return Some(Ok(()));
            }
            _ => return Some(Ok(())),
        };
        if flags & ENABLED == 0 || apic_id == u32::MAX {
            return Some(Ok(()));
        }
        Some(self.add(Processor { uid, apic_id }))
    }
}

/// Finds the RSDP where firmware keeps it, for a start info that names none: on a 16-byte boundary in the BIOS area.
pub fn search_rsdp(memory: &impl Physical) -> Option<u64> {
    (0xe_0000..0x10_0000).step_by(16).find(|&at| rsdp_is_valid(memory, at).is_ok())
}

fn rsdp_is_valid(memory: &impl Physical, rsdp: u64) -> Result<(), AcpiError> {
    let bytes = memory.bytes(rsdp, 20).ok_or(AcpiError::Unreadable("RSDP"))?;
    if !bytes.starts_with(b"RSD PTR ") {
        return Err(AcpiError::Signature("RSDP"));
    }
    check(bytes, "RSDP")
}

fn find_madt(memory: &impl Physical, rsdp: u64) -> Result<Option<u64>, AcpiError> {
    rsdp_is_valid(memory, rsdp)?;
    let old = memory.bytes(rsdp, 20).ok_or(AcpiError::Unreadable("RSDP"))?;
    if old[15] >= 2 {
        let new = memory.bytes(rsdp, 36).ok_or(AcpiError::Unreadable("RSDP"))?;
        check(new, "RSDP")?;
        match u64_at(new, 24) {
            // A firmware of the new kind may still fill in the old table alone.
            None | Some(0) => {}
            Some(xsdt) => return find_in_root(memory, table(memory, xsdt, b"XSDT", "XSDT")?, 8),
        }
    }
    let rsdt = u32_at(old, 16).ok_or(AcpiError::Unreadable("RSDP"))?;
    find_in_root(memory, table(memory, rsdt.into(), b"RSDT", "RSDT")?, 4)
}

fn find_in_root(memory: &impl Physical, root: &[u8], width: usize) -> Result<Option<u64>, AcpiError> {
    let entries = root.get(HEADER_SIZE as usize..).unwrap_or_default().chunks_exact(width);
    let addresses = entries.map(|entry| u64_at(entry, 0).or(u32_at(entry, 0).map(u64::from)).unwrap_or(0));
    for address in addresses {
        // Other tables are not ours to judge, so an unreadable one is passed over.
        if memory.bytes(address, 4).is_some_and(|signature| signature == b"APIC") {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// A whole table, its signature, length and checksum right (I1).
fn table<'m>(
    memory: &'m impl Physical,
    address: u64,
    signature: &[u8; 4],
    name: &'static str,
) -> Result<&'m [u8], AcpiError> {
    let header = memory.bytes(address, HEADER_SIZE).ok_or(AcpiError::Unreadable(name))?;
    if !header.starts_with(signature) {
        return Err(AcpiError::Signature(name));
    }
    let length = u32_at(header, 4).map_or(0, u64::from);
    if !(HEADER_SIZE..=MAX_TABLE).contains(&length) {
        return Err(AcpiError::Unreadable(name));
    }
    let bytes = memory.bytes(address, length).ok_or(AcpiError::Unreadable(name))?;
    check(bytes, name)?;
    Ok(bytes)
}

fn check(bytes: &[u8], name: &'static str) -> Result<(), AcpiError> {
    match bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(()),
        _ => Err(AcpiError::Checksum(name)),
    }
}
