//! One processor's ready queues and what it runs: 32 lists, a bitmap, a standby thread. Pure; everything here happens under that
//! processor's `PrcbLock`, but for reads of what [`Shared`] shows.
//!
//! Invariants: I1 bit p of `summary` is set <=> the list of priority p is not empty.
//!             I2 a linked thread's place is `Ready(me)`, its priority that of its list.
//!             I3 `level` is that of the standby thread if there is one, else of the running one; 0: idle.
//!             I4 there is a standby thread => it is above what runs, or that is the idle thread; or its equal, whose turn is over.
//! Tests:      tests/props/tests/scheduler.rs, against lists and a sort.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use super::place::{Level, level_of};
use super::schedulable::{Links, PRIORITIES, Place, Schedulable};

/// A thread, as the queues have it.
pub type ThreadPtr = NonNull<Schedulable>;

#[derive(Clone, Copy)]
struct List {
    first: *const Schedulable,
    last: *const Schedulable,
}

/// The lists.
pub struct Queues {
    lists: [List; PRIORITIES as usize],
}

// SAFETY: the pointers lead to threads that stay while they are queued (their reference is the queue's), reached under the lock.
unsafe impl Send for Queues {}

/// What others may look at without the lock. Written under it.
pub struct Shared {
    /// I1.
    summary: AtomicU32,
    /// I3.
    level: AtomicU8,
    standby: AtomicPtr<Schedulable>,
}

/// What became of a thread that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the processor has to be told"]
pub enum Admitted {
    /// It is standby: its processor must switch.
    Standby {
        /// The affinity of the thread that was standby before and is queued now: who may run that must be told. 0: there was none.
        displaced: u64,
    },
    /// It waits for its turn; `first`: nothing else did, so the processor may have no tick.
    Queued {
        /// See there.
        first: bool,
    },
}

impl Admitted {
    /// A thread is queued where none may have been: without a tick there, nothing would bring it its turn, or relief.
    #[inline(always)]
    pub fn wants_a_tick(self) -> bool {
        match self {
            Self::Standby { displaced } => displaced != 0,
            Self::Queued { first } => first,
        }
    }
}

impl Shared {
    /// An idle processor's.
    pub const fn new() -> Self {
        Self { summary: AtomicU32::new(0), level: AtomicU8::new(0), standby: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Bit p: a thread of priority p is queued.
    #[inline(always)]
    pub fn summary(&self) -> u32 {
        self.summary.load(Ordering::Relaxed)
    }

    /// What the processor runs, or is about to.
    #[inline(always)]
    pub fn level(&self) -> Level {
        self.level.load(Ordering::Relaxed)
    }

    /// Is there a standby thread?
    #[inline(always)]
    pub fn has_standby(&self) -> bool {
        !self.standby.load(Ordering::Relaxed).is_null()
    }

    #[inline(always)]
    fn set_summary(&self, summary: u32) {
        self.summary.store(summary, Ordering::Relaxed);
    }

    /// The processor runs `priority` from now on; `None`: the idle thread. Only without a standby thread.
    #[inline(always)]
    pub fn runs(&self, priority: Option<u8>) {
        self.level.store(priority.map_or(0, level_of), Ordering::Relaxed);
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self::new()
    }
}

impl Queues {
    /// Empty.
    pub const fn new() -> Self {
        Self { lists: [List { first: ptr::null(), last: ptr::null() }; PRIORITIES as usize] }
    }

    /// `thread` becomes ready on processor `me`: standby if it is above what runs there, else queued behind its equals. A standby
    /// thread that it displaces is queued before its own.
    #[inline(always)]
    pub fn admit(&mut self, shared: &Shared, me: u32, thread: ThreadPtr) -> Admitted {
        // SAFETY: the caller has it to itself.
        let it = unsafe { thread.as_ref() };
        let level = level_of(it.priority());
        if level > shared.level() {
            let displaced = shared.standby.load(Ordering::Relaxed);
            shared.standby.store(thread.as_ptr(), Ordering::Relaxed);
            shared.level.store(level, Ordering::Relaxed);
            it.set_place(Place::Standby(me));
            let displaced = NonNull::new(displaced).map_or(0, |displaced| {
                self.insert(shared, me, displaced, true);
                // SAFETY: queued just now, so it stays, under the lock.
                unsafe { displaced.as_ref() }.affinity()
            });
            return Admitted::Standby { displaced };
        }
        let first = shared.summary() == 0;
        self.insert(shared, me, thread, false);
        Admitted::Queued { first }
    }

    /// Queues `thread`, before or behind its equals.
    #[inline(always)]
    pub fn insert(&mut self, shared: &Shared, me: u32, thread: ThreadPtr, front: bool) {
        // SAFETY: the caller has it to itself, or holds the lock of where it was.
        let it = unsafe { thread.as_ref() };
        it.set_place(Place::Ready(me));
        it.set_waits(0);
        let priority = it.priority();
        let list = &mut self.lists[usize::from(priority % PRIORITIES)];
        let this = thread.as_ptr().cast_const();
        let bit = 1 << priority;
        let summary = shared.summary();
        // SAFETY: in no list, so its links are the caller's; neighbours are linked here (I2), under the lock.
        unsafe {
            let links = &mut *it.links.get();
            if summary & bit == 0 {
                *links = Links { next: ptr::null(), previous: ptr::null() };
                *list = List { first: this, last: this };
                shared.set_summary(summary | bit);
            } else if front {
                *links = Links { next: list.first, previous: ptr::null() };
                (*(*list.first).links.get()).previous = this;
                list.first = this;
            } else {
                *links = Links { next: ptr::null(), previous: list.last };
                (*(*list.last).links.get()).next = this;
                list.last = this;
            }
        }
    }

    /// Takes `thread` out of its list: its place is `Ready(me)`.
    #[inline(always)]
    pub fn remove(&mut self, shared: &Shared, thread: ThreadPtr) {
        // SAFETY: linked here (the caller), under the lock.
        let it = unsafe { thread.as_ref() };
        let priority = it.priority();
        let list = &mut self.lists[usize::from(priority % PRIORITIES)];
        // SAFETY: as above; neighbours are linked, too.
        unsafe {
            let Links { next, previous } = core::ptr::read(it.links.get());
            match previous.as_ref() {
                Some(previous) => (*previous.links.get()).next = next,
                None => list.first = next,
            }
            match next.as_ref() {
                Some(next) => (*next.links.get()).previous = previous,
                None => list.last = previous,
            }
        }
        if list.first.is_null() {
            shared.set_summary(shared.summary() & !(1 << priority));
        }
    }

    /// The first thread of the highest queue at or above `least`, taken out.
    #[inline(always)]
    pub fn take_best(&mut self, shared: &Shared, least: u8) -> Option<ThreadPtr> {
        let summary = shared.summary();
        if summary >> least == 0 {
            return None;
        }
        let priority = summary.ilog2();
        let list = &mut self.lists[priority as usize & (PRIORITIES as usize - 1)];
        // SAFETY: not empty (I1), and linked threads are valid.
        unsafe {
            let first = &*list.first;
            let next = (*first.links.get()).next;
            list.first = next;
            match next.as_ref() {
                Some(next) => (*next.links.get()).previous = ptr::null(),
                None => shared.set_summary(summary & !(1 << priority)),
            }
            Some(NonNull::from(first))
        }
    }

    /// `thread`, which runs, goes behind its equals, of which there are some, and the first of them is taken out. The summary shows
    /// them throughout: who has looked at it without the lock, meanwhile, finds one.
    ///
    /// # Safety
    /// Bit `priority`, that of `thread`, is set in the summary; `thread` is in no queue.
    #[inline(always)]
    pub(super) unsafe fn rotate(&mut self, me: u32, thread: ThreadPtr, priority: u8) -> ThreadPtr {
        let list = &mut self.lists[usize::from(priority % PRIORITIES)];
        let this = thread.as_ptr().cast_const();
        // SAFETY: the list is not empty (I1), linked threads are valid, and their links ours, under the lock; `thread`'s are the
        //         caller's.
        unsafe {
            let it = thread.as_ref();
            it.set_place(Place::Ready(me));
            it.set_waits(0);
            let first = &*list.first;
            let next = (*first.links.get()).next;
            let links = &mut *it.links.get();
            links.next = ptr::null();
            list.first = match next.as_ref() {
                Some(second) => {
                    (*second.links.get()).previous = ptr::null();
                    links.previous = list.last;
                    (*(*list.last).links.get()).next = this;
                    next
                }
                None => {
                    links.previous = ptr::null();
                    this
                }
            };
            list.last = this;
            NonNull::from(first)
        }
    }

    /// What runs next: the standby thread, else the best of the queues. The level is the caller's to set.
    #[inline(always)]
    pub fn take_next(&mut self, shared: &Shared) -> Option<ThreadPtr> {
        self.take_standby(shared).or_else(|| self.take_best(shared, 0))
    }

    /// The standby thread, if there is one. The level is the caller's to set.
    #[inline(always)]
    pub fn take_standby(&mut self, shared: &Shared) -> Option<ThreadPtr> {
        let standby = NonNull::new(shared.standby.load(Ordering::Relaxed))?;
        shared.standby.store(ptr::null_mut(), Ordering::Relaxed);
        Some(standby)
    }

    /// `thread`, taken out of a queue just now, is what runs next: its equal has used up its quantum. Only without a standby thread.
    pub fn set_standby(&mut self, shared: &Shared, me: u32, thread: ThreadPtr) {
        debug_assert!(!shared.has_standby());
        // SAFETY: the caller's own, just taken out.
        let it = unsafe { thread.as_ref() };
        it.set_place(Place::Standby(me));
        shared.standby.store(thread.as_ptr(), Ordering::Relaxed);
        shared.level.store(level_of(it.priority()), Ordering::Relaxed);
    }

    /// The standby thread, which stays.
    pub fn standby(&self, shared: &Shared) -> Option<ThreadPtr> {
        NonNull::new(shared.standby.load(Ordering::Relaxed))
    }

    /// The first, from the highest priority down, that `wanted` says yes to; taken out.
    pub fn take_if(
        &mut self,
        shared: &Shared,
        mut wanted: impl FnMut(&Schedulable) -> bool,
    ) -> Option<ThreadPtr> {
        let found = self.iter(shared).find(|it| {
            // SAFETY: linked, hence valid, under the lock.
            wanted(unsafe { it.as_ref() })
        })?;
        self.remove(shared, found);
        Some(found)
    }

    /// Where any of those that are queued may run.
    pub fn affinities(&self, shared: &Shared) -> u64 {
        // SAFETY: linked, hence valid, under the lock.
        self.iter(shared).fold(0, |all, it| all | unsafe { it.as_ref() }.affinity())
    }

    /// All that are queued, from the highest priority down, each queue in order.
    pub fn iter(&self, shared: &Shared) -> impl Iterator<Item = ThreadPtr> {
        let mut summary = shared.summary();
        let mut at: *const Schedulable = ptr::null();
        core::iter::from_fn(move || {
            if at.is_null() {
                let priority = summary.checked_ilog2()?;
                summary &= !(1 << priority);
                at = self.lists[priority as usize].first;
            }
            let this = NonNull::new(at.cast_mut())?;
            // SAFETY: linked, hence valid; the borrow of `self` keeps the lists as they are.
            at = unsafe { (*this.as_ref().links.get()).next };
            Some(this)
        })
    }
}
