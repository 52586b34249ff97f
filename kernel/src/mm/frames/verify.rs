//! The invariants, checked one by one: for tests, at any time between two operations.

use core::sync::atomic::Ordering::Relaxed;

use super::blocks::{Blocks, CHUNK_ORDER};
use super::{Counts, Frames, PageNumber, State};
use crate::mm::lists::List;
use crate::mm::pfn::{Memory, NONE, NOT_HEAD};
use crate::mm::ranges::PageRange;

/// What is wrong, with a page.
type Wrong = (&'static str, u32);

impl Frames {
    /// Checks I1 of the module, those of the blocks, and I2 of the lists; of the store what can be seen here.
    pub fn verify(&self) -> Result<Counts, Wrong> {
        self.blocks.verify(self.memory)?;
        for (list, state) in [
            (&self.zeroed, State::Zeroed),
            (&self.standby, State::Standby),
            (&self.modified, State::Modified),
        ] {
            linked(self.memory, list)?;
            if let Some(page) =
                list.iter(self.memory).find(|&page| self.memory.entry(page).state() != Some(state))
            {
                return Err(("a page on another state's list", page.0));
            }
        }
        if self.blocks.free() + self.zeroed.count() < self.promised {
            return Err(("more promised than there is", self.promised));
        }
        self.verify_store()?;
        Ok(self.counts())
    }
}

impl Blocks {
    /// Checks I1, I2 and I4.
    fn verify(&self, memory: Memory) -> Result<(), Wrong> {
        let mut free = self.closed();
        for zone in &self.zones {
            for (order, list) in (0..).zip(&zone.free) {
                if (zone.mask >> order & 1 != 0) != (list.count() != 0) {
                    return Err(("mask and list disagree", order.into()));
                }
                for page in list.iter(memory) {
                    if !zone.within.covers(PageRange { start: page.0, end: page.0 + (1 << order) }) {
                        return Err(("a block on another zone's list", page.0));
                    }
                    block(memory, page, order)?;
                    free += 1 << order;
                }
                linked(memory, list)?;
            }
        }
        if free == self.free() { Ok(()) } else { Err(("free pages miscounted", free)) }
    }
}

fn block(memory: Memory, page: PageNumber, order: u8) -> Result<(), Wrong> {
    if !memory.entry(page).is_free_block(order) {
        return Err(("a block on another's list", page.0));
    }
    if !page.0.is_multiple_of(1 << order) {
        return Err(("a block that isn't aligned", page.0));
    }
    for number in page.0 + 1..page.0 + (1 << order) {
        // SAFETY: part of the block.
        let entry = memory.entry(unsafe { PageNumber::new(number) });
        if entry.state() != Some(State::Free) || entry.order() != NOT_HEAD {
            return Err(("a page inside a block with a state of its own", number));
        }
    }
    if order < CHUNK_ORDER {
        // SAFETY: in the same chunk.
        let buddy = unsafe { PageNumber::new(page.0 ^ (1 << order)) };
        if memory.entry(buddy).is_free_block(order) {
            return Err(("two halves that are not merged", page.0));
        }
    }
    Ok(())
}

fn linked(memory: Memory, list: &List) -> Result<(), Wrong> {
    let mut last = NONE;
    let mut count = 0;
    for page in list.iter(memory) {
        if memory.entry(page).previous.load(Relaxed) != last {
            return Err(("links that don't mirror each other", page.0));
        }
        last = page.0;
        count += 1;
    }
    if count == list.count() { Ok(()) } else { Err(("a list miscounted", last)) }
}
