//! Page tables: building the kernel's own, and asking what an address is mapped to.
//!
//! Tables are reached through the HHDM, whose offset the loader tells. The walk of [`translate`] reads tables only, so that a
//! bugcheck may use it.
//!
//! Sources: SDM vol. 3, "4-Level Paging"; the mapper is the `x86_64` crate's.

use core::sync::atomic::{AtomicU64, Ordering};

pub use ::x86_64::instructions::tlb::Pcid;
use ::x86_64::instructions::tlb::{InvPcidCommand, flush_pcid};
use ::x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use ::x86_64::structures::paging::mapper::{MapToError, OffsetPageTable};
pub use ::x86_64::structures::paging::page_table::PageTableFlags as Flags;
use ::x86_64::structures::paging::{
    FrameAllocator, Mapper, Page, PageSize, PageTable, PhysFrame, Size1GiB, Size2MiB, Size4KiB,
};
use ::x86_64::{PhysAddr, VirtAddr};

use super::cpu::Features;

/// Bytes of the smallest page.
pub const PAGE: u64 = 4096;

static HHDM: AtomicU64 = AtomicU64::new(0);

/// Tells where the loader mapped all of memory.
pub fn set_hhdm(offset: u64) {
    HHDM.store(offset, Ordering::Relaxed);
}

/// Where physical address zero is, or would be, mapped.
pub fn hhdm() -> u64 {
    HHDM.load(Ordering::Relaxed)
}

/// No page for a table, or none for the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfPages;

/// Where page tables come from.
pub trait Pages {
    /// A zeroed page's physical address.
    fn page(&mut self) -> Option<u64>;
}

struct Source<'a>(&'a mut dyn Pages);

// SAFETY: `Pages::page` hands out each page once.
unsafe impl FrameAllocator<Size4KiB> for Source<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        self.0.page().map(|page| PhysFrame::containing_address(PhysAddr::new(page)))
    }
}

/// A set of page tables under construction or in use.
pub struct AddressSpace {
    root: u64,
}

impl AddressSpace {
    /// An empty one.
    pub fn new(pages: &mut dyn Pages) -> Result<Self, OutOfPages> {
        Ok(Self { root: pages.page().ok_or(OutOfPages)? })
    }

    /// The one that CR3 names.
    ///
    /// # Safety
    /// Nobody else changes it meanwhile.
    pub unsafe fn current() -> Self {
        Self { root: Cr3::read().0.start_address().as_u64() }
    }

    /// The value for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Makes it this processor's.
    ///
    /// # Safety
    /// It maps the running code, its stack and everything that will be touched, as they are mapped now.
    pub unsafe fn activate(&self) {
        // SAFETY: as the caller promised.
        unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(self.root)), Cr3Flags::empty()) };
    }

    /// Maps `bytes` from `physical` at `virtual_`, with the largest pages that fit; all three page-aligned. Parent entries are
    /// writable and executable: the leaf decides.
    ///
    /// # Safety
    /// The range is not mapped yet, and the flags suit what lies there.
    pub unsafe fn map(
        &mut self,
        virtual_: u64,
        physical: u64,
        bytes: u64,
        flags: Flags,
        gib_pages: bool,
        pages: &mut dyn Pages,
    ) -> Result<(), OutOfPages> {
        let mut done = 0;
        while done < bytes {
            let (from, to, left) = (virtual_ + done, physical + done, bytes - done);
            let fits = |size: u64| (from | to).is_multiple_of(size) && left >= size;
            // SAFETY: as the caller promised.
            unsafe {
                if gib_pages && fits(Size1GiB::SIZE) {
                    self.map_one::<Size1GiB>(from, to, flags, pages)?;
                    done += Size1GiB::SIZE;
                } else if fits(Size2MiB::SIZE) {
                    self.map_one::<Size2MiB>(from, to, flags, pages)?;
                    done += Size2MiB::SIZE;
                } else {
                    self.map_one::<Size4KiB>(from, to, flags, pages)?;
                    done += PAGE;
                }
            }
        }
        Ok(())
    }

    unsafe fn map_one<S: PageSize>(
        &mut self,
        from: u64,
        to: u64,
        flags: Flags,
        pages: &mut dyn Pages,
    ) -> Result<(), OutOfPages>
    where
        for<'a> OffsetPageTable<'a>: Mapper<S>,
    {
        let offset = VirtAddr::new(hhdm());
        // SAFETY: the root came from `Pages` or CR3 and is reached through the HHDM; `self` is borrowed uniquely.
        let root = unsafe { &mut *((hhdm() + self.root) as *mut PageTable) };
        // SAFETY: all of memory that tables live in is mapped at the offset.
        let mut mapper = unsafe { OffsetPageTable::new(root, offset) };
        let page = Page::<S>::containing_address(VirtAddr::new(from));
        let frame = PhysFrame::<S>::containing_address(PhysAddr::new(to));
        let parents = Flags::PRESENT | Flags::WRITABLE;
        // SAFETY: as `map`'s caller promised.
        match unsafe { mapper.map_to_with_table_flags(page, frame, flags, parents, &mut Source(pages)) } {
            // A new translation where none was: no processor can have cached one.
            Ok(flush) => flush.ignore(),
            Err(MapToError::FrameAllocationFailed) => return Err(OutOfPages),
            Err(MapToError::ParentEntryHugePage | MapToError::PageAlreadyMapped(_)) => {
                crate::fatal(crate::upcalls::stop::MEMORY_MANAGEMENT, [1, from, to, flags.bits()])
            }
        }
        Ok(())
    }
}

/// IA32_PAT as every processor has it: 0 to 3 as after a reset (WB, WT, UC-, UC), then WP and WC, which nothing uses before, so no
/// mapping changes its kind. The same as Limine's.
pub const MEMORY_TYPES: u64 = 0x0000_0105_0007_0406;
const IA32_PAT: u32 = 0x277;

/// Gives the attribute table the kernel's entries on this processor.
///
/// # Safety
/// On each processor, before anything is mapped by the upper half.
pub unsafe fn set_memory_types() {
    // SAFETY: PAT is part of every processor in long mode; all eight types are valid ones.
    unsafe { super::cpu::wrmsr(IA32_PAT, MEMORY_TYPES) };
}

/// This processor's attribute table, for the self-tests.
pub fn memory_types() -> u64 {
    // SAFETY: as above; reading it changes nothing.
    unsafe { super::cpu::rdmsr(IA32_PAT) }
}

/// Makes this processor forget its translation of `address`: the global one, and that of the PCID in use. INVLPG.
#[inline]
pub fn flush(address: u64) {
    ::x86_64::instructions::tlb::flush(VirtAddr::new_truncate(address));
}

/// Makes this processor forget what is not global, of the PCID in use: all of the user half.
pub fn flush_user() {
    // With PCIDs the read value has one in its low bits; bit 63, which would keep the translations, reads as zero.
    let (root, low) = Cr3::read_raw();
    // SAFETY: the tables in force, loaded again.
    unsafe { Cr3::write_raw(root, low) };
}

/// Makes this processor forget all translations, the global ones and those of all PCIDs too.
pub fn flush_everything(have: &Features) {
    if have.invpcid {
        // SAFETY: the instruction is there; forgetting is always allowed.
        unsafe { flush_pcid(InvPcidCommand::All) };
        return;
    }
    let value = Cr4::read();
    if !value.contains(Cr4Flags::PAGE_GLOBAL) {
        return flush_user();
    }
    // SAFETY: a change of PGE flushes everything, and nothing else depends on it; in between, translations are merely not kept.
    unsafe {
        Cr4::write(value - Cr4Flags::PAGE_GLOBAL);
        Cr4::write(value);
    }
}

/// Loads the tables at physical address `root`; what is cached that is not global is forgotten.
///
/// # Safety
/// They map the kernel half as the present ones do, and live for as long as they are loaded. CR4.PCIDE is clear.
#[inline]
pub unsafe fn load(root: u64) {
    // SAFETY: the caller's.
    unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(root)), Cr3Flags::empty()) };
}

/// As [`load`], under `pcid`: what is cached under it is kept or forgotten, what is under others stays.
///
/// # Safety
/// As [`load`], but CR4.PCIDE is set. `keep`: all that is cached under `pcid` is true of these tables.
pub unsafe fn load_context(root: u64, pcid: Pcid, keep: bool) {
    let root = PhysFrame::containing_address(PhysAddr::new(root));
    // SAFETY: the caller's.
    unsafe {
        if keep {
            Cr3::write_pcid_no_flush(root, pcid);
        } else {
            Cr3::write_pcid(root, pcid);
        }
    }
}

/// What an address of the kernel half is mapped to: physical address, and the leaf's flags narrowed by its parents' (write, user and
/// execute rights hold only if every level grants them). The user half's tables are given back while others look: they are their
/// address space's to read, under its lock. Here nothing is mapped there.
pub fn translate(address: u64) -> Option<(u64, Flags)> {
    const PHYSICAL: u64 = 0x000F_FFFF_FFFF_F000;
    if address >> 47 != 0x1_FFFF {
        return None;
    }
    let mut table = Cr3::read().0.start_address().as_u64();
    let mut rights = Flags::WRITABLE | Flags::USER_ACCESSIBLE;
    let mut no_execute = Flags::empty();
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let index = address >> shift & 511;
        // SAFETY: page tables are memory that the HHDM maps; those of the kernel half stay. A concurrent change is seen or not, as by
        //         the processor's walk.
        let entry = unsafe { ((hhdm() + table + index * 8) as *const u64).read_volatile() };
        let flags = Flags::from_bits_truncate(entry);
        if !flags.contains(Flags::PRESENT) {
            return None;
        }
        rights &= flags;
        no_execute |= flags & Flags::NO_EXECUTE;
        if level == 0 || (level < 3 && flags.contains(Flags::HUGE_PAGE)) {
            let inside = address & ((1 << shift) - 1);
            let base = entry & PHYSICAL & !((1 << shift) - 1);
            let rest = flags & !(Flags::WRITABLE | Flags::USER_ACCESSIBLE | Flags::NO_EXECUTE);
            return Some((base + inside, rest | rights | no_execute));
        }
        table = entry & PHYSICAL;
    }
    None
}

/// The leaf of the 4 KiB page at `address` of the kernel half, whose tables are never given back; present or not.
pub fn leaf(address: u64) -> Option<&'static AtomicU64> {
    const PHYSICAL: u64 = 0x000F_FFFF_FFFF_F000;
    if address >> 47 != 0x1_FFFF {
        return None;
    }
    let mut table = Cr3::read().0.start_address().as_u64();
    for level in (0..4).rev() {
        let index = address >> (12 + 9 * level) & 511;
        // SAFETY: page tables are memory that the HHDM maps; those of the kernel half stay.
        let entry = unsafe { &*((hhdm() + table + index * 8) as *const AtomicU64) };
        if level == 0 {
            return Some(entry);
        }
        let value = entry.load(Ordering::Acquire);
        let flags = Flags::from_bits_truncate(value);
        if !flags.contains(Flags::PRESENT) || (level < 3 && flags.contains(Flags::HUGE_PAGE)) {
            return None;
        }
        table = value & PHYSICAL;
    }
    None
}

/// Reads a word of kernel memory if it is mapped: for backtraces over stacks that may be broken.
pub fn read_if_mapped(address: u64) -> Option<u64> {
    if !address.is_multiple_of(8) {
        return None;
    }
    let (physical, flags) = translate(address)?;
    if flags.contains(Flags::NO_CACHE) {
        return None;
    }
    let _ = physical;
    // SAFETY: mapped, aligned, kernel half, not device memory; whatever it holds is only reported.
    Some(unsafe { (address as *const u64).read_volatile() })
}
