//! How translations end: by pieces, each with one flush, before what they led to is given back.
//!
//! A piece is what is done under one hold of the lock: up to [`PIECE`] pages that are present. So an operation on fewer is one
//! shootdown, and a larger one lets others in between. In between everything is in one of the states that it may have before or
//! after: a descriptor that is on its way out can't be reached by a fault or by another operation (`Vad::is_going`).

use sync::irql::{AddressSpaceLock, Below, Irql};
use sync::shootdown::{Run, Space};

use super::entry::Entry;
use super::machine::Machine;
use super::space::{AddressSpace, Inner, Kind, PageState, address};
use super::tables::Gone;
use crate::mm::pages::Page;
use crate::mm::pfn::PageNumber;
use crate::mm::vad::Span;

/// The most pages whose translations end under one hold of the lock.
pub const PIECE: u32 = 512;

/// Pages to be forgotten: runs as long as there is room, else the whole user half.
pub(super) struct Batch {
    runs: [Run; Self::MOST],
    used: usize,
    pages: u32,
    is_whole: bool,
}

impl Batch {
    /// As many pages as are flushed one by one (`shootdown::MOST_PAGES`).
    const MOST: usize = 31;

    pub(super) const fn new() -> Self {
        Self { runs: [Run { start: 0, pages: 0 }; Self::MOST], used: 0, pages: 0, is_whole: false }
    }

    /// Adds a page; they come ascending.
    pub(super) fn add(&mut self, page: u64) {
        self.pages += 1;
        if self.is_whole {
            return;
        }
        let start = address(page);
        if let Some(last) = self.used.checked_sub(1).and_then(|last| self.runs.get_mut(last)) {
            let end = last.start + address(last.pages.into());
            if end == start {
                last.pages += 1;
                return;
            }
        }
        match self.runs.get_mut(self.used) {
            Some(run) => {
                *run = Run { start, pages: 1 };
                self.used += 1;
            }
            None => self.is_whole = true,
        }
    }

    /// One shootdown for all of them; none for none.
    pub(super) fn flush<M: Machine>(&self, machine: M, space: &Space, at: &mut Irql<AddressSpaceLock>) {
        if self.is_whole || self.pages as usize > Self::MOST {
            machine.flush(space, None, at);
        } else if self.used > 0 {
            machine.flush(space, Some(&self.runs[..self.used]), at);
        }
    }
}

impl<M: Machine> Inner<M> {
    /// Ends the translations of `piece`: entries become what `last` says, pages and empty tables go.
    pub(super) fn end_piece(
        &mut self,
        loaded: &Space,
        piece: Span,
        last: impl Fn(u64) -> u64 + Copy,
        at: &mut Irql<AddressSpaceLock>,
    ) {
        let Self { machine, tables, private_pages, .. } = self;
        let machine = *machine;
        let mut batch = Batch::new();
        tables.hide(piece, last, |page| batch.add(page));
        batch.flush(machine, loaded, at);
        tables.finish(piece, last, |gone| match gone {
            Gone::Table(table) => machine.free_table(table, at),
            Gone::Entry(Entry::Page { number, shared, .. }) => {
                // SAFETY: an entry's page (`space`, I2).
                let page = unsafe { PageNumber::new(number) };
                if shared {
                    machine.unshare(page, at);
                } else {
                    *private_pages -= 1;
                    // SAFETY: the page was this space's alone, and nothing leads to it any more (I3).
                    machine.free(unsafe { Page::from_number(page) }, at);
                }
            }
            Gone::Entry(_) => {}
        });
    }

    /// Frees tables of `span` that are empty: what an operation left that could not get all it needed.
    pub(super) fn sweep(&mut self, loaded: &Space, span: Span, at: &mut Irql<AddressSpaceLock>) {
        self.end_piece(loaded, span, |bits| bits, at);
    }

    /// Committed pages of `span`, all of one descriptor.
    pub(super) fn committed(&self, span: Span) -> u64 {
        let Some(node) = self.vads.find(span.first) else { return 0 };
        let mut count = 0;
        self.states(span, |pages, entry| {
            if matches!(node.value.state(entry), PageState::Committed(_)) {
                count += pages;
            }
            true
        });
        count
    }

    /// Calls `f` with entries of `span` and how many pages have it in a row, until it wants no more.
    pub(super) fn states(&self, span: Span, mut f: impl FnMut(u64, Entry) -> bool) {
        use super::tables::Stretch;
        let mut page = span.first;
        while page < span.end {
            match self.tables.stretch(page, span.end) {
                Stretch::Absent(end) => {
                    if !f(end - page, Entry::Default) {
                        return;
                    }
                    page = end;
                }
                Stretch::Table(entries) => {
                    for entry in entries {
                        if !f(1, Entry::decode(entry.load(core::sync::atomic::Ordering::Relaxed))) {
                            return;
                        }
                    }
                    page += entries.len() as u64;
                }
            }
        }
    }
}

impl<M: Machine> AddressSpace<M> {
    /// Releases the descriptor that begins at page `first`, which the caller made its own (`is_going`, or nobody else is there).
    pub(super) fn release_whole<L: Below<AddressSpaceLock>>(&self, first: u64, at: &mut Irql<L>) {
        let mut page = first;
        let node = loop {
            let mut guard = self.inner.lock(at);
            let (inner, at) = guard.parts();
            let Some(node) = inner.vads.find_mut(first) else { return };
            node.value.is_going = true;
            let span = Span { first: page, end: node.span().end };
            let is_view = matches!(node.value.kind, Kind::View { .. });
            let end = inner.give_back(&self.loaded, span, is_view, at);
            page = end;
            if end == span.end {
                break inner.vads.remove(first);
            }
        };
        let Some(node) = node else { return };
        // SAFETY: just removed.
        let span = unsafe { node.as_ref() }.span();
        // SAFETY: as above; every node of the tree came from `new_node`.
        let vad = unsafe { self.free_node(node, at) };
        if vad.charges_copies() {
            self.machine.commit().uncharge(span.pages());
        }
        if let Kind::View { section, .. } = vad.kind {
            section.release(at);
        }
    }
}

impl<M: Machine> Inner<M> {
    /// One piece of the end of `span`: all of its entries become zero, and what was charged for each is given back. Up to which page
    /// it came.
    fn give_back(
        &mut self,
        loaded: &Space,
        span: Span,
        is_view: bool,
        at: &mut Irql<AddressSpaceLock>,
    ) -> u64 {
        let piece = Span { first: span.first, end: self.piece_end(span) };
        let charged = if is_view { 0 } else { self.committed(piece) };
        self.end_piece(loaded, piece, |_| 0, at);
        self.machine.commit().uncharge(charged);
        piece.end
    }

    /// The end of a piece of `span`: behind at most [`PIECE`] pages that are there.
    pub(super) fn piece_end(&self, span: Span) -> u64 {
        let (mut page, mut there) = (span.first, 0);
        self.states(span, |pages, entry| {
            if matches!(entry, Entry::Page { .. }) {
                there += 1;
            }
            if there > PIECE {
                return false;
            }
            page += pages;
            true
        });
        page
    }
}
