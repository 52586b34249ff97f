//! This machine's address spaces: which one a processor has loaded, attach, and the faults of its user half.
//!
//! IRQL:       [`attached`] at PASSIVE and APC; the loading itself at DISPATCH.
//! Invariants: I1 what a processor has loaded is what its running thread is attached to, `Thread::space`, or the kernel's own tables:
//!                both change together, at DISPATCH, here and at a switch between threads that differ.
//!             I2 a space that a thread is attached to is borrowed by an `attached` of the thread that has not returned. One that
//!                never will belongs to a thread that ended, and doesn't run.
//! Idle:       a processor that halts was left by the threads that were attached: it has the kernel's tables. Where it has not, it is
//!             not told of what ends, and forgets all when it wakes (`mm::shootdown`).
//! Not as NT:  a process's threads have its tables loaded by themselves; here they will attach.
//! Tests:      selftest `process::*`.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::attention::Signs;
use sync::irql::{
    AddressSpaceLock, Below, Dispatch, Ipi, Irql, MayBlock, PageCacheAccess, PfnLock, PoolAccess, SpaceLock,
};
use sync::shootdown::{Run, Space};

use super::fault::Resolution;
use super::hold::Refused;
use super::machine::{Commit, Machine};
use super::protection::Access;
use super::space::AddressSpace;
use crate::ke::thread::{self, Thread};
use crate::mm::pages::Page;
use crate::mm::pfn::{Memory, PageNumber};
use crate::mm::pool::{self, Tag};
use crate::mm::{Exhausted, physical, shootdown, system_pte};

/// The kernel's machine.
#[derive(Clone, Copy, Debug)]
pub struct Here;

/// An address space of this machine.
pub type ProcessSpace = AddressSpace<Here>;

static COMMIT: Commit = Commit::new(0);
/// Of the kernel's own tables.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);
static NAMES: AtomicU64 = AtomicU64::new(0);
const TAG: Tag = Tag::new(b"Vad ");

/// The kernel's tables are `root`, and complete. What is free now, less a sixteenth for the kernel, may be committed.
pub(crate) fn start<L: Below<PageCacheAccess>>(root: u64, at: &mut Irql<L>) {
    KERNEL_ROOT.store(root, Relaxed);
    let free = u64::from(physical::available(at));
    COMMIT.set_limit(free - free / 16);
}

/// What is committed on this machine.
pub fn commit() -> &'static Commit {
    &COMMIT
}

/// More memory was found: the loader's.
pub(crate) fn add_memory(pages: u32) {
    COMMIT.set_limit(COMMIT.limit() + u64::from(pages));
}

// SAFETY: 1. pages and blocks are the page manager's and the pool's, which hand out each once; pages are reached by the HHDM. 2. the
//         flush is mm::shootdown's, which returns when every processor that may have cached the space has forgotten: INVLPG
//         forgets what leads to any page, too. 3. the kernel's root is complete before a space is made, and its upper half
//         doesn't change any more (mm::tables, `complete_root`).
unsafe impl Machine for Here {
    fn memory(self) -> Memory {
        physical::manager().memory()
    }

    fn commit(&self) -> &Commit {
        &COMMIT
    }

    fn new_name(self) -> u64 {
        NAMES.fetch_add(1, Relaxed) + 1
    }

    fn enter_kernel_half<L: Below<SpaceLock>>(self, root: PageNumber, at: &mut Irql<L>) {
        system_pte::enter_kernel_half(root, at);
    }

    fn allocate<L: Below<PageCacheAccess>>(self, zeroed: bool, at: &mut Irql<L>) -> Result<Page, Exhausted> {
        if zeroed { physical::allocate_zeroed(at) } else { physical::allocate(at) }
    }

    fn allocate_cleared<L: Below<PageCacheAccess>>(self, at: &mut Irql<L>) -> Option<Page> {
        physical::allocate_cleared(at)
    }

    fn free<L: Below<PageCacheAccess>>(self, page: Page, at: &mut Irql<L>) {
        physical::discard(page, at);
    }

    fn share<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>) {
        // In use, so it never comes back from a list.
        let _ = physical::manager().frames().lock(at).share(page);
    }

    fn unshare<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>) {
        physical::manager().frames().lock(at).unshare(page, false);
    }

    fn hold(self, page: PageNumber, written: bool, at: &mut Irql<AddressSpaceLock>) {
        let mut frames = physical::manager().frames().lock(at);
        frames.reference(page);
        if written {
            frames.memory().entry(page).set_dirty();
        }
    }

    fn let_go<L: Below<PageCacheAccess>>(self, page: PageNumber, at: &mut Irql<L>) {
        physical::dereference(page, at);
    }

    fn flush<L: Below<Ipi>>(self, space: &Space, runs: Option<&[Run]>, at: &mut Irql<L>) {
        match runs {
            Some(runs) => shootdown::flush_space_multiple(space, runs, at),
            None => shootdown::flush_space(space, at),
        }
    }

    fn block<T, L: Below<PoolAccess>>(self, at: &mut Irql<L>) -> Result<NonNull<T>, Exhausted> {
        const { assert!(align_of::<T>() <= 16, "what the pool aligns to") };
        Ok(pool::allocate(TAG, size_of::<T>(), at)?.cast())
    }

    unsafe fn free_block<T, L: Below<PoolAccess>>(self, block: NonNull<T>, at: &mut Irql<L>) {
        // SAFETY: the caller's.
        unsafe { pool::free(block.cast(), TAG, at) };
    }
}

/// Runs `f` with the user half of `space`, on whichever processor. Attached already: that one's again behind it.
#[doc(alias = "KeStackAttachProcess")]
#[doc(alias = "KeUnstackDetachProcess")]
pub fn attached<L: MayBlock + Below<Dispatch>, R>(
    space: &ProcessSpace,
    at: &mut Irql<L>,
    f: impl FnOnce(&mut Irql<L>) -> R,
) -> R {
    // SAFETY: `space` is borrowed until it is left again below (I2); a panic ends the machine.
    let before = unsafe { exchange(core::ptr::from_ref(space), at) };
    let result = f(at);
    // SAFETY: what was loaded before is borrowed by the `attached` around this one, or nothing.
    let after = unsafe { exchange(before, at) };
    debug_assert!(core::ptr::eq(after, space), "I1");
    result
}

/// Attaches the running thread to `space` (null: none). What it was attached to.
///
/// # Safety
/// `space` lives until another call here by this thread has replaced it (I2).
unsafe fn exchange<L: MayBlock + Below<Dispatch>>(
    space: *const ProcessSpace,
    at: &mut Irql<L>,
) -> *const ProcessSpace {
    let mut at = at.raise::<Dispatch>();
    let me = thread::current(&at);
    let loaded = me.space.replace(space.cast()).cast();
    if space.is_null() {
        me.attention.clear(Signs::ATTACHED);
    } else {
        me.attention.raise(Signs::ATTACHED);
    }
    if !core::ptr::eq(loaded, space) {
        // SAFETY: I1; the caller's.
        unsafe { load(loaded, space, &mut at) };
    }
    loaded
}

/// This processor switches from one thread to another, one of which is attached (`Signs::ATTACHED`): loads what the other is
/// attached to, if that is another space.
///
/// # Safety
/// 1. `from` ran here, and `to` is about to. 2. Nothing reaches the user's half until it does.
pub(crate) unsafe fn switch(from: &Thread, to: &Thread, at: &mut Irql<Dispatch>) {
    let space = |thread: &Thread| thread.space.get().cast::<ProcessSpace>();
    if !core::ptr::eq(space(from), space(to)) {
        // SAFETY: I1 for `from`; I2 for both: neither thread can return from its `attached` meanwhile.
        unsafe { load(space(from), space(to), at) };
    }
}

/// # Safety
/// `from` is what is loaded here (I1); `to` lives until it is replaced.
#[inline]
unsafe fn load(from: *const ProcessSpace, to: *const ProcessSpace, at: &mut Irql<Dispatch>) {
    // SAFETY: the caller's: both live.
    let (from, to) = unsafe { (from.as_ref(), to.as_ref()) };
    let root = to.map_or(KERNEL_ROOT.load(Relaxed), ProcessSpace::root);
    // SAFETY: the caller's; a space's root has the kernel half of all.
    unsafe { shootdown::load(from.map(ProcessSpace::loaded), to.map(ProcessSpace::loaded), root, at) };
}

/// Holds pages of the space that the running thread is attached to, and says whose they are (for KMdl's `process`); attached to none, it
/// is as if nothing was mapped.
pub(crate) fn hold<L>(
    first: u64,
    access: Access,
    pages: &mut [u64],
    at: &mut Irql<L>,
) -> Result<*const ProcessSpace, Refused>
where
    L: MayBlock + Below<AddressSpaceLock>,
{
    let space = thread::current(at).space.get().cast::<ProcessSpace>();
    // SAFETY: I2: the caller runs within the `attached` that borrows it.
    let Some(space) = (unsafe { space.as_ref() }) else {
        return Err(Refused { why: Resolution::AccessViolation, page: 0 });
    };
    space.hold(first, access, pages, at)?;
    Ok(space)
}

/// Could `address` of the user half be read, in the space that the running thread is attached to, without a fault? A DPC asks of the
/// thread that it interrupted.
pub(crate) fn is_valid<L: Below<AddressSpaceLock>>(address: u64, at: &mut Irql<L>) -> bool {
    let space = thread::current(at).space.get().cast::<ProcessSpace>();
    // SAFETY: I2: what runs here is the thread within the `attached` that borrows it, or has interrupted that.
    let space = unsafe { space.as_ref() };
    space.is_some_and(|space| space.translate(address, Access::Read, at).is_some())
}

/// Resolves a fault at `address` of the user half in the space that the running thread is attached to; `None`: to none.
pub(crate) fn resolve<L>(address: u64, access: Access, at: &mut Irql<L>) -> Option<Resolution>
where
    L: MayBlock + Below<AddressSpaceLock>,
{
    let space = thread::current(at).space.get().cast::<ProcessSpace>();
    // SAFETY: I2: the code that faulted runs within the `attached` that borrows it.
    let space = unsafe { space.as_ref() }?;
    Some(space.resolve(address, access, at))
}
