//! Queues: NT's KQUEUE, entries for threads that work them off, of which only so many run at once.
//!
//! A thread belongs to the queue that it took its last entry from. While it doesn't wait it is counted; where it waits for anything
//! else, another one of the queue's threads may take its place.
//!
//! IRQL:       insert at or below DISPATCH; remove at PASSIVE or APC.
//! Locks:      the object's.
//! Invariants: Q1 `current` is how many of its threads have an entry and don't wait; the signal state is how many entries are queued. Both
//!                change under the lock.
//!             Q2 an entry is queued and `current` is below `maximum` => nobody waits. Who makes either true hands an entry on.
//!             Q3 a thread that waits for the queue has its block last: who came last goes on first, for its stack is warm.
//!             Q4 a thread that belongs to a queue is counted whenever its level is below DISPATCH: it is let go and counted again, and its
//!                entry taken, in the one stay at DISPATCH that its wait for the queue is. So what an APC does there, it does as any thread.
//! Not as NT:  a queue lives for ever, so it keeps no list of its threads. When a thread's wait is over the count may get above the
//!             maximum for as long as all of them run, as on NT.
//! Tests:      tests/models/tests/queue.rs (Q1, Q2), whose steps are a copy of these; tests/props/tests/dispatcher.rs (Q3).
//! Sources:    WDK, `KeInitializeQueue`, `KeInsertQueue`, `KeRemoveQueue`, `KeRundownQueue`; Win32, "I/O Completion Ports".

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sync::attention::Signs;
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};
use sync::wait_word::Claim;

use super::object::{Header, kind};
use super::thread::{self, Thread};
use super::timer::Due;
use super::wait::{self, Alertable, CanWait, signal::Woken};
use super::{prcb, sched};
use crate::rtl::NtStatus;

/// What is queued: NT's LIST_ENTRY, and whether it is in a queue.
#[repr(C)]
pub struct QueueEntry {
    links: UnsafeCell<Links>,
    queued: AtomicBool,
}

struct Links {
    next: *const QueueEntry,
    previous: *const QueueEntry,
}

// SAFETY: `links` is accessed under the lock of the queue that it is in, which `queued` says.
unsafe impl Sync for QueueEntry {}
// SAFETY: as above.
unsafe impl Send for QueueEntry {}

impl QueueEntry {
    /// In no queue.
    pub const fn new() -> Self {
        Self {
            links: UnsafeCell::new(Links { next: ptr::null(), previous: ptr::null() }),
            queued: AtomicBool::new(false),
        }
    }
}

impl Default for QueueEntry {
    fn default() -> Self {
        Self::new()
    }
}

/// A queue. NT's KQUEUE, byte for byte.
#[repr(C)]
pub struct Queue {
    header: Header,
    /// Under the lock.
    entries: UnsafeCell<Entries>,
    /// Q1.
    current: AtomicU32,
    maximum: u32,
    _threads: [usize; 2],
}

struct Entries {
    first: *const QueueEntry,
    last: *const QueueEntry,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Queue>() == 64);
    assert!(offset_of!(Queue, entries) == 24 && offset_of!(Queue, current) == 40);
    assert!(offset_of!(Queue, maximum) == 44);
};

sync::nt_layout! {
    [] Queue = "KQUEUE" {
        header => "Header", entries => "EntryListHead", current => "CurrentCount", maximum => "MaximumCount",
        _threads => "ThreadListHead",
    }
}

// SAFETY: `entries` is accessed under the lock; the rest is atomics.
unsafe impl Sync for Queue {}
// SAFETY: a queue is moved only before it is used: its operations ask for `'static`.
unsafe impl Send for Queue {}

/// Where a new entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Before all others.
    Head,
    /// Behind them.
    Tail,
}

impl Entries {
    /// # Safety
    /// `entry` is in no queue; the lock is held.
    unsafe fn put(&mut self, entry: &'static QueueEntry, end: End) {
        let this = ptr::from_ref(entry);
        // SAFETY: those in the queue are valid for ever, and linked under the lock.
        unsafe {
            match end {
                End::Tail => {
                    *entry.links.get() = Links { next: ptr::null(), previous: self.last };
                    match self.last.as_ref() {
                        Some(last) => (*last.links.get()).next = this,
                        None => self.first = this,
                    }
                    self.last = this;
                }
                End::Head => {
                    *entry.links.get() = Links { next: self.first, previous: ptr::null() };
                    match self.first.as_ref() {
                        Some(first) => (*first.links.get()).previous = this,
                        None => self.last = this,
                    }
                    self.first = this;
                }
            }
        }
    }

    /// # Safety
    /// The lock is held.
    unsafe fn take(&mut self) -> Option<&'static QueueEntry> {
        // SAFETY: as above.
        unsafe {
            let entry: &'static QueueEntry = self.first.as_ref()?;
            self.first = (*entry.links.get()).next;
            match self.first.as_ref() {
                Some(first) => (*first.links.get()).previous = ptr::null(),
                None => self.last = ptr::null(),
            }
            Some(entry)
        }
    }
}

impl Queue {
    /// Empty; `maximum` of its threads run at once, 0: as many as there are processors.
    #[doc(alias = "KeInitializeQueue")]
    pub const fn new(maximum: u32) -> Self {
        Self {
            header: Header::new(kind::QUEUE, 0),
            entries: UnsafeCell::new(Entries { first: ptr::null(), last: ptr::null() }),
            current: AtomicU32::new(0),
            maximum,
            _threads: [0; 2],
        }
    }

    /// How many entries are queued. Stale at once.
    #[doc(alias = "KeReadStateQueue")]
    pub fn len(&self) -> u32 {
        self.header.signal_state() as u32
    }

    /// Is nothing queued? Stale at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of its threads have an entry and don't wait. Stale at once.
    pub fn running(&self) -> u32 {
        self.current.load(Ordering::Relaxed)
    }

    fn maximum(&self) -> u32 {
        if self.maximum == 0 { prcb::count() } else { self.maximum }
    }

    /// Under the lock.
    fn has_room(&self) -> bool {
        self.running() < self.maximum()
    }

    /// Under the lock.
    fn change_running(&self, by: i32) {
        self.current.store(self.running().wrapping_add_signed(by), Ordering::Relaxed);
    }

    /// Under the lock: an entry more or less is queued.
    fn change_len(&self, by: i32) {
        self.header.set_signal_state(self.header.signal_state() + by);
    }

    /// Queues `entry`, or hands it to a thread that waits; how many were queued before. `None`: it is in a queue already.
    #[doc(alias = "KeInsertQueue")]
    #[doc(alias = "KeInsertHeadQueue")]
    pub fn insert<L>(&'static self, entry: &'static QueueEntry, end: End, at: &mut Irql<L>) -> Option<u32>
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        if entry.queued.swap(true, Ordering::AcqRel) {
            return None;
        }
        let mut raised = at.raise::<Dispatch>();
        let mut woken = Woken::new();
        let before = {
            let mut guard = self.header.lock(&mut raised);
            let _ = guard.parts();
            let before = self.len();
            // SAFETY: the lock is held; in no queue, by the exchange.
            unsafe {
                (*self.entries.get()).put(entry, end);
                self.change_len(1);
                self.hand_on(&mut woken);
            }
            before
        };
        if !woken.is_empty() {
            woken.finish(0, &mut raised);
            sched::after_signal::<L>(&mut raised);
        }
        Some(before)
    }

    /// Gives the first entry to the thread that came last, as long as there are both and room (Q2, Q3).
    ///
    /// # Safety
    /// The lock is held.
    unsafe fn hand_on(&self, woken: &mut Woken) {
        // SAFETY: the lock is held; registered blocks and their threads stay until they are taken out under it.
        unsafe {
            let mut block = self.header.last_waiter();
            while let Some(it) = block.as_mut() {
                if !self.has_entry_and_room() {
                    return;
                }
                block = it.previous();
                let thread = &*it.thread();
                let claim = thread.wait.claim(NtStatus::SUCCESS.0);
                // Lost: something else ends its wait, and it takes its block out by itself.
                if matches!(claim, Claim::Wake | Claim::Noted) {
                    self.header.unregister(it);
                    self.take_for(thread);
                    if claim == Claim::Wake {
                        #[cfg(all(target_os = "none", feature = "verifier"))]
                        super::wait::lost::won(thread);
                        woken.add(thread);
                    }
                }
            }
        }
    }

    /// Takes an entry, or waits for one, no longer than until `due`. The caller belongs to this queue from then on, and to no other.
    ///
    /// # Errors
    /// STATUS_TIMEOUT, STATUS_ALERTED, STATUS_USER_APC: no entry was taken.
    #[doc(alias = "KeRemoveQueue")]
    pub fn remove<L: CanWait>(
        &'static self,
        mut due: Option<Due>,
        alertable: Alertable,
        at: &mut Irql<L>,
    ) -> Result<&'static QueueEntry, NtStatus> {
        // SAFETY: used by this thread's code alone.
        let me = unsafe { thread::current(at).unbound() };
        loop {
            let ((status, until), entry) = wait::in_queue(self, me, due, alertable.openness::<L>(), at);
            if let Some(entry) = entry {
                entry.queued.store(false, Ordering::Release);
                return Ok(entry);
            }
            if status != NtStatus::KERNEL_APC {
                return Err(status);
            }
            due = wait::after_an_apc(due, until, at);
        }
    }

    /// The running thread begins a wait for an entry: its last one is done, and it isn't counted any more, here or where it belonged
    /// before (Q4).
    pub(super) fn enter(&'static self, me: &'static Thread, at: &mut Irql<Dispatch>) {
        let before = me.queue.load(Ordering::Relaxed);
        // SAFETY: null, or a queue, which lives for ever.
        if let Some(before) = unsafe { before.as_ref() } {
            before.stops(at);
        } else {
            me.attention.raise(Signs::IN_QUEUE);
        }
        me.queue.store(ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
    }

    /// Its wait has ended with `status`: the entry that it was given, or it runs on without one, and is counted as before (Q4).
    pub(super) fn leave_with(
        &'static self,
        me: &'static Thread,
        status: NtStatus,
        at: &mut Irql<Dispatch>,
    ) -> Option<&'static QueueEntry> {
        if status != NtStatus::SUCCESS {
            self.goes_on(at);
            return None;
        }
        // SAFETY: entries are `'static`; whoever ended the wait, or this thread itself, stored one.
        unsafe { me.queue_entry.swap(ptr::null_mut(), Ordering::Relaxed).as_ref() }
    }

    /// Under the lock.
    pub(super) fn has_entry_and_room(&self) -> bool {
        !self.is_empty() && self.has_room()
    }

    /// Under the lock: the first entry is given to `thread`, whose wait for it is over, and which wasn't counted.
    pub(super) fn take_for(&self, thread: &Thread) {
        // SAFETY: the lock is held (the caller).
        let entry = unsafe { (*self.entries.get()).take() };
        let entry = entry.map_or(ptr::null_mut(), |entry| ptr::from_ref(entry).cast_mut());
        thread.queue_entry.store(entry, Ordering::Relaxed);
        self.change_len(-1);
        self.change_running(1);
    }

    /// A thread of this queue waits, ends or leaves it: another one may run.
    pub(super) fn stops(&self, at: &mut Irql<Dispatch>) {
        let mut woken = Woken::new();
        {
            let mut guard = self.header.lock(&mut *at);
            let _ = guard.parts();
            debug_assert!(self.running() > 0, "who stops was counted (Q4)");
            self.change_running(-1);
            // SAFETY: the lock is held.
            unsafe { self.hand_on(&mut woken) };
        }
        woken.finish(0, at);
        sched::leave_a_look(at);
    }

    /// A thread of this queue has waited.
    pub(super) fn goes_on(&self, at: &mut Irql<Dispatch>) {
        let mut guard = self.header.lock(at);
        let _ = guard.parts();
        self.change_running(1);
    }

    /// Empties it: the entries that were queued, one after the other.
    ///
    /// # Panics
    /// In the checked build, if a thread waits for it.
    #[doc(alias = "KeRundownQueue")]
    pub fn run_down<L>(&'static self, mut each: impl FnMut(&'static QueueEntry), at: &mut Irql<L>)
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        loop {
            let entry = {
                let mut guard = self.header.lock(at);
                let _ = guard.parts();
                // SAFETY: the lock is held.
                unsafe {
                    debug_assert!(self.header.first_waiter().is_null(), "somebody waits for it");
                    let Some(entry) = (*self.entries.get()).take() else { return };
                    self.change_len(-1);
                    entry
                }
            };
            entry.queued.store(false, Ordering::Release);
            each(entry);
        }
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }
}

/// The queue that `header` heads.
///
/// # Safety
/// Its kind says so.
#[cfg(feature = "verifier")]
pub(super) unsafe fn headed(header: &Header) -> &Queue {
    // SAFETY: the caller's; it is the first field.
    unsafe { &*ptr::from_ref(header).cast::<Queue>() }
}

/// The queue that `me`, the running thread, belongs to.
pub(super) fn of(me: &Thread) -> Option<NonNull<Queue>> {
    NonNull::new(me.queue.load(Ordering::Relaxed))
}

/// The running thread ends: its queue does without it.
pub(super) fn leave(me: &Thread, at: &mut Irql<Dispatch>) {
    let queue = me.queue.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: null, or a queue, which lives for ever.
    if let Some(queue) = unsafe { queue.as_ref() } {
        me.attention.clear(Signs::IN_QUEUE);
        queue.stops(at);
    }
}
