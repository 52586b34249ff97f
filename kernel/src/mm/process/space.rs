//! An address space: descriptors, tables, and the lock around both.
//!
//! Owns:       [`AddressSpace`], [`Vad`]; creation and destruction.
//! IRQL:       PASSIVE and APC, but for what is under the lock.
//! Locks:      `AddressSpaceLock`, then `SectionLock`, the pool's and the pages'. A spin lock, because nothing under it waits: no
//!             page is read in from anywhere, and other processors answer a flush while they spin for it. The work under it is
//!             bounded where pages are given back (`change`, by pieces) and by the tables of a range elsewhere. When pages are
//!             written out, a fault lets go of it to wait for one, as NT does with its working-set lock, and then it may become a
//!             push lock: whoever takes it has a token that may block.
//!             Not FIFO: where processors outnumber those that run them, each turn waits for one that is stopped (with 8 on 2, what all
//!             do at once took four times as long, whoever was kept out before). Who calls in a row keeps others out only while
//!             they don't look: a push lock will be handed over in order, and its waiters don't spin.
//! Invariants: I1 a page of the user half has a descriptor, or its entry is zero.
//!             I2 a page that is present in it is in use in the PFN database: a private one with one share, a section's with one
//!                for each entry that leads to it and one for the section.
//!             I3 a page is given back only when no processor has a translation of it: `change` flushes first, under the lock.
//!             I4 charged are: each committed page of private memory, each page of a view that copies, each table.
//!             I5 nobody has the space loaded when it is destroyed (a borrow, in `here::attached`; a bugcheck besides).
//! Reverse:    from a private page's entry in the PFN database one gets to its space (`tables`, I2). For trimming one more thing is
//!             missing: which views map a section's page. A list of views in the section would tell.
//! Not as NT:  no working set and no ageing; tables are freed as soon as they are empty.
//! Tests:      tests/props/tests/mm_process.rs; selftest `process::*`.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::SpinLock;
use sync::irql::{AddressSpaceLock, Below, Irql};
use sync::shootdown::Space;

use super::entry::Entry;
use super::machine::Machine;
use super::protection::{Access, Protection};
use super::section::SectionRef;
use super::tables::Tables;
use crate::ke::bugcheck::StopCode;
use crate::mm::Exhausted;
use crate::mm::pfn::{PAGE_SIZE, PageNumber};
use crate::mm::vad::{GRANULARITY, Node, Span, Tree};
use crate::rtl::NtStatus;

/// What user mode may have: all but the first and the last 64 KiB of the lower half, which are never mapped.
pub const USER: Span = Span { first: GRANULARITY, end: (1 << 35) - GRANULARITY };

/// The highest address that is in [`USER`].
#[doc(alias = "MM_HIGHEST_USER_ADDRESS")]
pub const HIGHEST: u64 = USER.end * PAGE_SIZE as u64 - 1;

/// A virtual address descriptor.
pub struct Vad<M: Machine> {
    /// What it was reserved or mapped with.
    pub(super) protection: Protection,
    pub(super) kind: Kind<M>,
    /// It is being released: nobody but its releaser does anything with it.
    pub(super) is_going: bool,
}

/// What the pages are.
pub(super) enum Kind<M: Machine> {
    /// This space's alone. `committed`: those whose entry is zero are.
    Private { committed: bool },
    /// A section's, from this page of it on.
    View { section: SectionRef<M>, first: u64 },
}

pub(super) type VadNode<M> = Node<Vad<M>>;

/// What a page is, whatever its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    Reserved,
    Committed(Protection),
}

impl<M: Machine> Vad<M> {
    /// What an entry of one of its pages means.
    pub(super) fn state(&self, entry: Entry) -> PageState {
        match (entry, &self.kind) {
            (Entry::Demand(protection) | Entry::Page { protection, .. }, _) => {
                PageState::Committed(protection)
            }
            (Entry::Default, Kind::View { .. } | Kind::Private { committed: true }) => {
                PageState::Committed(self.protection)
            }
            (Entry::Default, Kind::Private { committed: false }) | (Entry::Decommitted, _) => {
                PageState::Reserved
            }
        }
    }

    /// Is each of its pages charged, as it may be copied (I4)?
    pub(super) fn charges_copies(&self) -> bool {
        matches!(self.kind, Kind::View { .. }) && self.protection.copies()
    }
}

/// What the lock protects.
pub(super) struct Inner<M: Machine> {
    pub(super) machine: M,
    pub(super) tables: Tables,
    pub(super) vads: Tree<Vad<M>>,
    /// Pages of its own.
    pub(super) private_pages: u64,
}

/// See the module. Dropping one leaks it, since its end needs a level: [`destroy`](Self::destroy).
#[must_use = "a dropped address space is lost"]
pub struct AddressSpace<M: Machine> {
    pub(super) machine: M,
    /// Who has it loaded.
    pub(super) loaded: Space,
    root: PageNumber,
    pub(super) inner: SpinLock<Inner<M>, AddressSpaceLock>,
}

/// Sizes, in pages; stale at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Descriptors.
    pub descriptors: usize,
    /// Page tables, the root included.
    pub tables: u32,
    /// Pages of its own.
    pub private: u64,
}

impl<M: Machine> AddressSpace<M> {
    /// An empty one, with the kernel half of all.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES, STATUS_COMMITMENT_LIMIT.
    #[doc(alias = "MmCreateProcessAddressSpace")]
    pub fn create<L: Below<AddressSpaceLock>>(machine: M, at: &mut Irql<L>) -> Result<Self, NtStatus> {
        machine.commit().charge(1).map_err(|_| NtStatus::COMMITMENT_LIMIT)?;
        let Ok(root) = machine.allocate(true, &mut at.raise::<AddressSpaceLock>()) else {
            machine.commit().uncharge(1);
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        };
        let number = root.number();
        machine.enter_kernel_half(number, &mut at.raise::<AddressSpaceLock>());
        let name = machine.new_name();
        let tables = Tables::new(machine.memory(), root, 4, name);
        let inner = Inner { machine, tables, vads: Tree::new(), private_pages: 0 };
        Ok(Self { machine, loaded: Space::new(name), root: number, inner: SpinLock::new(inner) })
    }

    /// Gives back all that it has. Its views' sections lose a reference each.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x420, root, processors, 0) if a processor has it loaded (I5).
    #[doc(alias = "MmDeleteProcessAddressSpace")]
    pub fn destroy<L: Below<AddressSpaceLock>>(self, at: &mut Irql<L>) {
        let loaded = self.loaded.active();
        if loaded != 0 {
            arch::fatal(StopCode::MemoryManagement as u32, [0x420, self.root.physical(), loaded, 0]);
        }
        loop {
            let first = self.inner.lock(at).vads.first_from(0).map(|node| node.span().first);
            let Some(first) = first else { break };
            self.release_whole(first, at);
        }
        let root = self.inner.into_inner().tables.into_root();
        self.machine.free(root, &mut at.raise::<AddressSpaceLock>());
        self.machine.commit().uncharge(1);
    }

    /// The tables' physical address.
    pub fn root(&self) -> u64 {
        self.root.physical()
    }

    /// Who has it loaded.
    pub fn loaded(&self) -> &Space {
        &self.loaded
    }

    /// How large it is.
    pub fn sizes<L: Below<AddressSpaceLock>>(&self, at: &mut Irql<L>) -> Sizes {
        let inner = self.inner.lock(at);
        Sizes { descriptors: inner.vads.count(), tables: inner.tables.count(), private: inner.private_pages }
    }

    /// The page that user mode reaches for `access` at `address` as it is now, without a fault. It may be another at once.
    pub fn translate<L: Below<AddressSpaceLock>>(
        &self,
        address: u64,
        access: Access,
        at: &mut Irql<L>,
    ) -> Option<PageNumber> {
        let page = Some(address / PAGE_SIZE as u64).filter(|&page| USER.contains(page))?;
        let inner = self.inner.lock(at);
        let bits = inner.tables.leaf(page)?.load(Relaxed);
        match Entry::decode(bits) {
            Entry::Page { number, .. } if Entry::lets(bits, access) => {
                // SAFETY: an entry's page is in use (I2).
                Some(unsafe { PageNumber::new(number) })
            }
            _ => None,
        }
    }

    /// A node for the tree.
    pub(super) fn new_node<L: Below<AddressSpaceLock>>(
        &self,
        span: Span,
        vad: Vad<M>,
        at: &mut Irql<L>,
    ) -> Result<NonNull<VadNode<M>>, (Exhausted, Vad<M>)> {
        match self.machine.block::<VadNode<M>, _>(&mut at.raise::<AddressSpaceLock>()) {
            Ok(block) => {
                // SAFETY: a fresh block for it.
                unsafe { block.write(Node::new(span, vad)) };
                Ok(block)
            }
            Err(Exhausted) => Err((Exhausted, vad)),
        }
    }

    /// What the node said; its memory is given back.
    ///
    /// # Safety
    /// It came from [`new_node`](Self::new_node), and is in no tree.
    pub(super) unsafe fn free_node<L: Below<AddressSpaceLock>>(
        &self,
        node: NonNull<VadNode<M>>,
        at: &mut Irql<L>,
    ) -> Vad<M> {
        // SAFETY: the caller's: a valid node that nobody else reaches; read once.
        let node_value = unsafe { node.read() };
        // SAFETY: as above; what it held was moved out.
        unsafe { self.machine.free_block(node, &mut at.raise::<AddressSpaceLock>()) };
        node_value.value
    }

    /// Checks the invariants of the tree, the tables, I1, I2 and the charge (I4): its number of pages, or what is wrong with which
    /// page. For tests.
    pub fn verify<L: Below<AddressSpaceLock>>(&self, at: &mut Irql<L>) -> Result<u64, (&'static str, u64)> {
        self.inner.lock(at).verify()
    }
}

impl<M: Machine> Inner<M> {
    /// Tables for all of `span`. If it fails, those that came stay empty: `change::sweep`.
    pub(super) fn prepare(&mut self, span: Span, at: &mut Irql<AddressSpaceLock>) -> Result<(), Exhausted> {
        let mut page = span.first;
        while page < span.end {
            self.leaf_or_new(page, at)?;
            page = (page / super::tables::ENTRIES + 1) * super::tables::ENTRIES;
        }
        Ok(())
    }

    /// An entry of the last level, with its tables.
    pub(super) fn leaf_or_new(
        &mut self,
        page: u64,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Result<&AtomicU64, Exhausted> {
        let Self { machine, tables, .. } = self;
        let machine = *machine;
        let at = core::cell::RefCell::new(at);
        tables.leaf_or_new(
            page,
            || machine.new_table(&mut at.borrow_mut()),
            |page| machine.free_table(page, &mut at.borrow_mut()),
        )
    }

    fn verify(&self) -> Result<u64, (&'static str, u64)> {
        self.vads.verify().map_err(|what| (what, 0))?;
        let memory = self.machine.memory();
        let mut wrong = None;
        let (mut private, mut charged) = (0, u64::from(self.tables.count()));
        for node in self.vads.iter() {
            let vad = &node.value;
            if vad.charges_copies() || matches!(vad.kind, Kind::Private { committed: true }) {
                charged += node.span().pages();
            }
        }
        let tables = self.tables.verify(|page, bits, place| {
            let Some(node) = self.vads.find(page) else {
                wrong = Some(("an entry without a descriptor", page));
                return;
            };
            let is_private = matches!(node.value.kind, Kind::Private { .. });
            match (Entry::decode(bits), &node.value.kind) {
                (Entry::Decommitted, Kind::Private { committed: true }) => charged -= 1,
                (Entry::Demand(_) | Entry::Page { .. }, Kind::Private { committed: false }) => charged += 1,
                (Entry::Decommitted | Entry::Default, _) => {
                    wrong = Some(("an entry that says nothing", page))
                }
                _ => {}
            }
            if let Entry::Page { number, shared, .. } = Entry::decode(bits) {
                // SAFETY: an entry's page is in use (I2), so it has an entry in the database.
                let entry = memory.entry(unsafe { PageNumber::new(number) });
                private += u64::from(!shared);
                let (references, shares) = entry.counts();
                if entry.state() != Some(crate::mm::pfn::State::Active) || references == 0 {
                    wrong = Some(("a page that is not in use", page));
                }
                if shared == (shares < 2) || (shared && is_private) {
                    wrong = Some(("shares miscounted", page));
                }
                let owner = entry.owner.load(Relaxed);
                if !shared && owner != place {
                    wrong = Some(("a page that doesn't know where it is mapped", page));
                }
            }
        });
        tables.map_err(|what| (what, 0))?;
        if private != self.private_pages {
            return Err(("private pages miscounted", private));
        }
        wrong.map_or(Ok(charged), Err)
    }
}

/// A page's first byte.
pub(super) const fn address(page: u64) -> u64 {
    page * PAGE_SIZE as u64
}
