//! What lies around a block, and the checks made on it.
//!
//! ```text
//!  release   [tag 4 | class 2 | tag's index 2 | state 8] payload …
//!  checked   [link 8 | call site 8 | size 4, site 2, - 2 | - 8] [the same header] payload … red zone, at least 16 bytes
//! ```
//!
//! The state is one of two numbers, exclusive-or the payload's address. A free block's link lies in the payload in a release build
//! and in front of the header in a checked one, where the payload is filled with a pattern.

use core::panic::Location;
use core::ptr::NonNull;

use super::class::Class;
use super::tags::Tag;
use crate::ke::bugcheck::StopCode;

const ALLOCATED: u64 = 0x4B49_5251_414C_4C43;
const FREE: u64 = 0x4B49_5251_4652_4545;
/// From one to the other: what was neither before is neither behind it. Small enough to be part of the instruction.
const TURN: u64 = ALLOCATED ^ FREE;
const _: () = assert!(TURN <= i32::MAX as u64);

/// In fresh memory of the checked build: who reads what nobody wrote sees it.
pub const FRESH_BYTE: u8 = 0xCD;
/// In freed memory of the checked build.
pub const FREED_BYTE: u8 = 0xDD;
/// Between the payload's end and the block's.
pub const RED_BYTE: u8 = 0xFD;

/// First parameters of BAD_POOL_HEADER and BAD_POOL_CALLER, as NT numbers them where it has the case.
mod kind {
    /// (3, block, tag of its last owner, damaged address): written to after it was freed.
    pub(super) const WRITTEN_AFTER_FREE: u64 = 0x3;
    /// (0x20, block, state word found, expected): the header was overwritten, or this is no block.
    pub(super) const HEADER: u64 = 0x20;
    /// (0x21, block, tag, damaged address): written to behind its end.
    pub(super) const OVERRUN: u64 = 0x21;
    /// (7, tag, call site of the first free or 0, block): freed twice.
    pub(super) const FREED_TWICE: u64 = 0x7;
    /// (0xA, block, its tag, the tag given): another's block.
    pub(super) const WRONG_TAG: u64 = 0xA;
    /// (0x42, address, 0, 0): not the pool's.
    pub(super) const NO_BLOCK: u64 = 0x42;
}

#[repr(C)]
struct Header {
    tag: u32,
    class: u16,
    tag_index: u16,
    state: u64,
}

#[repr(C)]
struct Extra {
    link: usize,
    site: Option<&'static Location<'static>>,
    size: u32,
    number: u16,
    _pad: [u16; 5],
}

const _: () = assert!(size_of::<Header>() == 16, "payloads are aligned to 16 bytes");
const _: () = assert!(size_of::<Extra>() == 32);

/// Bytes before the payload.
pub const fn prefix(checked: bool) -> usize {
    size_of::<Header>() + if checked { size_of::<Extra>() } else { 0 }
}

/// Bytes around the payload, the least red zone included.
pub const fn overhead(checked: bool) -> usize {
    prefix(checked) + if checked { 16 } else { 0 }
}

/// Who frees, for reports.
pub struct Caller {
    /// The tag that was given.
    pub tag: Tag,
    /// The call.
    pub site: Option<&'static Location<'static>>,
}

/// A block of a slab, by its payload's address. Whoever has the value has the block, or is about to find out that nobody has.
pub struct Block<const SITES: usize>(*mut u8);

impl<const SITES: usize> Block<SITES> {
    const CHECKED: bool = SITES > 0;

    /// The block of this payload, which lies in a slab.
    #[inline]
    pub(super) fn at(payload: *mut u8) -> Self {
        Self(payload)
    }

    #[inline]
    pub(super) fn address(&self) -> usize {
        self.0.addr()
    }

    #[inline]
    pub(super) fn payload(&self) -> NonNull<u8> {
        // SAFETY: in a slab, so not null.
        unsafe { NonNull::new_unchecked(self.0) }
    }

    #[inline]
    #[expect(
        clippy::mut_from_ref,
        reason = "the block's own memory, reached by its address; one borrow at a time in this file"
    )]
    fn header(&self) -> &mut Header {
        // SAFETY: the 16 bytes before a payload of a slab are its header; the pool's alone to touch (I1 of the module).
        unsafe { &mut *self.0.wrapping_sub(size_of::<Header>()).cast::<Header>() }
    }

    #[expect(clippy::mut_from_ref, reason = "as above")]
    fn extra(&self) -> &mut Extra {
        // SAFETY: as above: in a checked pool, these lie before the header.
        unsafe { &mut *self.0.wrapping_sub(prefix(true)).cast::<Extra>() }
    }

    #[inline]
    fn state(&self, kind: u64) -> u64 {
        kind ^ self.0.addr() as u64
    }

    /// The next one of the list that it is on.
    #[inline]
    pub(super) fn next(&self) -> usize {
        if Self::CHECKED {
            return self.extra().link;
        }
        // SAFETY: a free block's payload is the pool's.
        unsafe { self.0.cast::<usize>().read() }
    }

    #[inline]
    pub(super) fn set_next(&self, next: usize) {
        if Self::CHECKED {
            self.extra().link = next;
        } else {
            // SAFETY: as above.
            unsafe { self.0.cast::<usize>().write(next) };
        }
    }

    /// The class that the header names.
    pub(super) fn class(&self) -> Class {
        Class::new(self.header().class).unwrap_or_else(|| self.damaged(FREE))
    }

    /// A slab's new block: free.
    pub(super) fn format(&self, class: Class) {
        let state = self.state(FREE);
        *self.header() = Header { tag: 0, class: class.index() as u16, tag_index: 0, state };
        if Self::CHECKED {
            *self.extra() = Extra { link: 0, site: None, size: 0, number: 0, _pad: [0; 5] };
            // SAFETY: a free block's payload is the pool's.
            unsafe { core::ptr::write_bytes(self.0, FREED_BYTE, class.bytes(true)) };
        }
    }

    /// It goes to an owner. One that was damaged while it was free stays so, and is found out when it is freed.
    #[inline]
    pub(super) fn allocated(&self, tag: Tag, class: Class, tag_index: u16) {
        let header = self.header();
        (header.tag, header.class, header.tag_index) = (tag.value(), class.index() as u16, tag_index);
        header.state ^= TURN;
    }

    /// It comes back; checked before.
    #[inline]
    pub(super) fn freed(&self) {
        self.header().state ^= TURN;
    }

    /// In use, and by this tag: its class and its tag's index.
    #[inline]
    pub(super) fn check_allocated(&self, caller: &Caller) -> (Class, u16) {
        let header = self.header();
        if header.state != self.state(ALLOCATED) {
            self.not_allocated(caller);
        }
        if header.tag != caller.tag.value() {
            wrong_tag(self.address(), header.tag, caller.tag);
        }
        match Class::new(header.class) {
            Some(class) => (class, header.tag_index),
            None => self.damaged(ALLOCATED),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_allocated(&self, caller: &Caller) -> ! {
        if self.header().state != self.state(FREE) {
            self.damaged(ALLOCATED);
        }
        let first = if Self::CHECKED { self.extra().site } else { None };
        tell("freed before at", first);
        tell("freed again at", caller.site);
        let first = first.map_or(0, |site| core::ptr::from_ref(site).addr() as u64);
        let parameters = [kind::FREED_TWICE, self.header().tag.into(), first, self.address() as u64];
        arch::fatal(StopCode::BadPoolCaller as u32, parameters)
    }

    #[cold]
    #[inline(never)]
    fn damaged(&self, expected: u64) -> ! {
        let parameters = [kind::HEADER, self.address() as u64, self.header().state, self.state(expected)];
        arch::fatal(StopCode::BadPoolHeader as u32, parameters)
    }

    /// Checked build: who owns it.
    pub(super) fn note(&self, site: &'static Location<'static>, size: usize, number: u16) {
        let extra = self.extra();
        (extra.site, extra.size, extra.number) = (Some(site), size as u32, number);
    }

    /// Checked build: fresh bytes, and the red zone behind them.
    pub(super) fn fill(&self, size: usize, class: Class) {
        // SAFETY: the block was just taken; both parts lie within it.
        unsafe {
            core::ptr::write_bytes(self.0, FRESH_BYTE, size);
            core::ptr::write_bytes(self.0.wrapping_add(size), RED_BYTE, class.bytes(true) - size);
        }
    }

    /// Checked build: nobody wrote behind the end. Returns the site's number and the size.
    pub(super) fn check_red_zone(&self, class: Class) -> (u16, usize) {
        let (number, size) = (self.extra().number, self.extra().size as usize);
        let end = class.bytes(true);
        if size > end {
            self.damaged(ALLOCATED);
        }
        // SAFETY: within the block.
        if let Some(address) = unsafe { first_other(self.0, size..end, RED_BYTE) } {
            overrun(self.address(), self.header().tag, address, self.extra().site);
        }
        (number, size)
    }

    /// Checked build: freed by `site`.
    pub(super) fn poison(&self, site: &'static Location<'static>, class: Class) {
        self.extra().site = Some(site);
        // SAFETY: a free block's payload is the pool's.
        unsafe { core::ptr::write_bytes(self.0, FREED_BYTE, class.bytes(true)) };
    }

    /// Checked build: free, and nobody wrote to it since.
    pub(super) fn check_untouched(&self, class: Class) {
        if self.header().state != self.state(FREE) {
            self.damaged(FREE);
        }
        // SAFETY: within the block, which the caller took.
        if let Some(address) = unsafe { first_other(self.0, 0..class.bytes(true), FREED_BYTE) } {
            tell("written to after it was freed at", self.extra().site);
            let tag = self.header().tag.into();
            let parameters = [kind::WRITTEN_AFTER_FREE, self.address() as u64, tag, address as u64];
            arch::fatal(StopCode::BadPoolHeader as u32, parameters);
        }
    }
}

/// The address of the first byte of `range`, from `start`, that is not `byte`.
///
/// # Safety
/// The range is memory that nobody writes to meanwhile.
unsafe fn first_other(start: *const u8, range: core::ops::Range<usize>, byte: u8) -> Option<usize> {
    // SAFETY: the caller's.
    let bytes = unsafe { core::slice::from_raw_parts(start.wrapping_add(range.start), range.len()) };
    // By pieces first: a comparison of two arrays is an instruction or a call, not one for each byte.
    const PIECE: usize = 64;
    let same = bytes.chunks_exact(PIECE).take_while(|piece| **piece == [byte; PIECE]).count() * PIECE;
    let other = bytes[same..].iter().position(|&found| found != byte)?;
    Some(start.addr() + range.start + same + other)
}

#[cold]
#[inline(never)]
fn overrun(block: usize, tag: u32, address: usize, site: Option<&'static Location<'static>>) -> ! {
    tell("written behind the end of a block allocated at", site);
    let parameters = [kind::OVERRUN, block as u64, tag.into(), address as u64];
    arch::fatal(StopCode::BadPoolHeader as u32, parameters)
}

/// The block has another tag than the one that it is freed with.
#[cold]
#[inline(never)]
pub(in crate::mm) fn wrong_tag(block: usize, is: u32, given: Tag) -> ! {
    let parameters = [kind::WRONG_TAG, block as u64, is.into(), given.value().into()];
    arch::fatal(StopCode::BadPoolCaller as u32, parameters)
}

/// A page-aligned address that is freed, and is no large block.
#[cold]
#[inline(never)]
pub(in crate::mm) fn not_large(address: usize, is_free: bool, tag: u32) -> ! {
    let parameters = match is_free {
        true => [kind::FREED_TWICE, tag.into(), 0, address as u64],
        false => [kind::NO_BLOCK, address as u64, 0, 0],
    };
    arch::fatal(StopCode::BadPoolCaller as u32, parameters)
}

/// Checked build: fresh bytes in a large block, and a red zone up to its last page's end.
///
/// # Safety
/// `start..start + end` is the block.
pub(super) unsafe fn fill_large(start: *mut u8, size: usize, end: usize) {
    // SAFETY: the caller's.
    unsafe {
        core::ptr::write_bytes(start, FRESH_BYTE, size);
        core::ptr::write_bytes(start.wrapping_add(size), RED_BYTE, end - size);
    }
}

/// Checked build: nobody wrote behind a large block's end.
///
/// # Safety
/// As [`fill_large`].
pub(super) unsafe fn check_large(start: *mut u8, size: usize, end: usize, tag: Tag) {
    // SAFETY: the caller's.
    if let Some(address) = unsafe { first_other(start, size..end, RED_BYTE) } {
        overrun(start.addr(), tag.value(), address, None);
    }
}

/// Special pool: nobody wrote beside the block of `size` bytes at `offset` of the page at `start`, which its owner knows by `payload`.
///
/// # Safety
/// The page is the block's.
#[cfg(target_os = "none")]
pub(super) unsafe fn check_special(
    start: *mut u8,
    offset: usize,
    size: usize,
    byte: u8,
    payload: usize,
    tag: Tag,
) {
    if offset + size > super::PAGE_SIZE {
        not_large(payload, false, tag.value());
    }
    for part in [0..offset, offset + size..super::PAGE_SIZE] {
        // SAFETY: the caller's; within the page.
        if let Some(damaged) = unsafe { first_other(start, part, byte) } {
            // As the owner sees it, not as the HHDM does.
            overrun(payload, tag.value(), payload - offset + (damaged - start.addr()), None);
        }
    }
}

/// A line of the log before the bugcheck: addresses of call sites are names here.
fn tell(what: &str, site: Option<&'static Location<'static>>) {
    #[cfg(target_os = "none")]
    if let Some(site) = site {
        crate::error!("pool: {what} {}:{}", site.file(), site.line());
    }
    #[cfg(not(target_os = "none"))]
    let _ = (what, site);
}
