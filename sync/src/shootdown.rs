//! TLB shootdown: no processor keeps a translation that ended. Who must be told, who is interrupted, who does it by itself later.
//!
//! ```text
//! ends a translation                            another processor
//! entry := empty                                may still use what it has cached
//! who may have it: all that are online, or      .
//!   those that the space's mask names           .
//! asleep? then it owes a flush     (AcqRel) ──► wakes: did it owe one? everything is forgotten   (AcqRel)
//! awake?  ipi::call ──────────────────────────► forgets what the call says, in the IPI
//! all have answered ◄────────────────────────── done
//! returns: page and address may be reused       .
//! ```
//!
//! Owns:       [`Sleep`] (a processor's part), [`Space`] (who may have cached a space), [`Contexts`] (PCIDs). Not: the call and its
//!             acknowledgement ([`crate::ipi`]), what is mapped where.
//! IRQL:       [`flush`] below IPI. It waits at IPI and serves others' calls meanwhile, so two that target each other get on.
//! Invariants: I1 a processor uses translations only between its `Sleep::end` and the next `Sleep::begin`. In between it runs nothing
//!                but the way into and out of the halt, on memory that is never unmapped.
//!             I2 a deferred flush is done by the processor's next `end`: one word carries both, so of a waker and a deferrer each
//!                sees whether the other came first, and there is no case in which neither flushes.
//!             I3 a processor that has loaded a space's tables is in its mask, or will look at its generation before it uses them.
//!             I4 what a PCID keeps is of the generation that is noted beside it. An IPI's flush forgets of the PCID in use only, so none
//!                comes between the look at the generation and the load: [`Contexts::load`] is at IPI for both.
//! Ordering:   I2 rests on one word's modification order, all changes of it being AcqRel exchanges: the empty entry before the
//!             deferral, the last use of a translation before the sleep. I3 is a store-buffering pair, so there are fences: of a
//!             processor that enters a space and one that ends a translation in it, at least one sees the other.
//! Why lazily all: what an idle processor owes may come from any number of flushes; a list would need an end, and behind it the same.
//! Tests:      tests/models/tests/shootdown.rs (I2, I3, no use after return, mutual targets); tests/props/tests/contexts.rs (I4);
//!             selftest `memory_tlb::*`; mutant `mm/pcid_chosen_before_a_flush`.
//! Sources:    SDM vol. 3, "Propagation of Paging-Structure Changes to Multiple Processors", "Process-Context Identifiers".

use core::cell::Cell;

use crate::ipi;
use crate::irql::{AtOrBelow, Below, Ipi, Irql};
use crate::prim::{AtomicU32, AtomicU64, Ordering, const_unless_loom, fence};

/// In [`Sleep`]: the processor halts, or is about to.
const ASLEEP: u32 = 1 << 0;
/// In [`Sleep`]: a flush was left to it.
const OWES: u32 = 1 << 1;

/// Whether a processor sleeps, and whether it then owes a flush: part of its PRCB.
pub struct Sleep(AtomicU32);

impl Sleep {
    const_unless_loom! {
        /// A processor that has not run yet: its first [`end`](Self::end) is to flush, for all that was unmapped before.
        pub const fn new() -> Self {
            Self(AtomicU32::new(ASLEEP | OWES))
        }
    }

    /// This processor uses no translation until [`end`](Self::end) (I1). By itself, IF=0.
    #[inline]
    pub fn begin(&self) {
        self.0.fetch_or(ASLEEP, Ordering::AcqRel);
    }

    /// This processor is awake. True: it forgets everything before it does anything else. By itself, IF=0.
    #[inline]
    #[must_use = "a flush that is owed must be done"]
    pub fn end(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) & OWES != 0
    }

    /// Leaves the flush to a processor that is asleep. False: it is awake, and must be told.
    #[inline]
    fn defer(&self) -> bool {
        // The load spares an awake one's cache line; only the exchange decides that it sleeps.
        self.is_asleep() && self.0.fetch_or(OWES, Ordering::AcqRel) & ASLEEP != 0
    }

    /// Stale at once.
    #[inline]
    pub fn is_asleep(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ASLEEP != 0
    }
}

impl Default for Sleep {
    fn default() -> Self {
        Self::new()
    }
}

/// The machine as this protocol needs it.
///
/// # Safety
/// `sleep(n)` is the same every time and another one for each n. After `forget(extent)` this processor has no translation of
/// `extent` cached that ended before. `online()` has every processor that may use translations, or that has not ended its first sleep.
pub unsafe trait Machine: ipi::Processors + Sync {
    /// Processor `number`'s.
    fn sleep(&self, number: u32) -> &Sleep;

    /// All processors that take interrupts.
    fn online(&self) -> u64;

    /// On this processor.
    fn forget(&self, extent: &Extent<'_>);
}

/// Pages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one's address.
    pub start: u64,
    /// How many.
    pub pages: u32,
}

/// What is to be forgotten.
#[derive(Clone, Copy, Debug)]
pub enum Extent<'a> {
    /// These pages.
    Runs(&'a [Run]),
    /// All of the user half.
    User,
    /// Everything, the kernel half's included.
    Everything,
}

/// Whose translations ended.
#[derive(Clone, Copy)]
pub enum Owner<'a> {
    /// The kernel half's: every processor may have them.
    Kernel,
    /// One address space's.
    Space(&'a Space),
}

/// Returns when no processor reaches anything by translations of `extent` that ended before the call.
pub fn flush<M: Machine, L: Below<Ipi>>(machine: &M, owner: Owner<'_>, extent: Extent<'_>, at: &mut Irql<L>) {
    let targets = match owner {
        Owner::Kernel => machine.online(),
        Owner::Space(space) => space.end_translations(),
    };
    let mut awake = targets;
    let mut left = targets;
    while left != 0 {
        let number = left.trailing_zeros();
        left &= left - 1;
        // This processor itself is awake. If the thread moves meanwhile, both have flushed, or were asleep (I2).
        if machine.sleep(number).defer() {
            awake &= !(1 << number);
        }
    }
    ipi::call(machine, awake, &|_: &mut Irql<Ipi>| machine.forget(&extent), at);
}

/// An address space, as to who may have its translations.
pub struct Space {
    /// No two alike, ever: what a PCID is remembered by.
    id: u64,
    /// Bit n: processor n has its tables loaded. Written by n.
    active: AtomicU64,
    /// Counts the ends of translations.
    generation: AtomicU64,
}

impl Space {
    const_unless_loom! {
        /// Loaded nowhere. `id` is used for no other one, and is not zero.
        pub const fn new(id: u64) -> Self {
            Self { id, active: AtomicU64::new(0), generation: AtomicU64::new(0) }
        }
    }

    /// Processor `me` is about to load its tables, and has nothing of them cached. Where PCIDs are used: [`Contexts::load`].
    #[inline]
    pub fn enter(&self, me: u32) {
        self.enter_seeing(me);
    }

    /// What it says is true until an interrupt is taken that flushes (I4).
    fn enter_seeing(&self, me: u32) -> Entered {
        self.active.fetch_or(1 << me, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Acquire: whoever sees a generation sees the entries that were emptied before it.
        Entered { id: self.id, generation: self.generation.load(Ordering::Acquire) }
    }

    /// Processor `me` has loaded others: Release, so that its last use of a translation comes before.
    #[inline]
    pub fn leave(&self, me: u32) {
        self.active.fetch_and(!(1 << me), Ordering::Release);
    }

    /// The processors that have it loaded; stale at once.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Entries were emptied: who must be told. Who enters later sees the generation.
    fn end_translations(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.active.load(Ordering::Acquire)
    }
}

/// A space as it was when a processor entered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entered {
    id: u64,
    generation: u64,
}

/// What one processor has cached under which PCID: the last `N` spaces that it ran. PCID 0 is that of no space.
///
/// A processor that left a space keeps its translations and is told of nothing; the generation at its return says whether any
/// ended. It is that of the last entry, so what was flushed while it was there is flushed once more: never too little.
pub struct Contexts<const N: usize> {
    cached: [Cell<Option<Entered>>; N],
    next: Cell<usize>,
}

/// How to load a space's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its PCID on this processor, from 1.
    pub pcid: u16,
    /// What is cached under it is all still true.
    pub keep: bool,
}

impl<const N: usize> Contexts<N> {
    /// None yet.
    pub const fn new() -> Self {
        Self { cached: [const { Cell::new(None) }; N], next: Cell::new(0) }
    }

    /// Processor `me` loads the tables of `space`: `load` does, as it is told. At IPI from before the space is entered: a flush that
    /// comes between would be of the PCID that is left, and what it ended would stay under the one that is kept (I4).
    #[inline]
    pub fn load<L: AtOrBelow<Ipi>>(
        &self,
        space: &Space,
        me: u32,
        at: &mut Irql<L>,
        load: impl FnOnce(Choice),
    ) {
        let _no_flush = at.raise::<Ipi>();
        load(self.choose(space.enter_seeing(me)));
    }

    /// For a space that this processor just entered: its own PCID if it still has one, else the oldest.
    fn choose(&self, entered: Entered) -> Choice {
        let known = self.cached.iter().position(|slot| slot.get().is_some_and(|it| it.id == entered.id));
        let slot = known.unwrap_or_else(|| {
            let oldest = self.next.get();
            self.next.set((oldest + 1) % N);
            oldest
        });
        let before = self.cached[slot].replace(Some(entered));
        Choice { pcid: slot as u16 + 1, keep: before == Some(entered) }
    }
}

impl<const N: usize> Default for Contexts<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_pcid_is_kept_until_something_ends_or_another_space_takes_it() {
        let contexts = Contexts::<2>::new();
        let [a, b, c] = [1, 2, 3].map(Space::new);
        let go = |space: &Space| {
            let choice = contexts.choose(space.enter_seeing(0));
            space.leave(0);
            (choice.pcid, choice.keep)
        };
        assert_eq!([go(&a), go(&b), go(&a), go(&b)], [(1, false), (2, false), (1, true), (2, true)]);
        assert_eq!(a.end_translations(), 0);
        assert_eq!([go(&a), go(&a)], [(1, false), (1, true)]);
        assert_eq!([go(&c), go(&b), go(&a)], [(1, false), (2, true), (2, false)]);
    }

    #[test]
    fn the_mask_names_those_that_have_it_loaded() {
        let space = Space::new(1);
        space.enter(3);
        space.enter(5);
        assert_eq!(space.end_translations(), 1 << 3 | 1 << 5);
        space.leave(3);
        assert_eq!(space.end_translations(), 1 << 5);
    }

    #[test]
    fn a_processor_owes_what_was_left_to_it_once() {
        let sleep = Sleep::new();
        assert!(sleep.end(), "what ended before its start");
        assert!(!sleep.defer() && !sleep.end());
        sleep.begin();
        assert!(sleep.defer() && sleep.defer());
        assert!(sleep.end());
        sleep.begin();
        assert!(!sleep.end());
    }
}
