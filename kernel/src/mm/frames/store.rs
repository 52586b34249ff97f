//! Pages of pageable memory on their way to slots of a backing store, and back: what the PFN lock protects of it.
//!
//! ```text
//!            trim              begin_write             end_write              evict
//!  Active ────────► Modified ──────────────► Transition ─────────► Standby ────────► Free; its leaf has the slot
//!     │  clean, with a slot ─────────────────────────────────────────▲
//!     ◄──────────────────── take_back: a touch, at any time ─────────┘
//! ```
//!
//! Owns:       [`Store`]: which slots are taken, and the reserve. Not: what the slots hold (mm/pager.rs), leaves (mm/paging.rs), but for
//!             the one that an evicted page leaves behind.
//! Invariants: I1 a slot is taken from the trim of a page that has none until the address ends: while the page is in memory its entry
//!                has the slot, while it is out its leaf has it. So whatever was read in can go out again, also when no slot is free.
//!             I2 the reserve is promised to nobody else: reading in makes progress when no other memory is left, since what was read
//!                in can go out again (I1).
//! Tests:      tests/props/tests/mm_paging.rs.

use core::sync::atomic::Ordering::Relaxed;

use super::{Frames, PageNumber, State};
use crate::mm::pfn::CACHED;
use crate::mm::tables;

/// Slots for pages. See the module.
pub(super) struct Store {
    taken: &'static mut [u64],
    /// Slots that are taken.
    used: u32,
    count: u32,
    /// The word at which the search begins: no slot before it is free.
    lowest: usize,
    /// Pages that are promised to whoever reads in (I2).
    reserve: u32,
    /// Nothing goes out any more.
    is_closing: bool,
}

impl Store {
    fn take(&mut self) -> Option<u32> {
        let found = self.taken[self.lowest..].iter().position(|&word| word != u64::MAX);
        self.lowest = found.map_or(self.taken.len(), |words| self.lowest + words);
        let bit = self.taken.get(self.lowest)?.trailing_ones();
        let slot = self.lowest as u32 * 64 + bit;
        if slot >= self.count {
            return None;
        }
        self.taken[self.lowest] |= 1 << bit;
        self.used += 1;
        Some(slot)
    }

    fn give(&mut self, slot: u32) -> bool {
        let word = slot as usize / 64;
        let bit = 1 << (slot % 64);
        let was = self.taken.get(word).is_some_and(|taken| taken & bit != 0);
        if was {
            self.taken[word] &= !bit;
            self.used -= 1;
            self.lowest = self.lowest.min(word);
        }
        was
    }
}

/// How much of the backing store is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Those taken.
    pub used: u32,
    /// All.
    pub count: u32,
}

/// A page that its address has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// It is being written: then the writer gives it back.
    pub being_written: bool,
}

impl Frames {
    /// Pages of the reserve: an instruction of the kernel may touch four at once, and several threads read in at once.
    pub const RESERVE: u32 = 16;

    /// `u64`s of bitmap for `count` slots.
    pub const fn store_words(count: u32) -> usize {
        count.div_ceil(64) as usize
    }

    /// There is a store of `count` slots from now on, `taken` being zero and long enough. Gives that back if there is one already, or
    /// no memory for the reserve.
    pub fn open_store(&mut self, taken: &'static mut [u64], count: u32) -> Result<(), &'static mut [u64]> {
        if self.store.is_some() || taken.len() < Self::store_words(count) || !self.promise(Self::RESERVE) {
            return Err(taken);
        }
        self.store =
            Some(Store { taken, used: 0, count, lowest: 0, reserve: Self::RESERVE, is_closing: false });
        Ok(())
    }

    /// Nothing goes out any more, or again. Says whether there is a store.
    pub fn set_store_closing(&mut self, is: bool) -> bool {
        self.store.as_mut().map(|store| store.is_closing = is).is_some()
    }

    /// There is no store from now on: if nothing is out, and no page has a slot.
    pub fn close_store(&mut self) -> Option<&'static mut [u64]> {
        let store = self.store.take_if(|store| store.used == 0)?;
        self.unpromise(store.reserve);
        Some(store.taken)
    }

    /// May pages go out?
    pub fn is_store_open(&self) -> bool {
        self.store.as_ref().is_some_and(|store| !store.is_closing)
    }

    /// How many slots there are.
    pub fn slots(&self) -> Slots {
        self.store.as_ref().map_or(Slots::default(), |store| Slots { used: store.used, count: store.count })
    }

    /// The only mapping ends of a page of pageable memory, `leaf` being the physical address of its leaf, through which no processor
    /// reaches it any more; `dirty`: it was written since it was mapped. False, and nothing is done, if it is used otherwise, or there
    /// is no place for it.
    #[must_use]
    pub fn trim(&mut self, page: PageNumber, dirty: bool, leaf: u64) -> bool {
        let entry = self.memory.entry(page);
        let Some(store) = self.store.as_mut().filter(|store| !store.is_closing) else { return false };
        let writers = u32::from(entry.is_being_written());
        if entry.state() != Some(State::Active) || entry.counts() != (1 + writers, 1) {
            return false;
        }
        let saved = entry.slot();
        let Some(slot) = saved.or_else(|| store.take()) else { return false };
        entry.set_slot(Some(slot));
        entry.set_leaf(Some(leaf));
        self.unshare(page, dirty || saved.is_none());
        true
    }

    /// A touch of a page in transition: it is in use again. Says whether it has content that is saved nowhere.
    pub fn take_back(&mut self, page: PageNumber) -> bool {
        let _ = self.share(page);
        let entry = self.memory.entry(page);
        entry.set_leaf(None);
        entry.is_dirty()
    }

    /// The page that was modified first, and the slot to write it to, if it has one; [`end_write`](Self::end_write) follows.
    pub fn begin_write(&mut self) -> Option<(PageNumber, Option<u32>)> {
        let page = self.modified.pop_front(self.memory)?;
        let entry = self.memory.entry(page);
        entry.change_state(State::Transition);
        entry.set_clean();
        entry.set_being_written(true);
        entry.counts.change(|references, shares| Some((references + 1, shares)));
        Some((page, entry.slot()))
    }

    /// It was written to `slot`, or it could not be.
    pub fn end_write(&mut self, page: PageNumber, slot: Option<u32>, is_saved: bool) {
        let entry = self.memory.entry(page);
        entry.set_being_written(false);
        if !is_saved {
            entry.set_dirty();
        }
        // Its address ended meanwhile.
        if let Some(slot) = slot.filter(|&slot| entry.slot() != Some(slot)) {
            self.give_slot(slot);
        }
        self.dereference(page);
    }

    /// The oldest page whose content is saved becomes free. Says whether there was one.
    pub(super) fn evict(&mut self) -> bool {
        let Some(page) = self.standby.pop_front(self.memory) else { return false };
        let entry = self.memory.entry(page);
        if let (Some(leaf), Some(slot)) = (entry.leaf(), entry.slot()) {
            tables::send_out(self.memory, leaf, slot);
        }
        entry.set(State::Free, CACHED);
        self.give(page);
        true
    }

    /// A page to read into, content unknown: if need be, one of the reserve.
    pub fn take_to_read(&mut self) -> Option<PageNumber> {
        if !self.leaves(1) {
            let store = self.store.as_mut().filter(|store| store.reserve > 0)?;
            store.reserve -= 1;
            self.unpromise(1);
        }
        self.take_any().map(|(page, _)| page)
    }

    /// Has the reserve filled again, as far as there is memory.
    pub fn fill_reserve(&mut self) {
        let missing = self.store.as_ref().map_or(0, |store| Self::RESERVE - store.reserve);
        for _ in 0..missing {
            if !self.promise(1) {
                return;
            }
            if let Some(store) = self.store.as_mut() {
                store.reserve += 1;
            }
        }
    }

    /// Is all of the reserve there, or no store that needs one?
    pub fn is_reserve_full(&self) -> bool {
        self.store.as_ref().is_none_or(|store| store.reserve == Self::RESERVE)
    }

    /// The address ends of a page that is mapped, or was taken back for this: its slot is free, at once or when it is written.
    pub fn leave(&mut self, page: PageNumber) -> Left {
        let entry = self.memory.entry(page);
        let being_written = entry.is_being_written();
        let slot = entry.slot();
        entry.set_slot(None);
        if let Some(slot) = slot.filter(|_| !being_written) {
            self.give_slot(slot);
        }
        Left { being_written }
    }

    /// What was in a slot is needed no more.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x413, slot, slots used) for one that is not taken.
    pub fn give_slot(&mut self, slot: u32) {
        if !self.store.as_mut().is_some_and(|store| store.give(slot)) {
            let parameters = [0x413, slot.into(), self.slots().used.into(), 0];
            arch::fatal(crate::ke::bugcheck::StopCode::MemoryManagement as u32, parameters);
        }
    }

    /// Checks that as many slots are taken as are counted.
    pub(super) fn verify_store(&self) -> Result<(), (&'static str, u32)> {
        let Some(store) = &self.store else { return Ok(()) };
        let taken: u32 = store.taken.iter().map(|word| word.count_ones()).sum();
        if taken != store.used {
            return Err(("slots miscounted", taken));
        }
        if store.taken[..store.lowest].iter().any(|&word| word != u64::MAX) {
            return Err(("a free slot that is not found", store.lowest as u32));
        }
        if store.reserve > self.promised {
            return Err(("a reserve that is not promised", store.reserve));
        }
        let kept = self.modified.iter(self.memory).chain(self.standby.iter(self.memory));
        for page in kept {
            let entry = self.memory.entry(page);
            let has_slot = entry.slot().is_some_and(|slot| slot < store.count);
            if entry.leaf().is_some() && (!has_slot || entry.owner.load(Relaxed) == 0) {
                return Err(("a page on its way out without a slot", page.0));
            }
        }
        Ok(())
    }
}
