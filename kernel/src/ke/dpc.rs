//! Deferred procedure calls: work that an ISR hands to a processor, run at DISPATCH, or in its DPC thread at PASSIVE.
//!
//! Owns:       [`Dpc`], the two queues of a processor, the rules of who is interrupted when. Not: the queue's protocol
//!             (`sync::deferred`), when the processor looks (dispatch.rs), the watchdog's clock (tick.rs).
//! IRQL:       insert and remove at any level up to HIGH, flush at PASSIVE.
//! Locks:      rank `DpcQueueLock`.
//! Rules:      | importance | for this processor | for another |
//!             |---|---|---|
//!             | low | at the next tick, or when the queue is deep | the same; at once if that one is idle |
//!             | medium | at once | as low |
//!             | medium-high, high | at once | at once |
//!             "At once" for this processor below DISPATCH is before the insert returns: the level would let 0x2F in right
//!             there, and doing its work without the interrupt is the same and cheaper. "The next tick" is armed by the insert
//!             if it is on its own processor; another one that has no tick is interrupted instead.
//! Not as NT:  the rate of DPCs has no part in the rules. A processor that is told more than once is interrupted once.
//! Tests:      tests/models/tests/deferred.rs; tests/selftest, `dpc::*`; bench rows `dpc_*`.
//! Sources:    WDK, `KeInsertQueueDpc`, `KeSetImportanceDpc`, "Organization of DPC Queues", "Introduction to Threaded DPCs".

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use sync::deferred::{Call, Inserted, Queue, Recipient, Urgency, markers};
use sync::irql::{
    AtOrBelow, Below, Dispatch, DpcQueueLock, Fixed, High, Irql, Level, Passive, TimerTableLock,
};

pub use sync::deferred::{Entry as KDpc, Importance, Routine};

use super::bugcheck::{StopCode, bugcheck};
use super::event::{Event, EventKind};
use super::prcb::{self, Prcb, Processor};
use super::watchdog::Seen;
use super::{dispatch, tick, wait};

/// A processor's share: in its PRCB.
pub(crate) struct PerProcessor {
    pub(super) ordinary: Queue,
    pub(super) threaded: Queue,
    /// The ordinary DPC under way: its routine, without bit 63 once the watchdog has seen it (code is in the upper half of the
    /// addresses), 0 between two stays. So a plain store tells the watchdog of a new one. Own processor writes, the watchdog
    /// at CLOCK.
    routine: AtomicU64,
    /// Its context.
    context: AtomicU64,
    /// The stay at DISPATCH that the watchdog has seen is over. Likewise.
    stay_over: AtomicBool,
    /// Interrupts that others sent for DPCs that they queued here.
    pub(super) requests: AtomicU32,
}

/// What the watchdog takes off a routine's address that it has seen.
const UNSEEN: u64 = 1 << 63;

impl PerProcessor {
    pub(crate) const fn new() -> Self {
        Self {
            ordinary: Queue::new(),
            threaded: Queue::new(),
            routine: AtomicU64::new(0),
            context: AtomicU64::new(0),
            stay_over: AtomicBool::new(false),
            requests: AtomicU32::new(0),
        }
    }

    /// `call` begins.
    #[inline(always)]
    pub(super) fn begin(&self, call: &Call) {
        self.context.store(call.context.addr() as u64, Ordering::Relaxed);
        self.routine.store(call.routine as usize as u64, Ordering::Relaxed);
    }

    /// The last one of this stay has ended.
    #[inline(always)]
    pub(super) fn end_stay(&self) {
        self.routine.store(0, Ordering::Relaxed);
        self.stay_over.store(true, Ordering::Relaxed);
    }

    /// Is an ordinary DPC under way? Then the retire loop's end is ahead. Own processor, at DISPATCH.
    #[inline(always)]
    pub(super) fn is_under_way(&self) -> bool {
        self.routine.load(Ordering::Relaxed) != 0
    }

    /// Routine and context under way.
    #[inline(always)]
    pub(super) fn running(&self) -> [u64; 2] {
        [self.routine.load(Ordering::Relaxed) | UNSEEN, self.context.load(Ordering::Relaxed)]
    }

    /// The watchdog looks: at CLOCK on this block's processor. Nothing if no DPC is under way.
    pub(super) fn see(&self) -> Option<Seen> {
        let routine = self.routine.load(Ordering::Relaxed);
        if routine == 0 {
            return None;
        }
        self.routine.store(routine & !UNSEEN, Ordering::Relaxed);
        let new_stay = self.stay_over.swap(false, Ordering::Relaxed);
        Some(Seen { running: self.running(), new_dpc: routine & UNSEEN != 0, new_stay })
    }

    /// Has a stay ended since the watchdog last asked?
    pub(super) fn stay_ended(&self) -> bool {
        self.stay_over.swap(false, Ordering::Relaxed)
    }

    /// The watchdog begins to look: the stay under way is the one that it knows.
    pub(super) fn see_stay(&self) {
        self.stay_over.store(false, Ordering::Relaxed);
    }

    #[inline(always)]
    fn queue_for(&self, dpc: &KDpc) -> &Queue {
        if dpc.is_threaded() { &self.threaded } else { &self.ordinary }
    }
}

/// Queues `dpc` with two arguments, unless it is queued already; false then. From a level below DISPATCH, what is due at once
/// has run when this returns.
///
/// # Safety
/// 1. `dpc` stays valid until its routine has started, or a remove returned true.
/// 2. The routine can be called with its context and these arguments, at DISPATCH (a threaded one: PASSIVE), and returns at the
///    level that it was called at.
#[doc(alias = "KeInsertQueueDpc")]
#[inline(always)]
pub unsafe fn insert<L>(dpc: NonNull<KDpc>, arguments: [*mut c_void; 2], at: &mut Irql<L>) -> bool
where
    L: Below<DpcQueueLock> + AtOrBelow<High>,
{
    at.check();
    let [first, second] = arguments;
    // SAFETY: the caller's; `at` is borrowed and unused meanwhile.
    unsafe { insert_from::<L>(dpc, first, second) }
}

/// [`insert`], with arguments that fit registers.
///
/// # Safety
/// As [`insert`], with a token for L that is borrowed and unused.
#[inline(never)]
unsafe fn insert_from<L>(dpc: NonNull<KDpc>, first: *mut c_void, second: *mut c_void) -> bool
where
    L: Below<DpcQueueLock> + AtOrBelow<High>,
{
    // SAFETY: the caller's 1.
    if !unsafe { dpc.as_ref() }.is_plain() {
        // SAFETY: the caller's.
        return unsafe { insert_special::<L>(dpc, first, second) };
    }
    // SAFETY: the caller's token.
    unsafe {
        Irql::<L>::lend(|at| {
            let mut raised = at.raise::<High>();
            let (here, at) = Prcb::here(&mut raised);
            // SAFETY: the caller's. To the end, at once: it is plain.
            match here.dpc.ordinary.insert_at(false, dpc, [first, second], Urgency::Now, at) {
                Inserted::Already => return false,
                Inserted::Quietly => {}
                Inserted::NeedsTick => tick::arm_for_dpcs(here),
                // SAFETY: raised from `at` just now.
                Inserted::Request => request::<L>(&mut raised),
            }
            true
        })
    }
}

/// This processor is to look: now, if the level that was raised from, and its IF, let it.
///
/// # Safety
/// `raised` was raised from a token of L.
#[inline(always)]
unsafe fn request<L: Level>(raised: &mut Irql<High>) {
    if L::HIGHEST < Dispatch::CR8 && arch::cpu::interrupts_enabled() {
        // SAFETY: as is tested here, and the caller's.
        unsafe { dispatch::inline(raised) };
    } else {
        // SAFETY: at HIGH.
        unsafe { arch::pcr::request_dispatch() };
    }
}

/// [`insert`] of one that is threaded, or important, or not, or for a certain processor.
///
/// # Safety
/// As [`insert_from`].
#[inline(never)]
unsafe fn insert_special<L>(dpc: NonNull<KDpc>, first: *mut c_void, second: *mut c_void) -> bool
where
    L: Below<DpcQueueLock> + AtOrBelow<High>,
{
    let arguments = [first, second];
    // SAFETY: the caller's 1.
    let entry = unsafe { dpc.as_ref() };
    // SAFETY: the caller's token.
    unsafe {
        Irql::<L>::lend(|at| {
            let mut raised = at.raise::<High>();
            let (here, at) = Prcb::here(&mut raised);
            if let Some(number) = entry.target()
                && number != here.number()
                && let Some(processor) = prcb::get(number)
            {
                return insert_there(processor, dpc, arguments, at);
            }
            let urgency = entry.importance().urgency(Recipient::Own);
            match here.dpc.queue_for(entry).insert(dpc, arguments, urgency, at) {
                Inserted::Already => return false,
                Inserted::Quietly => {}
                Inserted::NeedsTick => tick::arm_for_dpcs(here),
                // SAFETY: raised from `at` just now.
                Inserted::Request => request::<L>(&mut raised),
            }
            true
        })
    }
}

/// A timer expired: queues its DPC with null arguments, or returns the call where it would be the next anyway. By the retire loop,
/// which looks at its queues afterwards: it isn't asked to.
///
/// # Safety
/// As [`insert`]; on `here`'s processor, in the retire loop, and a call that is returned is made at once.
#[inline(always)]
pub(super) unsafe fn expired(here: &Prcb, dpc: NonNull<KDpc>, at: &mut Irql<TimerTableLock>) -> Option<Call> {
    // SAFETY: the caller's.
    unsafe {
        if dpc.as_ref().is_plain()
            && let Some(call) = here.dpc.ordinary.pass(dpc)
        {
            return Some(call);
        }
        queue_expired(here, dpc, at);
    }
    None
}

/// # Safety
/// As [`expired`].
#[cold]
#[inline(never)]
unsafe fn queue_expired(here: &Prcb, dpc: NonNull<KDpc>, at: &mut Irql<TimerTableLock>) {
    let mut at = at.raise::<High>();
    // SAFETY: the caller's.
    let entry = unsafe { dpc.as_ref() };
    // SAFETY: the caller's. False if it is still queued for an earlier expiry, as on NT.
    let _ = unsafe {
        match entry.target().filter(|&number| number != here.number()).and_then(prcb::get) {
            Some(processor) => insert_there(processor, dpc, [ptr::null_mut(); 2], &mut at),
            None => {
                let queue = here.dpc.queue_for(entry);
                queue.insert(dpc, [ptr::null_mut(); 2], Urgency::Now, &mut *at) != Inserted::Already
            }
        }
    };
}

/// # Safety
/// As [`insert`].
#[inline(never)]
unsafe fn insert_there(
    there: &'static Processor,
    dpc: NonNull<KDpc>,
    arguments: [*mut c_void; 2],
    at: &mut Irql<High>,
) -> bool {
    let there = there.prcb();
    // SAFETY: the caller's.
    let entry = unsafe { dpc.as_ref() };
    let idle = tick::OWNER.is_idle(there.number());
    let urgency = entry.importance().urgency(if idle { Recipient::Idle } else { Recipient::Busy });
    // SAFETY: the caller's.
    match unsafe { there.dpc.queue_for(entry).insert(dpc, arguments, urgency, at) } {
        Inserted::Already => return false,
        Inserted::Quietly => {}
        // Its clock is its own: a look at once is the only tick that can be given to it.
        Inserted::Request | Inserted::NeedsTick => {
            there.dpc.requests.fetch_add(1, Ordering::Relaxed);
            dispatch::request_on(there);
        }
    }
    true
}

/// Takes `dpc` off its queue. True: it was there, and its routine will not be called for that insert.
///
/// # Safety
/// `dpc` is valid until this returns.
#[doc(alias = "KeRemoveQueueDpc")]
pub unsafe fn remove<L: Below<DpcQueueLock>>(dpc: NonNull<KDpc>, at: &mut Irql<L>) -> bool {
    // SAFETY: the caller's; the queues are in PRCBs, which are never freed.
    unsafe { Queue::remove(dpc, at) }
}

mod sealed {
    pub trait Sealed {}
}

/// Where a DPC runs: DISPATCH, or PASSIVE for a threaded one.
pub trait DpcLevel: Level + sealed::Sealed {
    /// Its object type.
    const KIND: u8;
    /// The routine of every [`Dpc`] of this level, which calls the one that it was made with: its context.
    const WRAPPER: Routine;
}

impl sealed::Sealed for Dispatch {}
impl sealed::Sealed for Passive {}
impl DpcLevel for Dispatch {
    const KIND: u8 = KDpc::ORDINARY;
    const WRAPPER: Routine = run_ordinary;
}
impl DpcLevel for Passive {
    const KIND: u8 = KDpc::THREADED;
    const WRAPPER: Routine = run_threaded;
}

/// A deferred procedure call that safe code can queue: it lives for ever, so none is dropped while queued. `Dpc<Passive>` is a
/// threaded one.
#[repr(transparent)]
pub struct Dpc<L: DpcLevel = Dispatch> {
    raw: KDpc,
    level: PhantomData<fn(&mut Irql<L>)>,
}

/// What a [`Dpc`] calls: itself, the level, the arguments of the insert that won.
pub type DpcRoutine<L> = fn(&'static Dpc<L>, &mut Irql<L>, [usize; 2]);

impl<L: DpcLevel> Dpc<L> {
    /// A DPC of medium importance for whichever processor queues it.
    #[doc(alias = "KeInitializeDpc")]
    #[doc(alias = "KeInitializeThreadedDpc")]
    pub const fn new(routine: DpcRoutine<L>) -> Self {
        Self { raw: KDpc::new(L::KIND, L::WRAPPER, routine as *mut c_void), level: PhantomData }
    }

    /// Queues it unless it is queued already; false then. Any level up to HIGH.
    #[doc(alias = "KeInsertQueueDpc")]
    #[inline]
    pub fn queue<M>(&'static self, arguments: [usize; 2], at: &mut Irql<M>) -> bool
    where
        M: Below<DpcQueueLock> + AtOrBelow<High>,
    {
        // SAFETY: 1. it is `'static`. 2. The wrapper with the routine as its context, as `new` paired them; its arguments are numbers.
        unsafe { insert(self.as_raw(), arguments.map(ptr::without_provenance_mut), at) }
    }

    /// Takes it off its queue: true if it was queued and had not started.
    #[doc(alias = "KeRemoveQueueDpc")]
    pub fn remove<M: Below<DpcQueueLock>>(&'static self, at: &mut Irql<M>) -> bool {
        // SAFETY: it is `'static`.
        unsafe { remove(self.as_raw(), at) }
    }

    /// From the next insert on.
    #[doc(alias = "KeSetImportanceDpc")]
    pub fn set_importance(&self, importance: Importance) {
        self.raw.set_importance(importance);
    }

    /// From the next insert on, or the next expiry of a timer that is set: processor `number`, or the one that inserts.
    #[doc(alias = "KeSetTargetProcessorDpc")]
    pub fn set_target(&self, number: Option<u32>) {
        self.raw.set_target(number);
    }

    /// Is it in a queue? Stale at once.
    pub fn is_queued(&self) -> bool {
        self.raw.is_queued()
    }

    /// NT's structure inside.
    #[inline(always)]
    pub fn as_raw(&'static self) -> NonNull<KDpc> {
        NonNull::from(&self.raw)
    }
}

/// The address of what a call really runs, for reports: of a [`Dpc`], the routine that it was made with.
pub(super) fn culprit(routine: u64, context: u64) -> u64 {
    let wrappers = [run_ordinary as *const () as u64, run_threaded as *const () as u64];
    if wrappers.contains(&routine) { context } else { routine }
}

/// # Safety
/// Called for an entry made by `Dpc::<Dispatch>::new`, with its context, at DISPATCH. The caller compares the level at the end.
unsafe extern "win64" fn run_ordinary(
    entry: *mut KDpc,
    context: *mut c_void,
    first: *mut c_void,
    second: *mut c_void,
) {
    // SAFETY: the caller's.
    unsafe { run::<Dispatch>(entry, context, first, second) }
}

/// # Safety
/// As [`run_ordinary`], at PASSIVE.
unsafe extern "win64" fn run_threaded(
    entry: *mut KDpc,
    context: *mut c_void,
    first: *mut c_void,
    second: *mut c_void,
) {
    // SAFETY: the caller's.
    unsafe { run::<Passive>(entry, context, first, second) }
}

/// # Safety
/// Called for an entry made by `Dpc::<L>::new`, with its context, at L.
#[inline(always)]
unsafe fn run<L: DpcLevel>(entry: *mut KDpc, context: *mut c_void, first: *mut c_void, second: *mut c_void) {
    // SAFETY: 1. `new` stored a `DpcRoutine<L>` as the context. 2. The entry is the first field of a `Dpc<L>` that was
    //         queued as `&'static`. 3. L is this processor's level (the caller's), and the retire loop's token isn't used meanwhile.
    unsafe {
        let routine = core::mem::transmute::<*mut c_void, DpcRoutine<L>>(context);
        Irql::<L>::lend(|at| routine(&*entry.cast::<Dpc<L>>(), at, [first.addr(), second.addr()]));
    }
}

/// Returns when every DPC that was queued before the call, on any processor, has finished, and every DPC of a timer that had expired by
/// then: so who cancelled a timer too late, and flushes, may free its DPC, whatever target it was given meanwhile.
///
/// # Bugchecks
/// ATTEMPTED_SWITCH_FROM_DPC with parameter 4 = 4 in a threaded DPC, which would wait for itself.
///
/// A marker is queued behind them on one processor after the other, as [`markers`] says.
#[doc(alias = "KeFlushQueuedDpcs")]
pub fn flush(at: &mut Irql<Passive>) {
    if dispatch::is_in_threaded_dpc(at) {
        bugcheck(StopCode::AttemptedSwitchFromDpc, [0, 0, 0, 4]);
    }
    let is_online = |processor: &&Processor| processor.prcb().state() == prcb::State::Online;
    for (processor, kind) in markers(prcb::all().filter(is_online)) {
        let done = Event::new(EventKind::Notification, false);
        let marker = KDpc::new(kind, mark, ptr::from_ref(&done).cast_mut().cast());
        marker.set_importance(Importance::MediumHigh);
        marker.set_target(Some(processor.prcb().number()));
        // SAFETY: 1. marker and event live until `done` is signalled, which the routine does as its last access to either.
        //         2. `mark` may run at both levels.
        let queued = unsafe { insert(NonNull::from(&marker), [ptr::null_mut(); 2], at) };
        debug_assert!(queued, "nobody else has the marker");
        let _ = wait::for_single(&done, None, at);
    }
}

/// A marker's routine: signals its event, which isn't touched any more once the wait for it can return.
unsafe extern "win64" fn mark(_: *mut KDpc, done: *mut c_void, _: *mut c_void, _: *mut c_void) {
    // SAFETY: `flush` waits for this, so the event is there until then.
    let done = unsafe { &*done.cast::<Event>() };
    // SAFETY: an ordinary DPC is at DISPATCH, a threaded one at PASSIVE raises to it; the token that the caller of this routine
    //         holds isn't used meanwhile.
    unsafe {
        if arch::irql::current() == Dispatch::CR8 {
            Irql::<Dispatch>::lend(|at| done.set(0, at));
        } else {
            Irql::<Passive>::lend(|at| done.set(0, at));
        }
    }
}
