//! The bits of a page-table entry that the processor reads or writes. Those that are left to software belong to whoever fills the
//! entries: `mm::tables` for the kernel half, `mm::process::entry` for the user half.
//!
//! Sources:    SDM vol. 3, "4-Level Paging", "Page Attribute Table".

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
pub(super) const WRITE_THROUGH: u64 = 1 << 3;
pub(super) const NO_CACHE: u64 = 1 << 4;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
/// In an entry above the last level: a large page. In a leaf of 4 KiB: the upper half of the attribute table.
pub(super) const LARGE_OR_ATTRIBUTE: u64 = 1 << 7;
pub(super) const GLOBAL: u64 = 1 << 8;
/// Where the page or the next table is.
pub(super) const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
pub(super) const NO_EXECUTE: u64 = 1 << 63;
