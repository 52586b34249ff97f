//! Pages for bring-up: handed out upwards from the loader's usable memory, never taken back.
//!
//! Invariants: I1 every page is handed out once: `next` only grows within a range, ranges are disjoint.
//!             I2 nothing below 1 MiB is handed out: firmware and the start of other processors use it.
//! The ranges and how far each is used stay readable, so that the memory manager can take over what is left.

use arch::paging::{PAGE, Pages, hhdm};

use crate::boot::limine::{Entry, EntryType};

/// More usable ranges than this are left to the memory manager.
const MAX_RANGES: usize = 64;
const ONE_MIB: u64 = 1 << 20;
/// The lowest page that is ever handed out.
pub const FIRST_PAGE: u32 = (ONE_MIB / PAGE) as u32;

/// A range of usable physical memory: `next..end` is left.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    next: u64,
    end: u64,
}

/// The allocator: single-threaded, on the boot processor.
pub struct EarlyPages {
    ranges: [Range; MAX_RANGES],
    count: usize,
    used: u64,
}

impl EarlyPages {
    /// All usable memory above 1 MiB.
    pub fn new(map: &[&Entry]) -> Self {
        let mut pages = Self { ranges: [Range::default(); MAX_RANGES], count: 0, used: 0 };
        for entry in map.iter().filter(|entry| entry.entry_type == EntryType::USABLE) {
            let next = entry.base.max(ONE_MIB).next_multiple_of(PAGE);
            let end = (entry.base + entry.length) / PAGE * PAGE;
            if next < end && pages.count < MAX_RANGES {
                pages.ranges[pages.count] = Range { next, end };
                pages.count += 1;
            }
        }
        pages
    }

    /// Physically contiguous, zeroed bytes, rounded up to pages: the physical address.
    pub fn contiguous(&mut self, bytes: u64) -> Option<u64> {
        if super::is_refused() {
            return None;
        }
        let bytes = bytes.next_multiple_of(PAGE);
        let range = self.ranges[..self.count].iter_mut().find(|range| range.end - range.next >= bytes)?;
        let page = range.next;
        range.next += bytes;
        self.used += bytes;
        // SAFETY: usable memory that nobody else was given (I1), mapped by the HHDM.
        unsafe { core::ptr::write_bytes((hhdm() + page) as *mut u8, 0, bytes as usize) };
        Some(page)
    }

    /// The same from the end of memory, aligned to `align`, and not zeroed: memory that devices reach is kept for them.
    pub fn contiguous_high(&mut self, bytes: u64, align: u64) -> Option<u64> {
        if super::is_refused() {
            return None;
        }
        let bytes = bytes.next_multiple_of(PAGE);
        let start = |range: &Range| {
            let start = range.end.checked_sub(bytes)? / align * align;
            (start >= range.next).then_some(start)
        };
        let at = (0..self.count).rev().find(|&at| start(&self.ranges[at]).is_some())?;
        let page = start(&self.ranges[at])?;
        let behind = Range { next: page + bytes, end: self.ranges[at].end };
        if behind.next < behind.end {
            // What the alignment leaves behind goes on as a range of its own, if there is room for one.
            if self.count == MAX_RANGES {
                return None;
            }
            self.ranges.copy_within(at + 1..self.count, at + 2);
            self.ranges[at + 1] = behind;
            self.count += 1;
        }
        self.ranges[at].end = page;
        self.used += bytes;
        Some(page)
    }

    /// What was not handed out, as `start..end`, ascending: the allocator ends here.
    pub fn rest(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges[..self.count].iter().map(|range| (range.next, range.end))
    }

    /// Bytes handed out.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes left.
    pub fn left(&self) -> u64 {
        self.ranges[..self.count].iter().map(|range| range.end - range.next).sum()
    }
}

impl Pages for EarlyPages {
    fn page(&mut self) -> Option<u64> {
        self.contiguous(PAGE)
    }
}
