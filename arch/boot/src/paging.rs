//! Page tables, built in memory that somebody else hands out.
//!
//! ```text
//! entry: 63 no execute | 51..12 address | 7 page (levels 3 and 2) | 1 writable | 0 present
//! ```
//!
//! Invariants: I1 no mapping is writable and executable. I2 nothing is mapped twice.
//! Tests:      tests/suite/paging.rs walks random maps.   Sources: SDM vol. 3, "4-Level Paging".

use core::fmt;

use crate::memory::{HUGE_PAGE, LARGE_PAGE, PAGE};
use crate::memory_map::MemoryError;

/// Where the direct map starts.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Where the handoff page is mapped: nothing of the kernel's or of the direct map is near.
pub const HANDOFF_PAGE: u64 = 0xffff_ff00_0000_0000;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LEAF: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page table.
pub type Table = [u64; 512];

/// Where page tables come from.
pub trait Tables {
    /// The physical address of a new table, all zero.
    fn allocate(&mut self) -> Result<u64, MemoryError>;
    /// The table at an address that `allocate` returned.
    fn table(&mut self, address: u64) -> &mut Table;
}

/// What may be done with mapped memory, besides reading: both at once cannot be said (I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Read,
    /// Writing.
    Write,
    /// Executing.
    Execute,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Self::Read => PRESENT | NO_EXECUTE,
            Self::Write => PRESENT | WRITABLE | NO_EXECUTE,
            Self::Execute => PRESENT,
        }
    }
}

/// Why memory could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagingError {
    /// No memory for a table.
    Memory(MemoryError),
    /// Something is mapped there (I2): the loader contradicts itself.
    Occupied(u64),
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Occupied(address) => write!(f, "internal error: {address:#x} is mapped twice"),
        }
    }
}

impl From<MemoryError> for PagingError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// Four levels of page tables.
#[derive(Debug)]
pub struct PageTables<T> {
    root: u64,
    huge_pages: bool,
    tables: T,
}

impl<T: Tables> PageTables<T> {
    /// Starts with nothing mapped; `huge_pages` says whether the processor has 1 GiB pages.
    pub fn new(mut tables: T, huge_pages: bool) -> Result<Self, PagingError> {
        Ok(Self { root: tables.allocate()?, huge_pages, tables })
    }

    /// What goes into CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Entry `slot` of the root table, for another root that shall share what it leads to.
    pub fn root_entry(&mut self, slot: usize) -> u64 {
        self.tables.table(self.root)[slot]
    }

    /// Maps `length` bytes at `address` to physical `physical`, all multiples of the page size, in the largest
    /// pages that fit.
    pub fn map(
        &mut self,
        address: u64,
        physical: u64,
        length: u64,
        access: Access,
    ) -> Result<(), PagingError> {
        let mut done = 0;
        while done < length {
            let (address, physical, rest) = (address + done, physical + done, length - done);
            let fits = |size: u64| (address | physical).is_multiple_of(size) && rest >= size;
            let (level, size) = match () {
                () if self.huge_pages && fits(HUGE_PAGE) => (2, HUGE_PAGE),
                () if fits(LARGE_PAGE) => (1, LARGE_PAGE),
                () => (0, PAGE),
            };
            self.map_one(address, physical, level, access)?;
            done += size;
        }
        Ok(())
    }

    /// Maps one page by an entry of `level`: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB.
    fn map_one(
        &mut self,
        address: u64,
        physical: u64,
        level: u32,
        access: Access,
    ) -> Result<(), PagingError> {
        let mut table = self.root;
        for upper in (level + 1..4).rev() {
            let at = index(address, upper);
            let entry = self.tables.table(table)[at];
            if entry & LEAF != 0 {
                return Err(PagingError::Occupied(address));
            }
            table = match entry & PRESENT {
                0 => {
                    let new = self.tables.allocate()?;
                    // The leaf alone decides what is allowed.
                    self.tables.table(table)[at] = new | PRESENT | WRITABLE;
                    new
                }
                _ => entry & ADDRESS,
            };
        }
        let entry = &mut self.tables.table(table)[index(address, level)];
        if *entry != 0 {
            return Err(PagingError::Occupied(address));
        }
        *entry = physical | access.bits() | if level > 0 { LEAF } else { 0 };
        Ok(())
    }
}

/// Which entry of a table of `level` `address` goes through.
pub fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level)) as usize % 512
}
