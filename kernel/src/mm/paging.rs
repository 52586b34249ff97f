//! Pageable memory of the kernel half: the steps by which a page leaves memory and comes back, each made under the lock of the tables
//! and the PFN lock. Pure; between the steps is what takes time: a flush, a write, a read.
//!
//! ```text
//!  trim   begin_trim          flush            end_trim            (writer)                 (memory is needed)
//!         present ─► hidden ───────────────────► in transition, Modified ─► … Standby ─────► out: the leaf has the slot
//!  touch     ▲◄────────┘ reveal  ▲◄──────────────────┘ take_back ◄──────────────┘                │ begin_read
//!            │                                                                                   ▼
//!            └────────────────────────────────────── end_read ◄───────── read ────────────── arriving
//! ```
//!
//! Called by:  mm/paged.rs (touches, ends), mm/pager.rs (trims).
//! Locks:      `SpaceLock` for all; the PFN lock, which is what a `&mut Frames` says, where a page is on a list.
//! Invariants: I1 a page is put into transition only after all processors have forgotten it: what is on a list is written by nobody.
//!                So one trim is under way at a time, or a mark that one left could be taken for another's.
//!             I2 an address that ends while its page arrives keeps nobody: who reads finds the leaf another's, and gives page and slot
//!                back.
//! Tests:      tests/props/tests/mm_paging.rs.

use super::frames::Frames;
use super::pfn::{PAGE_SIZE, PageNumber};
use super::tables::{Found, Leaf, Tables};

/// The page at physical address `physical`, which a leaf leads to.
fn page(physical: u64) -> PageNumber {
    // SAFETY: pageable memory is mapped to pages of the page manager alone, which have entries.
    unsafe { PageNumber::new((physical / PAGE_SIZE as u64) as u32) }
}

/// The last step of a trim: the page at `address`, if nobody has had it back, goes to where its content is kept. False: it stays this
/// leaf's, as it is used otherwise, or there is no place for it.
pub fn end_trim(tables: &mut Tables, frames: &mut Frames, address: u64) -> bool {
    let Some(trimmed) = tables.trimmed(address) else { return false };
    let leaves = frames.trim(page(trimmed.page), trimmed.dirty, trimmed.place);
    if leaves {
        tables.end_trim(address);
    } else {
        tables.give_up_trim(address);
    }
    leaves
}

/// A touch of `address`: a page in transition is there again. Says what was found.
pub fn take_back(tables: &mut Tables, frames: &mut Frames, address: u64) -> Found {
    let found = tables.state(address);
    if let Found::Transition(physical) = found {
        let dirty = frames.take_back(page(physical));
        tables.restore(address, dirty);
    }
    found
}

/// The content of `address` is to be read from `slot` into a page that was taken for it; false: it is out no more.
///
/// # Safety
/// The page may be reached by the address with these rights, once it has been read.
pub unsafe fn begin_read(tables: &mut Tables, address: u64, slot: u32, into: PageNumber, leaf: Leaf) -> bool {
    let is_out = tables.state(address) == Found::Out(slot);
    if is_out {
        // SAFETY: the caller's.
        unsafe { tables.begin_arrival(address, into.physical(), leaf) };
    }
    is_out
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The page is there.
    Arrived,
    /// It isn't; the page that was taken for it is the caller's again. Either it could not be read, or the address has ended.
    Nowhere,
}

/// The page was read, or it could not be.
pub fn end_read(
    tables: &mut Tables,
    frames: &mut Frames,
    address: u64,
    slot: u32,
    into: PageNumber,
    is_read: bool,
) -> Read {
    if tables.state(address) != Found::Arriving(into.physical()) {
        frames.give_slot(slot);
        return Read::Nowhere;
    }
    if !is_read {
        tables.give_up_arrival(address, slot);
        return Read::Nowhere;
    }
    frames.memory().entry(into).set_slot(Some(slot));
    tables.restore(address, false);
    Read::Arrived
}

/// What an address had that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing was ever made of it.
    Nothing,
    /// Whatever it had is given back.
    Done,
    /// This page, which processors may still reach; the caller gives it back when they don't.
    Page {
        /// Which.
        page: PageNumber,
        /// What the leaf held.
        was: Found,
        /// The writer has a reference, with which the page may be given back.
        being_written: bool,
    },
}

/// The address ends.
pub fn end(tables: &mut Tables, frames: &mut Frames, address: u64) -> Ended {
    let was = tables.clear(address);
    match was {
        Found::Nothing => Ended::Nothing,
        Found::Arriving(_) => Ended::Done,
        Found::Out(slot) => {
            frames.give_slot(slot);
            Ended::Done
        }
        Found::Present(physical) | Found::Hidden(physical) | Found::Transition(physical) => {
            let page = page(physical);
            if matches!(was, Found::Transition(_)) {
                frames.take_back(page);
            }
            let being_written = frames.leave(page).being_written;
            Ended::Page { page, was, being_written }
        }
    }
}

/// The store is to go: a page that is there needs its slot no more.
pub fn keep_in_memory(tables: &mut Tables, frames: &mut Frames, address: u64) {
    if let Found::Present(physical) | Found::Hidden(physical) = tables.state(address) {
        let _ = frames.leave(page(physical));
    }
}
