//! System worker threads: work that has to be done at PASSIVE, handed over by who is not there, or has no time.
//!
//! Three queues, each with threads of its own. An item goes to a thread that waits for one, the last that began to wait, or else to the
//! end of its queue. While items stand in a queue, a manager looks at it now and then, and gives it one more thread if none was
//! taken since its last look: so items that wait for others that stand behind them get on. Threads that have nothing to do any
//! more are let go one by one, but for the queue's first: the memory of all later ones comes back.
//!
//! Owns:       [`WorkItem`], [`KWorkItem`], the queues and their threads.
//! IRQL:       queueing up to DISPATCH; an item's routine at PASSIVE, and it must return there: IRQL_UNEXPECTED_VALUE.
//! Locks:      a queue's own, of rank `ObjectLock`. Nothing is signalled or called under it.
//! Invariants: I1 an item's `next` is not null exactly from the exchange that queues it until a worker, about to call its routine,
//!                makes it null as its last access. So it runs once for each time that it was queued, may be queued again by its
//!                own routine, and may be freed by it.
//!             I2 no worker waits while an item is in its queue.
//!             I3 an item is in a queue, or a worker that is not its first waits => the manager looks, or is about to.
//!             I4 what an idle worker's node leads to is in place until its event is set; whoever took it off the list sets it.
//!             I5 a queue's first worker, made in bring-up, and no other has `stays`; it never ends.
//! Not as NT:  at most 16 threads a queue, which leave soon and not after minutes; items that run are not counted against the number of
//!             processors.
//! Tests:      selftest `ex::work_*`; crash `work_item_left_raised`.
//! Sources:    WDK, "System Worker Threads", `ExQueueWorkItem`; WORK_QUEUE_ITEM's layout as in ddk/wdm.h.

use core::cell::Cell;
use core::ffi::c_void;
use core::pin::pin;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use sync::SpinLock;
use sync::event::{Event as _, MaySignal};
use sync::irql::{Apc, Fixed, Irql, ObjectLock, Passive};

use super::Wakeup;
use crate::ke::bugcheck::{RoutineKind, StopCode, bugcheck};
use crate::ke::thread::{self, Name, Options};
use crate::ke::timer::Due;
use crate::ke::wait;
use crate::rtl::NtStatus;

/// Threads that a queue can have.
const MOST: u32 = 16;
/// Between two looks of the manager, in units of 100 ns: twenty milliseconds.
const LOOK: u64 = 200_000;

/// The queue that an item is for: NT's WORK_QUEUE_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "WORK_QUEUE_TYPE")]
pub enum Queue {
    /// Threads of priority 13.
    Critical = 0,
    /// Threads of priority 12: what drivers use.
    Delayed = 1,
    /// Threads of priority 15.
    HyperCritical = 2,
}

const PRIORITIES: [u8; 3] = [13, 12, 15];
const NAMES: [Name; 3] = [Name::new("critical work"), Name::new("delayed work"), Name::new("urgent work")];

/// What a driver's item calls.
pub type Routine = unsafe extern "win64" fn(*mut c_void);

/// NT's WORK_QUEUE_ITEM, byte for byte.
#[repr(C)]
#[doc(alias = "WORK_QUEUE_ITEM")]
pub struct KWorkItem {
    /// I1. In a queue: the next one, or [`last`].
    next: AtomicPtr<KWorkItem>,
    _previous: usize,
    routine: Routine,
    parameter: AtomicPtr<c_void>,
}

const _: () = assert!(size_of::<KWorkItem>() == 32);

sync::nt_layout! {
    [] KWorkItem = "WORK_QUEUE_ITEM" {
        next => "List.Flink", _previous => "List.Blink", routine => "WorkerRoutine", parameter => "Parameter",
    }
}

/// The `next` of the last item in a queue.
fn last() -> *mut KWorkItem {
    ptr::without_provenance_mut(1)
}

impl KWorkItem {
    /// One that is not queued.
    #[doc(alias = "ExInitializeWorkItem")]
    pub const fn new(routine: Routine, parameter: *mut c_void) -> Self {
        Self {
            next: AtomicPtr::new(ptr::null_mut()),
            _previous: 0,
            routine,
            parameter: AtomicPtr::new(parameter),
        }
    }

    /// Is it queued? Stale at once.
    pub fn is_queued(&self) -> bool {
        !self.next.load(Ordering::Relaxed).is_null()
    }
}

/// An item that safe code can queue: a static, whose routine is given the item and PASSIVE.
#[repr(C)]
pub struct WorkItem {
    item: KWorkItem,
    routine: fn(&'static WorkItem, &mut Irql<Passive>),
}

impl WorkItem {
    /// One that is not queued.
    pub const fn new(routine: fn(&'static WorkItem, &mut Irql<Passive>)) -> Self {
        Self { item: KWorkItem::new(run_static, ptr::null_mut()), routine }
    }

    /// Has its routine called by a worker of `queue`; false if it is queued already.
    #[must_use = "false: it was queued already, and runs once for both"]
    #[doc(alias = "ExQueueWorkItem")]
    pub fn queue<L: MaySignal>(&'static self, queue: Queue, at: &mut Irql<L>) -> bool {
        // Always the same, so it does no harm while it is queued.
        self.item.parameter.store(ptr::from_ref(self).cast_mut().cast(), Ordering::Relaxed);
        // SAFETY: it is there for good; `run_static` takes what was stored.
        unsafe { self::queue(NonNull::from(&self.item), queue, at) }
    }

    /// Is it queued? Stale at once.
    pub fn is_queued(&self) -> bool {
        self.item.is_queued()
    }
}

unsafe extern "win64" fn run_static(parameter: *mut c_void) {
    // SAFETY: `WorkItem::queue` stored it.
    let item = unsafe { &*parameter.cast_const().cast::<WorkItem>() };
    // SAFETY: called by a worker, which is at PASSIVE and uses no token of its own meanwhile.
    unsafe { Irql::<Passive>::lend(|at| (item.routine)(item, at)) };
    check_level(item.routine as usize as u64);
}

/// Has `item`'s routine called by a worker of `queue`; false if it is queued already.
///
/// # Safety
/// 1. `item` stays until its routine is called, and is accessed by nobody else than this function until then.
/// 2. The routine may be called with the parameter, at PASSIVE, in any thread.
#[doc(alias = "ExQueueWorkItem")]
pub unsafe fn queue<L: MaySignal>(item: NonNull<KWorkItem>, queue: Queue, at: &mut Irql<L>) -> bool {
    // SAFETY: the caller's.
    let next = unsafe { &item.as_ref().next };
    // Acquire: the worker that made it null has read the rest.
    if next.compare_exchange(ptr::null_mut(), last(), Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    let queue = &QUEUES[queue as usize];
    let idle = {
        let mut state = queue.0.lock(at);
        let idle = state.take_idle();
        match idle {
            Some(idle) => {
                state.taken = state.taken.wrapping_add(1);
                // SAFETY: its event is not set yet (I4).
                unsafe { idle.as_ref() }.item.set(item.as_ptr());
            }
            None => state.append(item),
        }
        idle
    };
    match idle {
        // SAFETY: we took it off (I4).
        Some(idle) => unsafe { Wakeup::set(&raw const (*idle.as_ptr()).event, at) },
        None => look_after(at),
    }
    true
}

/// A worker that waits, on its own stack.
struct Idle {
    next: Cell<*const Idle>,
    /// The queue's first, which is never let go (I5).
    stays: bool,
    /// What it is handed, by who takes it off the list; null: it is to end.
    item: Cell<*mut KWorkItem>,
    event: Wakeup,
}

struct State {
    first: *mut KWorkItem,
    /// Means something while `first` is not null.
    last: *mut KWorkItem,
    /// The last worker that began to wait.
    idle: *const Idle,
    workers: u32,
    /// How many items were taken or handed over, modulo 2³².
    taken: u32,
}

// SAFETY: the pointers lead to items and nodes that any thread may reach under the lock (I1, I4).
unsafe impl Send for State {}

struct WorkQueue(SpinLock<State, ObjectLock>);

static QUEUES: [WorkQueue; 3] = [const { WorkQueue::new() }; 3];

impl WorkQueue {
    const fn new() -> Self {
        Self(SpinLock::new(State {
            first: ptr::null_mut(),
            last: ptr::null_mut(),
            idle: ptr::null(),
            workers: 0,
            taken: 0,
        }))
    }
}

impl State {
    /// The last worker that began to wait; its event is the caller's to set.
    fn take_idle(&mut self) -> Option<NonNull<Idle>> {
        let idle = NonNull::new(self.idle.cast_mut())?;
        // SAFETY: it is in the list (I4), whose lock is held.
        self.idle = unsafe { idle.as_ref() }.next.get();
        Some(idle)
    }

    /// Does one wait that can be let go? The first can stand before it (I5).
    fn can_let_go(&self) -> bool {
        // SAFETY: in the list (I4), whose lock is held.
        NonNull::new(self.idle.cast_mut())
            .is_some_and(|idle| unsafe { !idle.as_ref().stays || !idle.as_ref().next.get().is_null() })
    }

    /// The last that began to wait and can be let go; its event is the caller's to set.
    fn let_go(&mut self) -> Option<NonNull<Idle>> {
        let last = NonNull::new(self.idle.cast_mut())?;
        // SAFETY: in the list (I4), whose lock is held.
        let last = unsafe { last.as_ref() };
        if !last.stays {
            return self.take_idle();
        }
        let behind = NonNull::new(last.next.get().cast_mut())?;
        // SAFETY: as above.
        last.next.set(unsafe { behind.as_ref() }.next.get());
        Some(behind)
    }

    fn append(&mut self, item: NonNull<KWorkItem>) {
        let item = item.as_ptr();
        match NonNull::new(self.first) {
            None => self.first = item,
            // SAFETY: it is in the queue (I1), whose lock is held.
            Some(_) => unsafe { (*self.last).next.store(item, Ordering::Relaxed) },
        }
        self.last = item;
    }

    fn take(&mut self) -> Option<*mut KWorkItem> {
        let first = NonNull::new(self.first)?.as_ptr();
        // SAFETY: as above.
        let next = unsafe { (*first).next.load(Ordering::Relaxed) };
        self.first = if next == last() { ptr::null_mut() } else { next };
        self.taken = self.taken.wrapping_add(1);
        Some(first)
    }
}

/// A worker's life: a queue's number, twice, and one more for its first.
fn work(at: &mut Irql<Passive>, argument: usize) {
    let (queue, stays) = (&QUEUES[argument / 2], !argument.is_multiple_of(2));
    loop {
        let item = next_item(queue, stays, at);
        if item.is_null() {
            // In this order: who sees that the queue has no later ones finds the memory of this one on its way.
            #[cfg(feature = "verifier")]
            thread::count_as_ended(at);
            queue.0.lock(at).workers -= 1;
            return;
        }
        // SAFETY: taken off its queue, or handed to us: ours until its `next` is null (I1).
        let (routine, parameter) = unsafe {
            let (routine, parameter) = ((*item).routine, (*item).parameter.load(Ordering::Relaxed));
            (*item).next.store(ptr::null_mut(), Ordering::Release);
            (routine, parameter)
        };
        // SAFETY: as whoever queued it promised; we are at PASSIVE.
        unsafe { routine(parameter) };
        check_level(routine as usize as u64);
    }
}

/// In every build: a routine returns at PASSIVE.
fn check_level(routine: u64) {
    let found = arch::irql::current();
    if found != Passive::CR8 {
        let parameters = [found.into(), Passive::CR8.into(), routine, RoutineKind::WorkItem as u64];
        bugcheck(StopCode::IrqlUnexpectedValue, parameters);
    }
}

/// The next item, waited for if there is none; null: this worker is to end.
fn next_item(queue: &WorkQueue, stays: bool, at: &mut Irql<Passive>) -> *mut KWorkItem {
    let (next, item) = (Cell::new(ptr::null()), Cell::new(ptr::null_mut()));
    let idle = pin!(Idle { next, stays, item, event: Wakeup::new() });
    let idle = idle.into_ref().get_ref();
    // From before others know of the node until they have forgotten it.
    let mut at = at.raise::<Apc>();
    {
        let mut state = queue.0.lock(&mut at);
        if let Some(item) = state.take() {
            return item;
        }
        idle.next.set(state.idle);
        state.idle = idle;
    }
    if !stays {
        look_after(&mut at);
    }
    idle.event.wait(None, &mut at);
    idle.item.get()
}

/// Set while the manager looks, or is about to (I3).
static LOOKS: AtomicBool = AtomicBool::new(false);
static MANAGER: Wakeup = Wakeup::new();

/// Has the manager look after what was just put into a queue, or at a worker that may be too many.
fn look_after<L: MaySignal>(at: &mut Irql<L>) {
    // AcqRel: the item before this, for the manager that takes it back.
    if !LOOKS.swap(true, Ordering::AcqRel) {
        // SAFETY: a static.
        unsafe { Wakeup::set(&raw const MANAGER, at) };
    }
}

/// Looks until no item stands in a queue and no worker is too many; then waits until an item does.
fn manage(at: &mut Irql<Passive>, _: usize) {
    let mut taken = [0; 3];
    loop {
        MANAGER.wait(None, &mut at.raise::<Apc>());
        loop {
            if look(&mut taken, at) {
                let _ = wait::delay(Due::In(LOOK), at);
                continue;
            }
            // AcqRel: what was put in by who saw it set.
            LOOKS.swap(false, Ordering::AcqRel);
            if !look(&mut taken, at) || LOOKS.swap(true, Ordering::AcqRel) {
                break;
            }
        }
    }
}

/// Gives a queue one more thread if items stand in it and none was taken since the last look; lets an idle one go that
/// is not its first. Is there something to look at again?
fn look(taken: &mut [u32; 3], at: &mut Irql<Passive>) -> bool {
    let mut any = false;
    for (number, queue) in QUEUES.iter().enumerate() {
        let (stands, now, workers, leaves, idles) = {
            let mut state = queue.0.lock(at);
            let leaves = if state.taken == taken[number] { state.let_go() } else { None };
            (!state.first.is_null(), state.taken, state.workers, leaves, state.can_let_go())
        };
        if let Some(idle) = leaves {
            // SAFETY: we took it off (I4); its item is null.
            unsafe { Wakeup::set(&raw const (*idle.as_ptr()).event, at) };
        }
        let stuck = stands && now == taken[number];
        taken[number] = now;
        any |= stands || idles;
        if stuck && workers < MOST {
            // Without memory it is tried again at the next look.
            let _ = add_worker(number, false, at);
        }
    }
    any
}

fn add_worker(number: usize, stays: bool, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let options =
        Options { name: NAMES[number], priority: PRIORITIES[number], ideal: Some(0), ..Default::default() };
    // First, and taken back: a thread that is there is counted.
    QUEUES[number].0.lock(at).workers += 1;
    let made = thread::spawn(&options, work, number * 2 + usize::from(stays), at);
    if made.is_err() {
        QUEUES[number].0.lock(at).workers -= 1;
    }
    made.map(drop)
}

/// Has a queue more than its first thread? They go one by one when they have nothing to do, but how soon is the load's matter. Stale at
/// once. Of one that isn't counted any more the memory is back, or on its way ([`thread::are_any_on_their_way`]).
#[cfg(feature = "verifier")]
pub fn are_there_later_workers<L: MaySignal>(at: &mut Irql<L>) -> bool {
    QUEUES.iter().any(|queue| queue.0.lock(at).workers > 1)
}

/// How many threads a queue has.
pub fn workers<L: MaySignal>(queue: Queue, at: &mut Irql<L>) -> u32 {
    QUEUES[queue as usize].0.lock(at).workers
}

/// Makes the manager and the first worker of each queue.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
pub(crate) fn start(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let options =
        Options { name: Name::new("work manager"), priority: 16, ideal: Some(0), ..Default::default() };
    thread::spawn(&options, manage, 0, at)?;
    (0..QUEUES.len()).try_for_each(|number| add_worker(number, true, at))
}
