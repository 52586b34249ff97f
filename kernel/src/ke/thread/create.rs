//! How threads begin and end.
//!
//! Owns:       making, starting and ending a thread; its memory, which is kept for the next one.
//! IRQL:       PASSIVE; the last reference may go at any level.
//! Invariants: I1 an unstarted or ended thread whose last reference is gone is in `GONE`, in a cache, or being freed: in one of them.
//! End:        signalled under its own lock, then switched away from for good; the reference that it held itself goes only when its
//!             processor has left the stack (`left_for_good`). So the memory is never freed under its feet.
//! Not as NT:  an ended thread keeps its stack as long as somebody has a reference. The ideal processors go round by creation.

use core::hint::cold_path;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use arch::switch::Context;
use arch::trace::{self, Kind};
use sync::SpinLock;
use sync::attention::Signs;
use sync::irql::{Dispatch, Fixed, Irql, Passive, ThreadLock};

use super::super::bugcheck::{RoutineKind, StopCode, bugcheck};
use super::super::prcb::{self, Prcb};
use super::super::sched::{self, PRIORITIES, Place, Schedulable};
#[cfg(feature = "verifier")]
use super::super::wait;
use super::super::wait::signal;
use super::super::{apc, clock, extended, mutant, queue};
use super::stack::Stack;
use super::{Name, Thread, ThreadRef};
use crate::mm::pool::{Owned, Tag};
use crate::rtl::NtStatus;

const TAG: Tag = Tag::new(b"Thre");

/// A quantum, in units of 100 ns. NT's are one or two clock ticks of 15.6 ms on a desktop; there is no such tick here.
pub(in crate::ke) const QUANTUM: u64 = 60_000;

/// What a thread runs: its level, and what it was made with. It ends when this returns.
pub type Routine = fn(&mut Irql<Passive>, usize);

/// What a thread starts with.
pub(super) struct Start {
    routine: Option<Routine>,
    argument: usize,
}

impl Start {
    pub(super) const fn none() -> Self {
        Self { routine: None, argument: 0 }
    }
}

/// How a thread is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For reports.
    pub name: Name,
    /// 1 to 31.
    pub priority: u8,
    /// The processors that it may run on; `None`: all that are online.
    pub affinity: Option<u64>,
    /// The processor that it prefers; `None`: the next one round.
    pub ideal: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: Name::new(""), priority: 8, affinity: None, ideal: None }
    }
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);
static NEXT_IDEAL: AtomicU32 = AtomicU32::new(0);

/// Threads whose last reference is gone, linked by `next_ready`: from any level.
static GONE: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// A processor's threads without a use, with their stacks: in its PRCB.
pub(in crate::ke) struct Cache(SpinLock<Spare, ThreadLock>);

struct Spare {
    first: *mut Thread,
    count: u32,
}

// SAFETY: the threads in it are nobody else's.
unsafe impl Send for Spare {}

impl Cache {
    /// Threads that it keeps.
    const MOST: u32 = 16;

    pub(in crate::ke) const fn new() -> Self {
        Self(SpinLock::new(Spare { first: ptr::null_mut(), count: 0 }))
    }
}

/// Makes a thread and starts it.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; STATUS_INVALID_PARAMETER for a priority or a processor that doesn't exist.
#[doc(alias = "PsCreateSystemThread")]
pub fn spawn(
    options: &Options,
    routine: Routine,
    argument: usize,
    at: &mut Irql<Passive>,
) -> Result<ThreadRef, NtStatus> {
    if options.priority == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    spawn_at_any(options, routine, argument, at)
}

/// The zero-page thread, the only one of priority 0: `mm::zeroing`.
pub(crate) fn spawn_zero_page_thread(
    routine: Routine,
    at: &mut Irql<Passive>,
) -> Result<ThreadRef, NtStatus> {
    let options = Options { name: Name::new("zero pages"), priority: 0, ..Options::default() };
    spawn_at_any(&options, routine, 0, at)
}

fn spawn_at_any(
    options: &Options,
    routine: Routine,
    argument: usize,
    at: &mut Irql<Passive>,
) -> Result<ThreadRef, NtStatus> {
    let affinity = options.affinity.unwrap_or(u64::MAX) & prcb::online();
    let ideal = options.ideal.unwrap_or_else(|| next_ideal(affinity));
    if options.priority >= PRIORITIES || ideal >= prcb::count() || affinity >> ideal & 1 == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let part = Schedulable::new(options.priority, affinity, ideal, quantum());
    let thread = obtain(part, options.name, at)?;
    // SAFETY: this thread's alone until it is started. Its second reference is what it holds itself until it has left its stack.
    unsafe {
        *thread.start.get() = Start { routine: Some(routine), argument };
        let top = (*thread.stack.get()).as_ref().map_or(0, Stack::top);
        *thread.context.get() = Context::prepare(top, begin, ptr::from_ref(&*thread) as u64);
    }
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    thread.number.store(number, Ordering::Relaxed);
    let mut raised = at.raise::<Dispatch>();
    trace::about(Kind::Thread, number as u16, ptr::from_ref(&*thread), options.name.start());
    #[cfg(feature = "verifier")]
    wait::chain::enter(&thread, &mut raised);
    // SAFETY: it was prepared, and nobody else has it.
    unsafe { sched::start::<Passive>(&thread, &mut raised) };
    drop(raised);
    Ok(thread)
}

/// A quantum in TSC ticks.
pub(in crate::ke) fn quantum() -> i64 {
    (clock::tsc_hz() / 10_000_000 * QUANTUM) as i64
}

/// The processors of `affinity` in turn.
fn next_ideal(affinity: u64) -> u32 {
    let turn = NEXT_IDEAL.fetch_add(1, Ordering::Relaxed) % affinity.count_ones().max(1);
    let mut left = affinity;
    for _ in 0..turn {
        left &= left.wrapping_sub(1);
    }
    left.trailing_zeros().min(63)
}

/// A thread with a stack: one that was used before, or a new one. It has two references, of which one is returned.
fn obtain(part: Schedulable, name: Name, at: &mut Irql<Passive>) -> Result<ThreadRef, NtStatus> {
    let spare = collect_one(at).or_else(|| take_spare(at));
    let mut thread = match spare {
        Some(thread) => thread,
        None => make(at)?,
    };
    // SAFETY: valid, and nobody else's; one of the references that it is made with.
    unsafe {
        thread.as_mut().renew(part, name);
        Ok(ThreadRef::from_raw(thread))
    }
}

/// One out of this processor's cache.
fn take_spare(at: &mut Irql<Passive>) -> Option<NonNull<Thread>> {
    with_cache(at, |spare| {
        // SAFETY: threads in a cache are valid, and its own.
        let thread = unsafe { spare.first.as_mut() }?;
        spare.first = *thread.next_ready.get_mut();
        spare.count -= 1;
        Some(NonNull::from(thread))
    })
}

/// Memory for one, and a stack.
#[cold]
#[inline(never)]
fn make(at: &mut Irql<Passive>) -> Result<NonNull<Thread>, NtStatus> {
    let stack = Stack::allocate(at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    let fresh = Thread::new(Schedulable::new(0, 0, 0, 0), Name::new(""));
    match Owned::try_new(TAG, fresh, at) {
        Ok(thread) => {
            // SAFETY: nobody else has it.
            unsafe { *thread.stack.get() = Some(stack) };
            Ok(thread.into_raw())
        }
        Err(_) => {
            stack.free(at);
            Err(NtStatus::INSUFFICIENT_RESOURCES)
        }
    }
}

/// One of the threads that nobody refers to any more; the others go into this processor's cache.
#[inline(always)]
fn collect_one(at: &mut Irql<Passive>) -> Option<NonNull<Thread>> {
    if GONE.load(Ordering::Relaxed).is_null() {
        return None;
    }
    // SAFETY: those in the list are whoever took it over's.
    let first = unsafe { GONE.swap(ptr::null_mut(), Ordering::Acquire).as_mut() }?;
    let others = *first.next_ready.get_mut();
    if !others.is_null() {
        keep(others, at);
    }
    Some(NonNull::from(first))
}

fn with_cache<R>(at: &mut Irql<Passive>, f: impl FnOnce(&mut Spare) -> R) -> R {
    let mut at = at.raise::<Dispatch>();
    let (here, at) = Prcb::here(&mut at);
    let mut guard = here.thread_cache.0.lock(at);
    f(&mut guard)
}

/// Brings the threads that nobody refers to any more into this processor's cache, and frees what doesn't fit.
fn collect(at: &mut Irql<Passive>) {
    if !GONE.load(Ordering::Relaxed).is_null() {
        #[cfg(feature = "verifier")]
        ON_THEIR_WAY.fetch_add(1, Ordering::SeqCst);
        keep(GONE.swap(ptr::null_mut(), Ordering::Acquire), at);
        #[cfg(feature = "verifier")]
        ON_THEIR_WAY.fetch_sub(1, Ordering::Release);
    }
}

/// Checked build: threads that have ended, or as good as, and whose stack is not left yet, and lists of those that somebody has taken over to collect.
/// What they have is nobody's to free meanwhile.
#[cfg(feature = "verifier")]
static ON_THEIR_WAY: AtomicU32 = AtomicU32::new(0);

/// Checked build: is memory of threads that have ended on its way, so that [`trim`] doesn't find it? For those who count memory.
#[cfg(feature = "verifier")]
pub fn are_any_on_their_way() -> bool {
    // Acquire: what was brought home before is found by who looks now.
    ON_THEIR_WAY.load(Ordering::Acquire) != 0
}

/// Checked build: the running thread does nothing any more but end, and counts as one that has, for [`are_any_on_their_way`]. For one that
/// nobody joins: who knows that it goes waits for its memory by this.
#[cfg(feature = "verifier")]
pub(crate) fn count_as_ended(at: &mut Irql<Passive>) {
    if !super::current(at).is_as_good_as_ended.replace(true) {
        ON_THEIR_WAY.fetch_add(1, Ordering::SeqCst);
    }
}

/// [`collect`] of a list that was taken over.
#[cold]
#[inline(never)]
fn keep(mut gone: *mut Thread, at: &mut Irql<Passive>) {
    // SAFETY: those in the list are whoever took it over's.
    while let Some(thread) = unsafe { gone.as_mut() } {
        gone = *thread.next_ready.get_mut();
        let kept = with_cache(at, |spare| {
            let room = spare.count < Cache::MOST;
            if room {
                *thread.next_ready.get_mut() = spare.first;
                spare.first = thread;
                spare.count += 1;
            }
            room
        });
        if !kept {
            free(NonNull::from(thread), at);
        }
    }
}

/// Frees the memory of all threads that nobody refers to any more, on all processors.
pub fn trim(at: &mut Irql<Passive>) {
    collect(at);
    for processor in prcb::all() {
        loop {
            let thread = {
                let mut guard = processor.prcb().thread_cache.0.lock(at);
                // SAFETY: threads in a cache are valid, and its own.
                let Some(thread) = (unsafe { guard.first.as_mut() }) else { break };
                guard.first = *thread.next_ready.get_mut();
                guard.count -= 1;
                NonNull::from(thread)
            };
            free(thread, at);
        }
    }
}

fn free(thread: NonNull<Thread>, at: &mut Irql<Passive>) {
    // SAFETY: nobody refers to it (I1).
    unsafe {
        if let Some(stack) = (*thread.as_ref().stack.get()).take() {
            stack.free(at);
        }
        drop(Owned::from_raw(thread, TAG));
    }
}

/// The last reference to `thread` is gone: at any level.
pub(super) fn last_reference_gone(thread: NonNull<Thread>) {
    // SAFETY: nobody else refers to it.
    let it = unsafe { thread.as_ref() };
    let mut first = GONE.load(Ordering::Relaxed);
    loop {
        it.next_ready.store(first, Ordering::Relaxed);
        match GONE.compare_exchange_weak(first, thread.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// Are there threads that nobody refers to any more, for an idle processor to collect?
pub(in crate::ke) fn is_anything_gone() -> bool {
    !GONE.load(Ordering::Relaxed).is_null()
}

/// [`collect`], for the idle loop.
pub(in crate::ke) fn collect_gone(at: &mut Irql<Passive>) {
    collect(at);
}

/// A thread was switched away from for the last time, and its stack is left: what it held itself goes.
pub(in crate::ke) fn left_for_good(thread: NonNull<Thread>) {
    // SAFETY: the reference that it was started with.
    drop(unsafe { ThreadRef::from_raw(thread) });
    #[cfg(feature = "verifier")]
    ON_THEIR_WAY.fetch_sub(1, Ordering::Release);
}

/// Where every thread begins: right behind the switch to it, at DISPATCH.
extern "sysv64" fn begin(thread: u64) -> ! {
    // SAFETY: 1. behind a switch. 2. PASSIVE from here on: no token of this context exists, and what the switch held is released.
    unsafe {
        sched::finish_switch();
        arch::irql::set(Passive::CR8);
        Irql::<Passive>::lend(|at| {
            // SAFETY: `spawn` put this thread's address there; it stays while it runs.
            let me = &*(thread as *const Thread);
            let Start { routine, argument } = ptr::read(me.start.get());
            if let Some(routine) = routine {
                routine(at, argument);
                check_level(routine);
            }
            exit(NtStatus::SUCCESS, at)
        })
    }
}

/// In every build: a thread's routine returns at the level that it was entered at.
fn check_level(routine: Routine) {
    let found = arch::irql::current();
    if found != Passive::CR8 {
        let culprit = routine as usize as u64;
        bugcheck(
            StopCode::IrqlUnexpectedValue,
            [found.into(), Passive::CR8.into(), culprit, RoutineKind::Thread as u64],
        );
    }
}

/// Ends the running thread. Nothing of it is dropped: what it has is to be given back before.
#[doc(alias = "PsTerminateSystemThread")]
///
/// # Bugchecks
/// KERNEL_APC_PENDING_DURING_EXIT in a critical or guarded region.
pub fn exit(status: NtStatus, at: &mut Irql<Passive>) -> ! {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { super::current(at).unbound() };
    if me.apc.disables() != 0 {
        // SAFETY: as it started with.
        let routine = unsafe { (*me.start.get()).routine }.map_or(0, |it| it as usize as u64);
        bugcheck(
            StopCode::KernelApcPendingDuringExit,
            [ptr::from_ref(me) as u64, me.apc.disables().into(), routine, 0],
        );
    }
    // Its own doing, as the other sign below: nobody else raises these.
    if me.attention.look().any(Signs::EXTENDED_STATE) {
        extended::run_down(at);
    }
    let mut nothing = at.nothing_in_service();
    let mut raised = at.raise::<Dispatch>();
    if !apc::close(me, &mut raised) {
        cold_path();
        drop(raised);
        apc::run_down(me, at);
        nothing = at.nothing_in_service();
        raised = at.raise::<Dispatch>();
    }
    let mut at = ManuallyDrop::new(raised);
    mutant::abandon_all(me, &mut at);
    // Behind the APCs' routines, which may have joined one.
    if me.attention.look().any(Signs::IN_QUEUE) {
        queue::leave(me, &mut at);
    }
    #[cfg(feature = "verifier")]
    wait::chain::leave(me, &mut at);
    me.exit_status.store(status.0, Ordering::Release);
    // Before anybody who joins could ask.
    sched::charge_running(&mut at);
    #[cfg(feature = "verifier")]
    if !me.is_as_good_as_ended.take() {
        ON_THEIR_WAY.fetch_add(1, Ordering::SeqCst);
    }
    let joins = signal::end_of(me.header(), &mut at);
    // SAFETY: the wait of `joins` was won just now.
    unsafe { sched::leave_for_good(joins, &mut at, nothing) }
}

/// Makes the context that the processor booted in its idle thread.
///
/// # Safety
/// Once on each processor, before it takes interrupts.
pub(crate) unsafe fn become_idle(here: &'static Prcb) {
    let idle = &here.sched.idle;
    idle.sched.set_place(Place::Running(here.number()));
    idle.handoff.run();
    #[cfg(feature = "verifier")]
    idle.stack_user.store(here.number() + 1, Ordering::Relaxed);
    here.set_current_thread(idle);
}

/// The first thread, made by the idle one of the boot processor.
pub fn start_first(routine: Routine, at: &mut Irql<Passive>) -> Result<ThreadRef, NtStatus> {
    spawn(&Options { name: Name::new("main"), ideal: Some(0), ..Options::default() }, routine, 0, at)
}
