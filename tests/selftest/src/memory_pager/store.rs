//! A backing store for tests: memory that was taken before they measure anything; and the memory that they take away from all others.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::paging::PAGE;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::wait;
use kernel::mm::pager::{self, BackingStore};
use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use kernel::mm::zeroing::Pause;
use kernel::rtl::NtStatus;
use sync::irql::{Apc, Irql, Passive};

use crate::memory_paged::Baseline;
use crate::runner::{Result, Verdict, check};

pub(super) const SLOTS: usize = 320;

/// Memory as a store: a page for each slot.
pub(super) struct RamStore {
    pub(super) pages: [AtomicU64; SLOTS],
    /// Writes fail.
    pub(super) is_full: AtomicBool,
    /// Reads fail.
    pub(super) is_broken: AtomicBool,
    /// Reads wait for the event.
    pub(super) is_slow: AtomicBool,
    pub(super) reads: AtomicU32,
}

pub(super) static STORE: RamStore = RamStore {
    pages: [const { AtomicU64::new(0) }; SLOTS],
    is_full: AtomicBool::new(false),
    is_broken: AtomicBool::new(false),
    is_slow: AtomicBool::new(false),
    reads: AtomicU32::new(0),
};

/// Slow reads go on.
pub(super) static GO_ON: Event = Event::new(EventKind::Notification, false);

impl RamStore {
    pub(super) fn place(&self, slot: u32) -> *mut u64 {
        (arch::paging::hhdm() + self.pages[slot as usize].load(Ordering::Relaxed)) as *mut u64
    }
}

/// Copies a page, word by word: its words may be written by others meanwhile.
///
/// # Safety
/// Both are pages, `to` nobody else's.
unsafe fn copy(from: *const u64, to: *mut u64) {
    for word in 0..PAGE as usize / 8 {
        // SAFETY: the caller's.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

// SAFETY: B1 a page of its own for each slot. B2 copied during the calls. B3 nothing here is paged; who sets the event touches nothing
//         paged before.
unsafe impl BackingStore for RamStore {
    fn slots(&self) -> u32 {
        SLOTS as u32
    }

    fn write(&self, slot: u32, page: PageNumber, _: &mut Irql<Apc>) -> core::result::Result<(), NtStatus> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(NtStatus::UNSUCCESSFUL);
        }
        // SAFETY: the slot's page, and the one to be saved.
        unsafe { copy(physical::address(page).cast(), self.place(slot)) };
        Ok(())
    }

    fn read(&self, slot: u32, page: PageNumber, at: &mut Irql<Apc>) -> core::result::Result<(), NtStatus> {
        self.reads.fetch_add(1, Ordering::AcqRel);
        if self.is_slow.load(Ordering::Acquire) {
            let _ = wait::for_single(&GO_ON, None, at);
        }
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(NtStatus::UNSUCCESSFUL);
        }
        // SAFETY: as above.
        unsafe { copy(self.place(slot), physical::address(page).cast()) };
        Ok(())
    }
}

/// The store has its memory, and is registered.
pub(super) fn begin(at: &mut Irql<Passive>) -> Result {
    for slot in &STORE.pages {
        let Ok(page) = physical::allocate(at) else {
            give_store(at);
            return Err(Verdict::Fail("no memory", 0, 0));
        };
        slot.store(page.into_number().physical(), Ordering::Relaxed);
    }
    STORE.is_full.store(false, Ordering::Relaxed);
    STORE.is_slow.store(false, Ordering::Relaxed);
    STORE.reads.store(0, Ordering::Relaxed);
    GO_ON.reset(at);
    had(pager::register(&STORE, at), "register").inspect_err(|_| give_store(at))
}

/// The store's memory goes.
pub(super) fn give_store(at: &mut Irql<Passive>) {
    for slot in &STORE.pages {
        free_at(slot.swap(0, Ordering::Relaxed), 1, at);
    }
}

/// Where an allocation was refused, the store may stay for once, or be gone.
pub(super) fn end(at: &mut Irql<Passive>) -> Result {
    let withdrawn = pager::withdraw(at);
    let gone = match withdrawn {
        Err(NtStatus::NO_MEMORY) => pager::withdraw(at),
        other => other,
    };
    if matches!(gone, Ok(()) | Err(NtStatus::NO_SUCH_DEVICE)) {
        give_store(at);
    }
    had(withdrawn, "withdraw")
}

pub(super) fn had(done: core::result::Result<(), NtStatus>, what: &'static str) -> Result {
    let status = done.err().map_or(0, |status| status.0);
    check(status == 0, what, status.into(), 0)
}

/// Runs a test with the store, and compares with what was before.
pub(super) fn with_store(at: &mut Irql<Passive>, test: fn(&mut Irql<Passive>) -> Result) -> Result {
    // No page is on its way to be cleared while they are counted.
    let _pause = Pause::begin(at);
    let baseline = Baseline::take(at);
    begin(at)?;
    let result = test(at);
    let ended = end(at);
    result?;
    ended?;
    baseline.compare(at)
}

/// Gives pages back that were taken together.
pub(super) fn free_at(physical: u64, count: u32, at: &mut Irql<Passive>) {
    let Some(number) = physical::in_use(physical / PAGE, at) else { return };
    // SAFETY: the tests' own pages, which nobody uses any more.
    unsafe {
        match count {
            1 => physical::free(Page::from_number(number), at),
            _ => physical::free_contiguous(Page::from_number(number), count, at),
        }
    }
}

/// All of the memory, in runs of these sizes, each a list through its pages.
pub(super) struct Held([u64; RUNS.len()]);

pub(super) const RUNS: [u32; 3] = [512, 32, 1];

impl Held {
    /// Takes what there is but for about `left` pages.
    pub(super) fn all_but(left: u32, at: &mut Irql<Passive>) -> Self {
        let kept = Self::take(left, [0, 0, 1], at);
        let held = Self::take(u32::MAX, RUNS, at);
        kept.give(at);
        held
    }

    /// Takes runs, at most `most` of each size.
    pub(super) fn take(most: u32, runs: [u32; RUNS.len()], at: &mut Irql<Passive>) -> Self {
        let mut held = Self([0; RUNS.len()]);
        for (first, count) in held.0.iter_mut().zip(runs).filter(|&(_, count)| count > 0) {
            for _ in 0..most {
                let Ok(page) = physical::allocate_contiguous(count, 0, None, at) else { break };
                // SAFETY: the test's own page.
                unsafe { physical::address(page.number()).cast::<u64>().write(*first) };
                *first = page.into_number().physical() | 1;
            }
        }
        held
    }

    pub(super) fn give(self, at: &mut Irql<Passive>) {
        for (mut first, count) in self.0.into_iter().zip(RUNS) {
            while first != 0 {
                let physical = first & !1;
                // SAFETY: the test's own page.
                first = unsafe { ((arch::paging::hhdm() + physical) as *const u64).read() };
                free_at(physical, count, at);
            }
        }
    }
}
