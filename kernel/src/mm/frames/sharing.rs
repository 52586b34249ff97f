//! Shares and references of active pages, and where a page goes when it loses them: [`State`]'s moves for paged memory.
//!
//! A page has one reference for all its shares together, and one for each I/O (or other use by physical address) under way. An owner
//! frees its page without the PFN lock, so the counts change by exchanges (`sync::page_counts`) here as well.

use super::{CHUNK, Frames, PageNumber, State};
use crate::mm::pfn::CACHED;

impl Frames {
    /// One more mapping: of a page in use, or of one whose content is still good. Says whether it was the latter.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for a page in any other state.
    #[must_use = "a page that came back must not be read in again"]
    pub fn share(&mut self, page: PageNumber) -> bool {
        let entry = self.memory.entry(page);
        match entry.state() {
            Some(State::Active) => {
                let more = |references, shares| (references > 0).then_some((references, shares + 1));
                if entry.counts.change(more).is_none() {
                    entry.corrupt(page);
                }
                return false;
            }
            _ if entry.is_unwanted() => entry.corrupt(page),
            Some(State::Standby) => self.standby.remove(self.memory, page),
            Some(State::Modified) => self.modified.remove(self.memory, page),
            Some(State::Transition) => {}
            _ => entry.corrupt(page),
        }
        entry.change_state(State::Active);
        entry.counts.change(|references, _| Some((references + 1, 1)));
        true
    }

    /// One mapping less; the last one's end sends the page to where its content is kept.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for a page that isn't shared.
    pub fn unshare(&mut self, page: PageNumber, dirty: bool) {
        let entry = self.memory.entry(page);
        let is_active = entry.state() == Some(State::Active);
        let less = |references: u32, shares: u32| match shares {
            _ if !is_active || references == 0 => None,
            0 => None,
            1 => Some((references - 1, 0)),
            _ => Some((references, shares - 1)),
        };
        let Some((references, shares)) = entry.counts.change(less) else { entry.corrupt(page) };
        if dirty {
            entry.set_dirty();
        }
        if shares > 1 {
            return;
        }
        if references == 1 {
            self.keep(page);
            return;
        }
        entry.change_state(State::Transition);
    }

    /// The last mapping ends of a page whose content nobody wants: it is free at once, or with its last use by physical address.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for a page that isn't mapped once.
    pub fn discard(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        let is_active = entry.state() == Some(State::Active);
        let less = |references: u32, shares| {
            (is_active && shares == 1 && references > 0).then(|| (references - 1, 0))
        };
        let Some((references, _)) = entry.counts.change(less) else { entry.corrupt(page) };
        entry.change_state(State::Transition);
        entry.set_unwanted();
        if references == 1 {
            self.keep(page);
        }
    }

    /// The page of that number, if it has an owner or is used by physical address: what a reference can be taken of.
    pub fn in_use(&self, number: u64) -> Option<PageNumber> {
        let number = u32::try_from(number).ok().filter(|number| self.blocks.is_open(number / CHUNK))?;
        // SAFETY: a chunk that is open has initialised entries, backed by memory.
        let page = unsafe { PageNumber::new(number) };
        matches!(self.memory.entry(page).state(), Some(State::Active | State::Transition)).then_some(page)
    }

    /// One more use by physical address, of a page that has an owner or another such use.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for a page without any: a count that reached zero never rises again by a reference.
    pub fn reference(&mut self, page: PageNumber) {
        if !self.try_reference(page) {
            self.memory.entry(page).corrupt(page);
        }
    }

    /// The same, for a page that its owner may be giving up: then it gets none.
    #[must_use = "without a reference the page may be anybody's"]
    pub fn try_reference(&mut self, page: PageNumber) -> bool {
        let entry = self.memory.entry(page);
        matches!(entry.state(), Some(State::Active | State::Transition)) && entry.counts.try_reference()
    }

    /// One such use less.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT where the reference left would be that of the shares.
    pub fn dereference(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        let is_used = matches!(entry.state(), Some(State::Active | State::Transition));
        let less = |references: u32, shares: u32| {
            (is_used && references > u32::from(shares > 0)).then(|| (references - 1, shares))
        };
        let Some((references, _)) = entry.counts.change(less) else { entry.corrupt(page) };
        if references == 1 {
            self.keep(page);
        }
    }

    /// Nobody uses it: to the list that its content belongs on, behind those that left before; free if nobody wants that.
    fn keep(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        if entry.is_unwanted() {
            entry.set(State::Free, CACHED);
            self.give(page);
        } else if entry.is_dirty() {
            entry.change_state(State::Modified);
            self.modified.push_back(self.memory, page);
        } else {
            entry.change_state(State::Standby);
            self.standby.push_back(self.memory, page);
        }
    }
}
