//! Who takes pages of paged pool to a backing store: what it asks of one, and when it does so.
//!
//! ```text
//!  little memory is left ──► the writer's thread ─┐
//!  a promise that can't be made ──────────────────┼─► make_room: a batch is trimmed, what is modified is written
//!  a page to be read in, and no memory ───────────┘      one at a time
//! ```
//!
//! Owns:       the one [`BackingStore`], the thread. Not: which slots are taken (frames/store.rs), the steps (mm/paging.rs), the pool's
//!             part of them (paged/moves.rs).
//! IRQL:       [`register`] and [`withdraw`] PASSIVE; the rest APC, where it waits.
//! Locks:      `PASS`, under which pages are trimmed and written, so by one thread at a time (`mm::paging`, I1). Whoever holds it, and
//!             what a store does, never touches paged memory: it would wait for itself.
//! Invariants: I1 `STORE` has the store while a slot of it is taken.
//! Choice:     pages go in the order of their addresses, round and round. What is needed comes back from the lists of the PFN database for
//!             the price of a fault, so nobody looks at which were used.
//! Not as NT:  one store; it is given as an object and not as a file, as there are no files yet. Reading is one page at a time.
//! Tests:      selftest `memory_pager::*`; mutants `mm/pager_*`.
//! Sources:    WDK, "Paged pool", `MmAllocatePagesForMdl` on page files; bug check 0x7A.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use sync::SpinLock;
use sync::irql::{Apc, Dispatch, Irql, PageCacheAccess, Passive, PfnLock};

use super::frames::{Frames, Slots};
use super::paged::moves::{self, Missing};
use super::pfn::PageNumber;
use super::pool::{self, Tag};
use super::shootdown::Run;
use super::{Exhausted, is_refused, paged, physical, shootdown};
use crate::ex::{FastMutex, fast_mutex};
use crate::ke::event::{Event, EventKind};
use crate::ke::thread::{self, Thread, ThreadRef};
use crate::ke::timer::Due;
use crate::ke::wait;
use crate::rtl::NtStatus;

/// Somewhere that keeps pages.
///
/// # Safety
/// B1 what `read` gives is what was written to that slot last, if both say that they succeeded.
/// B2 the page is touched during the call alone, by the address in memory (`physical::address`) or its physical one.
/// B3 nothing that it does touches paged memory, or waits for somebody who may.
pub unsafe trait BackingStore: Sync {
    /// How many pages it keeps.
    fn slots(&self) -> u32;

    /// Saves the page's content. It may be changed by others meanwhile; then it will be written again, but what is read of it must not be
    /// relied on to stay.
    ///
    /// # Errors
    /// It is not saved.
    fn write(&self, slot: u32, page: PageNumber, at: &mut Irql<Apc>) -> Result<(), NtStatus>;

    /// Fills the page, which nobody else uses.
    ///
    /// # Errors
    /// Its content means nothing.
    fn read(&self, slot: u32, page: PageNumber, at: &mut Irql<Apc>) -> Result<(), NtStatus>;
}

const TAG: Tag = Tag::new(b"Page");
/// Pages that are trimmed at once.
pub(super) const BATCH: usize = 64;
/// The writer's thread: as NT's, above all that is not real-time.
const PRIORITY: u8 = 17;
/// While little memory is left, how often the thread looks, in units of 100 ns.
const AGAIN: u64 = 1_000_000;

/// How often room is made, or waited for a millisecond, before a lock is refused.
const PATIENCE: u32 = 64;

/// I1.
static STORE: SpinLock<Option<&'static dyn BackingStore>, PfnLock> = SpinLock::new(None);
/// Somebody registers or withdraws a store, or it is there.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// The writer's thread, a reference of it.
static WRITER: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());
/// It is to end.
static ENDING: AtomicBool = AtomicBool::new(false);
static WORK: Event = Event::new(EventKind::Synchronization, false);

/// Where the next trim begins: a page of the pool.
static PASS: FastMutex<u32> = fast_mutex(0);

static WRITTEN: AtomicU32 = AtomicU32::new(0);
static READ: AtomicU32 = AtomicU32::new(0);

/// What went out and came in so far, modulo 2³²; stale at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Pages written.
    pub written: u32,
    /// Pages read.
    pub read: u32,
    /// How much of the store is used.
    pub slots: Slots,
}

/// See [`Traffic`].
pub fn traffic(at: &mut Irql<Passive>) -> Traffic {
    Traffic {
        written: WRITTEN.load(Ordering::Relaxed),
        read: READ.load(Ordering::Relaxed),
        slots: with_frames(&mut at.raise::<Apc>(), |frames| frames.slots()),
    }
}

fn with_frames<R>(at: &mut Irql<Apc>, f: impl FnOnce(&mut Frames) -> R) -> R {
    physical::manager().with(&mut at.raise::<PageCacheAccess>(), f)
}

/// From now on pages of paged pool go to `store` when memory is needed.
///
/// # Errors
/// STATUS_DEVICE_ALREADY_ATTACHED: there is one. STATUS_INVALID_PARAMETER: it keeps nothing. STATUS_INSUFFICIENT_RESOURCES.
#[doc(alias = "NtCreatePagingFile")]
pub fn register(store: &'static dyn BackingStore, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let count = store.slots();
    if count == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    if TAKEN.swap(true, Ordering::Acquire) {
        return Err(NtStatus::DEVICE_ALREADY_ATTACHED);
    }
    let opened = open(store, count, at);
    if opened.is_err() {
        TAKEN.store(false, Ordering::Release);
    }
    opened
}

fn open(store: &'static dyn BackingStore, count: u32, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let options =
        thread::Options { name: thread::Name::new("page writer"), priority: PRIORITY, ..Default::default() };
    let words = Frames::store_words(count);
    let Ok(bitmap) = pool::allocate(TAG, words * 8, at) else { return Err(NtStatus::INSUFFICIENT_RESOURCES) };
    let bitmap = bitmap.cast::<u64>();
    // SAFETY: just allocated, aligned to 16, and nobody else's until the store is closed.
    let taken = unsafe {
        bitmap.write_bytes(0, words);
        core::slice::from_raw_parts_mut(bitmap.as_ptr(), words)
    };
    ENDING.store(false, Ordering::Relaxed);
    let writer = match thread::spawn(&options, run, 0, at) {
        Ok(writer) => writer,
        Err(status) => {
            // SAFETY: allocated above.
            unsafe { pool::free(bitmap.cast(), TAG, at) };
            return Err(status);
        }
    };
    *STORE.lock(at) = Some(store);
    let opened = match is_refused() {
        true => Err(taken),
        false => with_frames(&mut at.raise::<Apc>(), |frames| frames.open_store(taken, count)),
    };
    if let Err(taken) = opened {
        *STORE.lock(at) = None;
        end_writer(writer, at);
        give_bitmap(taken, at);
        return Err(NtStatus::INSUFFICIENT_RESOURCES);
    }
    WRITER.store(writer.into_raw().as_ptr(), Ordering::Relaxed);
    Ok(())
}

fn give_bitmap(bitmap: &'static mut [u64], at: &mut Irql<Passive>) {
    // SAFETY: allocated by `open`, and used no more.
    unsafe { pool::free(NonNull::from(bitmap).cast(), TAG, at) };
}

fn end_writer(writer: ThreadRef, at: &mut Irql<Passive>) {
    ENDING.store(true, Ordering::Release);
    WORK.set(0, at);
    let _ = wait::for_single(&*writer, None, at);
}

/// Reads everything in that is out, and does without the store from then on.
///
/// # Errors
/// The store stays. STATUS_NO_SUCH_DEVICE: there is none. STATUS_NO_MEMORY: there is too little memory for what is out. Else what the
/// store says that can't be read.
pub fn withdraw(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    // Whoever takes the thread does it.
    let Some(writer) = NonNull::new(WRITER.swap(ptr::null_mut(), Ordering::Acquire)) else {
        return Err(NtStatus::NO_SUCH_DEVICE);
    };
    match close(at) {
        Ok(bitmap) => {
            *STORE.lock(at) = None;
            // SAFETY: it was made a pointer by `open`, and taken once.
            end_writer(unsafe { ThreadRef::from_raw(writer) }, at);
            give_bitmap(bitmap, at);
            TAKEN.store(false, Ordering::Release);
            Ok(())
        }
        Err(status) => {
            with_frames(&mut at.raise::<Apc>(), |frames| frames.set_store_closing(false));
            WRITER.store(writer.as_ptr(), Ordering::Release);
            Err(status)
        }
    }
}

fn close(at: &mut Irql<Passive>) -> Result<&'static mut [u64], NtStatus> {
    let at = &mut at.raise::<Apc>();
    with_frames(at, |frames| frames.set_store_closing(true));
    loop {
        {
            // Who was in a pass is through; who begins one finds the store closing.
            let mut pass = PASS.lock(at);
            moves::bring_all_in(pass.parts().1).map_err(|missing| match missing {
                Missing::Memory => NtStatus::NO_MEMORY,
                Missing::Content(status) => status,
            })?;
        }
        if let Some(bitmap) = with_frames(at, Frames::close_store) {
            return Ok(bitmap);
        }
        // An address ended whose page somebody reads.
        let _ = wait::delay(Due::In(10_000), at);
    }
}

/// Little memory is left: by the DPC of `physical`, once. Kept for the writer, whether there is one now or not: one that is just made, or whose
/// store was to go and stays, must not sleep over it.
pub(super) fn wake(at: &mut Irql<Dispatch>) {
    WORK.set(0, at);
}

/// The writer's thread: while little memory is left, there is room to be made.
fn run(at: &mut Irql<Passive>, _: usize) {
    loop {
        let is_low = physical::conditions(at).low;
        let _ = wait::for_single(&WORK, is_low.then_some(Due::In(AGAIN)), at);
        if ENDING.load(Ordering::Acquire) {
            return;
        }
        while physical::conditions(at).low && make_room(&mut at.raise::<Apc>()) > 0 {}
    }
}

/// Trims a batch, and writes what is modified. Says how many pages that gained; they may be somebody's by now.
pub(super) fn make_room(at: &mut Irql<Apc>) -> u32 {
    if !with_frames(at, |frames| frames.is_store_open()) {
        return 0;
    }
    let mut pass = PASS.lock(at);
    let (cursor, at) = pass.parts();
    let trimmed = trim(cursor, at);
    let written = write_modified(at);
    with_frames(at, Frames::fill_reserve);
    trimmed.max(written)
}

/// As [`make_room`], for who can't go on without: where nothing can be gained, others have to give something back first.
pub(super) fn wait_for_room(at: &mut Irql<Apc>) {
    if make_room(at) == 0 {
        let _ = wait::delay(Due::In(10_000), at);
    }
}

/// Has the reserve filled (`frames::store`, I2), for who takes pages that will not go out again: touches rest on it. Where others take
/// what is gained, or nothing can be gained, it is given up: several who lock would wait for each other.
pub(super) fn spare_the_reserve(at: &mut Irql<Apc>) -> Result<(), Exhausted> {
    for _ in 0..PATIENCE {
        if with_frames(at, |frames| {
            frames.fill_reserve();
            frames.is_reserve_full()
        }) {
            return Ok(());
        }
        wait_for_room(at);
    }
    Err(Exhausted)
}

/// Takes everything of paged pool that can go to the store there, and says how many pages went: for tests.
#[doc(alias = "MmTrimAllSystemPagableMemory")]
pub fn send_all_out(at: &mut Irql<Passive>) -> u32 {
    let at = &mut at.raise::<Apc>();
    let mut gone = 0;
    for _ in 0..=paged::usage(at).resident as usize / BATCH {
        gone += make_room(at);
    }
    gone
}

fn trim(cursor: &mut u32, at: &mut Irql<Apc>) -> u32 {
    let mut batch = [0; BATCH];
    let marked = moves::begin_trim(cursor, &mut batch, at).unwrap_or(0);
    let batch = &batch[..marked];
    if batch.is_empty() {
        return 0;
    }
    let runs: [Run; BATCH] = core::array::from_fn(|index| Run {
        start: paged::address_of(*batch.get(index).unwrap_or(&batch[0])),
        pages: 1,
    });
    shootdown::flush_multiple(&runs[..marked], at);
    moves::end_trim(batch, at)
}

fn write_modified(at: &mut Irql<Apc>) -> u32 {
    let mut written = 0;
    while let Some((page, slot)) = with_frames(at, Frames::begin_write) {
        let place = slot.ok_or(NtStatus::UNSUCCESSFUL);
        let saved = place.and_then(|slot| store(at)?.write(slot, page, at));
        with_frames(at, |frames| frames.end_write(page, slot, saved.is_ok()));
        if let Err(status) = saved {
            // The page keeps its content, and is tried again by the next pass.
            crate::warn!("a page can't be written to the backing store: {:#x}", status.0);
            break;
        }
        written += 1;
    }
    WRITTEN.fetch_add(written, Ordering::Relaxed);
    written
}

fn store(at: &mut Irql<Apc>) -> Result<&'static dyn BackingStore, NtStatus> {
    (*STORE.lock(at)).ok_or(NtStatus::NO_SUCH_DEVICE)
}

/// Fills `page` from `slot`, which is taken.
pub(super) fn read(slot: u32, page: PageNumber, at: &mut Irql<Apc>) -> Result<(), NtStatus> {
    let read = store(at)?.read(slot, page, at);
    READ.fetch_add(1, Ordering::Relaxed);
    read
}
