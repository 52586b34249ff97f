//! Free blocks of 2^n pages, found and merged in a bounded number of steps.
//!
//! Owns:       [`Blocks`]: the lists, and which chunks were looked at. Not: what is promised, or lies on another list (frames.rs).
//! Invariants: I1 a free block of order n starts at a multiple of 2^n pages and never crosses a chunk (512 pages); its first page's
//!                entry has the order and the link, the others are Free and head nothing.
//!             I2 two free blocks that are halves of one are merged: no such pair is on the lists.
//!             I3 a chunk's entries are initialised when it is opened, and not before: machines with much memory boot as fast as
//!                small ones. `opened` says which. A chunk that is not open is free as far as `boot` covers it.
//!             I4 `free` counts the pages on the lists and those of chunks that are not open.
//!             I5 pages that were taken are Free by their entries and head nothing, and so is a single page that is given.
//! Search:     blocks up to a chunk come off a list whose order is found by one bit scan; under an odd limit the lists are walked.
//!             More than a chunk: a run of whole chunks. Such a run cannot begin inside a chunk, so 4 MiB may be missed that 3
//!             chunks have at their edges; nothing asks for that much after bring-up yet.
//! Not as NT:  NT keeps single free pages and searches the database for contiguous ones. Blocks make pool allocations of several
//!             pages cheap without mappings, so without TLB shootdowns at their end.
//! Tests:      tests/props/tests/mm_pages.rs against a list of pages; `verify` checks I1, I2 and I4.

use crate::mm::lists::List;
use crate::mm::pfn::{Memory, NOT_HEAD, PageNumber, State};
use crate::mm::ranges::{PageRange, Ranges};

/// Pages of a chunk: 2 MiB.
pub const CHUNK: u32 = 1 << CHUNK_ORDER;
pub(super) const CHUNK_ORDER: u8 = 9;
/// Sizes of free blocks: 1 page to a chunk.
pub const ORDERS: usize = CHUNK_ORDER as usize + 1;

/// No limit on the address.
pub const ANYWHERE: u32 = u32::MAX;

/// All addresses below page `limit`.
pub(super) const fn below(limit: u32) -> PageRange {
    PageRange { start: 0, end: limit }
}

/// The first page at 4 GiB: devices with 32-bit addresses reach what is below.
const FOUR_GIB: u32 = 1 << 20;

/// Memory on one side of 4 GiB. Allocations without a limit take from the upper side first.
#[derive(Debug)]
pub(super) struct Zone {
    pub(super) within: PageRange,
    pub(super) free: [List; ORDERS],
    /// Bit n: `free[n]` is not empty.
    pub(super) mask: u32,
    /// No chunk of the zone below this one is left to open.
    cursor: u32,
}

impl Zone {
    const fn new(start: u32, end: u32) -> Self {
        Self {
            within: PageRange { start, end },
            free: [const { List::new() }; ORDERS],
            mask: 0,
            cursor: start / CHUNK,
        }
    }

    fn push(&mut self, memory: Memory, page: PageNumber, order: u8) {
        memory.entry(page).set(State::Free, order);
        self.free[order as usize].push_front(memory, page);
        self.mask |= 1 << order;
    }

    fn remove(&mut self, memory: Memory, page: PageNumber, order: u8) {
        let list = &mut self.free[order as usize];
        list.remove(memory, page);
        if list.count() == 0 {
            self.mask &= !(1 << order);
        }
        memory.entry(page).set(State::Free, NOT_HEAD);
    }

    /// A block of at least `order` whose first 2^order pages lie in `within`.
    fn find(&self, memory: Memory, order: u8, within: PageRange) -> Option<(PageNumber, u8)> {
        let mut mask = self.mask >> order << order;
        while mask != 0 {
            let found = mask.trailing_zeros() as u8;
            mask &= mask - 1;
            let list = &self.free[found as usize];
            let fits = |page: &PageNumber| {
                within.covers(PageRange { start: page.number(), end: page.number() + (1 << order) })
            };
            let block = if within.covers(self.within) { list.first() } else { list.iter(memory).find(fits) };
            if let Some(block) = block {
                return Some((block, found));
            }
        }
        None
    }
}

/// See the module.
pub(super) struct Blocks {
    memory: Memory,
    boot: Ranges,
    opened: &'static mut [u64],
    pub(super) zones: [Zone; 2],
    free: u32,
}

impl Blocks {
    pub(super) const fn new() -> Self {
        Self {
            memory: Memory::nowhere(),
            boot: Ranges::new(),
            opened: &mut [],
            zones: [Zone::new(0, FOUR_GIB), Zone::new(FOUR_GIB, ANYWHERE)],
            free: 0,
        }
    }

    /// As `Frames::start`.
    pub(super) fn start(&mut self, memory: Memory, boot: Ranges, opened: &'static mut [u64]) {
        self.memory = memory;
        self.free = boot.as_slice().iter().map(|range| range.len()).sum();
        self.boot = boot;
        self.opened = opened;
    }

    /// The number behind the last page that can ever be free.
    pub(super) fn end(&self) -> u32 {
        self.opened.len() as u32 * 64 * CHUNK
    }

    /// Pages that can be taken, one by one.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Pages of chunks that are not open.
    pub(super) fn closed(&self) -> u32 {
        let ranges = self.boot.as_slice().iter();
        let parts = ranges.flat_map(|range| {
            let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
            chunks.map(|chunk| (chunk, range.intersect(Self::pages_of(chunk)).len()))
        });
        parts.filter(|&(chunk, _)| !self.is_open(chunk)).map(|(_, pages)| pages).sum()
    }

    /// Listed blocks, by order.
    pub(super) fn by_order(&self) -> [u32; ORDERS] {
        core::array::from_fn(|order| self.zones.iter().map(|zone| zone.free[order].count()).sum())
    }

    /// More memory, as `Frames::add`.
    pub(super) fn add(&mut self, range: PageRange) {
        for chunk in range.start / CHUNK..range.end.div_ceil(CHUNK) {
            if !self.is_open(chunk) {
                self.open(chunk);
            }
            self.give_run(range.intersect(Self::pages_of(chunk)));
        }
    }

    /// A page comes back (I5).
    pub(super) fn give(&mut self, page: PageNumber) {
        self.free += 1;
        self.merge(page, 0);
    }

    /// Pages in a row come back, of chunks that are open.
    pub(super) fn give_run(&mut self, run: PageRange) {
        self.free += run.len();
        self.list(run);
    }

    fn zone_of(number: u32) -> usize {
        usize::from(number >= FOUR_GIB)
    }

    fn pages_of(chunk: u32) -> PageRange {
        PageRange { start: chunk * CHUNK, end: (chunk * CHUNK).saturating_add(CHUNK) }
    }

    pub(super) fn is_open(&self, chunk: u32) -> bool {
        self.opened.get(chunk as usize / 64).is_some_and(|word| word >> (chunk % 64) & 1 != 0)
    }

    /// `1 << order` pages of `within`, off the lists; chunks are opened as needed.
    pub(super) fn take(&mut self, order: u8, within: PageRange) -> Option<PageNumber> {
        self.take_between(order, order, within).map(|(page, _)| page)
    }

    /// The smallest block of at least order `least`, cut down to order `most`.
    pub(super) fn take_between(
        &mut self,
        least: u8,
        most: u8,
        within: PageRange,
    ) -> Option<(PageNumber, u8)> {
        for zone in (0..self.zones.len()).rev() {
            if self.zones[zone].within.intersect(within).is_empty() {
                continue;
            }
            loop {
                if let Some((page, found)) = self.zones[zone].find(self.memory, least, within) {
                    self.zones[zone].remove(self.memory, page, found);
                    for order in (most..found).rev() {
                        // SAFETY: the upper half of the block.
                        let upper = unsafe { PageNumber::new(page.0 + (1 << order)) };
                        self.zones[zone].push(self.memory, upper, order);
                    }
                    let order = found.min(most);
                    self.free -= 1 << order;
                    return Some((page, order));
                }
                if !self.open_next(zone, within) {
                    break;
                }
            }
        }
        None
    }

    /// Opens the zone's lowest closed chunk that has memory and may be wanted.
    fn open_next(&mut self, zone: usize, wanted: PageRange) -> bool {
        let within = self.zones[zone].within;
        let mut at = (self.zones[zone].cursor * CHUNK).max(within.start);
        let in_order = wanted.start <= at;
        at = at.max(wanted.start);
        loop {
            let from = PageRange { start: at, end: within.end };
            let next = self
                .boot
                .as_slice()
                .iter()
                .map(|range| range.intersect(from))
                .find(|range| !range.is_empty());
            let Some(next) = next.filter(|next| next.start < wanted.end) else { return false };
            let chunk = next.start / CHUNK;
            if in_order {
                self.zones[zone].cursor = chunk + 1;
            }
            if !self.is_open(chunk) {
                self.open(chunk);
                return true;
            }
            at = (chunk + 1) * CHUNK;
        }
    }

    /// Initialises the chunk's entries and lists what is free in it (I3).
    fn open(&mut self, chunk: u32) {
        self.opened[chunk as usize / 64] |= 1 << (chunk % 64);
        let all = Self::pages_of(chunk);
        for number in all.start..all.end {
            // SAFETY: chunks with memory have entries; the state given here is the initialisation that I1 of `pfn` asks for.
            self.memory.entry(unsafe { PageNumber::new(number) }).initialise(State::Bad);
        }
        for at in 0..self.boot.as_slice().len() {
            self.list(self.boot.as_slice()[at].intersect(all));
        }
    }

    /// Lists pages as free, in the largest blocks that fit; counted by the caller.
    fn list(&mut self, run: PageRange) {
        let mut start = run.start;
        while start < run.end {
            let order = (start.trailing_zeros() as u8).min((run.end - start).ilog2() as u8).min(CHUNK_ORDER);
            for number in start..start + (1 << order) {
                // SAFETY: in an open chunk.
                self.memory.entry(unsafe { PageNumber::new(number) }).set(State::Free, NOT_HEAD);
            }
            // SAFETY: as above.
            self.merge(unsafe { PageNumber::new(start) }, order);
            start += 1 << order;
        }
    }

    /// Merges upwards (I2) and lists.
    fn merge(&mut self, page: PageNumber, mut order: u8) {
        let zone = &mut self.zones[Self::zone_of(page.0)];
        let mut start = page.0;
        while order < CHUNK_ORDER {
            // SAFETY: the other half lies in the same chunk, so it has an initialised entry (I1).
            let buddy = unsafe { PageNumber::new(start ^ (1 << order)) };
            if !self.memory.entry(buddy).is_free_block(order) {
                break;
            }
            zone.remove(self.memory, buddy, order);
            start &= !(1 << order);
            order += 1;
        }
        // SAFETY: the first page of the merged block.
        zone.push(self.memory, unsafe { PageNumber::new(start) }, order);
    }

    /// So many whole free chunks in a row.
    pub(super) fn take_chunks(&mut self, count: u32, align: u8, within: PageRange) -> Option<PageNumber> {
        let step = 1_u32.checked_shl(u32::from(align.saturating_sub(CHUNK_ORDER)))?;
        let last = self.opened.len() as u32 * 64;
        let mut start = within.start.div_ceil(CHUNK).next_multiple_of(step);
        while start + count <= last && (start + count).checked_mul(CHUNK).is_some_and(|end| end <= within.end)
        {
            if let Some(obstacle) = (start..start + count).find(|&chunk| !self.is_whole(chunk)) {
                start = (obstacle + 1).next_multiple_of(step);
                continue;
            }
            for chunk in start..start + count {
                if !self.is_open(chunk) {
                    self.open(chunk);
                }
                // SAFETY: an open chunk's first page, which heads the block that is the whole chunk.
                let page = unsafe { PageNumber::new(chunk * CHUNK) };
                self.zones[Self::zone_of(page.0)].remove(self.memory, page, CHUNK_ORDER);
                self.free -= CHUNK;
            }
            // SAFETY: as above.
            return Some(unsafe { PageNumber::new(start * CHUNK) });
        }
        None
    }

    /// Is all of the chunk free?
    fn is_whole(&self, chunk: u32) -> bool {
        let all = Self::pages_of(chunk);
        if self.is_open(chunk) {
            // SAFETY: an open chunk's first page.
            self.memory.entry(unsafe { PageNumber::new(all.start) }).is_free_block(CHUNK_ORDER)
        } else {
            self.boot.as_slice().iter().any(|range| range.covers(all))
        }
    }
}
