//! A processor's part of the scheduler, and the switch from one thread to the next.
//!
//! IRQL:       DISPATCH.
//! Invariants: I1 `charged_at` is when the running thread was last charged, in TSC ticks. Own processor.
//!             I2 `switched_from` is the thread that the last switch left, from before the switch until `finish_switch`: own processor,
//!                `PrcbLock` held throughout.
//!             I3 IF belongs to the thread: a switch is made with IF=1, whatever the thread had, and gives it back.
//! Hand-over:  [`switch_to`] is entered with `PrcbLock` held and its guard forgotten; [`finish_switch`], on whatever stack comes next,
//!             releases it. This is the one pair of places where a lock is released by another thread than took it.

use core::hint::cold_path;
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use arch::service::NothingInService;
use arch::switch::swap_context;
use arch::trace::{self, Kind};
use sync::SpinLock;
use sync::idle_set::IdleSet;
use sync::irql::{Dispatch, Irql, PrcbLock};
use sync::lock_set::Lockable;
use sync::watch::Watch;

use super::super::prcb::Prcb;
use super::super::thread::{Name, Thread, left_for_good};
use super::super::{apc, extended};
use super::place::Level;
use super::queues::{Queues, Shared, ThreadPtr};
use super::ready;
use super::schedulable::{PackedPlace, Place, Schedulable};
#[cfg(feature = "verifier")]
use super::verify;
#[cfg(not(target_os = "none"))]
use crate::ke::hosted::space as here;
#[cfg(target_os = "none")]
use crate::mm::process::here;

/// The processors that have nothing to run.
pub(in crate::ke) static IDLE: IdleSet = IdleSet::new();

/// In a PRCB.
pub struct PerProcessor {
    pub(super) queues: SpinLock<Queues, PrcbLock>,
    /// Written under that lock, read by anybody.
    pub(super) shared: Shared,
    /// I1.
    pub(super) charged_at: AtomicU64,
    /// I2; null: it was queued.
    switched_from: AtomicPtr<Thread>,
    /// The running thread's quantum is to be looked at: says the clock, or who queued a thread here.
    pub(super) quantum_look: AtomicBool,
    /// A thread was queued elsewhere, says who queued it, and this processor is to look for it (S4): any sets it, own processor clears it.
    pub(super) told: AtomicBool,
    /// In which others ask for a look as it is idle (S5).
    pub(super) watch: Watch,
    /// `verify`, I2.
    #[cfg(feature = "verifier")]
    pub(super) leaves: AtomicPtr<Thread>,
    /// When the queues were last searched for starved threads, in TSC ticks. Own processor.
    pub(super) starved_at: AtomicU64,
    /// `Running`, `Waiting` and `Terminated` on this processor.
    runs_here: PackedPlace,
    waits_here: PackedPlace,
    ends_here: PackedPlace,
    /// The affinity of what may run on this processor alone.
    pub(super) alone: u64,
    /// What runs when nothing else does.
    pub(in crate::ke) idle: Thread,
}

impl PerProcessor {
    /// That of processor `number`.
    pub(crate) const fn new(number: u32) -> Self {
        Self {
            queues: SpinLock::new(Queues::new()),
            shared: Shared::new(),
            charged_at: AtomicU64::new(0),
            switched_from: AtomicPtr::new(ptr::null_mut()),
            quantum_look: AtomicBool::new(false),
            told: AtomicBool::new(false),
            watch: Watch::new(),
            #[cfg(feature = "verifier")]
            leaves: AtomicPtr::new(ptr::null_mut()),
            starved_at: AtomicU64::new(0),
            runs_here: PackedPlace::new(Place::Running(number)),
            waits_here: PackedPlace::new(Place::Waiting(number)),
            ends_here: PackedPlace::new(Place::Terminated(number)),
            alone: 1 << number,
            idle: Thread::new(Schedulable::new(0, 1 << number, number, i64::MAX), Name::new("idle")),
        }
    }

    /// Must this processor switch? For its own look.
    #[inline(always)]
    pub(in crate::ke) fn wants_look(&self) -> bool {
        self.shared.has_standby() || self.quantum_look.load(Ordering::Relaxed)
    }

    /// The clock found the quantum's time to be over, or a thread was queued and no clock is armed for it.
    pub(in crate::ke) fn ask_quantum_look(&self) {
        self.quantum_look.store(true, Ordering::Relaxed);
    }

    /// The running thread's quantum is over, whatever it has left: for tests. Own processor, in a handler; a charge that this interrupts
    /// may undo it.
    #[cfg(all(target_os = "none", feature = "verifier"))]
    pub(in crate::ke) fn end_quantum(&self) {
        if !self.is_idle() {
            running().sched.set_quantum(0);
            self.ask_quantum_look();
        }
    }

    /// Does its idle thread run? Own processor.
    #[cfg(all(target_os = "none", feature = "verifier"))]
    pub(in crate::ke) fn is_idle(&self) -> bool {
        ptr::eq(running(), &self.idle)
    }

    /// The same for a host's machine, in either build.
    #[cfg(not(target_os = "none"))]
    pub(in crate::ke) fn is_watching(&self) -> bool {
        self.watch.is_on()
    }

    /// Does it watch, before it halts? For tests. Stale at once.
    #[cfg(feature = "verifier")]
    pub fn watches(&self) -> bool {
        self.watch.is_on()
    }

    /// Bit p: a thread of priority p waits for its turn here. Stale at once.
    pub fn ready_summary(&self) -> u32 {
        self.shared.summary()
    }

    /// What it runs: 0 idle, else the priority plus one. Stale at once.
    pub fn level(&self) -> Level {
        self.shared.level()
    }
}

/// The thread that runs on this processor, the caller.
#[inline(always)]
pub(super) fn running() -> &'static Thread {
    // SAFETY: the running thread, or the one that was interrupted, is not freed before its last switch.
    unsafe { &*arch::pcr::current_thread().cast::<Thread>() }
}

/// Charges the running thread for its time up to now, which is returned.
#[inline(always)]
pub(super) fn charge(here: &Prcb, thread: &Thread) -> u64 {
    let now = arch::cpu::timestamp();
    let spent = now.wrapping_sub(here.sched.charged_at.load(Ordering::Relaxed));
    here.sched.charged_at.store(now, Ordering::Relaxed);
    thread.sched.set_quantum(thread.sched.quantum().wrapping_sub(spent as i64));
    thread.cycles.store(thread.cycles().wrapping_add(spent), Ordering::Relaxed);
    now
}

/// The same for whoever has nothing else to do with the scheduler.
pub(in crate::ke) fn charge_running(at: &mut Irql<Dispatch>) {
    let (here, _) = Prcb::here(at);
    charge(here, running());
}

/// From now on the checked build times stays at or above DISPATCH by what their threads run: who waits, or is preempted, stays nowhere.
#[cfg(all(target_os = "none", feature = "verifier"))]
pub(crate) fn time_stays_by_thread() {
    // TSC ticks for which the running thread has had a processor so far.
    sync::irql::set_stay_clock(|| {
        let now = arch::cpu::timestamp();
        if arch::pcr::current_thread().is_null() {
            return now;
        }
        // SAFETY: this processor's block, which never moves (prcb.rs, I1); stays are timed at DISPATCH and above.
        let here = unsafe { &*arch::pcr::prcb().cast::<Prcb>() };
        running().cycles().wrapping_add(now.wrapping_sub(here.sched.charged_at.load(Ordering::Relaxed)))
    });
}

/// What runs next here, out of the queues, or the idle thread; what the processor shows is brought up to date.
#[inline(always)]
fn take_next(here: &Prcb, queues: &mut Queues) -> ThreadPtr {
    match queues.take_next(&here.sched.shared) {
        Some(next) => {
            // SAFETY: it was queued or standby here, and is ours now.
            here.sched.shared.runs(Some(unsafe { next.as_ref() }.priority()));
            next
        }
        None => {
            // Its bit in the idle set comes with its look (S4).
            here.sched.shared.runs(None);
            here.sched.idle.part()
        }
    }
}

/// The running thread has made others ready, and waits or ends next without a look of its own, which it may have had in view (S2): whoever
/// runs next is asked for it. A wait that nothing was made ready before has none in view, so [`block`] asks nothing.
pub(in crate::ke) fn leave_a_look(at: &mut Irql<Dispatch>) {
    let (here, _) = Prcb::here(at);
    leave_look_of(here);
}

/// The same where the lock of the queues of `here`, the caller's processor, may be held: it takes none, and reads what only a look here clears.
#[inline(always)]
fn leave_look_of(here: &Prcb) {
    if here.sched.quantum_look.load(Ordering::Relaxed) {
        // SAFETY: DISPATCH, says who has a reference to its own block.
        unsafe { arch::pcr::request_dispatch() };
    }
}

/// The running thread waits: its wait is committed, or somebody has ended it since. Returns when it runs again, on whichever
/// processor.
///
/// # Safety
/// Whoever ends the wait calls `handoff.wake` once.
#[inline(always)]
pub(in crate::ke) unsafe fn block(at: &mut Irql<Dispatch>, nothing: NothingInService) {
    let (here, at) = Prcb::here(at);
    let me = running();
    let mut guard = here.sched.queues.lock(at);
    debug_assert!(!ptr::eq(me, &here.sched.idle), "the idle thread waits");
    let next = take_next(here, &mut guard);
    charge(here, me);
    me.sched.set_packed_place(here.sched.waits_here);
    mem::forget(guard);
    // SAFETY: 1. its place says that it waits. 2. `next` was taken just now. 3. the guard was forgotten.
    unsafe { switch_to::<false>(here, me, Some(me), next, nothing) };
}

/// The running thread ends: it is never switched to again. `joins`: the one that waited for that, which is made ready, and runs at once
/// where it is next.
///
/// # Safety
/// The caller ended the wait of `joins`, just now, and once.
#[inline(always)]
pub(in crate::ke) unsafe fn leave_for_good(
    joins: Option<&Thread>,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) -> ! {
    // SAFETY: the caller's.
    let successor = joins.filter(|joins| unsafe { ready::succeed(joins, at) });
    let (here, at) = Prcb::here(at);
    let me = running();
    // From here on this processor's `PrcbLock` is held without a guard, so the token takes no more.
    let next = match successor {
        // It left it held.
        Some(next) => next.part(),
        None => {
            let mut guard = here.sched.queues.lock(at);
            let next = take_next(here, &mut guard);
            mem::forget(guard);
            next
        }
    };
    // Whom its end made ready here, for one.
    leave_look_of(here);
    // It was charged before it was signalled; what came since is the next one's.
    me.sched.set_packed_place(here.sched.ends_here);
    // SAFETY: as in `block`.
    unsafe { switch_to::<false>(here, me, Some(me), next, nothing) };
    unreachable!("a thread that ended runs again");
}

/// Switches from the running thread to `next`; `left` is what there is to be done for the old one when it is saved.
///
/// # Safety
/// 1. `from` runs here and is in its next place already; `left` is `from`, unless that is queued, or idle. 2. `next` is the caller's: off a
///    queue, or the idle thread. 3. This processor's `PrcbLock` is held, without a guard: `finish_switch` releases it. 4. `IF_SET`: IF is.
#[inline(always)]
pub(super) unsafe fn switch_to<const IF_SET: bool>(
    here: &Prcb,
    from: &Thread,
    left: Option<&Thread>,
    next: ThreadPtr,
    nothing: NothingInService,
) {
    // SAFETY: the caller's 2.
    let next = unsafe { Thread::of(next) };
    let enabled = IF_SET || arch::cpu::interrupts_enabled();
    if !enabled {
        // SAFETY: given back below (I3). DISPATCH, so what interrupts now doesn't switch.
        unsafe { arch::cpu::sti() };
    }
    #[cfg(feature = "verifier")]
    verify::before_switch(here, from, next);
    next.sched.set_packed_place(here.sched.runs_here);
    next.handoff.run();
    if trace::ENABLED {
        let why = from.sched.place().number();
        trace::about(Kind::Switch, why, from, ptr::from_ref(next).addr() as u64);
    }
    let left = left.map_or(ptr::null_mut(), |left| ptr::from_ref(left).cast_mut());
    here.sched.switched_from.store(left, Ordering::Relaxed);
    here.set_current_thread(next);
    if from.attention.either(&next.attention) {
        cold_path();
        // SAFETY: such a function, and two threads.
        unsafe { arch::call_aside!(attend, &(from, next)) };
    }
    // SAFETY: 1. `next` was saved, or prepared: it was queued under the lock that is held, or made ready by who saw it saved.
    //         2. `from`'s context is its own; nobody resumes it before `finish_switch`. 3. DISPATCH. IF is set for the other side and
    //         given back afterwards (I3).
    unsafe {
        swap_context(&mut *from.context.get(), &*next.context.get(), nothing);
        finish_switch();
        if !enabled {
            arch::cpu::cli();
        }
    }
}

/// Something is to be done for the thread that is switched to, or of what the other leaves. Under the lock, behind its place:
/// `sync::attention`.
#[cold]
#[inline(never)]
extern "sysv64" fn attend(&(from, next): &(&Thread, &Thread)) {
    // Here already, as kernel stacks are the same in all address spaces.
    // SAFETY: 1. DISPATCH, and the caller's token is not used meanwhile. 2. `from` ran here until now, `next` is about to, and nothing
    //         in between reaches the user's half.
    unsafe { Irql::<Dispatch>::lend(|at| here::switch(from, next, at)) };
    // SAFETY: as above: DISPATCH, and the registers are touched by threads alone.
    unsafe { extended::switch(from, next) };
    if apc::requests_delivery(next) {
        // SAFETY: at DISPATCH. Where the level falls, or the way out of the interrupt looks, is in the context of `next`.
        unsafe { arch::pcr::request_apc() };
    }
}

/// What runs after every switch, on the new thread's stack, whether it was resumed or runs for the first time: the other half of
/// the hand-over.
///
/// # Safety
/// Right behind a switch, at DISPATCH.
#[inline(always)]
pub(in crate::ke) unsafe fn finish_switch() {
    // SAFETY: DISPATCH, and no token is in use: the switch borrowed or consumed that of the thread that is resumed.
    unsafe {
        Irql::<Dispatch>::lend(|at| {
            let (here, at) = Prcb::here(at);
            #[cfg(feature = "verifier")]
            verify::after_switch(here);
            let left = here.sched.switched_from.load(Ordering::Relaxed);
            here.sched.queues.release();
            // A thread that was queued may run elsewhere by now; one that waits or has ended can't before this.
            if let Some(left) = left.as_ref() {
                clean_up(left, at);
            }
        });
    }
}

/// A thread that waits or has ended is saved.
#[inline(always)]
fn clean_up(left: &Thread, at: &mut Irql<Dispatch>) {
    match left.sched.place() {
        Place::Terminated(_) => left_for_good(NonNull::from(left)),
        _ if left.handoff.saved() => ready::woken_before_it_was_saved(left, at),
        _ => {}
    }
}
