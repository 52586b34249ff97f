//! One class's slabs: pages cut into blocks.
//!
//! Invariants: I1 a slab's entry has the class in the low byte of `tag`, the blocks not in the slab above it, and the first block
//!                that is in it as `owner`.
//!             I2 a slab is on `partial` exactly if it has a block to give; one that has them all is given back at once.

use core::sync::atomic::Ordering::Relaxed;

use super::block::{self, Block};
use super::class::Class;
use crate::mm::lists::List;
use crate::mm::pages::Page;
use crate::mm::pfn::{Memory, PAGE_SIZE, PageNumber, Use};

/// See the module.
pub struct Slabs {
    partial: List,
    pages: u32,
}

impl Slabs {
    pub(super) const fn new() -> Self {
        Self { partial: List::new(), pages: 0 }
    }

    /// Pages that the class has.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Cuts a page into blocks.
    pub(super) fn add<const SITES: usize>(&mut self, memory: Memory, page: Page, class: Class) {
        let page = page.into_number();
        let entry = memory.entry(page);
        entry.set_use(Use::PoolSlab);
        entry.tag.store(class.index() as u32, Relaxed);
        let first = memory.address(page).addr() + block::prefix(SITES > 0);
        let mut next = 0;
        for at in (0..class.in_a_page()).rev() {
            let payload = first + at * class.total();
            let block = Block::<SITES>::at(memory.pointer(payload));
            block.format(class);
            block.set_next(next);
            next = payload;
        }
        entry.owner.store(next as u64, Relaxed);
        self.partial.push_front(memory, page);
        self.pages += 1;
    }

    /// A free block's payload.
    pub(super) fn take<const SITES: usize>(&mut self, memory: Memory) -> Option<usize> {
        let page = self.partial.first()?;
        let entry = memory.entry(page);
        let payload = entry.owner.load(Relaxed) as usize;
        let next = Block::<SITES>::at(memory.pointer(payload)).next();
        entry.owner.store(next as u64, Relaxed);
        entry.tag.store(entry.tag.load(Relaxed) + TAKEN, Relaxed);
        if next == 0 {
            self.partial.remove(memory, page);
        }
        Some(payload)
    }

    /// A block comes back; its page, if that was the last one (I2).
    pub(super) fn give<const SITES: usize>(&mut self, memory: Memory, payload: usize) -> Option<Page> {
        // SAFETY: blocks lie in slabs, whose pages are in use.
        let page = unsafe { PageNumber::new(memory.number_of(payload / PAGE_SIZE * PAGE_SIZE)) };
        let entry = memory.entry(page);
        if !entry.is_used_as(Use::PoolSlab) {
            entry.corrupt(page);
        }
        let first = entry.owner.load(Relaxed);
        let tag = entry.tag.load(Relaxed) - TAKEN;
        Block::<SITES>::at(memory.pointer(payload)).set_next(first as usize);
        entry.owner.store(payload as u64, Relaxed);
        entry.tag.store(tag, Relaxed);
        if first == 0 {
            self.partial.push_front(memory, page);
        }
        if tag >= TAKEN {
            return None;
        }
        self.partial.remove(memory, page);
        self.pages -= 1;
        entry.set_use(Use::Page);
        // SAFETY: the page that `add` was given: all its blocks are back.
        Some(unsafe { Page::from_number(page) })
    }
}

/// In a slab's `tag`: one block that is not in the slab.
const TAKEN: u32 = 1 << 8;
