//! Reserving, committing, freeing, protecting, asking: NT's calls on the memory of one process.
//!
//! IRQL:       PASSIVE and APC.
//! Rules:      what is reserved begins at a multiple of 64 KiB and ends at one of a page. Committing, decommitting and protecting
//!             change whole pages, all of one descriptor, or nothing at all. Committing what is committed changes its protection.
//!             A part of private memory may be released; the rest are descriptors of their own.
//! Exhaustion: what an operation needs (descriptors, tables, charge) it gets before it changes anything.
//! Not as NT:  decommitting a part of memory that was committed as a whole needs page tables, as there, but they are all got first.
//!             No MEM_RESET, no large pages, no physical ones. The first 64 KiB can't be asked for at all.
//! Tests:      tests/props/tests/mm_process.rs, against a map of pages; selftest `process::*`.
//! Sources:    WDK, `ZwAllocateVirtualMemory`, `ZwFreeVirtualMemory`, `NtProtectVirtualMemory`, `ZwQueryVirtualMemory`.

use core::ptr::NonNull;

use sync::irql::{AddressSpaceLock, Below, Irql, MayBlock};

use super::change::Batch;
use super::entry::Entry;
use super::machine::Machine;
use super::protection::{self, Protection};
use super::space::{AddressSpace, HIGHEST, Inner, Kind, PageState, USER, Vad, VadNode, address};
use super::tables::ENTRIES;
use crate::mm::Exhausted;
use crate::mm::pfn::PAGE_SIZE;
use crate::mm::vad::{GRANULARITY, Search, Span};
use crate::rtl::NtStatus;

const PAGE: u64 = PAGE_SIZE as u64;
const NO_ACCESS: Protection = Protection::of(protection::Kind::NoAccess);

/// MEM_COMMIT; a state of [`Information`], too.
pub const COMMIT: u32 = 0x1000;
/// MEM_RESERVE; a state, too.
pub const RESERVE: u32 = 0x2000;
/// MEM_DECOMMIT.
pub const DECOMMIT: u32 = 0x4000;
/// MEM_RELEASE.
pub const RELEASE: u32 = 0x8000;
/// MEM_FREE: a state.
pub const FREE: u32 = 0x1_0000;
/// MEM_PRIVATE: a type.
pub const PRIVATE: u32 = 0x2_0000;
/// MEM_MAPPED: a type.
pub const MAPPED: u32 = 0x4_0000;
/// MEM_TOP_DOWN.
pub const TOP_DOWN: u32 = 0x10_0000;

/// Whole pages: what an operation was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte.
    pub base: u64,
    /// How many.
    pub bytes: u64,
}

impl Region {
    pub(super) const fn of(span: Span) -> Self {
        Self { base: address(span.first), bytes: address(span.pages()) }
    }
}

/// What is known of a page and those behind it that are like it.
#[doc(alias = "MEMORY_BASIC_INFORMATION")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Information {
    /// The page asked for, and the bytes of all that are like it.
    pub region: Region,
    /// Where the descriptor begins; 0 for free memory.
    pub allocation_base: u64,
    /// What it was reserved or mapped with; 0 for free memory.
    pub allocation_protect: u32,
    /// [`COMMIT`], [`RESERVE`] or [`FREE`].
    pub state: u32,
    /// The pages' protection; 0 unless committed. PAGE_NOACCESS for free memory.
    pub protect: u32,
    /// [`PRIVATE`], [`MAPPED`], or 0 for free memory.
    pub kind: u32,
}

/// The pages that `bytes` bytes from `base` touch, with the status for each way in which there are none.
fn pages_of(base: u64, bytes: u64, base_status: NtStatus, bytes_status: NtStatus) -> Result<Span, NtStatus> {
    if base > HIGHEST {
        return Err(base_status);
    }
    if bytes > HIGHEST + 1 - base {
        return Err(bytes_status);
    }
    Ok(Span { first: base / PAGE, end: (base + bytes).div_ceil(PAGE) })
}

/// Descriptors got in advance.
type Spares<M> = [Option<NonNull<VadNode<M>>>; 2];

impl<M: Machine> AddressSpace<M> {
    /// Reserves memory (`kind` has [`RESERVE`], or no `base` is given), commits it ([`COMMIT`]), or both. Without a base: where there
    /// is room, the lowest or with [`TOP_DOWN`] the highest place.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER_5, STATUS_INVALID_PAGE_PROTECTION, STATUS_INVALID_PARAMETER_2 and _4 for the arguments;
    /// STATUS_CONFLICTING_ADDRESSES, STATUS_NO_MEMORY (no room), STATUS_COMMITMENT_LIMIT, STATUS_INSUFFICIENT_RESOURCES. Committing
    /// a view: STATUS_ALREADY_COMMITTED.
    #[doc(alias = "NtAllocateVirtualMemory")]
    pub fn allocate<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        base: Option<u64>,
        bytes: u64,
        kind: u32,
        protect: u32,
        at: &mut Irql<L>,
    ) -> Result<Region, NtStatus> {
        if kind & !(COMMIT | RESERVE | TOP_DOWN) != 0 || kind & (COMMIT | RESERVE) == 0 {
            return Err(NtStatus::INVALID_PARAMETER_5);
        }
        let protection = Protection::from_bits(protect)?;
        if protection.copies() {
            return Err(NtStatus::INVALID_PAGE_PROTECTION);
        }
        let from = base.unwrap_or(0);
        let pages = pages_of(from, bytes, NtStatus::INVALID_PARAMETER_2, NtStatus::INVALID_PARAMETER_4)?;
        if bytes == 0 {
            return Err(NtStatus::INVALID_PARAMETER_4);
        }
        let span = if kind & RESERVE != 0 || base.is_none() {
            let search = if kind & TOP_DOWN != 0 { Search::TopDown } else { Search::BottomUp };
            self.reserve(base.map(|_| pages), pages.pages(), search, kind & COMMIT != 0, protection, at)?
        } else {
            self.commit(pages, protection, at)?;
            pages
        };
        Ok(Region::of(span))
    }

    fn reserve<L: Below<AddressSpaceLock>>(
        &self,
        wanted: Option<Span>,
        pages: u64,
        search: Search,
        committed: bool,
        protection: Protection,
        at: &mut Irql<L>,
    ) -> Result<Span, NtStatus> {
        let charge = if committed { pages_charged(wanted, pages) } else { 0 };
        self.machine.commit().charge(charge).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        let vad = Vad { protection, kind: Kind::Private { committed }, is_going: false };
        let placed = self.place(wanted, pages, search, vad, at).map_err(|(status, _)| status);
        if placed.is_err() {
            self.machine.commit().uncharge(charge);
        }
        placed
    }

    /// Puts a descriptor where it is wanted, or where there is room; gives it back if it can't.
    pub(super) fn place<L: Below<AddressSpaceLock>>(
        &self,
        wanted: Option<Span>,
        pages: u64,
        search: Search,
        vad: Vad<M>,
        at: &mut Irql<L>,
    ) -> Result<Span, (NtStatus, Vad<M>)> {
        let mut node = match self.new_node(USER, vad, at) {
            Ok(node) => node,
            Err((Exhausted, vad)) => return Err((NtStatus::INSUFFICIENT_RESOURCES, vad)),
        };
        let result = {
            let mut inner = self.inner.lock(at);
            let span = match wanted {
                Some(span) => Ok(aligned(span)).and_then(|span| {
                    if USER.covers(span) { Ok(span) } else { Err(NtStatus::CONFLICTING_ADDRESSES) }
                }),
                None => inner.vads.find_gap(pages, USER, search).ok_or(NtStatus::NO_MEMORY),
            };
            span.and_then(|span| {
                // SAFETY: the node is new, and goes into no other tree; taken back below if it isn't inserted.
                unsafe {
                    node.as_mut().set_span(span);
                    if inner.vads.insert(node) { Ok(span) } else { Err(NtStatus::CONFLICTING_ADDRESSES) }
                }
            })
        };
        // SAFETY: not inserted.
        result.map_err(|status| (status, unsafe { self.free_node(node, at) }))
    }

    /// Commits pages of one private descriptor.
    fn commit<L: Below<AddressSpaceLock>>(
        &self,
        span: Span,
        protection: Protection,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let mut guard = self.inner.lock(at);
        let (inner, at) = guard.parts();
        let node = inner.vads.find_mut(span.first).filter(|node| !node.value.is_going);
        let Some(node) = node.filter(|node| node.span().covers(span)) else {
            return Err(NtStatus::CONFLICTING_ADDRESSES);
        };
        let Kind::Private { committed } = node.value.kind else { return Err(NtStatus::ALREADY_COMMITTED) };
        let (whole, default) = (node.span() == span, node.value.protection);
        let missing = span.pages() - inner.committed(span);
        self.machine.commit().charge(missing).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        if whole && !committed && protection == default && missing == span.pages() {
            // Nothing is committed, so no entry of it says anything (`tables`, I1; `space`, I1).
            if let Some(node) = inner.vads.find_mut(span.first) {
                node.value.kind = Kind::Private { committed: true };
            }
            return Ok(());
        }
        let explicit = |entry| !(committed && protection == default && entry == Entry::Default);
        self.write(inner, span, protection, explicit, at).inspect_err(|_| {
            self.machine.commit().uncharge(missing);
        })
    }

    /// Gives each page of `span`, of which `explicit` says so, an entry with `protection`. Nothing is changed if it fails.
    fn write(
        &self,
        inner: &mut Inner<M>,
        span: Span,
        protection: Protection,
        explicit: impl Fn(Entry) -> bool,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Result<(), NtStatus> {
        let mut needs_tables = false;
        inner.states(span, |_, entry| {
            needs_tables |= explicit(entry);
            !needs_tables
        });
        if !needs_tables {
            return Ok(());
        }
        if inner.prepare(span, at).is_err() {
            inner.sweep(&self.loaded, span, at);
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let mut batch = Batch::new();
        for page in span.first..span.end {
            let Some(entry) = inner.tables.leaf(page) else { continue };
            let old = entry.load(core::sync::atomic::Ordering::Relaxed);
            let new = match Entry::decode(old) {
                old if !explicit(old) => continue,
                Entry::Page { number, shared, .. } => {
                    // What was copied is one's own.
                    let protection = if shared { protection } else { protection.of_copy() };
                    Entry::Page { number, protection, shared }
                }
                _ => Entry::Demand(protection),
            };
            let new = new.encode(false);
            let (old, new) =
                if old == 0 { (inner.tables.set(entry, new), new) } else { inner.tables.change(entry, new) };
            if Entry::narrows(old, new) {
                batch.add(page);
            }
        }
        batch.flush(self.machine, &self.loaded, at);
        // Tables of a stretch in which nothing had to be said.
        inner.sweep_unused(&self.loaded, span, at);
        Ok(())
    }

    /// Decommits private memory ([`DECOMMIT`]) or releases it ([`RELEASE`]). No bytes: all of the descriptor that begins at `base`.
    /// Behind it no processor reaches the pages.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER_2, _3, _4; STATUS_MEMORY_NOT_ALLOCATED, STATUS_UNABLE_TO_FREE_VM (more than one descriptor),
    /// STATUS_FREE_VM_NOT_AT_BASE, STATUS_UNABLE_TO_DELETE_SECTION (a view), STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "NtFreeVirtualMemory")]
    pub fn free<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        base: u64,
        bytes: u64,
        kind: u32,
        at: &mut Irql<L>,
    ) -> Result<Region, NtStatus> {
        if kind != DECOMMIT && kind != RELEASE {
            return Err(NtStatus::INVALID_PARAMETER_4);
        }
        let span = pages_of(base, bytes, NtStatus::INVALID_PARAMETER_2, NtStatus::INVALID_PARAMETER_3)?;
        let span = if bytes == 0 { None } else { Some(span) };
        let done = if kind == RELEASE {
            self.release(base / PAGE, span, at)?
        } else {
            self.decommit(base / PAGE, span, at)?
        };
        Ok(Region::of(done))
    }

    /// What is to be freed, and the descriptor that has it.
    fn to_free(inner: &Inner<M>, first: u64, span: Option<Span>) -> Result<(Span, Span), NtStatus> {
        let node = inner.vads.find(first).filter(|node| !node.value.is_going);
        let node = node.ok_or(NtStatus::MEMORY_NOT_ALLOCATED)?;
        if matches!(node.value.kind, Kind::View { .. }) {
            return Err(NtStatus::UNABLE_TO_DELETE_SECTION);
        }
        let whole = node.span();
        match span {
            None if first != whole.first => Err(NtStatus::FREE_VM_NOT_AT_BASE),
            None => Ok((whole, whole)),
            Some(span) if !whole.covers(span) => Err(NtStatus::UNABLE_TO_FREE_VM),
            Some(span) => Ok((span, whole)),
        }
    }

    fn release<L: Below<AddressSpaceLock>>(
        &self,
        first: u64,
        span: Option<Span>,
        at: &mut Irql<L>,
    ) -> Result<Span, NtStatus> {
        let mut spares: Spares<M> = [None; 2];
        let result = loop {
            let mut inner = self.inner.lock(at);
            let (span, whole) = match Self::to_free(&inner, first, span) {
                Ok(found) => found,
                Err(status) => break Err(status),
            };
            let parts = usize::from(span.first > whole.first) + usize::from(span.end < whole.end);
            if spares.iter().flatten().count() >= parts {
                inner.cut_out(span, whole, &mut spares);
                break Ok(span);
            }
            drop(inner);
            if let Err(status) = self.get_spares(&mut spares, at) {
                break Err(status);
            }
        };
        for node in spares.into_iter().flatten() {
            // SAFETY: not inserted.
            let _ = unsafe { self.free_node(node, at) };
        }
        let span = result?;
        self.release_whole(span.first, at);
        Ok(span)
    }

    fn get_spares<L: Below<AddressSpaceLock>>(
        &self,
        spares: &mut Spares<M>,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        for spare in spares.iter_mut().filter(|spare| spare.is_none()) {
            let vad =
                Vad { protection: NO_ACCESS, kind: Kind::Private { committed: false }, is_going: false };
            match self.new_node(USER, vad, at) {
                Ok(node) => *spare = Some(node),
                Err(_) => return Err(NtStatus::INSUFFICIENT_RESOURCES),
            }
        }
        Ok(())
    }

    fn decommit<L: Below<AddressSpaceLock>>(
        &self,
        first: u64,
        span: Option<Span>,
        at: &mut Irql<L>,
    ) -> Result<Span, NtStatus> {
        let (span, mut page) = {
            let mut guard = self.inner.lock(at);
            let (inner, at) = guard.parts();
            let (span, whole) = Self::to_free(inner, first, span)?;
            inner.take_back_default(&self.loaded, span, whole, at)?;
            (span, inner.decommit_piece(&self.loaded, span, at)?)
        };
        while page < span.end {
            let rest = Span { first: page, end: span.end };
            let mut guard = self.inner.lock(at);
            let (inner, at) = guard.parts();
            // Released meanwhile by somebody else: so it is decommitted.
            if Self::to_free(inner, page, Some(rest)).is_err() {
                break;
            }
            // What is to be had for this was had before anything was changed. If it isn't enough, all of the descriptor was decommitted or
            // released, and is committed anew by somebody else: behind this.
            let Ok(end) = inner.decommit_piece(&self.loaded, rest, at) else { break };
            page = end;
        }
        Ok(span)
    }

    /// Changes the protection of committed pages of one descriptor. The old one of the first of them.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER_2 and _3, STATUS_INVALID_PAGE_PROTECTION, STATUS_CONFLICTING_ADDRESSES, STATUS_NOT_COMMITTED,
    /// STATUS_SECTION_PROTECTION, STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "NtProtectVirtualMemory")]
    pub fn protect<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        base: u64,
        bytes: u64,
        protect: u32,
        at: &mut Irql<L>,
    ) -> Result<(Region, u32), NtStatus> {
        let protection = Protection::from_bits(protect)?;
        let span = pages_of(base, bytes, NtStatus::INVALID_PARAMETER_2, NtStatus::INVALID_PARAMETER_3)?;
        if bytes == 0 {
            return Err(NtStatus::INVALID_PARAMETER_3);
        }
        let mut guard = self.inner.lock(at);
        let (inner, at) = guard.parts();
        let node = inner.vads.find(span.first).filter(|node| !node.value.is_going);
        let Some(node) = node.filter(|node| node.span().covers(span)) else {
            return Err(NtStatus::CONFLICTING_ADDRESSES);
        };
        let vad = &node.value;
        let allowed = match vad.kind {
            Kind::Private { .. } if protection.copies() => Err(NtStatus::INVALID_PAGE_PROTECTION),
            Kind::Private { .. } => Ok(()),
            Kind::View { .. }
                if vad.protection.admits(protection) && protection.copies() <= vad.protection.copies() =>
            {
                Ok(())
            }
            Kind::View { .. } => Err(NtStatus::SECTION_PROTECTION),
        };
        allowed?;
        let default = vad.protection;
        let (mut old, mut all) = (None, true);
        inner.states(span, |_, entry| {
            match vad.state(entry) {
                PageState::Committed(protection) => drop(old.get_or_insert(protection)),
                PageState::Reserved => all = false,
            }
            all
        });
        let Some(old) = old.filter(|_| all) else { return Err(NtStatus::NOT_COMMITTED) };
        let explicit = |entry| !(protection == default && entry == Entry::Default);
        self.write(inner, span, protection, explicit, at)?;
        Ok((Region::of(span), old.bits()))
    }

    /// What is at `address`, and how far it is like that.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER for an address that user mode can't have.
    #[doc(alias = "NtQueryVirtualMemory")]
    pub fn query<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        at_address: u64,
        at: &mut Irql<L>,
    ) -> Result<Information, NtStatus> {
        if at_address > HIGHEST {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let page = at_address / PAGE;
        let inner = self.inner.lock(at);
        let next = inner.vads.first_from(page);
        let Some(node) = next.filter(|node| node.span().contains(page)) else {
            let end = next.map_or(USER.end, |node| node.span().first);
            return Ok(Information {
                region: Region::of(Span { first: page, end }),
                allocation_base: 0,
                allocation_protect: 0,
                state: FREE,
                protect: NO_ACCESS.bits(),
                kind: 0,
            });
        };
        let vad = &node.value;
        let (mut state, mut end) = (None, page);
        inner.states(Span { first: page, end: node.span().end }, |pages, entry| {
            let this = vad.state(entry);
            let same = *state.get_or_insert(this) == this;
            end += if same { pages } else { 0 };
            same
        });
        let (state, protect) = match state {
            Some(PageState::Committed(protection)) => (COMMIT, protection.bits()),
            _ => (RESERVE, 0),
        };
        Ok(Information {
            region: Region::of(Span { first: page, end }),
            allocation_base: address(node.span().first),
            allocation_protect: vad.protection.bits(),
            state,
            protect,
            kind: if matches!(vad.kind, Kind::View { .. }) { MAPPED } else { PRIVATE },
        })
    }
}

/// Down to the granularity.
const fn aligned(span: Span) -> Span {
    Span { first: span.first / GRANULARITY * GRANULARITY, end: span.end }
}

/// What is charged for a reservation that is committed: with a base, it may begin below what was asked for.
fn pages_charged(wanted: Option<Span>, pages: u64) -> u64 {
    wanted.map_or(pages, |span| aligned(span).pages())
}

impl<M: Machine> Inner<M> {
    /// Makes `span`, a part of the private descriptor with `whole`, one of its own that is going; what is left of the other is one or
    /// two.
    fn cut_out(&mut self, span: Span, whole: Span, spares: &mut Spares<M>) {
        let Some(node) = self.vads.find(whole.first) else { return };
        let Kind::Private { committed } = node.value.kind else { return };
        let protection = node.value.protection;
        let upper = Span { first: span.end, end: whole.end };
        let mut rest = whole;
        if span.first > whole.first {
            rest = Span { first: whole.first, end: span.first };
        } else if !upper.is_empty() {
            rest = span;
        }
        let shrunk = rest == whole || self.vads.shrink(whole.first, rest);
        debug_assert!(shrunk, "a part of it");
        let parts = [(span, true), (upper, false)];
        for (part, is_going) in parts.into_iter().filter(|(part, _)| !part.is_empty() && *part != rest) {
            let Some(mut node) = spares.iter_mut().find_map(Option::take) else { return };
            // SAFETY: a spare node is nobody else's; nothing is left where it goes.
            let inserted = unsafe {
                let new = node.as_mut();
                new.set_span(part);
                new.value = Vad { protection, kind: Kind::Private { committed }, is_going };
                self.vads.insert(node)
            };
            debug_assert!(inserted, "cut out");
        }
        if rest == span
            && let Some(node) = self.vads.find_mut(span.first)
        {
            node.value.is_going = true;
        }
    }

    /// Before pages of `span` are decommitted: what is committed because the descriptor says so is said otherwise. Charges are
    /// those of whoever decommits.
    fn take_back_default(
        &mut self,
        loaded: &sync::shootdown::Space,
        span: Span,
        whole: Span,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Result<(), NtStatus> {
        let Some(node) = self.vads.find_mut(whole.first) else { return Ok(()) };
        if !matches!(node.value.kind, Kind::Private { committed: true }) {
            return Ok(());
        }
        if span != whole {
            // Each page needs an entry that says so.
            if self.prepare(span, at).is_err() {
                self.sweep(loaded, span, at);
                return Err(NtStatus::INSUFFICIENT_RESOURCES);
            }
            self.keep_tables(span);
            return Ok(());
        }
        let mut default = 0;
        self.states(span, |pages, entry| {
            default += if entry == Entry::Default { pages } else { 0 };
            true
        });
        if let Some(node) = self.vads.find_mut(whole.first) {
            node.value.kind = Kind::Private { committed: false };
        }
        self.machine.commit().uncharge(default);
        Ok(())
    }

    /// `span` is to be decommitted, piece by piece, and has tables: one page of each is decommitted now, if nothing is said of it yet. So
    /// none is empty, and nobody frees one between two pieces.
    fn keep_tables(&mut self, span: Span) {
        let mut page = span.first;
        while page < span.end {
            if let Some(entry) = self.tables.leaf(page)
                && entry.load(core::sync::atomic::Ordering::Relaxed) == 0
            {
                self.tables.set(entry, Entry::Decommitted.encode(false));
                self.machine.commit().uncharge(1);
            }
            page = (page / ENTRIES + 1) * ENTRIES;
        }
    }

    /// Decommits a piece of `span`, all of one private descriptor. Up to which page it came.
    fn decommit_piece(
        &mut self,
        loaded: &sync::shootdown::Space,
        span: Span,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Result<u64, NtStatus> {
        let Some(node) = self.vads.find(span.first) else { return Ok(span.end) };
        let committed = matches!(node.value.kind, Kind::Private { committed: true });
        let left = if committed { Entry::Decommitted } else { Entry::Default }.encode(false);
        let piece = Span { first: span.first, end: self.piece_end(span) };
        if committed && self.prepare(piece, at).is_err() {
            // Only behind the first piece: `keep_tables`.
            self.sweep(loaded, piece, at);
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let charged = self.committed(piece);
        self.end_piece(loaded, piece, |_| left, at);
        self.machine.commit().uncharge(charged);
        Ok(piece.end)
    }

    /// Frees tables of `span` in which no entry says anything.
    fn sweep_unused(&mut self, loaded: &sync::shootdown::Space, span: Span, at: &mut Irql<AddressSpaceLock>) {
        if self.tables.has_empty(span) {
            self.sweep(loaded, span, at);
        }
    }
}
