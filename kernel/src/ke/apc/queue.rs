//! A thread's queues of APCs: in, out, and all out when it ends.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use sync::attention::Signs;
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, ThreadLock};
use sync::wait_word::Claim;

use super::super::thread::Thread;
use super::super::{ipi, prcb, sched};
use super::{KApc, KernelRoutine, Kind, Links, NormalRoutine};
use crate::rtl::NtStatus;

const KINDS: usize = 3;

#[derive(Clone, Copy)]
struct Queue {
    first: *mut KApc,
    last: *mut KApc,
}

/// Under the thread's lock.
pub(super) struct Queues {
    queues: [Queue; KINDS],
    /// The thread has ended, or is about to: nothing is queued any more.
    closed: bool,
}

/// What is called, copied out of an APC that is in no queue any more.
pub(super) struct Call {
    pub(super) apc: *mut KApc,
    pub(super) kernel_routine: KernelRoutine,
    pub(super) normal_routine: Option<NormalRoutine>,
    pub(super) context: *mut c_void,
    pub(super) arguments: [*mut c_void; 2],
}

/// What delivery finds.
pub(super) enum Found {
    Nothing,
    Call(Call),
    /// The thread is to end.
    Termination,
}

impl Kind {
    const ALL: [Self; KINDS] = [Self::Special, Self::Normal, Self::User];

    fn sign(self) -> Signs {
        match self {
            Self::Special => Signs::SPECIAL_APC,
            Self::Normal => Signs::NORMAL_APC,
            Self::User => Signs::USER_APC,
        }
    }
}

impl Queues {
    /// What [`run_down`] closed.
    pub(super) fn open(&mut self) {
        debug_assert!(self.queues.iter().all(|queue| queue.first.is_null()));
        self.closed = false;
    }

    pub(super) const fn new() -> Self {
        Self { queues: [Queue { first: ptr::null_mut(), last: ptr::null_mut() }; KINDS], closed: false }
    }

    /// # Safety
    /// `apc` is the caller's, by A1's exchange.
    unsafe fn append(&mut self, apc: NonNull<KApc>) {
        // SAFETY: the caller's; those in the queue are valid, and linked under the lock.
        unsafe {
            let queue = &mut self.queues[apc.as_ref().kind() as usize];
            *apc.as_ref().links.get() = Links { next: ptr::null_mut(), previous: queue.last };
            match queue.last.as_ref() {
                Some(last) => (*last.links.get()).next = apc.as_ptr(),
                None => queue.first = apc.as_ptr(),
            }
            queue.last = apc.as_ptr();
        }
    }

    /// Takes `apc` out, which is the caller's afterwards; true if its queue is empty now.
    ///
    /// # Safety
    /// It is in one of these queues.
    unsafe fn unlink(&mut self, apc: &KApc) -> bool {
        let queue = &mut self.queues[apc.kind() as usize];
        // SAFETY: linked here, and so are its neighbours.
        unsafe {
            let Links { next, previous } = ptr::read(apc.links.get());
            match previous.as_ref() {
                Some(previous) => (*previous.links.get()).next = next,
                None => queue.first = next,
            }
            match next.as_ref() {
                Some(next) => (*next.links.get()).previous = previous,
                None => queue.last = previous,
            }
        }
        queue.first.is_null()
    }
}

/// Takes `apc` out of a queue of `thread`, whose lock is held, and copies what is called. It may be queued anew, or freed, from then on.
///
/// # Safety
/// It is in one.
unsafe fn take_out(thread: &Thread, apc: &KApc) -> Call {
    // SAFETY: the lock is held (the caller); linked.
    unsafe {
        if (*thread.apc.queues.get()).unlink(apc) {
            thread.attention.clear(apc.kind().sign());
        }
        let call = Call {
            apc: ptr::from_ref(apc).cast_mut(),
            kernel_routine: apc.kernel_routine,
            normal_routine: apc.normal_routine,
            context: apc.context,
            arguments: *apc.arguments.get(),
        };
        apc.inserted.store(false, Ordering::Relaxed);
        // The last access (A2).
        apc.thread.store(ptr::null_mut(), Ordering::Release);
        call
    }
}

/// Could a special kernel APC be delivered to `thread` below APC?
fn takes_special(thread: &Thread) -> bool {
    thread.apc.disables() >> 16 == 0
}

/// Could a normal one? Exact by itself, or while it waits.
fn takes_normal(thread: &Thread) -> bool {
    thread.apc.disables() == 0
        && !thread.apc.normal_under_way.load(Ordering::Relaxed)
        && thread.held.is_empty()
}

/// Could it be ended now? Likewise; also while a normal APC is under way.
fn takes_termination(thread: &Thread) -> bool {
    thread.apc.disables() == 0 && thread.held.is_empty()
}

/// Is there anything that could be delivered to the running thread `me` below APC?
#[cold]
pub(in crate::ke) fn is_deliverable(me: &Thread, at: &mut Irql<Dispatch>) -> bool {
    let mut guard = me.lock.lock(at);
    let _ = guard.parts();
    let signs = me.attention.look();
    (signs.any(Signs::SPECIAL_APC) && takes_special(me))
        || (signs.any(Signs::NORMAL_APC) && takes_normal(me))
        || (signs.any(Signs::TERMINATE) && takes_termination(me))
}

/// The next thing to deliver to the running thread `me`: special ones first, then its end, then normal ones.
pub(super) fn next(me: &Thread, at: &mut Irql<Dispatch>) -> Found {
    let mut guard = me.lock.lock(at);
    let _ = guard.parts();
    // SAFETY: the lock is held; what is queued is valid.
    unsafe {
        let [special, normal, _] = &(*me.apc.queues.get()).queues;
        let (special, normal) = (special.first, normal.first);
        if let Some(apc) = special.as_ref().filter(|_| takes_special(me)) {
            return Found::Call(take_out(me, apc));
        }
        if me.attention.any(Signs::TERMINATE) && takes_termination(me) {
            return Found::Termination;
        }
        match normal.as_ref().filter(|_| takes_normal(me)) {
            Some(apc) => Found::Call(take_out(me, apc)),
            None => Found::Nothing,
        }
    }
}

/// Queues `apc` to `thread` with two arguments, unless it is queued already, or the thread has ended; false then. A thread that waits and
/// can have it is woken, with a boost of `increment`.
///
/// # Safety
/// 1. `apc` stays valid until its kernel routine, or its rundown routine, was called, or a remove returned true; one without a rundown
///    routine until then, or until the thread has ended.
/// 2. The routines can be called with its context and these arguments: the kernel routine at APC, a kernel-mode normal routine at
///    PASSIVE, the rundown routine at PASSIVE, each in the thread's context; they return at the level that they were called at.
#[doc(alias = "KeInsertQueueApc")]
pub unsafe fn insert<L>(
    apc: NonNull<KApc>,
    thread: &Thread,
    arguments: [*mut c_void; 2],
    increment: u8,
    at: &mut Irql<L>,
) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    let woken = {
        let mut guard = thread.lock.lock(&mut raised);
        let ((), inner) = guard.parts();
        // SAFETY: the lock is held.
        let queues = unsafe { &mut *thread.apc.queues.get() };
        // SAFETY: the caller's 1.
        let it = unsafe { apc.as_ref() };
        let owner = ptr::from_ref(thread).cast_mut();
        if queues.closed
            || it
                .thread
                .compare_exchange(ptr::null_mut(), owner, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            return false;
        }
        // SAFETY: ours by the exchange, under the lock.
        unsafe {
            *it.arguments.get() = arguments;
            it.inserted.store(true, Ordering::Relaxed);
            queues.append(apc);
        }
        let kind = it.kind();
        thread.attention.raise(kind.sign());
        notify(thread, kind, inner)
    };
    finish::<L>(thread, woken, increment, &mut raised);
    true
}

/// Something was left for `thread`, which is told; true: its wait has ended, and it is the caller's to make ready. Under its lock, behind
/// the sign.
fn notify(thread: &Thread, kind: Kind, at: &mut Irql<ThreadLock>) -> bool {
    let claim = match kind {
        Kind::Special => claim_for_delivery(thread, takes_special),
        Kind::Normal => claim_for_delivery(thread, takes_normal),
        Kind::User => {
            let claim = thread.wait.claim_if(NtStatus::USER_APC.0, |open| open.to_alerts(true));
            if matches!(claim, Claim::Wake | Claim::Noted) {
                thread.attention.raise(Signs::USER_APC_PENDING);
            }
            claim
        }
    };
    match claim {
        Claim::Wake => true,
        Claim::Noted | Claim::Left => false,
        Claim::Lost => {
            if kind != Kind::User {
                interrupt_if_running(thread, at);
            }
            false
        }
    }
}

/// Ends the wait of `thread` for something of the kernel's, if it `takes` that.
fn claim_for_delivery(thread: &Thread, takes: fn(&Thread) -> bool) -> Claim {
    thread.wait.claim_if(NtStatus::KERNEL_APC.0, |open| open.to_kernel_apcs() && takes(thread))
}

/// The processor that `thread` runs on looks for APCs as soon as its level allows. Under the thread's lock.
fn interrupt_if_running(thread: &Thread, at: &mut Irql<ThreadLock>) {
    let Some(number) = sched::runs_on(thread, at) else { return };
    let (here, _) = prcb::Prcb::here(at);
    if number == here.number() {
        // SAFETY: at DISPATCH.
        unsafe { arch::pcr::request_apc() };
    } else if let Some(there) = prcb::get(number) {
        ipi::post(there.prcb(), ipi::Request::Apc);
    }
}

/// Makes `thread` ready if its wait has ended. The caller raised from L, and holds no lock.
pub(super) fn finish<L: sync::irql::Level>(
    thread: &Thread,
    woken: bool,
    increment: u8,
    at: &mut Irql<Dispatch>,
) {
    if woken {
        // SAFETY: the caller ended its wait, just now.
        unsafe { sched::make_ready(thread, increment, at) };
        sched::after_signal::<L>(at);
    }
}

/// `thread` is to end with what `terminate_with` says: it is told as of an APC. False: it ends already.
pub(in crate::ke) fn notify_termination<L>(thread: &Thread, at: &mut Irql<L>) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    let woken = {
        let mut guard = thread.lock.lock(&mut raised);
        let ((), inner) = guard.parts();
        // SAFETY: the lock is held.
        if unsafe { (*thread.apc.queues.get()).closed } {
            return false;
        }
        thread.attention.raise(Signs::TERMINATE);
        match claim_for_delivery(thread, takes_termination) {
            Claim::Wake => true,
            Claim::Noted | Claim::Left => false,
            Claim::Lost => {
                interrupt_if_running(thread, inner);
                false
            }
        }
    };
    finish::<L>(thread, woken, 0, &mut raised);
    true
}

/// Takes `apc` out of the queue of `thread`; true if it was there.
#[doc(alias = "KeRemoveQueueApc")]
pub fn remove<L>(apc: &KApc, thread: &Thread, at: &mut Irql<L>) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    let mut guard = thread.lock.lock(&mut raised);
    let _ = guard.parts();
    let is_here = core::ptr::eq(apc.thread.load(Ordering::Relaxed), thread);
    if is_here {
        // SAFETY: in a queue of `thread` (A1), whose lock is held.
        let _ = unsafe { take_out(thread, apc) };
    }
    is_here
}

/// The running thread ends: nothing is queued to it any more. True: nothing was. Else [`run_down`] is to be called.
#[inline(always)]
pub(in crate::ke) fn close(me: &Thread, at: &mut Irql<Dispatch>) -> bool {
    let mut guard = me.lock.lock(at);
    let _ = guard.parts();
    // SAFETY: the lock is held.
    let queues = unsafe { &mut *me.apc.queues.get() };
    queues.closed = true;
    queues.queues.iter().fold(0, |any, queue| any | queue.first.addr()) == 0
}

/// The rest of that: what is queued gets its rundown routine called.
pub(in crate::ke) fn run_down(me: &Thread, at: &mut Irql<sync::irql::Passive>) {
    loop {
        let apc = {
            let mut raised = at.raise::<Dispatch>();
            let mut guard = me.lock.lock(&mut raised);
            let _ = guard.parts();
            // SAFETY: the lock is held; what is queued is valid.
            unsafe {
                let queues = &*me.apc.queues.get();
                let first = Kind::ALL.iter().find_map(|&kind| queues.queues[kind as usize].first.as_ref());
                let Some(apc) = first else { return };
                let rundown = apc.rundown_routine;
                (take_out(me, apc).apc, rundown)
            }
        };
        if let (apc, Some(rundown)) = apc {
            // SAFETY: taken out just now; PASSIVE, in its thread.
            unsafe { rundown(apc) };
        }
    }
}
