//! The kernel's own page tables, built once on the boot processor before any other runs.
//!
//! Invariants: I1 no page is both writable and executable, and the image's pages are reachable at the image's addresses only:
//!                the HHDM leaves them out, so that text can't be written through it either.
//!             I2 the HHDM maps memory (usable, the loader's, modules) and nothing else; tables of the firmware are added
//!                read-only when they are asked for.

use arch::paging::{self, AddressSpace, Flags, OutOfPages, PAGE};
use sync::irql::{AddressSpaceLock, Below, Irql};

use super::early::EarlyPages;
use super::layout::{DEVICES, Segment};
use super::process::here;
use crate::boot::limine::{BootInfo, EntryType};

/// The kernel half under construction. Single-threaded: the boot processor owns it until the memory manager does.
pub struct KernelSpace {
    tables: AddressSpace,
    gib_pages: bool,
    next_device: u64,
}

impl KernelSpace {
    /// Maps the image by its segments and memory by the loader's map.
    pub fn build(info: &BootInfo, gib_pages: bool, pages: &mut EarlyPages) -> Result<Self, OutOfPages> {
        let mut space = Self { tables: AddressSpace::new(pages)?, gib_pages, next_device: DEVICES };
        space.map_image(info, pages)?;
        space.map_memory(info, pages)?;
        Ok(space)
    }

    fn map_image(&mut self, info: &BootInfo, pages: &mut EarlyPages) -> Result<(), OutOfPages> {
        let (physical, linked) = info.image;
        for segment in Segment::ALL {
            let range = segment.range();
            let flags = match segment {
                Segment::Text => Flags::PRESENT | Flags::GLOBAL,
                Segment::Rodata => Flags::PRESENT | Flags::GLOBAL | Flags::NO_EXECUTE,
                Segment::Data => Flags::PRESENT | Flags::GLOBAL | Flags::NO_EXECUTE | Flags::WRITABLE,
            };
            // SAFETY: fresh tables; the rights are the segment's own (I1).
            unsafe {
                self.map(
                    range.start,
                    physical + (range.start - linked),
                    range.end - range.start,
                    flags,
                    pages,
                )?
            };
        }
        Ok(())
    }

    fn map_memory(&mut self, info: &BootInfo, pages: &mut EarlyPages) -> Result<(), OutOfPages> {
        let (start, linked) = info.image;
        let image = start..start + (Segment::Data.range().end - linked);
        let is_memory = |kind| {
            [EntryType::USABLE, EntryType::BOOTLOADER_RECLAIMABLE, EntryType::EXECUTABLE_AND_MODULES]
                .contains(&kind)
        };
        let mut entries = info.memory_map.iter().filter(|entry| is_memory(entry.entry_type)).peekable();
        while let Some(entry) = entries.next() {
            let base = entry.base / PAGE * PAGE;
            let mut end = (entry.base + entry.length).next_multiple_of(PAGE);
            // Adjacent ranges together allow larger pages.
            while let Some(next) = entries.next_if(|next| next.base <= end) {
                end = end.max((next.base + next.length).next_multiple_of(PAGE));
            }
            for part in [base..end.min(image.start), base.max(image.end)..end] {
                let overlaps = base < image.end && image.start < end;
                let part = if overlaps { part } else { base..end };
                if part.start < part.end {
                    self.map_hhdm(part.start, part.end - part.start, Flags::WRITABLE, pages)?;
                }
                if !overlaps {
                    break;
                }
            }
        }
        Ok(())
    }

    fn map_hhdm(
        &mut self,
        physical: u64,
        bytes: u64,
        extra: Flags,
        pages: &mut EarlyPages,
    ) -> Result<(), OutOfPages> {
        let flags = Flags::PRESENT | Flags::NO_EXECUTE | Flags::GLOBAL | extra;
        // SAFETY: the loader's ranges don't overlap, and no other code maps the HHDM; memory, never executable (I2).
        unsafe { self.map(paging::hhdm() + physical, physical, bytes, flags, pages) }
    }

    /// Maps `bytes` at `virtual_`.
    ///
    /// # Safety
    /// As [`AddressSpace::map`].
    pub unsafe fn map(
        &mut self,
        virtual_: u64,
        physical: u64,
        bytes: u64,
        flags: Flags,
        pages: &mut EarlyPages,
    ) -> Result<(), OutOfPages> {
        // SAFETY: as the caller promised.
        unsafe { self.tables.map(virtual_, physical, bytes, flags, self.gib_pages, pages) }
    }

    /// Makes firmware tables at `physical` readable through the HHDM, page by page; what is mapped already stays. These tables
    /// are in force on this processor.
    pub fn map_firmware(
        &mut self,
        physical: u64,
        bytes: u64,
        pages: &mut EarlyPages,
    ) -> Result<u64, OutOfPages> {
        let end = (physical + bytes).next_multiple_of(PAGE);
        for page in (physical / PAGE * PAGE..end).step_by(PAGE as usize) {
            if paging::translate(paging::hhdm() + page).is_none() {
                self.map_hhdm(page, PAGE, Flags::empty(), pages)?;
            }
        }
        Ok(paging::hhdm() + physical)
    }

    /// Maps device registers, uncached. For good.
    pub fn map_device(
        &mut self,
        physical: u64,
        bytes: u64,
        pages: &mut EarlyPages,
    ) -> Result<u64, OutOfPages> {
        let offset = physical % PAGE;
        let bytes = (offset + bytes).next_multiple_of(PAGE);
        let at = self.next_device;
        self.next_device += bytes;
        let flags = Flags::PRESENT
            | Flags::WRITABLE
            | Flags::NO_EXECUTE
            | Flags::GLOBAL
            | Flags::NO_CACHE
            | Flags::WRITE_THROUGH;
        // SAFETY: addresses that nothing else uses; device memory is uncached.
        unsafe { self.map(at, physical - offset, bytes, flags, pages)? };
        Ok(at + offset)
    }

    /// The value for CR3 on every processor.
    pub fn root(&self) -> u64 {
        self.tables.root()
    }

    /// Leaves the loader's page tables on this processor.
    ///
    /// # Safety
    /// The running stack and everything still needed of the loader's lies in the HHDM or the image.
    pub unsafe fn activate(&self) {
        // SAFETY: image and memory are mapped as they were, at the same addresses.
        unsafe { self.tables.activate() };
    }
}

/// Whether reading `address` would not fault now. Of the user half: in the address space that the running thread is attached to.
/// Stale at once, unless the caller keeps the address from ending.
///
/// IRQL: at or below DISPATCH, no lock from the address space's on: the user half's tables are read under it.
#[doc(alias = "MmIsAddressValid")]
pub fn is_address_valid<L: Below<AddressSpaceLock>>(address: u64, at: &mut Irql<L>) -> bool {
    if address >> 47 == 0 { here::is_valid(address, at) } else { paging::translate(address).is_some() }
}
