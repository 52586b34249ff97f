//! A thread becomes ready: boosted, placed, and the processor that it goes to told.
//!
//! IRQL:  DISPATCH, with any lock below `ThreadLock`.
//! Locks: the thread's, then the chosen processor's.

use core::hint::cold_path;
use core::mem;
use core::sync::atomic::Ordering;

use arch::level::DISPATCH;
use arch::service::NothingInService;
use arch::trace::{Kind, about};
use sync::handoff::Wake;
use sync::irql::{Below, Dispatch, Irql, Level, ThreadLock};

use super::super::prcb::{self, Prcb};
use super::super::thread::{self, Thread};
use super::super::{dispatch, tick};
use super::local::{IDLE, running, switch_to};
use super::look;
use super::place::{choose, level_of};
use super::priority;
use super::queues::Admitted;
use super::schedulable::Schedulable;

/// How often a choice is made again because the processor chosen has something better to do meanwhile.
const TRIES: u32 = 4;

/// The wait of `thread` is over, by the caller, who won it: it is made ready, here or by the processor that is about to save it.
///
/// # Safety
/// The caller ended its wait, just now, and once.
#[inline(always)]
pub(in crate::ke) unsafe fn make_ready<L: Below<ThreadLock>>(
    thread: &Thread,
    increment: u8,
    at: &mut Irql<L>,
) {
    about(Kind::Ready, increment.into(), thread, 0);
    thread.increment.store(increment, Ordering::Relaxed);
    match thread.handoff.wake() {
        Wake::Now => {
            given(thread);
            put(thread, increment, at);
        }
        Wake::Later => {}
    }
}

/// [`make_ready`] of one thread by code that raised from L and holds no lock, and [`look::after_signal`]: where the thread is above this
/// one and belongs here, this is the switch to it.
///
/// # Safety
/// As [`make_ready`].
#[inline(always)]
pub(in crate::ke) unsafe fn make_ready_and_leave<L: Level>(
    thread: &Thread,
    increment: u8,
    at: &mut Irql<Dispatch>,
) {
    about(Kind::Ready, increment.into(), thread, 0);
    thread.increment.store(increment, Ordering::Relaxed);
    if thread.handoff.wake() == Wake::Later {
        cold_path();
        return;
    }
    given(thread);
    // SAFETY: the wait is over, the thread saved and the caller's.
    unsafe { put_and_leave::<L>(thread, increment, at) };
}

/// For the checked build: `thread`, whose wait is over, is about to be given a processor.
#[inline(always)]
fn given(_thread: &Thread) {
    #[cfg(all(target_os = "none", feature = "verifier"))]
    super::super::wait::lost::given(_thread);
}

/// A new thread, by code that raised from L and holds no lock.
///
/// # Safety
/// It is prepared, and the caller has it to itself.
#[inline(always)]
pub(in crate::ke) unsafe fn start<L: Level>(thread: &Thread, at: &mut Irql<Dispatch>) {
    about(Kind::Ready, 0, thread, 0);
    // SAFETY: the caller's.
    unsafe { put_and_leave::<L>(thread, 0, at) };
}

/// # Safety
/// The caller has `thread` to itself, its context saved or prepared; it raised from L and holds no lock.
#[inline(always)]
unsafe fn put_and_leave<L: Level>(thread: &Thread, increment: u8, at: &mut Irql<Dispatch>) {
    let put = if L::HIGHEST < DISPATCH {
        put_here::<true>(thread, increment, at)
    } else {
        put_here::<false>(thread, increment, at)
    };
    match put {
        Put::Running => {
            let (here, _) = Prcb::here(at);
            // SAFETY: L is below DISPATCH, where no handler is half-way on this processor (Irql::nothing_in_service).
            let nothing = unsafe { NothingInService::assume() };
            // SAFETY: 1. it was queued, or is idle. 2. the caller's. 3. `put_here` left it held.
            unsafe { switch_to::<false>(here, running(), None, thread.part(), nothing) };
        }
        Put::Queued => {}
        Put::NeedsLook => look::after_signal::<L>(at),
    }
}

/// What became of a thread that is to be put on this processor.
enum Put {
    /// It runs, by its place; the running one has given way, and this processor's `PrcbLock` is held without a guard.
    Running,
    /// It waits for its turn, or for the look that is ahead, or is another processor's.
    Queued,
    /// It is standby, or waits for its turn and has no tick.
    NeedsLook,
}

/// Boosts `thread`, and puts it on this processor, if that is where it belongs; at once, if it may `SWITCH`.
#[inline(always)]
fn put_here<const SWITCH: bool>(thread: &Thread, increment: u8, at: &mut Irql<Dispatch>) -> Put {
    let mut guard = thread.lock.lock(at);
    let ((), inner) = guard.parts();
    let it = &thread.sched;
    priority::boost(it, increment);
    let (here, inner) = Prcb::here(inner);
    if it.affinity() != here.sched.alone {
        let target = choose_from(here, it);
        if target != here.number() {
            cold_path();
            return if place_on(thread, target, inner) { Put::NeedsLook } else { Put::Queued };
        }
    }
    let mut queues = here.sched.queues.lock(inner);
    let shared = &here.sched.shared;
    if SWITCH {
        let me = running();
        // Under both locks, so that whoever would change the thread finds it where it is.
        if queues.overtake(shared, here.number(), look::part_unless_idle(here, me), it) {
            look::gave_way(here, me);
            mem::forget(queues);
            return Put::Running;
        }
    }
    match queues.admit(shared, here.number(), thread.part()) {
        // The retire loop, which this is in, looks when it ends.
        Admitted::Standby { displaced } => {
            // Its look is ahead in any case.
            asks_for_a_tick(here, displaced != 0);
            tell_idle_of(displaced);
            if !SWITCH && here.dpc.is_under_way() { Put::Queued } else { Put::NeedsLook }
        }
        Admitted::Queued { first } => {
            if IDLE.after_queueing() & it.affinity() != 0 {
                cold_path();
                // SAFETY: such a function, and a scheduling part.
                unsafe { arch::call_aside!(tell_idle, it) };
            }
            if asks_for_a_tick(here, first) { Put::NeedsLook } else { Put::Queued }
        }
    }
}

/// The running thread ends, and the wait of `thread` is over by that: it is made ready. True: it is what runs next here, by its place, and
/// this processor's `PrcbLock` is held without a guard.
///
/// # Safety
/// As [`make_ready`]; what runs leaves next.
#[inline(always)]
pub(super) unsafe fn succeed(thread: &Thread, at: &mut Irql<Dispatch>) -> bool {
    about(Kind::Ready, 0, thread, 0);
    thread.increment.store(0, Ordering::Relaxed);
    if thread.handoff.wake() == Wake::Later {
        cold_path();
        return false;
    }
    given(thread);
    let mut guard = thread.lock.lock(at);
    let ((), at) = guard.parts();
    let (here, at) = Prcb::here(at);
    let it = &thread.sched;
    if it.affinity() == here.sched.alone || choose_from(here, it) == here.number() {
        // No idle processor is told: it isn't queued.
        let mut queues = here.sched.queues.lock(&mut *at);
        if queues.succeed(&here.sched.shared, here.number(), it) {
            mem::forget(queues);
            return true;
        }
    }
    cold_path();
    place(thread, at);
    false
}

/// The processor for `it`, seen from this one.
#[inline(always)]
fn choose_from(here: &Prcb, it: &Schedulable) -> u32 {
    // SAFETY: an affinity holds registered processors only, and `choose` asks for one of it.
    let level = |number| unsafe { prcb::get_unchecked(number) }.prcb().sched.level();
    choose(it, here.number(), IDLE.get(), level)
}

/// [`make_ready`] came while it still was on its stack, which it has left now.
#[cold]
pub(super) fn woken_before_it_was_saved(thread: &Thread, at: &mut Irql<Dispatch>) {
    given(thread);
    put(thread, thread.increment.load(Ordering::Relaxed), at);
    let (here, _) = Prcb::here(at);
    if here.sched.wants_look() {
        // What runs now has come out of its own switch: it makes no look by itself (S3).
        // SAFETY: DISPATCH.
        unsafe { arch::pcr::request_dispatch() };
    }
}

/// Boosts and places `thread`, which the caller has to itself.
#[inline(always)]
fn put<L: Below<ThreadLock>>(thread: &Thread, increment: u8, at: &mut Irql<L>) {
    let mut guard = thread.lock.lock(at);
    let ((), at) = guard.parts();
    priority::boost(&thread.sched, increment);
    place(thread, at);
}

/// Gives `thread`, which the caller has to itself, a processor. Under its lock. If it is this one, that wants a look
/// ([`wants_look`](super::local::PerProcessor::wants_look)), which the caller's way out makes, or leaves to who runs next.
#[inline(always)]
pub(super) fn place(thread: &Thread, at: &mut Irql<ThreadLock>) {
    let (here, at) = Prcb::here(at);
    let target = choose_from(here, &thread.sched);
    if place_on(thread, target, at) {
        let (here, _) = Prcb::here(at);
        debug_assert!(here.sched.wants_look(), "a look that nobody will make");
    }
}

/// Gives `thread` to `target`, which was chosen, or chooses again where that has something better to do by now. Under its lock. True: this
/// processor is to look, as it says itself from now on.
#[inline(never)]
fn place_on(thread: &Thread, mut target: u32, at: &mut Irql<ThreadLock>) -> bool {
    let (here, at) = Prcb::here(at);
    let it = &thread.sched;
    let level = level_of(it.priority());
    let mut left = TRIES;
    loop {
        // SAFETY: an affinity holds registered processors only, and `choose` gives one of it.
        let there = unsafe { prcb::get_unchecked(target) }.prcb();
        let expected = there.sched.level() < level;
        let mut guard = there.sched.queues.lock(&mut *at);
        left -= 1;
        if expected && there.sched.level() >= level && left > 0 {
            // Somebody else was faster.
            cold_path();
            drop(guard);
            target = choose_from(here, it);
            continue;
        }
        // An idle processor that may run what is queued must know (S4).
        let look = match guard.admit(&there.sched.shared, target, thread.part()) {
            Admitted::Standby { displaced } => {
                asks_for_a_tick(there, displaced != 0);
                drop(guard);
                tell_idle_of(displaced);
                if target != here.number() && IDLE.get() >> target & 1 != 0 {
                    IDLE.leave(target);
                }
                true
            }
            Admitted::Queued { first } => {
                let asked = asks_for_a_tick(there, first);
                drop(guard);
                if IDLE.after_queueing() & it.affinity() != 0 {
                    tell_idle(it);
                }
                asked
            }
        };
        if look && target != here.number() {
            ask_to_look(there);
        }
        return look && target == here.number();
    }
}

/// Is `there` to be asked for a look, so that it arms its tick (S2)? `wanted`: a thread was queued there just now, under the lock of its
/// queues, which is still held. A tick that is armed still asks for a look behind that. True: it has none, and its look is for a quantum's
/// end from now on, whatever else it is for; the caller sees to it that there is one.
#[inline(always)]
pub(super) fn asks_for_a_tick(there: &Prcb, wanted: bool) -> bool {
    let asks = wanted && !there.tick.has_quantum();
    if asks {
        there.sched.ask_quantum_look();
    }
    asks
}

/// A thread of affinity `displaced`, if that is not 0, was standby and is queued now.
#[inline(always)]
pub(super) fn tell_idle_of(displaced: u64) {
    if displaced != 0 && displaced & IDLE.after_queueing() != 0 {
        cold_path();
        if let Some(idle) = IDLE.claim(displaced) {
            tell(idle);
        }
    }
}

/// `it` is queued, and a processor that may run it was found idle. One that is told is idle for others no more, until it has looked: so of
/// two threads that are queued at once, two processors are told.
#[cold]
#[inline(never)]
pub(super) extern "sysv64" fn tell_idle(it: &Schedulable) {
    if let Some(idle) = IDLE.claim(it.affinity()) {
        tell(idle);
    }
}

fn tell(idle: u32) {
    // SAFETY: only registered processors are in the set.
    let there = unsafe { prcb::get_unchecked(idle) }.prcb();
    there.sched.told.store(true, Ordering::Relaxed);
    there.sched.ask_quantum_look();
    ask_to_look(there);
}

/// Another processor is to look, at what was stored before this: it is interrupted, or asked if it watches.
#[inline(always)]
pub(super) fn ask_to_look(there: &Prcb) {
    if !there.sched.watch.ask() {
        dispatch::request_on(there);
    }
}

/// This processor runs something, and was told of a thread that it has not looked for: whoever is idle is to look.
#[cold]
#[inline(never)]
pub(super) fn pass_on(here: &Prcb) {
    here.sched.told.store(false, Ordering::Relaxed);
    while let Some(idle) = IDLE.claim(u64::MAX) {
        tell(idle);
    }
}

/// What ran was queued behind what runs now, on this processor: as in [`place`], but no look of this thread is ahead that would arm
/// the tick. Under the lock of its queues.
#[inline(always)]
pub(super) fn left_behind(here: &Prcb, it: &Schedulable) {
    if IDLE.after_queueing() & it.affinity() != 0 {
        tell_idle(it);
    }
    keep_ticking(here);
}

/// S2 for a queue that is not empty, by its own processor, under its lock.
#[inline(always)]
pub(super) fn keep_ticking(here: &Prcb) {
    if !here.tick.has_quantum() {
        cold_path();
        tick::arm_quantum(here, thread::quantum());
    }
}
