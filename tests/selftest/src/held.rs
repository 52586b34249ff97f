//! What a test has: where it ends early, since an allocation was refused on purpose (`inject`), all goes back nevertheless.
//!
//! Pages by number go back when the runner says so, and threads that still run or wait are ended then; lists, blocks and pages in a row are values that a test drops, the later first.

use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use kernel::ke::sched;
use kernel::ke::thread::{self, Thread, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait;
use kernel::mm::mdl::{Mdl, flags};
use kernel::mm::mdl_pages;
use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use kernel::mm::pool::{self, Tag};
use kernel::ob::{Body, HandleTable, ObRef};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::runner::Verdict;

/// Numbers plus one; zero is empty.
static HELD: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];

/// A page of zeroes.
pub(crate) fn page(at: &mut Irql<Passive>) -> Result<PageNumber, Verdict> {
    let page = physical::allocate_zeroed(at).map_err(|_| Verdict::Fail("no page", 0, 0))?.into_number();
    if let Some(slot) = HELD.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) {
        slot.store(u64::from(page.number()) + 1, Ordering::Relaxed);
    }
    Ok(page)
}

/// Takes it back; the test has no mapping of it any more.
pub(crate) fn free(page: PageNumber, at: &mut Irql<Passive>) {
    let number = u64::from(page.number()) + 1;
    if let Some(slot) = HELD.iter().find(|slot| slot.load(Ordering::Relaxed) == number) {
        slot.store(0, Ordering::Relaxed);
    }
    // SAFETY: from `page`, mapped nowhere else any more.
    physical::free(unsafe { Page::from_number(page) }, at);
}

/// Takes back what the last test still has: it ended between two of its allocations, before it mapped anything.
pub(crate) fn release(at: &mut Irql<Passive>) {
    for slot in &HELD {
        let number = slot.swap(0, Ordering::Relaxed);
        if let Some(page) = number.checked_sub(1).and_then(|number| physical::in_use(number, at)) {
            // SAFETY: taken by `page`, and not given back.
            physical::free(unsafe { Page::from_number(page) }, at);
        }
    }
}

/// Threads that the test has made, while an allocation of it is refused: a reference of each.
static THREADS: [AtomicPtr<Thread>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];
/// Are they noted?
static NOTES: AtomicBool = AtomicBool::new(false);

/// From now on threads are noted, for [`end_threads`].
pub(crate) fn note_threads() {
    NOTES.store(true, Ordering::Relaxed);
}

/// The test made a thread.
pub(crate) fn note(it: &ThreadRef) {
    if !NOTES.load(Ordering::Relaxed) {
        return;
    }
    let mut new = Some(it.reference());
    for slot in &THREADS {
        // One that has ended needs nobody, and its memory is to be freed.
        let old = take(slot).filter(|old| !old.is_terminated());
        if let Some(it) = old.or_else(|| new.take()) {
            slot.store(it.into_raw().as_ptr(), Ordering::Relaxed);
        }
    }
}

fn take(slot: &AtomicPtr<Thread>) -> Option<ThreadRef> {
    let raw = NonNull::new(slot.swap(ptr::null_mut(), Ordering::Relaxed))?;
    // SAFETY: made a pointer by `note`, and taken once.
    Some(unsafe { ThreadRef::from_raw(raw) })
}

/// What became of the test's threads.
#[derive(Default)]
pub(crate) struct Ended {
    /// Some were noted, and their memory kept.
    pub(crate) noted: bool,
    /// So many had not ended.
    pub(crate) ended: u32,
    /// So many of these did not end in ten seconds: they wait for a lock that the test has kept.
    pub(crate) stuck: u32,
}

/// Ends what runs or waits still of the test's threads, which ended before it told them to.
pub(crate) fn end_threads(at: &mut Irql<Passive>) -> Ended {
    NOTES.store(false, Ordering::Relaxed);
    let mut all = Ended::default();
    for it in THREADS.iter().filter_map(take) {
        all.noted = true;
        if !it.is_terminated() {
            all.ended += 1;
            // SAFETY: a test's thread, and the test is over: nobody looks at its stack, or waits for what it would do. What it held of
            //         the kernel's it held in a region, which ends first.
            let _ = unsafe { it.terminate(NtStatus::CANCELLED, at) };
            let ended = wait::for_single(&*it, Some(Due::In(100_000_000)), at);
            all.stuck += u32::from(ended != NtStatus::SUCCESS);
        }
    }
    all
}

/// Runs `f` where a value is dropped, which has no token.
pub(crate) fn at_passive(f: impl FnOnce(&mut Irql<Passive>)) {
    assert_eq!(arch::irql::current(), 0, "dropped at PASSIVE, where tests run");
    // SAFETY: 1. just asserted, and what interrupts this code restores the level. 2. no token is used until the drop returns.
    unsafe { Irql::<Passive>::with(f) }
}

/// Where the test's thread may run, and its priority: again so when this goes.
pub(crate) struct Placed(u64, u8);

impl Placed {
    pub(crate) fn here(at: &mut Irql<Passive>) -> Self {
        let me = thread::current(at);
        Self(me.scheduling().affinity(), me.scheduling().base())
    }

    /// Is it so now?
    pub(crate) fn holds(&self, at: &mut Irql<Passive>) -> bool {
        let me = thread::current(at);
        (me.scheduling().affinity(), me.scheduling().base()) == (self.0, self.1)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        at_passive(|at| {
            let me = thread::current(at).reference();
            let _ = sched::set_base_priority(&me, self.1, at);
            let _ = sched::set_affinity(&me, self.0, at);
        });
    }
}

/// An object with a name, which it has until this goes.
pub(crate) struct Named<T: Body>(pub(crate) ObRef<T>);

impl<T: Body> Deref for Named<T> {
    type Target = ObRef<T>;

    fn deref(&self) -> &ObRef<T> {
        &self.0
    }
}

impl<T: Body> Drop for Named<T> {
    fn drop(&mut self) {
        at_passive(|at| self.0.make_temporary(at));
    }
}

/// A table of handles, which are closed when this goes.
pub(crate) struct Table(pub(crate) HandleTable);

impl Deref for Table {
    type Target = HandleTable;

    fn deref(&self) -> &HandleTable {
        &self.0
    }
}

impl DerefMut for Table {
    fn deref_mut(&mut self) -> &mut HandleTable {
        &mut self.0
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // Nothing where the test has done it.
        at_passive(|at| self.0.end(at));
    }
}

/// A memory descriptor list that the test made. Its drop unlocks, unmaps and frees it.
pub(crate) struct List(Option<Mdl>);

impl List {
    pub(crate) fn new(address: *mut u8, bytes: u32, at: &mut Irql<Passive>) -> Result<Self, Verdict> {
        let list = mdl_pages::allocate(address, bytes, at);
        list.map(|list| Self(Some(list))).map_err(|_| Verdict::Fail("no list", 0, 0))
    }
}

impl Deref for List {
    type Target = Mdl;

    fn deref(&self) -> &Mdl {
        self.0.as_ref().expect("taken by the drop alone")
    }
}

impl DerefMut for List {
    fn deref_mut(&mut self) -> &mut Mdl {
        self.0.as_mut().expect("taken by the drop alone")
    }
}

impl Drop for List {
    fn drop(&mut self) {
        let Some(mut list) = self.0.take() else { return };
        at_passive(|at| {
            if list.has(flags::PAGES_LOCKED) {
                mdl_pages::unlock(&mut list, at);
            }
            // SAFETY: made by `new`, unlocked; nobody else has it.
            unsafe { mdl_pages::free(list, at) };
        });
    }
}

/// A block of nonpaged pool that the test took.
pub(crate) struct Block(NonNull<u8>, Tag);

impl Block {
    pub(crate) fn new(tag: Tag, size: usize, at: &mut Irql<Passive>) -> Result<Self, Verdict> {
        let block = pool::allocate(tag, size, at).map_err(|_| Verdict::Fail("no pool", size as u64, 0))?;
        Ok(Self(block.cast(), tag))
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: taken by `new`; the test uses it no more.
        at_passive(|at| unsafe { pool::free(self.0, self.1, at) });
    }
}

/// Pages in a row that the test took.
pub(crate) struct Run<const N: usize>([PageNumber; N]);

impl<const N: usize> Run<N> {
    pub(crate) fn new(at: &mut Irql<Passive>) -> Result<Self, Verdict> {
        let first = physical::allocate_contiguous(N as u32, 0, None, at);
        let first = first.map_err(|_| Verdict::Fail("no pages", N as u64, 0))?.into_number();
        let mut pages = [first; N];
        for (behind, page) in (0..).zip(&mut pages) {
            let number = u64::from(first.number()) + behind;
            *page = physical::in_use(number, at).ok_or(Verdict::Fail("a page not in use", number, 0))?;
        }
        Ok(Self(pages))
    }

    pub(crate) fn numbers(&self) -> [PageNumber; N] {
        self.0
    }

    /// Where the HHDM has them.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        physical::address(self.0[0])
    }
}

impl<const N: usize> Drop for Run<N> {
    fn drop(&mut self) {
        // SAFETY: so many were taken by `new`; nothing of the test's leads there any more.
        at_passive(|at| unsafe { physical::free_contiguous(Page::from_number(self.0[0]), N as u32, at) });
    }
}
