//! Sections: memory that several address spaces see, each where and with what rights it likes.
//!
//! Owns:       [`Section`], [`SectionRef`]; mapping and unmapping of views.
//! IRQL:       PASSIVE and APC. The lock `SectionLock` is taken under an address space's, by faults.
//! Pages:      a section has page tables of its own, which no processor reads: where NT has an array of prototype entries. A large
//!             section of which little is used is small; an array would want a large piece of paged pool at once, and
//!             growing it would mean moving it. A fault in a view finds the page there, or puts one, and maps it. From the
//!             page's entry in the PFN database one gets to the section, as to a space (`tables`, I2).
//! Invariants: I1 a page of the section has one share for the section and one for each entry of a view that leads to it. So an
//!                unmap never frees it; the section's end does.
//!             I2 who has a view has a reference, and so has who made the section: the last of them ends it.
//!             I3 all of its pages are charged from the start, so no fault in a view is refused for the limit.
//! Not as NT:  SEC_RESERVE, images and files are absent, and views can't be protected to copy unless they were mapped so, as that
//!             would have to be charged.
//! Tests:      tests/props/tests/mm_process.rs; tests/models/tests/references.rs (I2); selftest `process::*`.
//! Sources:    WDK, `ZwCreateSection`, `ZwMapViewOfSection`, `ZwUnmapViewOfSection`, `NtExtendSection`.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use sync::SpinLock;
use sync::irql::{AddressSpaceLock, Below, Irql, MayBlock, SectionLock};
use sync::references::References;

use super::entry::Entry;
use super::machine::Machine;
use super::protection::{Kind as ProtectionKind, Protection};
use super::space::{AddressSpace, Kind, Vad};
use super::tables::{Gone, Tables};
use super::virtual_memory::{Region, TOP_DOWN};
use crate::mm::pages::Page;
use crate::mm::pfn::{PAGE_SIZE, PageNumber};
use crate::mm::vad::{GRANULARITY, Search, Span};
use crate::rtl::NtStatus;

const PAGE: u64 = PAGE_SIZE as u64;
/// Three levels of tables: 512 GiB.
const MOST_PAGES: u64 = 1 << 27;

/// See the module.
pub struct Section<M: Machine> {
    references: References,
    machine: M,
    protection: Protection,
    contents: SpinLock<Contents, SectionLock>,
}

struct Contents {
    tables: Tables,
    bytes: u64,
    /// Pages that there are.
    resident: u64,
}

/// A reference to a section. Dropping one leaks it, since the last one's end needs a level: [`release`](Self::release).
#[must_use = "a dropped reference is lost"]
pub struct SectionRef<M: Machine>(NonNull<Section<M>>);

// SAFETY: a counted reference to what is shared between processors by its lock (I2).
unsafe impl<M: Machine> Send for SectionRef<M> {}
// SAFETY: as above.
unsafe impl<M: Machine> Sync for SectionRef<M> {}

impl<M: Machine> core::ops::Deref for SectionRef<M> {
    type Target = Section<M>;

    fn deref(&self) -> &Section<M> {
        // SAFETY: it lives as long as there is a reference (I2).
        unsafe { self.0.as_ref() }
    }
}

/// What a fault in a view gets.
pub(super) enum Found {
    /// The page, with one share more.
    Page(PageNumber),
    /// None yet: a page of zeroes is wanted.
    Missing,
    /// No page for a table.
    Exhausted,
}

/// Levels of tables for so many pages.
const fn levels(pages: u64) -> u32 {
    match pages {
        ..=0x200 => 1,
        0x201..=0x4_0000 => 2,
        _ => 3,
    }
}

impl<M: Machine> Section<M> {
    /// A section of `bytes` bytes of zeroes, whose views have at most the rights of `protect`.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER_4 (no bytes), STATUS_SECTION_TOO_BIG, STATUS_INVALID_PAGE_PROTECTION,
    /// STATUS_COMMITMENT_LIMIT, STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "NtCreateSection")]
    pub fn create<L: MayBlock + Below<AddressSpaceLock>>(
        machine: M,
        bytes: u64,
        protect: u32,
        at: &mut Irql<L>,
    ) -> Result<SectionRef<M>, NtStatus> {
        let protection = Protection::from_bits(protect)?;
        if protection.guard || protection.kind == ProtectionKind::NoAccess {
            return Err(NtStatus::INVALID_PAGE_PROTECTION);
        }
        let pages = bytes.div_ceil(PAGE);
        if pages == 0 {
            return Err(NtStatus::INVALID_PARAMETER_4);
        }
        if pages > MOST_PAGES {
            return Err(NtStatus::SECTION_TOO_BIG);
        }
        // The root, too.
        machine.commit().charge(pages + 1).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        let mut at = at.raise::<AddressSpaceLock>();
        let root = machine.allocate(true, &mut at);
        let block = machine.block::<Self, _>(&mut at);
        match (root, block) {
            (Ok(root), Ok(block)) => {
                let tables = Tables::new(machine.memory(), root, levels(pages), block.addr().get() as u64);
                let contents = SpinLock::new(Contents { tables, bytes, resident: 0 });
                let section = Self { references: References::new(), machine, protection, contents };
                // SAFETY: a fresh block for it.
                unsafe { block.write(section) };
                Ok(SectionRef(block))
            }
            (root, block) => {
                if let Ok(root) = root {
                    machine.free(root, &mut at);
                }
                if let Ok(block) = block {
                    // SAFETY: the block just got.
                    unsafe { machine.free_block(block, &mut at) };
                }
                machine.commit().uncharge(pages + 1);
                Err(NtStatus::INSUFFICIENT_RESOURCES)
            }
        }
    }

    /// How many bytes it has.
    pub fn bytes<L: Below<SectionLock>>(&self, at: &mut Irql<L>) -> u64 {
        self.contents.lock(at).bytes
    }

    /// Pages that there are, tables left out.
    pub fn resident<L: Below<SectionLock>>(&self, at: &mut Irql<L>) -> u64 {
        self.contents.lock(at).resident
    }

    /// What it is charged: its pages, whether there are any yet, and its tables.
    pub fn charged<L: Below<SectionLock>>(&self, at: &mut Irql<L>) -> u64 {
        let contents = self.contents.lock(at);
        contents.bytes.div_ceil(PAGE) + u64::from(contents.tables.count())
    }

    /// Makes it larger; views stay as they are. Less than it has is not refused, and changes nothing.
    ///
    /// # Errors
    /// STATUS_SECTION_TOO_BIG, STATUS_COMMITMENT_LIMIT, STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "NtExtendSection")]
    pub fn extend<L: MayBlock + Below<SectionLock>>(
        &self,
        bytes: u64,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let pages = bytes.div_ceil(PAGE);
        if pages > MOST_PAGES {
            return Err(NtStatus::SECTION_TOO_BIG);
        }
        let mut guard = self.contents.lock(at);
        let (contents, at) = guard.parts();
        if bytes <= contents.bytes {
            return Ok(());
        }
        let more = pages - contents.bytes.div_ceil(PAGE);
        self.machine.commit().charge(more).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        let machine = self.machine;
        while contents.tables.reach() < pages {
            let name = core::ptr::from_ref(self).addr() as u64;
            let grown = contents.tables.grow(name, || machine.new_table(at));
            if grown.is_err() {
                machine.commit().uncharge(more);
                return Err(NtStatus::INSUFFICIENT_RESOURCES);
            }
        }
        contents.bytes = bytes;
        Ok(())
    }

    /// Checks the tables, and that each entry has a page of which the section has a share. For tests.
    pub fn verify<L: Below<SectionLock>>(&self, at: &mut Irql<L>) -> Result<(), &'static str> {
        let memory = self.machine.memory();
        let contents = self.contents.lock(at);
        let (mut resident, mut all_shared) = (0, true);
        contents.tables.verify(|_, bits, _| {
            resident += 1;
            all_shared &= match Entry::decode(bits) {
                // SAFETY: the section's own page (I1).
                Entry::Page { number, .. } => memory.entry(unsafe { PageNumber::new(number) }).counts().1 > 0,
                _ => false,
            };
        })?;
        match (resident == contents.resident, all_shared) {
            (false, _) => Err("pages miscounted"),
            (_, false) => Err("an entry without a page of the section's"),
            _ => Ok(()),
        }
    }

    /// Page `index`, which exists from now on: `spare` becomes it if there is none yet.
    pub(super) fn page(
        &self,
        index: u64,
        spare: &mut Option<Page>,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Found {
        let mut guard = self.contents.lock(at);
        let (contents, at) = guard.parts();
        if let Some(entry) = contents.tables.leaf(index)
            && let Entry::Page { number, .. } = Entry::decode(entry.load(Relaxed))
        {
            // SAFETY: the section's own page (I1).
            let page = unsafe { PageNumber::new(number) };
            self.machine.share(page, at);
            return Found::Page(page);
        }
        if spare.is_none() {
            return Found::Missing;
        }
        let machine = self.machine;
        let shared_at = core::cell::RefCell::new(at);
        let entry = contents.tables.leaf_or_new(
            index,
            || machine.new_table(&mut shared_at.borrow_mut()),
            |page| machine.free_table(page, &mut shared_at.borrow_mut()),
        );
        if entry.is_err() {
            return Found::Exhausted;
        }
        let (Some(page), Some(entry)) = (spare.take(), contents.tables.leaf(index)) else {
            return Found::Exhausted;
        };
        let page = page.into_number();
        // Not a protection that anybody looks at: this says that there is a page.
        let protection = Protection::of(ProtectionKind::NoAccess);
        let bits = Entry::Page { number: page.number(), protection, shared: true }.encode(false);
        contents.tables.set(entry, bits);
        contents.tables.note(entry, page);
        contents.resident += 1;
        self.machine.share(page, shared_at.into_inner());
        Found::Page(page)
    }
}

impl<M: Machine> SectionRef<M> {
    /// Another reference.
    pub fn reference(&self) -> Self {
        self.references.acquire();
        Self(self.0)
    }

    /// One less; the last one frees all pages (I2).
    pub fn release<L: Below<AddressSpaceLock>>(self, at: &mut Irql<L>) {
        if !self.references.release() {
            return;
        }
        // SAFETY: the last reference, so nobody else reaches it; read once, and the block is freed below.
        let section = unsafe { self.0.read() };
        let machine = section.machine;
        let Contents { mut tables, bytes, .. } = section.contents.into_inner();
        let pages = bytes.div_ceil(PAGE);
        let mut from = 0;
        while from < pages {
            // By a table at a time, so that the level is not held for long.
            let end = pages.min(from + super::tables::ENTRIES);
            let mut at = at.raise::<AddressSpaceLock>();
            tables.finish(
                Span { first: from, end },
                |_| 0,
                |gone| match gone {
                    Gone::Entry(Entry::Page { number, .. }) => {
                        // SAFETY: the section's own page, of which no view is left (I1).
                        machine.free(unsafe { Page::from_number(PageNumber::new(number)) }, &mut at);
                    }
                    Gone::Entry(_) => {}
                    Gone::Table(table) => machine.free_table(table, &mut at),
                },
            );
            drop(at);
            from = match tables.next_table(end, pages) {
                Some(next) => next,
                None => break,
            };
        }
        let mut at = at.raise::<AddressSpaceLock>();
        machine.free(tables.into_root(), &mut at);
        machine.commit().uncharge(pages + 1);
        // SAFETY: its block, from `create`; what was in it was moved out.
        unsafe { machine.free_block(self.0, &mut at) };
    }
}

impl<M: Machine> AddressSpace<M> {
    /// Maps `bytes` bytes of the section from byte `offset` on (0: all the rest), at `base` or where there is room.
    ///
    /// # Errors
    /// STATUS_INVALID_PAGE_PROTECTION, STATUS_MAPPED_ALIGNMENT, STATUS_INVALID_VIEW_SIZE, STATUS_SECTION_PROTECTION,
    /// STATUS_CONFLICTING_ADDRESSES, STATUS_NO_MEMORY, STATUS_COMMITMENT_LIMIT, STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "NtMapViewOfSection")]
    #[expect(clippy::too_many_arguments, reason = "NT's; a structure would name them twice")]
    pub fn map<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        section: &SectionRef<M>,
        base: Option<u64>,
        offset: u64,
        bytes: u64,
        kind: u32,
        protect: u32,
        at: &mut Irql<L>,
    ) -> Result<Region, NtStatus> {
        let protection = Protection::from_bits(protect)?;
        if kind & !TOP_DOWN != 0 {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let granularity = GRANULARITY * PAGE;
        if !offset.is_multiple_of(granularity) || !base.unwrap_or(0).is_multiple_of(granularity) {
            return Err(NtStatus::MAPPED_ALIGNMENT);
        }
        if !section.protection.admits(protection) {
            return Err(NtStatus::SECTION_PROTECTION);
        }
        let size = section.bytes(&mut at.raise::<AddressSpaceLock>());
        let rest = size.checked_sub(offset).filter(|&rest| rest > 0).ok_or(NtStatus::INVALID_VIEW_SIZE)?;
        let bytes = if bytes == 0 { rest } else { bytes };
        // The section's last page counts in whole.
        if bytes > rest.next_multiple_of(PAGE) {
            return Err(NtStatus::INVALID_VIEW_SIZE);
        }
        let pages = bytes.div_ceil(PAGE);
        let wanted = base.map(|base| Span { first: base / PAGE, end: base / PAGE + pages });
        let charge = if protection.copies() { pages } else { 0 };
        self.machine.commit().charge(charge).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        let kind_of_vad = Kind::View { section: section.reference(), first: offset / PAGE };
        let vad = Vad { protection, kind: kind_of_vad, is_going: false };
        let search = if kind & TOP_DOWN != 0 { Search::TopDown } else { Search::BottomUp };
        match self.place(wanted, pages, search, vad, at) {
            Ok(span) => Ok(Region::of(span)),
            Err((status, vad)) => {
                self.machine.commit().uncharge(charge);
                if let Kind::View { section, .. } = vad.kind {
                    section.release(at);
                }
                Err(status)
            }
        }
    }

    /// Ends the view that `address` lies in. Behind it no processor reaches the section by its addresses.
    ///
    /// # Errors
    /// STATUS_NOT_MAPPED_VIEW.
    #[doc(alias = "NtUnmapViewOfSection")]
    pub fn unmap<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        address: u64,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let first = {
            let mut inner = self.inner.lock(at);
            let node = inner.vads.find_mut(address / PAGE).filter(|node| !node.value.is_going);
            let node = node.filter(|node| matches!(node.value.kind, Kind::View { .. }));
            let node = node.ok_or(NtStatus::NOT_MAPPED_VIEW)?;
            node.value.is_going = true;
            node.span().first
        };
        self.release_whole(first, at);
        Ok(())
    }
}
