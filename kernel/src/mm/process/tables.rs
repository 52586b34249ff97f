//! The page tables of a user half, and those of a section, which have the same form but no processor reads them.
//!
//! ```text
//! the end of translations (under the owner's lock)     a processor that has the space loaded
//! `hide`: entries not present; so are the entries       may still use what it has cached
//!   that lead to tables which will be empty             .
//! flush ──────────────────────────────────────────────► forgets it
//! `finish`: pages and empty tables are given back       finds nothing
//! ```
//!
//! One flush serves both, the pages and the tables: a table is let go of before the flush and freed behind it.
//!
//! Invariants: I1 of a table's page, `tag` in the PFN database counts the entries that are not zero, `next` (upper levels) those
//!                that are present. Between operations both are equal there; a table but the root has at least one.
//!             I2 `owner` there is the physical address of the entry that leads to the page, for tables and for a space's own pages:
//!                from any page one gets, entry by entry, to the root, whose `owner` names the space.
//!             I3 whoever makes an entry zero is `finish`.
//! Tests:      tests/props/tests/mm_process.rs; `verify` checks I1 and I2.
//! Sources:    SDM vol. 3, "Invalidation of TLBs and Paging-Structure Caches".

use core::sync::atomic::{AtomicU64, Ordering, Ordering::Relaxed};

use super::entry::{Entry, TABLE};
use crate::mm::Exhausted;
use crate::mm::bits::{ADDRESS, PRESENT};
use crate::mm::pages::Page;
use crate::mm::pfn::{Memory, PAGE_SIZE, PageNumber};
use crate::mm::vad::Span;

/// Entries of a table.
pub(super) const ENTRIES: u64 = (PAGE_SIZE / 8) as u64;
/// Most tables between a root and a leaf.
const MOST_LEVELS: usize = 4;

/// Tables and what they lead to.
#[derive(Debug)]
pub(super) struct Tables {
    memory: Memory,
    root: PageNumber,
    levels: u32,
    /// Pages that are tables, the root included.
    count: u32,
}

/// Entries from some page on.
pub(super) enum Stretch<'a> {
    /// No table: all are zero up to this page.
    Absent(u64),
    /// These.
    Table(&'a [AtomicU64]),
}

/// What [`Tables::finish`] gives back.
pub(super) enum Gone {
    /// What an entry was that is something else now.
    Entry(Entry),
    /// A table.
    Table(Page),
}

impl Tables {
    /// Empty ones. `root` is cleared; `name` says whose they are.
    pub(super) fn new(memory: Memory, root: Page, levels: u32, name: u64) -> Self {
        let root = root.into_number();
        let entry = memory.entry(root);
        entry.tag.store(0, Relaxed);
        entry.next.store(0, Relaxed);
        entry.owner.store(name << 1 | 1, Relaxed);
        Self { memory, root, levels, count: 1 }
    }

    /// Pages that are tables.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Pages that the tables can lead to.
    pub(super) fn reach(&self) -> u64 {
        ENTRIES.pow(self.levels)
    }

    fn table(&self, page: PageNumber) -> &[AtomicU64] {
        let entries = self.memory.address(page).cast::<AtomicU64>();
        // SAFETY: a table's page is the tables' own, in memory that is mapped; it is used as atomics alone.
        unsafe { core::slice::from_raw_parts(entries, ENTRIES as usize) }
    }

    /// The table that an entry of an upper level leads to, present or hidden.
    fn below(&self, bits: u64) -> Option<PageNumber> {
        let number = (bits & ADDRESS) / PAGE_SIZE as u64;
        // SAFETY: entries of upper levels are written here alone, from pages that the tables own.
        (number != 0).then(|| unsafe { PageNumber::new(number as u32) })
    }

    fn index(page: u64, level: u32) -> usize {
        (page >> (9 * level)) as usize % ENTRIES as usize
    }

    /// The page that an entry lies in.
    fn holder(&self, entry: &AtomicU64) -> PageNumber {
        let number = self.memory.number_of(core::ptr::from_ref(entry).addr());
        // SAFETY: the entry lies in a table's page.
        unsafe { PageNumber::new(number) }
    }

    /// Its physical address (I2).
    fn place(&self, entry: &AtomicU64) -> u64 {
        let offset = core::ptr::from_ref(entry).addr() % PAGE_SIZE;
        self.holder(entry).physical() + offset as u64
    }

    /// The entries from `page` on, up to `end` or the end of a table.
    pub(super) fn stretch(&self, page: u64, end: u64) -> Stretch<'_> {
        let mut table = self.root;
        for level in (1..self.levels).rev() {
            let bits = self.table(table)[Self::index(page, level)].load(Relaxed);
            match self.below(bits) {
                Some(below) => table = below,
                None => {
                    let step = ENTRIES.pow(level);
                    return Stretch::Absent(end.min((page / step + 1) * step));
                }
            }
        }
        let from = Self::index(page, 0);
        let count = (end - page).min(ENTRIES - from as u64) as usize;
        Stretch::Table(&self.table(table)[from..from + count])
    }

    /// Is there a table of `span` without an entry that says anything?
    pub(super) fn has_empty(&self, span: Span) -> bool {
        let mut page = span.first;
        while page < span.end {
            match self.stretch(page, span.end) {
                Stretch::Absent(end) => page = end,
                Stretch::Table(entries) => {
                    if self.memory.entry(self.holder(&entries[0])).tag.load(Relaxed) == 0 {
                        return true;
                    }
                    page += entries.len() as u64;
                }
            }
        }
        false
    }

    /// The first page from `page` on, below `end`, that has a table.
    pub(super) fn next_table(&self, mut page: u64, end: u64) -> Option<u64> {
        while page < end {
            match self.stretch(page, end) {
                Stretch::Absent(end) => page = end,
                Stretch::Table(_) => return Some(page),
            }
        }
        None
    }

    /// The last level's entry for `page`, if there is a table.
    pub(super) fn leaf(&self, page: u64) -> Option<&AtomicU64> {
        match self.stretch(page, page + 1) {
            Stretch::Table(entries) => entries.first(),
            Stretch::Absent(_) => None,
        }
    }

    /// The same, with the tables that are missing, from `give`, which gives cleared pages. Nothing is changed if it fails;
    /// what it gave before then goes to `take`. A new table must not be left empty (I1).
    pub(super) fn leaf_or_new(
        &mut self,
        page: u64,
        mut give: impl FnMut() -> Result<Page, Exhausted>,
        mut take: impl FnMut(Page),
    ) -> Result<&AtomicU64, Exhausted> {
        let mut table = self.root;
        let mut level = self.levels - 1;
        while level > 0 {
            match self.below(self.table(table)[Self::index(page, level)].load(Relaxed)) {
                Some(below) => table = below,
                None => break,
            }
            level -= 1;
        }
        let mut new = [const { None }; MOST_LEVELS];
        for at in 0..level as usize {
            match give() {
                Ok(page) => new[at] = Some(page),
                Err(Exhausted) => {
                    new.into_iter().flatten().for_each(&mut take);
                    return Err(Exhausted);
                }
            }
        }
        for slot in new.into_iter().flatten() {
            let below = slot.into_number();
            let entry = self.memory.entry(below);
            entry.tag.store(0, Relaxed);
            entry.next.store(0, Relaxed);
            let link = &self.table(table)[Self::index(page, level)];
            entry.owner.store(self.place(link), Relaxed);
            // Release: the table's zeroes are there before a processor walks into it.
            link.store(below.physical() | TABLE, Ordering::Release);
            self.memory.entry(table).tag.fetch_add(1, Relaxed);
            self.memory.entry(table).next.fetch_add(1, Relaxed);
            self.count += 1;
            table = below;
            level -= 1;
        }
        Ok(&self.table(table)[Self::index(page, 0)])
    }

    /// Writes an entry of the last level, not with zero (I3). What was there.
    pub(super) fn set(&self, entry: &AtomicU64, new: u64) -> u64 {
        debug_assert!(new != 0, "I3");
        // Release: what the page holds is there before a processor reaches it.
        let old = entry.swap(new, Ordering::AcqRel);
        if old == 0 {
            self.memory.entry(self.holder(entry)).tag.fetch_add(1, Relaxed);
        }
        old
    }

    /// As [`set`](Self::set) for an entry that was not zero, but keeps what the processor notes in it meanwhile. What was there, and
    /// what is.
    pub(super) fn change(&self, entry: &AtomicU64, new: u64) -> (u64, u64) {
        debug_assert!(new != 0, "I3");
        let next = |old| Some(Entry::keeping(old, new));
        match entry.fetch_update(Ordering::AcqRel, Relaxed, next) {
            Ok(old) | Err(old) => (old, Entry::keeping(old, new)),
        }
    }

    /// Notes where a page of one's own is mapped (I2).
    pub(super) fn note(&self, entry: &AtomicU64, page: PageNumber) {
        self.memory.entry(page).owner.store(self.place(entry), Relaxed);
    }

    /// First half of the end of translations: what `last` takes the page from is not present any more, nor is what leads to a
    /// table that will be empty. `hidden` is told of each page that was present, and of one page of such a table. `last` says
    /// what an entry will be.
    pub(super) fn hide(&mut self, span: Span, last: impl Fn(u64) -> u64, mut hidden: impl FnMut(u64)) {
        let mut page = span.first;
        while page < span.end {
            let entries = match self.stretch(page, span.end) {
                Stretch::Absent(end) => {
                    page = end;
                    continue;
                }
                Stretch::Table(entries) => entries,
            };
            let (mut filled, mut emptied) = (0, 0);
            for (at, entry) in (page..).zip(entries) {
                let old = entry.load(Relaxed);
                let new = last(old);
                filled += u32::from(old == 0 && new != 0);
                emptied += u32::from(old != 0 && new == 0);
                if old & PRESENT != 0 && new & PRESENT == 0 {
                    entry.fetch_and(!PRESENT, Ordering::AcqRel);
                    hidden(at);
                }
            }
            let table = self.holder(&entries[0]);
            // Also if it was empty before: what an operation that failed half-way leaves.
            let used = self.memory.entry(table).tag.load(Relaxed);
            if table != self.root && used + filled == emptied {
                self.hide_table(table);
                hidden(page);
            }
            page += entries.len() as u64;
        }
    }

    /// A table that will be empty is led to no more, nor are those above that will be empty with it.
    fn hide_table(&self, mut table: PageNumber) {
        while table != self.root {
            let link = self.link_to(table);
            link.fetch_and(!PRESENT, Ordering::AcqRel);
            table = self.holder(link);
            if self.memory.entry(table).next.fetch_sub(1, Relaxed) != 1 {
                break;
            }
        }
    }

    /// The entry that leads to a table other than the root (I2).
    fn link_to(&self, table: PageNumber) -> &AtomicU64 {
        let place = self.memory.entry(table).owner.load(Relaxed);
        // SAFETY: I2: an entry in a table of ours.
        unsafe { &*self.memory.physical(place).cast::<AtomicU64>() }
    }

    /// Second half, behind the flush: entries are what `last` says; `gone` gets what they were, and the tables that are empty.
    pub(super) fn finish(&mut self, span: Span, last: impl Fn(u64) -> u64, mut gone: impl FnMut(Gone)) {
        let mut page = span.first;
        while page < span.end {
            let entries = match self.stretch(page, span.end) {
                Stretch::Absent(end) => {
                    page = end;
                    continue;
                }
                Stretch::Table(entries) => entries,
            };
            let (mut more, mut less) = (0, 0);
            for entry in entries {
                let old = entry.load(Relaxed);
                let new = last(old);
                if new != old {
                    entry.store(new, Ordering::Release);
                    more += u32::from(old == 0);
                    less += u32::from(new == 0);
                    gone(Gone::Entry(Entry::decode(old)));
                }
            }
            page += entries.len() as u64;
            let table = self.holder(&entries[0]);
            let used = &self.memory.entry(table).tag;
            let left = used.load(Relaxed) + more - less;
            used.store(left, Relaxed);
            if left == 0 {
                self.free_table(table, &mut gone);
            }
        }
    }

    /// Frees an empty table, and those above that become empty.
    fn free_table(&mut self, mut table: PageNumber, gone: &mut impl FnMut(Gone)) {
        while table != self.root {
            let link = self.link_to(table);
            let present = link.swap(0, Ordering::AcqRel) & PRESENT != 0;
            let above = self.holder(link);
            let entry = self.memory.entry(above);
            if present {
                entry.next.fetch_sub(1, Relaxed);
            }
            let left = entry.tag.fetch_sub(1, Relaxed) - 1;
            self.count -= 1;
            // SAFETY: the table was ours, and nothing leads to it any more.
            gone(Gone::Table(unsafe { Page::from_number(table) }));
            if left != 0 {
                break;
            }
            table = above;
        }
    }

    /// One level more, for more pages: the present root becomes the first table below a new one, which `give` gives. An empty one stays
    /// the root: below another nobody would find it to free it (I1).
    pub(super) fn grow(
        &mut self,
        name: u64,
        give: impl FnOnce() -> Result<Page, Exhausted>,
    ) -> Result<(), Exhausted> {
        if self.memory.entry(self.root).tag.load(Relaxed) == 0 {
            self.levels += 1;
            return Ok(());
        }
        let grown = Self::new(self.memory, give()?, self.levels + 1, name);
        let link = &grown.table(grown.root)[0];
        self.memory.entry(self.root).owner.store(grown.place(link), Relaxed);
        link.store(self.root.physical() | TABLE, Ordering::Release);
        let entry = self.memory.entry(grown.root);
        entry.tag.store(1, Relaxed);
        entry.next.store(1, Relaxed);
        let count = self.count + 1;
        *self = Self { count, ..grown };
        Ok(())
    }

    /// The root, when nothing else is left.
    pub(super) fn into_root(self) -> Page {
        debug_assert!(self.count == 1, "I1");
        // SAFETY: `new` was given it.
        unsafe { Page::from_number(self.root) }
    }

    /// Checks I1 and I2; `leaf` sees each entry that is not zero with its page's number and place. For tests.
    pub(super) fn verify(&self, mut leaf: impl FnMut(u64, u64, u64)) -> Result<(), &'static str> {
        let found = self.verify_table(self.root, self.levels - 1, 0, &mut leaf)?;
        if found == self.count { Ok(()) } else { Err("tables miscounted") }
    }

    fn verify_table(
        &self,
        table: PageNumber,
        level: u32,
        first: u64,
        leaf: &mut impl FnMut(u64, u64, u64),
    ) -> Result<u32, &'static str> {
        let (mut used, mut present, mut tables) = (0, 0, 1);
        // The root's upper half is the kernel's.
        let own = if level == 3 { ENTRIES / 2 } else { ENTRIES };
        for (at, entry) in self.table(table).iter().enumerate().take(own as usize) {
            let bits = entry.load(Relaxed);
            if bits == 0 {
                continue;
            }
            used += 1;
            let page = first + at as u64 * ENTRIES.pow(level);
            if level == 0 {
                leaf(page, bits, self.place(entry));
                continue;
            }
            present += u32::from(bits & PRESENT != 0);
            let below = self.below(bits).ok_or("an entry that leads nowhere")?;
            if self.memory.entry(below).owner.load(Relaxed) != self.place(entry) {
                return Err("a table that doesn't know what leads to it");
            }
            tables += self.verify_table(below, level - 1, page, leaf)?;
        }
        let entry = self.memory.entry(table);
        if entry.tag.load(Relaxed) != used {
            return Err("entries miscounted");
        }
        if level > 0 && (entry.next.load(Relaxed) != present || present != used) {
            return Err("a table that is hidden");
        }
        if used == 0 && table != self.root {
            return Err("an empty table");
        }
        Ok(tables)
    }
}
