//! Deferred calls: the queue between who asks for a DPC, at any level on any processor, and the processor that runs it.
//!
//! Owns:       [`Entry`] (a KDPC's bytes), [`Queue`]. Not: when a processor is interrupted for it (kernel/ke/dpc.rs).
//! Called by:  kernel/ke/dpc.rs; the queues are fields of the PRCB.
//! IRQL:       `insert` and `remove` at any level below the queue's rank, HIGH included; `take` by the processor that retires.
//! Locks:      rank `DpcQueueLock`, held at HIGH, so that an ISR can't spin on its own processor.
//! Invariants: I1 an entry's `queue` is not null exactly while it is linked there; it changes from null under the new queue's
//!                lock by whoever wins the exchange, and back to null under the lock of the queue that it names.
//!             I2 whoever made `queue` null never touches the entry again: it may be freed, or queued anew, at once.
//!             I3 LOOK_AHEAD clear => the queue holds only entries that may wait for a tick, and then TICK is set or it is
//!                empty. LOOK_AHEAD set => whoever set it asks the processor for a look, or the processor is between two.
//!             I4 no entry is linked => `pending` counts none; it may still have either flag.
//! Ordering:   everything but `queue` is under the lock. `queue` := null is a Release and the exchange an Acquire, so that an
//!             insert into another processor's queue sees the entry as its last run left it.
//! Tests:      tests/models/tests/deferred.rs (I1–I3: runs once an insert, freed at once, no lost wakeup; flush);
//!             tests/props/tests/dpc_rules.rs (importance, order, interrupts inside each operation).
//! Sources:    WDK, `KeInsertQueueDpc`, "Organization of DPC Queues".

use core::ffi::c_void;
use core::hint::cold_path;
use core::ptr::{self, NonNull};
use core::sync::atomic;

use arch::trace::{Kind, about};

use crate::irql::{Below, DpcQueueLock, Irql};
use crate::prim::{AtomicPtr, AtomicU32, Ordering, UnsafeCell, const_unless_loom};
use crate::spin::SpinLock;

/// What is called: NT's KDEFERRED_ROUTINE, in the calling convention of Windows drivers.
pub type Routine = unsafe extern "win64" fn(*mut Entry, *mut c_void, *mut c_void, *mut c_void);

/// What a queued call is, besides its place in a queue: NT's KDPC, byte for byte.
#[repr(C)]
pub struct Entry {
    /// NT's TargetInfoAsUlong, three fields that one compare tells apart from the usual. Set by the owner while not queued.
    ///
    /// | bits | |
    /// |---|---|
    /// | 0–7 | NT's object type; never changes |
    /// | 8–15 | importance |
    /// | 16–31 | the processor + 1; 0: the one that inserts |
    attributes: atomic::AtomicU32,
    _pad: u32,
    /// The next in the queue (I1, the queue's lock).
    next: UnsafeCell<*mut Entry>,
    _history: usize,
    routine: Routine,
    context: *mut c_void,
    /// Written by the insert that won, under the queue's lock.
    arguments: UnsafeCell<[*mut c_void; 2]>,
    /// I1. NT's DpcData.
    queue: AtomicPtr<Queue>,
}

crate::nt_layout! {
    [] Entry = "KDPC" {
        attributes => "Type" ..= "Number", next => "DpcListEntry.Flink", _history => "DpcListEntry.Blink",
        routine => "DeferredRoutine", context => "DeferredContext",
        arguments => "SystemArgument1" ..= "SystemArgument2", queue => "DpcData",
    }
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Entry>() == 64);
    assert!(offset_of!(Entry, attributes) == 0);
    assert!(offset_of!(Entry, next) == 8 && offset_of!(Entry, routine) == 24);
    assert!(offset_of!(Entry, context) == 32 && offset_of!(Entry, arguments) == 40);
    assert!(offset_of!(Entry, queue) == 56);
};

// SAFETY: `next` and `arguments` are accessed under a queue's lock alone (I1); the rest is atomic or never changes. What the
// routine does with context and arguments is the business of who queues.
unsafe impl Sync for Entry {}
// SAFETY: as above.
unsafe impl Send for Entry {}

/// NT's KDPC_IMPORTANCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Importance {
    /// May wait for depth or the next tick.
    Low = 0,
    /// At once on the own processor; on another one as `Low`, unless that is idle.
    Medium = 1,
    /// At once, at the front of the queue.
    High = 2,
    /// At once.
    MediumHigh = 3,
}

/// The processor that a call is for, as the one that inserts it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// Itself.
    Own,
    /// Another one, which has work.
    Busy,
    /// Another one, which is idle: it may have no tick.
    Idle,
}

impl Importance {
    /// How soon a call of this importance is looked at: the rules of kernel/ke/dpc.rs.
    #[inline(always)]
    pub fn urgency(self, recipient: Recipient) -> Urgency {
        match (self, recipient) {
            (Importance::High | Importance::MediumHigh, _) => Urgency::Now,
            (Importance::Medium, Recipient::Own) => Urgency::Now,
            (Importance::Low | Importance::Medium, Recipient::Idle) => Urgency::Now,
            (Importance::Low, Recipient::Own) | (Importance::Low | Importance::Medium, Recipient::Busy) => {
                Urgency::Tick
            }
        }
    }
}

/// In a model, freeing an entry is an access to all of it, which must come after every other.
#[cfg(loom)]
impl Drop for Entry {
    fn drop(&mut self) {
        self.next.with_mut(|_| ());
        self.arguments.with_mut(|_| ());
        self.queue.with_mut(|_| ());
    }
}

impl Entry {
    /// An ordinary call's object type: KOBJECTS' DpcObject.
    pub const ORDINARY: u8 = 19;
    /// A threaded one's: ThreadedDpcObject.
    pub const THREADED: u8 = 24;
    const MEDIUM: u32 = (Importance::Medium as u32) << 8;

    const_unless_loom! {
        /// A call that is in no queue.
        pub const fn new(kind: u8, routine: Routine, context: *mut c_void) -> Self {
            Self {
                attributes: atomic::AtomicU32::new(kind as u32 | Self::MEDIUM),
                _pad: 0,
                next: UnsafeCell::new(ptr::null_mut()),
                _history: 0,
                routine,
                context,
                arguments: UnsafeCell::new([ptr::null_mut(); 2]),
                queue: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Is it to run at PASSIVE, in a thread of its processor?
    #[inline(always)]
    pub fn is_threaded(&self) -> bool {
        self.attributes() as u8 == Self::THREADED
    }

    /// Is it what most are: ordinary, of medium importance, for the processor that inserts?
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.attributes() == Self::ORDINARY as u32 | Self::MEDIUM
    }

    #[inline(always)]
    fn attributes(&self) -> u32 {
        self.attributes.load(Ordering::Relaxed)
    }

    fn set_attributes(&self, mask: u32, bits: u32) {
        let changed = |found: u32| Some(found & !mask | bits);
        // It can't fail: the closure has always a value.
        let _ = self.attributes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }

    /// Takes effect with the next insert.
    pub fn set_importance(&self, importance: Importance) {
        self.set_attributes(0xFF00, (importance as u32) << 8);
    }

    /// How urgent it is.
    #[inline(always)]
    pub fn importance(&self) -> Importance {
        match (self.attributes() >> 8) as u8 {
            0 => Importance::Low,
            1 => Importance::Medium,
            2 => Importance::High,
            _ => Importance::MediumHigh,
        }
    }

    /// The processor that it runs on, or nothing, or one that doesn't exist, for the one that inserts. Takes effect with the next
    /// insert.
    pub fn set_target(&self, processor: Option<u32>) {
        let field = processor.map_or(0, |number| number.saturating_add(1).min(0xFFFF));
        self.set_attributes(0xFFFF_0000, field << 16);
    }

    /// The processor chosen by [`set_target`](Self::set_target).
    #[inline(always)]
    pub fn target(&self) -> Option<u32> {
        (self.attributes() >> 16).checked_sub(1)
    }

    /// Is it in a queue? Stale at once.
    pub fn is_queued(&self) -> bool {
        !self.queue.load(Ordering::Relaxed).is_null()
    }

    /// What [`Entry::new`] was given.
    pub fn context(&self) -> *mut c_void {
        self.context
    }
}

/// The markers of a flush, in the order in which each is queued and waited for, with its kind. When the last has run, every call has finished that
/// was queued before the first, and every one of a timer that had expired by then.
///
/// The second round is for what is queued, ordinary ones first: a threaded marker runs when the retire loop is over that its processor may have
/// been in. The first is for expiries: a timer leaves its table before its call is in a queue, which is that of the processor that the call is
/// for by then, maybe one that a single round has behind it. A look at timers comes before the queue's calls, so it is over when a marker
/// runs.
pub fn markers<P: Copy>(processors: impl Iterator<Item = P> + Clone) -> impl Iterator<Item = (P, u8)> {
    let expiries = processors.clone().map(|processor| (processor, Entry::ORDINARY));
    let queued =
        processors.flat_map(|processor| [Entry::ORDINARY, Entry::THREADED].map(|kind| (processor, kind)));
    expiries.chain(queued)
}

/// One processor's calls of one kind, in the order in which they will run.
pub struct Queue {
    state: SpinLock<State, DpcQueueLock>,
    /// How many are linked, LOOK_AHEAD and TICK. Written under the lock, looked at without.
    pending: AtomicU32,
}

struct State {
    first: *mut Entry,
    /// Means something while `first` is not null.
    last: *mut Entry,
}

// SAFETY: the pointers lead to entries that are linked (I1), which any processor may reach under the lock.
unsafe impl Send for State {}

/// When the processor has to look at a newly queued call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// As soon as its level allows.
    Now,
    /// At the next tick, or sooner if the queue gets deep.
    Tick,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the processor may have to be asked for a look"]
pub enum Inserted {
    /// It was queued already, here or elsewhere; nothing changed.
    Already,
    /// Queued, and a look or a tick is ahead.
    Quietly,
    /// Queued: the caller now asks the processor for a look (I3).
    Request,
    /// Queued: the caller now arms the processor's clock, or asks for a look if it can't (I3).
    NeedsTick,
}

/// A call that was taken off its queue: all that is needed to make it.
#[derive(Clone, Copy)]
pub struct Call {
    /// To be passed to the routine, and never touched (I2).
    pub entry: *mut Entry,
    /// The routine.
    pub routine: Routine,
    /// Its second argument.
    pub context: *mut c_void,
    /// Its third and fourth, those of the insert that won.
    pub arguments: [*mut c_void; 2],
}

/// The processor will look, and [`Queue::take`] until nothing is left (I3).
const LOOK_AHEAD: u32 = 1 << 31;
/// It will look at its next clock interrupt, at most a tick away (I3).
const TICK: u32 = 1 << 30;
const DEPTH: u32 = TICK - 1;

impl Queue {
    /// A queue this deep is looked at whatever the urgency: NT's MaximumDpcQueueDepth.
    pub const DEEP: u32 = 4;

    const_unless_loom! {
        /// An empty queue.
        pub const fn new() -> Self {
            Self {
                state: SpinLock::new(State {
                    first: ptr::null_mut(),
                    last: ptr::null_mut(),
                }),
                pending: AtomicU32::new(0),
            }
        }
    }

    /// Calls in the queue. Stale at once.
    #[doc(alias = "DpcQueueDepth")]
    pub fn depth(&self) -> u32 {
        self.pending.load(Ordering::Relaxed) & DEPTH
    }

    /// Must the queue's processor, which was asked for a look, [`take`](Self::take)? False only if the queue is empty and
    /// nobody relies on the look or the tick: a removal may leave it empty with either set, and only a `take` clears them.
    #[inline(always)]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0
    }

    /// Queues `entry` with `arguments`, unless it is queued already.
    ///
    /// # Safety
    /// 1. `entry` is valid until this returns, and from then on until it was taken or removed.
    /// 2. Its routine can be called with its context and `arguments` on this queue's processor.
    #[inline(always)]
    pub unsafe fn insert<L: Below<DpcQueueLock>>(
        &self,
        entry: NonNull<Entry>,
        arguments: [*mut c_void; 2],
        urgency: Urgency,
        at: &mut Irql<L>,
    ) -> Inserted {
        // SAFETY: the caller's 1.
        let to_front = unsafe { entry.as_ref() }.importance() == Importance::High;
        // SAFETY: the caller's.
        unsafe { self.insert_at(to_front, entry, arguments, urgency, at) }
    }

    /// As [`insert`](Self::insert), at the front or the end, whatever its importance.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[inline(always)]
    pub unsafe fn insert_at<L: Below<DpcQueueLock>>(
        &self,
        to_front: bool,
        entry: NonNull<Entry>,
        arguments: [*mut c_void; 2],
        urgency: Urgency,
        at: &mut Irql<L>,
    ) -> Inserted {
        // SAFETY: the caller's 1.
        let queued = unsafe { entry.as_ref() };
        let entry = entry.as_ptr();
        let mut state = self.state.lock(at);
        let me = ptr::from_ref(self).cast_mut();
        if queued.queue.compare_exchange(ptr::null_mut(), me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Inserted::Already;
        }
        let routine = queued.routine as usize as u64;
        about(Kind::DpcInsert, u16::from(to_front), entry, routine);
        queued.arguments.with_mut(|slot| {
            // SAFETY: ours since the exchange (I1), under this queue's lock.
            unsafe { *slot = arguments };
        });
        if urgency == Urgency::Now {
            if self.pending.load(Ordering::Relaxed) == 0 {
                // SAFETY: ours since the exchange, and nothing is linked (I4).
                unsafe { state.link_first(entry, queued) };
                self.pending.store(1 | LOOK_AHEAD, Ordering::Relaxed);
                return Inserted::Request;
            }
            // Only for the code's order: a burst's later ones jump, not the one that has the processor interrupted.
            cold_path();
        }
        let before = self.pending.load(Ordering::Relaxed);
        // SAFETY: ours since the exchange.
        unsafe { state.link(entry, queued, to_front) };
        let (flag, inserted) = if before & LOOK_AHEAD != 0 {
            (0, Inserted::Quietly)
        } else if urgency == Urgency::Now || (before & DEPTH) + 1 >= Self::DEEP {
            (LOOK_AHEAD, Inserted::Request)
        } else if before & TICK != 0 {
            (0, Inserted::Quietly)
        } else {
            (TICK, Inserted::NeedsTick)
        };
        self.pending.store((before + 1) | flag, Ordering::Relaxed);
        inserted
    }

    /// What an insert of `entry` with null arguments and a take right behind it would come to, where that is all that there is to
    /// do: it is in no queue, and none is in this one. Nothing is written.
    ///
    /// `entry` is looked at first: if it was free then, and this queue empty later, then whatever stood in front of it in
    /// between was removed, since nobody else takes.
    ///
    /// # Safety
    /// 1. As [`insert`](Self::insert), but `entry` must stay valid only until this returns.
    /// 2. The caller is the one that takes, and calls at once.
    #[inline(always)]
    pub unsafe fn pass(&self, entry: NonNull<Entry>) -> Option<Call> {
        // SAFETY: the caller's 1.
        let passed = unsafe { entry.as_ref() };
        if !passed.queue.load(Ordering::Acquire).is_null() || self.depth() != 0 {
            return None;
        }
        let (routine, context) = (passed.routine, passed.context);
        Some(Call { entry: entry.as_ptr(), routine, context, arguments: [ptr::null_mut(); 2] })
    }

    /// Takes the first call off the queue. When there is none, the look is over: the next insert asks for another.
    #[inline(always)]
    pub fn take<L: Below<DpcQueueLock>>(&self, at: &mut Irql<L>) -> Option<Call> {
        let mut state = self.state.lock(at);
        let first = state.first;
        if first.is_null() {
            self.pending.store(0, Ordering::Relaxed);
            return None;
        }
        // SAFETY: linked in this queue (I1), hence alive, and its cells are ours under the lock.
        let call = unsafe {
            let entry = &*first;
            state.first = entry.next.with(|next| *next);
            let arguments = entry.arguments.with(|arguments| *arguments);
            let call = Call { entry: first, routine: entry.routine, context: entry.context, arguments };
            // The last access (I2).
            entry.queue.store(ptr::null_mut(), Ordering::Release);
            call
        };
        // What is inserted from here on need not ask.
        let pending = (self.pending.load(Ordering::Relaxed) - 1) | LOOK_AHEAD;
        self.pending.store(pending, Ordering::Relaxed);
        Some(call)
    }

    /// Takes `entry` off whichever queue it is in. True if it was in one: its routine will not be called for that insert.
    ///
    /// # Safety
    /// `entry` is valid until this returns; any queue that it was ever in still exists.
    pub unsafe fn remove<L: Below<DpcQueueLock>>(entry: NonNull<Entry>, at: &mut Irql<L>) -> bool {
        loop {
            // SAFETY: the caller's.
            let queued = unsafe { entry.as_ref() };
            // SAFETY: null, or a queue that exists (the caller's).
            let Some(queue) = (unsafe { queued.queue.load(Ordering::Acquire).as_ref() }) else {
                return false;
            };
            let mut state = queue.state.lock(at);
            // It may have run and been queued elsewhere since.
            if ptr::eq(queued.queue.load(Ordering::Relaxed), queue) {
                // SAFETY: linked here (I1), under the lock.
                unsafe { state.unlink(entry.as_ptr()) };
                queue.pending.store(queue.pending.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
                queued.queue.store(ptr::null_mut(), Ordering::Release);
                return true;
            }
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// # Safety
    /// `entry` is `queued`, valid and in no queue; this one is empty.
    #[inline(always)]
    unsafe fn link_first(&mut self, entry: *mut Entry, queued: &Entry) {
        queued.next.with_mut(|next| {
            // SAFETY: the caller's.
            unsafe { *next = ptr::null_mut() };
        });
        self.first = entry;
        self.last = entry;
    }

    /// # Safety
    /// `entry` is `queued`, valid and in no queue.
    #[inline(always)]
    unsafe fn link(&mut self, entry: *mut Entry, queued: &Entry, to_front: bool) {
        let first = self.first;
        if first.is_null() || to_front {
            // SAFETY: the caller's.
            queued.next.with_mut(|next| unsafe { *next = first });
            self.first = entry;
            if first.is_null() {
                self.last = entry;
            }
        } else {
            queued.next.with_mut(|next| {
                // SAFETY: the caller's.
                unsafe { *next = ptr::null_mut() };
            });
            // SAFETY: `first` is not null, so `last` is linked (I1).
            unsafe { (*self.last).next.with_mut(|next| *next = entry) };
            self.last = entry;
        }
    }

    /// # Safety
    /// `entry` is linked in this queue.
    unsafe fn unlink(&mut self, entry: *mut Entry) {
        let mut before = ptr::null_mut::<Entry>();
        let mut at = self.first;
        while at != entry {
            before = at;
            // SAFETY: all up to `entry` are linked here.
            at = unsafe { (*at).next.with(|next| *next) };
        }
        // SAFETY: as above.
        let after = unsafe { (*entry).next.with(|next| *next) };
        if before.is_null() {
            self.first = after;
        } else {
            // SAFETY: as above.
            unsafe { (*before).next.with_mut(|next| *next = after) };
        }
        if self.last == entry {
            self.last = before;
        }
    }
}
