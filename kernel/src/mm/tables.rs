//! Page tables in use: mapping and unmapping of 4 KiB pages in the kernel half, after bring-up.
//!
//! What can be asked for can be wrong in no flag: a leaf is made of [`Access`] and [`Caching`] alone, so it is present, the
//! supervisor's, global, and never both writable and executable.
//!
//! IRQL:       that of the lock around it. Tables are memory of the HHDM, so nothing here recurses: a table's page comes from the
//!             page manager, which maps nothing.
//! Invariants: I1 a table is never given back or moved while its address space is in use: other processors walk it.
//!             I2 an entry goes from empty to its final value in one store, and back to zero in one.
//!             I3 a leaf is one of the forms of [`Found`]. Only a present one is changed by the processor, which sets DIRTY.
//!             I4 a leaf in transition changes under the PFN lock, which alone keeps its page there; every other one under that of
//!                the tables.
//!
//! ```text
//!  bit 0 PRESENT   11 10 9
//!  1               what the page is used for (TOGGLE)
//!  0                0  0 0   nothing: the entry is zero
//!  0                0  0 1   hidden: the page is this leaf's, the next touch has it back       │ the other bits are
//!  0                1  0 1   the same, and a trim is about to put it into transition           │ those it had when it
//!  0                0  1 0   in transition: the page is on a list, or being written            │ was present
//!  0                0  1 1   arriving: somebody reads it in                                    │
//!  0                1  0 0   out: the number is that of a slot of the backing store
//! ```
//!
//! Tests:      tests/props/tests/mm_space.rs, mm_paging.rs.
//! Sources:    SDM vol. 3, "4-Level Paging", "Page Attribute Table".

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use sync::toggle::{self, Rights};

use super::Exhausted;
use super::bits::{
    ACCESSED, ADDRESS, DIRTY, GLOBAL, LARGE_OR_ATTRIBUTE, NO_CACHE, NO_EXECUTE, PRESENT, WRITABLE,
    WRITE_THROUGH,
};
use super::pfn::{Memory, PAGE_SIZE, PageNumber};
use crate::ke::bugcheck::StopCode;

/// In a leaf that is not present. Bits 9 to 11 are software's; see the module.
const HIDDEN: u64 = 1 << 9;
const TRANSITION: u64 = 1 << 10;
const ARRIVING: u64 = HIDDEN | TRANSITION;
const OUT: u64 = 1 << 11;
/// Beside HIDDEN.
const TRIMMING: u64 = 1 << 11;
const FORMS: u64 = HIDDEN | TRANSITION | OUT;
/// In a present leaf of 4 KiB: it goes between writable and executable, and is neither in between.
const TOGGLE: u64 = 1 << 10;

/// A leaf whose page is written or run: `mm::executable`.
pub struct Toggle<'a>(pub &'a AtomicU64);

impl Toggle<'_> {
    const RIGHTS: u64 = WRITABLE | NO_EXECUTE;

    const fn bits(rights: Rights) -> u64 {
        match rights {
            Rights::Write => WRITABLE | NO_EXECUTE,
            Rights::Run => 0,
            Rights::Neither => NO_EXECUTE,
        }
    }

    fn of(entry: u64) -> Option<Rights> {
        if entry & PRESENT == 0 || entry & TOGGLE == 0 {
            return None;
        }
        let all = [Rights::Write, Rights::Run, Rights::Neither];
        all.into_iter().find(|&rights| Self::bits(rights) == entry & Self::RIGHTS)
    }
}

impl toggle::Entry for Toggle<'_> {
    fn rights(&self) -> Option<Rights> {
        Self::of(self.0.load(Ordering::Acquire))
    }

    fn exchange(&self, from: Rights, to: Rights) -> bool {
        let old = self.0.load(Ordering::Relaxed);
        let new = old & !Self::RIGHTS | Self::bits(to);
        Self::of(old) == Some(from)
            && self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and written.
    Write,
    /// Read and executed.
    Execute,
    /// Read, and either written, as at first, or executed: `mm::executable`.
    Toggled,
}

/// How a page is cached: entries of the attribute table as `arch::paging::set_memory_types` fills it.
#[doc(alias = "MEMORY_CACHING_TYPE")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// As memory.
    WriteBack,
    /// Not read ahead, writes gathered: frame buffers.
    WriteCombining,
    /// Not at all: registers.
    Uncached,
}

/// A mapped page's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What may be done.
    pub access: Access,
    /// How it is cached.
    pub caching: Caching,
}

impl Leaf {
    const fn bits(self) -> u64 {
        let access = match self.access {
            Access::Read => NO_EXECUTE,
            Access::Write => NO_EXECUTE | WRITABLE,
            Access::Execute => 0,
            Access::Toggled => NO_EXECUTE | WRITABLE | TOGGLE,
        };
        let caching = match self.caching {
            Caching::WriteBack => 0,
            Caching::WriteCombining => LARGE_OR_ATTRIBUTE | WRITE_THROUGH,
            Caching::Uncached => NO_CACHE | WRITE_THROUGH,
        };
        // Accessed and dirty from the start: nothing asks, and the processor need not write them.
        PRESENT | GLOBAL | ACCESSED | DIRTY | access | caching
    }

    fn of(entry: u64) -> Option<Self> {
        // In whichever state.
        let entry = if entry & TOGGLE != 0 { entry | Toggle::RIGHTS } else { entry };
        let all =
            [Access::Read, Access::Write, Access::Execute, Access::Toggled].into_iter().flat_map(|access| {
                [Caching::WriteBack, Caching::WriteCombining, Caching::Uncached]
                    .map(|caching| Self { access, caching })
            });
        all.into_iter().find(|leaf| leaf.bits() == entry & !ADDRESS)
    }
}

/// What a leaf holds (I3); of a page, its physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No page.
    Nothing,
    /// A page that can be reached.
    Present(u64),
    /// One that is this leaf's, and can't.
    Hidden(u64),
    /// One that is kept for this leaf as long as nobody needs the memory.
    Transition(u64),
    /// One whose content somebody reads in.
    Arriving(u64),
    /// No page: the content is in this slot of the backing store.
    Out(u32),
}

impl Found {
    fn of(address: u64, entry: u64) -> Self {
        let physical = entry & ADDRESS;
        match (entry & PRESENT != 0, entry & FORMS) {
            (true, _) => Self::Present(physical),
            (_, HIDDEN) => Self::Hidden(physical),
            (_, TRANSITION) => Self::Transition(physical),
            (_, ARRIVING) => Self::Arriving(physical),
            (_, OUT) => Self::Out((physical / PAGE_SIZE as u64) as u32),
            _ if entry == 0 => Self::Nothing,
            _ if entry & FORMS == HIDDEN | TRIMMING => Self::Hidden(physical),
            _ => contradiction(address, entry, 0),
        }
    }
}

const fn out(slot: u32) -> u64 {
    (slot as u64 * PAGE_SIZE as u64) | OUT
}

/// A leaf whose page leaves for slot `slot` of the backing store: under the PFN lock (I4).
pub(super) fn send_out(memory: Memory, place: u64, slot: u32) {
    // SAFETY: a leaf of tables in memory, which are never given back while a page is in transition (I1).
    let leaf = unsafe { &*memory.physical(place).cast::<AtomicU64>() };
    leaf.store(out(slot), Ordering::Release);
}

/// A page that is about to be put into transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Its physical address.
    pub page: u64,
    /// Was it written since its leaf was made?
    pub dirty: bool,
    /// The leaf's physical address.
    pub place: u64,
}

/// The page tables under one root.
#[derive(Debug)]
pub struct Tables {
    memory: Memory,
    root: u64,
}

impl Tables {
    /// Takes over the tables at physical address `root`.
    ///
    /// # Safety
    /// They are reached through `memory`, and nobody else changes what is mapped through the value (I1, I2).
    pub const unsafe fn new(memory: Memory, root: u64) -> Self {
        Self { memory, root }
    }

    /// Maps the page at physical address `physical` at `address`, where nothing is mapped. `table` gives zeroed pages for tables.
    /// No processor can have cached that nothing was there, so nothing needs a flush.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x403, address, entry, new entry) if something is mapped there.
    ///
    /// # Safety
    /// Whoever reaches the page by the address may do so.
    pub unsafe fn map(
        &mut self,
        address: u64,
        physical: u64,
        leaf: Leaf,
        table: &mut dyn FnMut() -> Result<u64, Exhausted>,
    ) -> Result<(), Exhausted> {
        let new = physical & ADDRESS | leaf.bits();
        let entry = self.slot_or_make(address, new, table)?;
        let old = entry.load(Ordering::Relaxed);
        if old != 0 {
            contradiction(address, old, new);
        }
        entry.store(new, Ordering::Release);
        Ok(())
    }

    /// The leaf of `address`, where `new` is to be; tables that it takes are made.
    fn slot_or_make(
        &mut self,
        address: u64,
        new: u64,
        table: &mut dyn FnMut() -> Result<u64, Exhausted>,
    ) -> Result<&AtomicU64, Exhausted> {
        let mut entry = self.entry(self.root, address, 3);
        for level in (0..3).rev() {
            let mut value = entry.load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                // Release: the table's zeroes are there before anybody walks into it.
                value = table()? | PRESENT | WRITABLE | ACCESSED;
                entry.store(value, Ordering::Release);
            } else if value & LARGE_OR_ATTRIBUTE != 0 {
                contradiction(address, value, new);
            }
            entry = self.entry(value & ADDRESS, address, level);
        }
        Ok(entry)
    }

    /// Hides the page at `address`, if there is one: from now on it is not reached, once processors have forgotten the translation.
    /// Says whether there was one.
    pub fn hide(&mut self, address: u64) -> bool {
        self.hide_as(address, HIDDEN)
    }

    /// The same, as the first step of putting it into transition; it may be hidden already. Whoever touches it before the last step has
    /// it back. Says what was there, if it was marked now.
    pub fn begin_trim(&mut self, address: u64) -> Found {
        let found = self.state(address);
        match found {
            Found::Present(_) if self.hide_as(address, HIDDEN | TRIMMING) => found,
            Found::Hidden(_) if self.trimmed(address).is_none() => {
                self.change(address, HIDDEN, HIDDEN | TRIMMING);
                found
            }
            // Nothing that could leave, or marked already.
            _ => Found::Nothing,
        }
    }

    fn hide_as(&mut self, address: u64, form: u64) -> bool {
        let Some(entry) = self.leaf(address) else { return false };
        // In one exchange, as a processor may be setting DIRTY. Those that have it cached as dirty have set it.
        let hide = |value: u64| Some(value & !(PRESENT | FORMS) | form);
        entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, hide).is_ok()
    }

    /// The page at `address`, if nobody has had it back since its trim began.
    pub fn trimmed(&self, address: u64) -> Option<Trimmed> {
        let entry = self.slot(address)?;
        let value = entry.load(Ordering::Relaxed);
        let place = self.memory.physical_of(ptr::from_ref(entry).cast());
        (value & (PRESENT | FORMS) == HIDDEN | TRIMMING).then_some(Trimmed {
            page: value & ADDRESS,
            dirty: value & DIRTY != 0,
            place,
        })
    }

    /// The last step of a trim: the page at `address` is hidden, and from now on in transition. Under the PFN lock, too.
    pub fn end_trim(&mut self, address: u64) {
        self.change(address, HIDDEN | TRIMMING, TRANSITION);
    }

    /// A trim that is not to be: the page stays hidden.
    pub fn give_up_trim(&mut self, address: u64) {
        self.change(address, HIDDEN | TRIMMING, HIDDEN);
    }

    /// Has the page at `address` back if it is hidden, and says what was there. No processor can have cached that none was.
    pub fn reveal(&mut self, address: u64) -> Found {
        let Some(entry) = self.slot(address) else { return Found::Nothing };
        match entry.load(Ordering::Relaxed) {
            // As is usual for a fault: the rest is kept off its way.
            0 => Found::Nothing,
            value => Self::reveal_page(entry, address, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn reveal_page(entry: &AtomicU64, address: u64, value: u64) -> Found {
        let found = Found::of(address, value);
        if matches!(found, Found::Hidden(_)) {
            entry.store(value & !FORMS | PRESENT, Ordering::Release);
        }
        found
    }

    /// The page at `address`, which is in transition or arriving, is there from now on; `dirty`: its content is nowhere else.
    pub fn restore(&mut self, address: u64, dirty: bool) {
        let Some(entry) = self.slot(address) else { contradiction(address, 0, TRANSITION) };
        let value = entry.load(Ordering::Relaxed);
        if value & PRESENT != 0 || value & TRANSITION == 0 {
            contradiction(address, value, TRANSITION);
        }
        let dirty = if dirty { DIRTY } else { 0 };
        entry.store(value & !(FORMS | DIRTY) | PRESENT | dirty, Ordering::Release);
    }

    /// The content of `address`, which is out, is read into the page at physical address `page` from now on.
    ///
    /// # Safety
    /// As [`map`](Self::map), once it is restored.
    pub unsafe fn begin_arrival(&mut self, address: u64, page: u64, leaf: Leaf) {
        self.replace_out(address, page & ADDRESS | leaf.bits() & !PRESENT | ARRIVING, OUT);
    }

    /// It can't be read.
    pub fn give_up_arrival(&mut self, address: u64, slot: u32) {
        self.replace_out(address, out(slot), ARRIVING);
    }

    fn replace_out(&mut self, address: u64, new: u64, was: u64) {
        let value = self.slot(address).map_or(0, |entry| entry.load(Ordering::Relaxed));
        match self.slot(address) {
            Some(entry) if value & (PRESENT | FORMS) == was => entry.store(new, Ordering::Release),
            _ => contradiction(address, value, new),
        }
    }

    /// What is at `address` changes from one of two forms that are not present to another.
    fn change(&mut self, address: u64, from: u64, to: u64) {
        match self.slot(address) {
            Some(entry) if entry.load(Ordering::Relaxed) & (PRESENT | FORMS) == from => {
                entry.store(entry.load(Ordering::Relaxed) & !FORMS | to, Ordering::Release);
            }
            _ => contradiction(address, 0, to),
        }
    }

    /// What a processor does when it uses the present leaf of `address`. Says whether the leaf is dirty then: for tests.
    pub fn touch(&mut self, address: u64, write: bool) -> bool {
        let dirty = if write { DIRTY } else { 0 };
        self.leaf(address)
            .is_some_and(|entry| (entry.fetch_or(ACCESSED | dirty, Ordering::AcqRel) | dirty) & DIRTY != 0)
    }

    /// What the leaf of `address` holds.
    pub fn state(&self, address: u64) -> Found {
        self.slot(address).map_or(Found::Nothing, |entry| Found::of(address, entry.load(Ordering::Relaxed)))
    }

    /// Empties the leaf of `address`, and says what was there. Processors may still have it cached.
    pub fn clear(&mut self, address: u64) -> Found {
        self.slot(address)
            .filter(|entry| entry.load(Ordering::Relaxed) != 0)
            .map_or(Found::Nothing, |entry| Found::of(address, entry.swap(0, Ordering::AcqRel)))
    }

    /// Makes the tables that `address` takes, so that [`map`](Self::map) will need none.
    pub fn prepare(
        &mut self,
        address: u64,
        table: &mut dyn FnMut() -> Result<u64, Exhausted>,
    ) -> Result<(), Exhausted> {
        self.slot_or_make(address, 0, table).map(|_| ())
    }

    /// Gives each entry of the root's upper half a table, from then on for good: so all roots that have these entries agree on the
    /// kernel half, and no later mapping must tell them. How many tables are new.
    pub fn complete_root(
        &mut self,
        table: &mut dyn FnMut() -> Result<u64, Exhausted>,
    ) -> Result<u32, Exhausted> {
        let mut new = 0;
        for entry in self.upper_half(self.root) {
            if entry.load(Ordering::Relaxed) & PRESENT == 0 {
                entry.store(table()? | PRESENT | WRITABLE | ACCESSED, Ordering::Release);
                new += 1;
            }
        }
        Ok(new)
    }

    /// Makes the upper half of `root`, a table that nobody uses yet, that of these.
    pub fn copy_upper_half(&self, root: PageNumber) {
        let own = self.upper_half(self.root);
        for (to, from) in self.upper_half(root.physical()).iter().zip(own) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The entries of the root at physical address `root` for the kernel half.
    fn upper_half(&self, root: u64) -> &[AtomicU64] {
        let entries = self.memory.physical(root).cast::<AtomicU64>();
        // SAFETY: a root is a page of memory that is mapped, used as atomics alone.
        unsafe { &core::slice::from_raw_parts(entries, PAGE_SIZE / 8)[PAGE_SIZE / 16..] }
    }

    /// Ends the mapping at `address`, and says what was there. Processors may still have it cached.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x403, address, entry, 0) if no 4 KiB page is mapped there.
    pub fn unmap(&mut self, address: u64) -> u64 {
        match self.leaf(address) {
            Some(entry) => entry.swap(0, Ordering::AcqRel) & ADDRESS,
            None => contradiction(address, 0, 0),
        }
    }

    /// What is mapped at `address`, if it was mapped by [`map`](Self::map).
    pub fn look(&self, address: u64) -> Option<(u64, Leaf)> {
        let entry = self.leaf(address)?.load(Ordering::Relaxed);
        Some((entry & ADDRESS, Leaf::of(entry)?))
    }

    /// The present 4 KiB leaf of `address`.
    fn leaf(&self, address: u64) -> Option<&AtomicU64> {
        self.slot(address).filter(|entry| entry.load(Ordering::Relaxed) & PRESENT != 0)
    }

    /// Where the 4 KiB leaf of `address` is, if there are tables for it.
    fn slot(&self, address: u64) -> Option<&AtomicU64> {
        let mut entry = self.entry(self.root, address, 3);
        for level in (0..3).rev() {
            let value = entry.load(Ordering::Acquire);
            if value & PRESENT == 0 || value & LARGE_OR_ATTRIBUTE != 0 {
                return None;
            }
            entry = self.entry(value & ADDRESS, address, level);
        }
        Some(entry)
    }

    fn entry(&self, table: u64, address: u64, level: u32) -> &AtomicU64 {
        let index = (address >> (12 + 9 * level)) as usize & (PAGE_SIZE / 8 - 1);
        let table = self.memory.physical(table).cast::<AtomicU64>();
        // SAFETY: the root or what a present entry leads to, so a table in memory that is mapped (`new`'s contract, I1).
        unsafe { &*table.wrapping_add(index) }
    }
}

#[cold]
fn contradiction(address: u64, found: u64, wanted: u64) -> ! {
    arch::fatal(StopCode::MemoryManagement as u32, [0x403, address, found, wanted])
}
