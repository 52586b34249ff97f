//! Memory descriptor lists: a buffer, and the pages that it lies in. The layout and its arithmetic; what is done to the pages is
//! `mdl_pages`'s.
//!
//! Owns:       [`KMdl`] (NT's bytes), [`Mdl`] (one with its array of page numbers behind it).
//! IRQL:       any: nothing here touches the buffer.
//! Invariants: I1 behind an `Mdl`'s header there is room for the page numbers of `size`, and `page_count()` of them fit.
//!             I2 `start_va` is page-aligned and `byte_offset` less than a page.
//! Not as NT:  at most [`Mdl::MOST_PAGES`], what `size` can tell; NT lets the field overflow.
//! Tests:      tests/props/tests/mm_mdl.rs; selftest `memory_mdl::*`.
//! Sources:    WDK `wdm.h`, MDL; "Using MDLs", `IoBuildPartialMdl`, `MmAdvanceMdl`.

use core::mem::offset_of;
use core::ptr::NonNull;

use super::pfn::PAGE_SIZE;

/// MDL as drivers see it, without the page numbers behind it.
#[doc(alias = "MDL")]
#[derive(Debug)]
#[repr(C)]
pub struct KMdl {
    /// The next one of a chain.
    pub next: *mut KMdl,
    /// Bytes, the page numbers included.
    pub size: i16,
    /// Of [`flags`].
    pub flags: i16,
    _pad: u32,
    /// Whose address space `start_va` is in; null: the kernel's.
    pub process: *mut (),
    /// Where the buffer is mapped for the kernel, if a flag says so.
    pub mapped_system_va: *mut u8,
    /// The buffer's first page.
    pub start_va: *mut u8,
    /// The buffer's bytes.
    pub byte_count: u32,
    /// The buffer's start in its first page.
    pub byte_offset: u32,
}

const _: () =
    assert!(size_of::<KMdl>() == 48 && offset_of!(KMdl, size) == 8 && offset_of!(KMdl, flags) == 10);
const _: () = assert!(offset_of!(KMdl, process) == 16 && offset_of!(KMdl, mapped_system_va) == 24);
const _: () = assert!(offset_of!(KMdl, start_va) == 32 && offset_of!(KMdl, byte_count) == 40);
const _: () = assert!(offset_of!(KMdl, byte_offset) == 44);

sync::nt_layout! {
    [] KMdl = "MDL" {
        next => "Next", size => "Size", flags => "MdlFlags", process => "Process", mapped_system_va => "MappedSystemVa",
        start_va => "StartVa", byte_count => "ByteCount", byte_offset => "ByteOffset",
    }
}

/// Values of `flags`, NT's.
pub mod flags {
    /// `mapped_system_va` is a mapping of this list's own.
    pub const MAPPED_TO_SYSTEM_VA: i16 = 0x0001;
    /// The pages stay.
    pub const PAGES_LOCKED: i16 = 0x0002;
    /// `mapped_system_va` is the buffer's own address in nonpaged memory.
    pub const SOURCE_IS_NONPAGED_POOL: i16 = 0x0004;
    /// Part of another list, whose lock it relies on.
    pub const PARTIAL: i16 = 0x0010;
    /// A partial one with a mapping of its own.
    pub const PARTIAL_HAS_BEEN_MAPPED: i16 = 0x0020;
    /// Locked for writing into it.
    pub const WRITE_OPERATION: i16 = 0x0080;
    /// `mapped_system_va` is in the mapping of the list that this is a part of.
    pub const PARENT_MAPPED_SYSTEM_VA: i16 = 0x0100;
    /// Pages of a device.
    pub const IO_SPACE: i16 = 0x0800;
}

/// Why a list was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MdlError {
    /// Bytes outside of the buffer: STATUS_INVALID_PARAMETER.
    Range,
    /// The target has no room for so many pages: NT's bugcheck TARGET_MDL_TOO_SMALL.
    TooSmall,
    /// It has a mapping, in which the pages to be left would stay reachable.
    Mapped,
    /// It holds its pages: they have to be let go one by one.
    Locked,
}

/// How many pages `bytes` bytes from `address` on touch.
#[doc(alias = "ADDRESS_AND_SIZE_TO_SPAN_PAGES")]
pub const fn spanned_pages(address: usize, bytes: u32) -> usize {
    (address % PAGE_SIZE + bytes as usize).div_ceil(PAGE_SIZE) * (bytes != 0) as usize
}

/// A list and its page numbers.
#[derive(Debug)]
pub struct Mdl(NonNull<KMdl>);

impl Mdl {
    /// The most pages of one.
    pub const MOST_PAGES: usize = (i16::MAX as usize - size_of::<KMdl>()) / 8;

    /// Bytes that a list for this buffer takes; `None`: it would have too many pages.
    #[doc(alias = "MmSizeOfMdl")]
    pub const fn size_for(address: usize, bytes: u32) -> Option<usize> {
        let pages = spanned_pages(address, bytes);
        if pages > Self::MOST_PAGES { None } else { Some(size_of::<KMdl>() + 8 * pages) }
    }

    /// Makes a list for `bytes` bytes from `address` on; its page numbers are to be filled in. `None`: too many pages.
    ///
    /// # Safety
    /// [`size_for`](Self::size_for) bytes at `place`, aligned to 8, are the list's for as long as it is used.
    #[doc(alias = "MmInitializeMdl")]
    pub unsafe fn initialize(place: NonNull<KMdl>, address: *mut u8, bytes: u32) -> Option<Self> {
        let size = Self::size_for(address.addr(), bytes)?;
        let byte_offset = address.addr() % PAGE_SIZE;
        let header = KMdl {
            next: core::ptr::null_mut(),
            size: size as i16,
            flags: 0,
            _pad: 0,
            process: core::ptr::null_mut(),
            mapped_system_va: core::ptr::null_mut(),
            start_va: address.wrapping_sub(byte_offset),
            byte_count: bytes,
            byte_offset: byte_offset as u32,
        };
        // SAFETY: the caller's: room for the header and the numbers, which thereby are initialised (I1).
        unsafe {
            place.write(header);
            place.add(1).cast::<u64>().write_bytes(0, (size - size_of::<KMdl>()) / 8);
        }
        Some(Self(place))
    }

    /// Takes a list over that somebody kept by its address.
    ///
    /// # Safety
    /// It was initialised, and nobody else uses it meanwhile.
    pub unsafe fn from_raw(raw: NonNull<KMdl>) -> Self {
        Self(raw)
    }

    /// Its address, as drivers pass it.
    pub fn as_raw(&self) -> NonNull<KMdl> {
        self.0
    }

    /// The header.
    pub fn header(&self) -> &KMdl {
        // SAFETY: `initialize`: it is there for as long as the list is used.
        unsafe { self.0.as_ref() }
    }

    /// The header, for mdl_pages.rs, which keeps I1 and I2.
    pub(super) fn header_mut(&mut self) -> &mut KMdl {
        // SAFETY: as above; borrowed uniquely.
        unsafe { self.0.as_mut() }
    }

    /// Are all of these flags set?
    pub fn has(&self, flags: i16) -> bool {
        self.header().flags & flags == flags
    }

    /// Where the buffer begins, in its own address space.
    #[doc(alias = "MmGetMdlVirtualAddress")]
    pub fn address(&self) -> *mut u8 {
        self.header().start_va.wrapping_add(self.header().byte_offset as usize)
    }

    /// How many bytes it has.
    #[doc(alias = "MmGetMdlByteCount")]
    pub fn bytes(&self) -> u32 {
        self.header().byte_count
    }

    /// How many pages it touches.
    pub fn page_count(&self) -> usize {
        spanned_pages(self.header().byte_offset as usize, self.header().byte_count)
    }

    /// Their numbers.
    #[doc(alias = "MmGetMdlPfnArray")]
    pub fn pages(&self) -> &[u64] {
        // SAFETY: I1.
        unsafe { core::slice::from_raw_parts(self.0.add(1).cast::<u64>().as_ptr(), self.page_count()) }
    }

    pub(super) fn pages_mut(&mut self) -> &mut [u64] {
        let count = self.page_count();
        // SAFETY: I1; borrowed uniquely.
        unsafe { core::slice::from_raw_parts_mut(self.0.add(1).cast::<u64>().as_ptr(), count) }
    }

    /// For those that make lists by hand, and for tests: the numbers, one after the other.
    ///
    /// # Safety
    /// The list holds no pages, and is not mapped; each page is one that whoever uses the list may reach until it is gone.
    pub unsafe fn set_pages(&mut self, mut number_of: impl FnMut(usize) -> u64) {
        for (at, page) in self.pages_mut().iter_mut().enumerate() {
            *page = number_of(at);
        }
    }

    /// Makes `target` the part of this list from `address` on, `bytes` long; zero: up to the end. It relies on this list's lock and
    /// mapping, and must not outlive them. What the target described is forgotten: a mapping of its own has been ended before
    /// (`mdl_pages::prepare_for_reuse`), and its pages were unlocked.
    ///
    /// # Errors
    /// Nothing is changed then. A target that is mapped, or holds pages, is refused: nobody could end that any more.
    #[doc(alias = "IoBuildPartialMdl")]
    pub fn build_partial(&self, target: &mut Mdl, address: *mut u8, bytes: u32) -> Result<(), MdlError> {
        if target.has(flags::MAPPED_TO_SYSTEM_VA) {
            return Err(MdlError::Mapped);
        }
        if target.has(flags::PAGES_LOCKED) {
            return Err(MdlError::Locked);
        }
        let source = self.header();
        let into = address.addr().checked_sub(self.address().addr()).ok_or(MdlError::Range)?;
        let left = (source.byte_count as usize).checked_sub(into).ok_or(MdlError::Range)?;
        let bytes = if bytes == 0 { left as u32 } else { bytes };
        if bytes as usize > left {
            return Err(MdlError::Range);
        }
        let pages = spanned_pages(address.addr(), bytes);
        let room = (target.header().size as usize - size_of::<KMdl>()) / 8;
        if pages > room {
            return Err(MdlError::TooSmall);
        }
        let first = (source.byte_offset as usize + into) / PAGE_SIZE;
        let inherited =
            source.flags & (flags::SOURCE_IS_NONPAGED_POOL | flags::IO_SPACE | flags::WRITE_OPERATION);
        let mapped =
            flags::MAPPED_TO_SYSTEM_VA | flags::PARENT_MAPPED_SYSTEM_VA | flags::SOURCE_IS_NONPAGED_POOL;
        let parent = if source.flags & (flags::MAPPED_TO_SYSTEM_VA | flags::PARENT_MAPPED_SYSTEM_VA) != 0 {
            flags::PARENT_MAPPED_SYSTEM_VA
        } else {
            0
        };
        let offset = address.addr() % PAGE_SIZE;
        let header = target.header_mut();
        header.flags = flags::PARTIAL | inherited | parent;
        header.process = source.process;
        header.mapped_system_va = if source.flags & mapped != 0 {
            source.mapped_system_va.wrapping_add(into)
        } else {
            core::ptr::null_mut()
        };
        header.start_va = address.wrapping_sub(offset);
        header.byte_offset = offset as u32;
        header.byte_count = bytes;
        target.pages_mut().copy_from_slice(&self.pages()[first..first + pages]);
        Ok(())
    }

    /// Leaves the first `bytes` bytes out. `left` is told the numbers of the pages that the list no longer has.
    ///
    /// # Errors
    /// Nothing is changed then.
    pub(super) fn advance_with(&mut self, bytes: u32, mut left: impl FnMut(u64)) -> Result<(), MdlError> {
        let own = flags::MAPPED_TO_SYSTEM_VA | flags::PARTIAL_HAS_BEEN_MAPPED;
        if self.header().flags & own != 0 {
            return Err(MdlError::Mapped);
        }
        let rest = self.bytes().checked_sub(bytes).ok_or(MdlError::Range)?;
        let count = self.page_count();
        let start = self.header().byte_offset as usize + bytes as usize;
        // With nothing left, the page that it would begin in is left, too.
        let gone = if rest == 0 { count } else { start / PAGE_SIZE };
        let pages = self.pages_mut();
        pages[..gone].iter().for_each(|&page| left(page));
        pages.copy_within(gone.., 0);
        let header = self.header_mut();
        header.start_va = header.start_va.wrapping_add(start / PAGE_SIZE * PAGE_SIZE);
        header.byte_offset = (start % PAGE_SIZE) as u32;
        header.byte_count = rest;
        if !header.mapped_system_va.is_null() {
            header.mapped_system_va = header.mapped_system_va.wrapping_add(bytes as usize);
        }
        Ok(())
    }

    /// As `MmAdvanceMdl` does it to a list that holds no pages: a partial one, or one for nonpaged memory.
    ///
    /// # Errors
    /// Nothing is changed then.
    #[doc(alias = "MmAdvanceMdl")]
    pub fn advance_unlocked(&mut self, bytes: u32) -> Result<(), MdlError> {
        if self.has(flags::PAGES_LOCKED) {
            return Err(MdlError::Locked);
        }
        self.advance_with(bytes, |_| ())
    }
}
