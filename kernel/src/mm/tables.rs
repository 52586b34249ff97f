//! Page tables in use: mapping and unmapping of 4 KiB pages in the kernel half, after bring-up.
//!
//! What can be asked for can be wrong in no flag: a leaf is made of [`Access`] and [`Caching`] alone, so it is present, the
//! supervisor's, global, and never both writable and executable.
//!
//! IRQL:       that of the lock around it. Tables are memory of the HHDM, so nothing here recurses: a table's page comes from the
//!             page manager, which maps nothing.
//! Invariants: I1 a table is never given back or moved while its address space is in use: other processors walk it.
//!             I2 an entry goes from empty to its final value in one store, and back to zero in one.
//!             I3 a leaf is one of: zero; present; in transition, which is what it was with the present bit moved to bit 9. The page of
//!                the last is still there: the next touch faults, and [`Tables::reveal`] is all that it takes.
//! Tests:      tests/props/tests/mm_space.rs.
//! Sources:    SDM vol. 3, "4-Level Paging", "Page Attribute Table".

use core::sync::atomic::{AtomicU64, Ordering};

use super::Exhausted;
use super::bits::{
    ACCESSED, ADDRESS, DIRTY, GLOBAL, LARGE_OR_ATTRIBUTE, NO_CACHE, NO_EXECUTE, PRESENT, WRITABLE,
    WRITE_THROUGH,
};
use super::pfn::{Memory, PAGE_SIZE, PageNumber};
use crate::ke::bugcheck::StopCode;

/// In a leaf that is not present: its page is still there (I3). Bits 9 to 11 are software's.
const TRANSITION: u64 = 1 << 9;
/// In a leaf of 4 KiB: it goes between writable and executable, one of which it is.
const TOGGLE: u64 = 1 << 10;

/// What a present leaf that is toggled becomes, to be executed or else to be written: itself, if it is so already. `None`: it is none.
pub const fn toggled(entry: u64, execute: bool) -> Option<u64> {
    if entry & PRESENT == 0 || entry & TOGGLE == 0 {
        return None;
    }
    Some(if execute { entry & !(WRITABLE | NO_EXECUTE) } else { entry | WRITABLE | NO_EXECUTE })
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
        // In either state.
        let entry = if entry & TOGGLE != 0 { entry | NO_EXECUTE | WRITABLE } else { entry };
        let all =
            [Access::Read, Access::Write, Access::Execute, Access::Toggled].into_iter().flat_map(|access| {
                [Caching::WriteBack, Caching::WriteCombining, Caching::Uncached]
                    .map(|caching| Self { access, caching })
            });
        all.into_iter().find(|leaf| leaf.bits() == entry & !ADDRESS)
    }
}

/// What a leaf holds (I3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No page.
    Nothing,
    /// A page that can be reached.
    Present,
    /// One that is still there, and can't.
    Transition,
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

    /// Puts the page at `address` into transition, if there is one: from now on it is not reached, once processors have forgotten
    /// the translation. Says whether there was one.
    pub fn hide(&mut self, address: u64) -> bool {
        let Some(entry) = self.leaf(address) else { return false };
        let value = entry.load(Ordering::Relaxed);
        entry.store(value & !PRESENT | TRANSITION, Ordering::Release);
        true
    }

    /// Has the page at `address` back if it is in transition, and says what was there. No processor can have cached that none was.
    pub fn reveal(&mut self, address: u64) -> Found {
        let Some(entry) = self.slot(address) else { return Found::Nothing };
        let value = entry.load(Ordering::Relaxed);
        if value & PRESENT != 0 {
            return Found::Present;
        }
        if value & TRANSITION == 0 {
            return Found::Nothing;
        }
        entry.store(value & !TRANSITION | PRESENT, Ordering::Release);
        Found::Transition
    }

    /// Empties the leaf of `address`, and says which page was there, and whether it was present or in transition. Processors may still
    /// have it cached.
    pub fn clear(&mut self, address: u64) -> Option<(u64, Found)> {
        let entry = self.slot(address).filter(|entry| entry.load(Ordering::Relaxed) != 0)?;
        let old = entry.swap(0, Ordering::AcqRel);
        Some((old & ADDRESS, if old & PRESENT != 0 { Found::Present } else { Found::Transition }))
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
