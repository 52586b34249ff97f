//! The PFN database's entry: what is known of one page of memory.
//!
//! Owns:       [`Pfn`], [`State`], [`PageNumber`], [`Memory`] (where the entries and the pages themselves are reached).
//! IRQL:       any; the fields are atomics, so that an entry can be looked at from anywhere. Who may write is said beside them.
//! Invariants: I1 a `PageNumber` exists only for a page whose entry is backed by memory and was initialised.
//!             I2 an entry's links are used by one list at a time, the one that its state names; the entries of pages that are
//!                handed out are their owner's.
//! Tests:      tests/props/tests/mm_pages.rs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use sync::page_counts::PageCounts;

use crate::ke::bugcheck::StopCode;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// What a page is used for. NT's states, with its moves:
///
/// ```text
/// Free ─► Zeroed          the zero-page thread
/// Free, Zeroed ─► Active  allocated
/// Active ─► Free          freed: one share, one reference
/// Active ─► Standby, Modified   the last mapping and the last reference are gone; Modified if it was written
/// Active ─► Transition    the last mapping is gone, a reference (I/O) is not
/// Transition ─► Free      the last reference, and nobody wants the content
/// Transition ─► Standby, Modified   the last reference
/// Standby, Modified, Transition ─► Active   mapped again before it was reused
/// Modified ─► Transition  being written out, by the writer's reference; from there to Standby
/// Standby ─► Free         reused
/// Active ─► Bad           retired for good
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not memory, memory that was never handed over, or retired. Zero is none of the states: an entry that nobody
    /// initialised is found out.
    Bad = 1,
    /// To be had; content unknown.
    Free,
    /// To be had; all zeroes.
    Zeroed,
    /// In use.
    Active,
    /// Mapped nowhere, content still good and saved elsewhere: may be reused at once.
    Standby,
    /// Mapped nowhere, content to be saved first.
    Modified,
    /// Mapped nowhere, still referenced.
    Transition,
}

impl State {
    fn decode(byte: u8) -> Option<Self> {
        use State::{Active, Bad, Free, Modified, Standby, Transition, Zeroed};
        [Bad, Free, Zeroed, Active, Standby, Modified, Transition]
            .into_iter()
            .find(|&state| state as u8 == byte)
    }
}

/// Who uses an `Active` page: what a pointer into it is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Use {
    /// Whoever allocated it, as a page.
    Page = 0,
    /// Small pool blocks.
    PoolSlab,
    /// The first page of a large pool block.
    PoolLarge,
    /// Another page of one, in paged pool.
    PoolBody,
    /// The first of some that a driver has in a row.
    Contiguous,
    /// The first page of a block of executable pool.
    PoolExecutable,
}

/// For `status`: a free page that heads no free block.
pub(super) const NOT_HEAD: u8 = 0xFF;
/// For `status`: a free page in a processor's cache.
pub(super) const CACHED: u8 = 0xFE;

/// No page: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// One page's entry.
#[repr(C)]
pub struct Pfn {
    /// Links of the list that the state names; PFN lock. Active: the owner's (the pool links its slabs).
    pub(super) next: AtomicU32,
    pub(super) previous: AtomicU32,
    /// Bits 0–7 [`State`], 8–15 the order of the free block that it heads, 16–23 [`Use`], 24 written since its content was saved,
    /// 25 its content is not wanted (Transition), 26 one of its references is the writer's, 27 a leaf in transition leads to it, 28 it has a slot.
    status: AtomicU32,
    /// The owner's: the pool keeps a tag or a size class here. Of a page of pageable memory, its slot in the backing store.
    pub(super) tag: AtomicU32,
    /// References and shares: a protocol of its own, as a page is freed without the PFN lock.
    pub(super) counts: PageCounts,
    /// The owner's: the pool keeps a size or a free list here, an address space where the page is mapped. Of a page that a leaf in
    /// transition leads to, that leaf's physical address.
    pub(super) owner: AtomicU64,
}

const _: () = assert!(size_of::<Pfn>() == 32, "32 bytes a page are 0.8 % of memory");

/// In `status`: written since its content was saved.
const DIRTY: u32 = 1 << 24;

/// In `status`: the last reference frees the page.
const UNWANTED: u32 = 1 << 25;

/// In `status`: a reference is the writer's.
const BEING_WRITTEN: u32 = 1 << 26;

/// In `status`: a leaf in transition leads to it.
const KEPT_FOR_LEAF: u32 = 1 << 27;

/// In `status`: `tag` is its slot in the backing store.
const HAS_SLOT: u32 = 1 << 28;

/// What outlives a change of the state.
const KEPT: u32 = DIRTY | UNWANTED | BEING_WRITTEN | KEPT_FOR_LEAF | HAS_SLOT;

impl Pfn {
    const fn encode(state: State, order: u8, usage: Use) -> u32 {
        state as u32 | (order as u32) << 8 | (usage as u32) << 16
    }

    /// First contact: whatever the memory held before.
    pub(super) fn initialise(&self, state: State) {
        self.next.store(NONE, Relaxed);
        self.previous.store(NONE, Relaxed);
        self.set(state, NOT_HEAD);
        self.tag.store(0, Relaxed);
        self.counts.initialise();
        self.owner.store(0, Relaxed);
    }

    /// What the page is used for; nothing for an entry that holds no state.
    #[inline]
    pub fn state(&self) -> Option<State> {
        State::decode(self.status.load(Relaxed) as u8)
    }

    /// The order of the free block that the page heads.
    #[inline]
    pub(super) fn order(&self) -> u8 {
        (self.status.load(Relaxed) >> 8) as u8
    }

    /// Both at once; clean.
    #[inline]
    pub(super) fn set(&self, state: State, order: u8) {
        self.status.store(Self::encode(state, order, Use::Page), Relaxed);
    }

    /// Heads a listed free block of this order?
    #[inline]
    pub(super) fn is_free_block(&self, order: u8) -> bool {
        self.status.load(Relaxed) == Self::encode(State::Free, order, Use::Page)
    }

    /// An active page's use.
    #[inline]
    pub(super) fn is_used_as(&self, usage: Use) -> bool {
        self.status.load(Relaxed) & !DIRTY == Self::encode(State::Active, NOT_HEAD, usage)
    }

    /// Was the page written since its content was saved?
    pub(super) fn is_dirty(&self) -> bool {
        self.status.load(Relaxed) & DIRTY != 0
    }

    /// It was, in whatever state it is. PFN lock.
    pub(super) fn set_dirty(&self) {
        self.status.store(self.status.load(Relaxed) | DIRTY, Relaxed);
    }

    /// Content is saved, or about to be. PFN lock.
    pub(super) fn set_clean(&self) {
        self.status.store(self.status.load(Relaxed) & !DIRTY, Relaxed);
    }

    /// Another state, with what is known of the content. PFN lock.
    pub(super) fn change_state(&self, state: State) {
        let kept = self.status.load(Relaxed) & KEPT;
        self.status.store(Self::encode(state, NOT_HEAD, Use::Page) | kept, Relaxed);
    }

    /// Is one of its references the writer's?
    pub(super) fn is_being_written(&self) -> bool {
        self.status.load(Relaxed) & BEING_WRITTEN != 0
    }

    /// PFN lock.
    pub(super) fn set_being_written(&self, is: bool) {
        let others = self.status.load(Relaxed) & !BEING_WRITTEN;
        self.status.store(others | if is { BEING_WRITTEN } else { 0 }, Relaxed);
    }

    /// The physical address of the leaf in transition that leads to it.
    pub(super) fn leaf(&self) -> Option<u64> {
        (self.status.load(Relaxed) & KEPT_FOR_LEAF != 0).then(|| self.owner.load(Relaxed))
    }

    /// PFN lock.
    pub(super) fn set_leaf(&self, leaf: Option<u64>) {
        let others = self.status.load(Relaxed) & !KEPT_FOR_LEAF;
        self.status.store(others | if leaf.is_some() { KEPT_FOR_LEAF } else { 0 }, Relaxed);
        self.owner.store(leaf.unwrap_or(0), Relaxed);
    }

    /// The slot of a page of pageable memory; nothing until one was given.
    pub(super) fn slot(&self) -> Option<u32> {
        (self.status.load(Relaxed) & HAS_SLOT != 0).then(|| self.tag.load(Relaxed))
    }

    /// PFN lock.
    pub(super) fn set_slot(&self, slot: Option<u32>) {
        let others = self.status.load(Relaxed) & !HAS_SLOT;
        self.status.store(others | if slot.is_some() { HAS_SLOT } else { 0 }, Relaxed);
        self.tag.store(slot.unwrap_or(0), Relaxed);
    }

    /// Does the last reference free the page?
    pub(super) fn is_unwanted(&self) -> bool {
        self.status.load(Relaxed) & UNWANTED != 0
    }

    /// It does. PFN lock.
    pub(super) fn set_unwanted(&self) {
        self.status.store(self.status.load(Relaxed) | UNWANTED, Relaxed);
    }

    /// Says what an active page is used for; its owner does.
    #[inline]
    pub(super) fn set_use(&self, usage: Use) {
        self.status.store(Self::encode(State::Active, NOT_HEAD, usage), Relaxed);
    }

    /// Free, taken from its list or cache: now in use, with one share and one reference.
    #[inline]
    pub(super) fn activate(&self) {
        self.set(State::Active, NOT_HEAD);
        self.counts.begin();
    }

    /// In use with one share and one reference: now free and on no list.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for a page that is not in use, or that somebody else still references: a page freed twice, or under I/O.
    #[inline]
    pub(super) fn release(&self, page: PageNumber) {
        if !self.try_release() {
            self.corrupt(page);
        }
    }

    /// The same, but false for a page that is used otherwise, too: then nothing was changed.
    #[inline]
    #[must_use = "a page that somebody still uses is not free"]
    pub(super) fn try_release(&self) -> bool {
        let ended = self.is_used_as(Use::Page) && self.counts.end();
        if ended {
            self.set(State::Free, CACHED);
        }
        ended
    }

    /// References and shares.
    pub fn counts(&self) -> (u32, u32) {
        self.counts.get()
    }

    /// The move that was asked for is none of [`State`]'s.
    #[cold]
    #[inline(never)]
    pub(super) fn corrupt(&self, page: PageNumber) -> ! {
        let status = self.status.load(Relaxed).into();
        let (references, shares) = self.counts.get();
        arch::fatal(
            StopCode::PfnListCorrupt as u32,
            [
                page.0.into(),
                status,
                u64::from(references) | u64::from(shares) << 32,
                self.owner.load(Relaxed),
            ],
        )
    }
}

/// The number of a page with an entry (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PageNumber(pub(super) u32);

impl PageNumber {
    /// # Safety
    /// The page has an entry, initialised, in the database that the number is used with (I1).
    #[inline]
    pub(super) const unsafe fn new(number: u32) -> Self {
        Self(number)
    }

    /// Physical address divided by the page size.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The page's physical address.
    #[inline]
    pub const fn physical(self) -> u64 {
        self.0 as u64 * PAGE_SIZE as u64
    }
}

/// Where pages and their entries are reached: the HHDM and the database on the machine, two arrays in a test.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    direct: *mut u8,
    entries: *const Pfn,
}

// SAFETY: two addresses that never change; entries are atomics, and a page's bytes are its owner's alone.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Until the real one is known; no `PageNumber` exists by then.
    pub(super) const fn nowhere() -> Self {
        Self { direct: core::ptr::null_mut(), entries: core::ptr::null() }
    }

    /// # Safety
    /// For each page that a `PageNumber` is made for, `direct` plus its physical address is where it is mapped, writable, and
    /// `entries[number]` is its entry; both for as long as the value is used.
    pub const unsafe fn new(direct: *mut u8, entries: *const Pfn) -> Self {
        Self { direct, entries }
    }

    /// The page's entry.
    #[inline]
    pub fn entry(&self, page: PageNumber) -> &Pfn {
        // SAFETY: I1, and what `new`'s caller promised. Wrapping, as the array may begin with pages that there are none of.
        unsafe { &*self.entries.wrapping_add(page.0 as usize) }
    }

    /// Where the page is mapped.
    #[inline]
    pub fn address(&self, page: PageNumber) -> *mut u8 {
        self.direct.wrapping_add(page.0 as usize * PAGE_SIZE)
    }

    /// Where the page of number zero is mapped, or would be.
    #[inline]
    pub(super) fn start(&self) -> *mut u8 {
        self.direct
    }

    /// The number of the page that `address`, which came from [`address`](Self::address), lies in.
    #[inline]
    pub(super) fn number_of(&self, address: usize) -> u32 {
        (address.wrapping_sub(self.direct.addr()) / PAGE_SIZE) as u32
    }

    /// A pointer to `address`, which lies in a page.
    #[inline]
    pub(super) fn pointer(&self, address: usize) -> *mut u8 {
        // On the machine all of memory is one object that `direct`, made from a number, exposed; elsewhere it is an array's.
        if cfg!(target_os = "none") {
            return core::ptr::with_exposed_provenance_mut(address);
        }
        self.direct.wrapping_add(address.wrapping_sub(self.direct.addr()))
    }

    /// The physical address of what lies in a page at `address`.
    #[inline]
    pub(super) fn physical_of(&self, address: *const u8) -> u64 {
        address.addr().wrapping_sub(self.direct.addr()) as u64
    }

    /// Where physical address `address` of a page is mapped.
    #[inline]
    pub(super) fn physical(&self, address: u64) -> *mut u8 {
        self.direct.wrapping_add(address as usize)
    }

    /// Clears the page.
    ///
    /// # Safety
    /// The caller owns it.
    pub(super) unsafe fn zero(&self, page: PageNumber) {
        // SAFETY: the caller's page, mapped and writable.
        unsafe { core::ptr::write_bytes(self.address(page), 0, PAGE_SIZE) };
    }
}
