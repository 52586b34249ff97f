//! Waiting for one object.

use core::hint::cold_path;
use core::ptr;

use arch::trace::{Kind, about};
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};
use sync::wait_word::Openness;

use super::super::object::{Header, kind};
use super::super::thread::Thread;
use super::super::timer::Due;
use super::super::{apc, thread};
use super::block::WaitType;
use super::chain::For;
use super::{Alertable, CanWait, attend, signal, timeout};
use crate::rtl::NtStatus;

/// What can be waited for: an object that starts with a dispatcher header.
pub trait Waitable {
    /// The header.
    fn header(&self) -> &Header;

    /// The object's type, where the compiler is to know it.
    #[inline(always)]
    fn kind(&self) -> u8 {
        self.header().kind()
    }
}

impl Waitable for Header {
    #[inline(always)]
    fn header(&self) -> &Header {
        self
    }
}

impl Waitable for thread::Thread {
    #[inline(always)]
    fn kind(&self) -> u8 {
        kind::THREAD
    }

    #[inline(always)]
    fn header(&self) -> &Header {
        thread::Thread::header(self)
    }
}

impl Waitable for thread::ThreadRef {
    #[inline(always)]
    fn kind(&self) -> u8 {
        kind::THREAD
    }

    #[inline(always)]
    fn header(&self) -> &Header {
        thread::Thread::header(self)
    }
}

/// Waits until `object` is signalled, and takes from it what a wait takes; no longer than until `due`.
///
/// STATUS_SUCCESS, STATUS_ABANDONED_WAIT_0, STATUS_TIMEOUT.
#[doc(alias = "KeWaitForSingleObject")]
#[doc(alias = "KeWaitForMutexObject")]
#[inline(always)]
pub fn for_single<L: CanWait>(object: &impl Waitable, due: Option<Due>, at: &mut Irql<L>) -> NtStatus {
    wait(object.header(), object.kind(), due, Alertable::No.openness::<L>(), at)
}

/// [`for_single`], which an alert, or a user APC, ends, too: STATUS_ALERTED, STATUS_USER_APC.
#[doc(alias = "KeWaitForSingleObject")]
pub fn for_single_alertable<L: CanWait>(
    object: &impl Waitable,
    alertable: Alertable,
    due: Option<Due>,
    at: &mut Irql<L>,
) -> NtStatus {
    wait(object.header(), object.kind(), due, alertable.openness::<L>(), at)
}

#[inline(always)]
fn wait<L: CanWait>(
    object: &Header,
    kind: u8,
    due: Option<Due>,
    open: Openness,
    at: &mut Irql<L>,
) -> NtStatus {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    let status = attempt(object, kind, me, due, open, at);
    if status == NtStatus::KERNEL_APC { again(object, me, open, at) } else { status }
}

/// An APC ended a wait without a timeout, which has taken itself back: it is delivered, and the wait begins anew.
#[cold]
#[inline(never)]
fn again<L: CanWait>(object: &Header, me: &'static Thread, open: Openness, at: &mut Irql<L>) -> NtStatus {
    loop {
        apc::deliver_before_a_wait(at);
        let status = attempt(object, object.kind(), me, None, open, at);
        if status != NtStatus::KERNEL_APC {
            return status;
        }
    }
}

/// Waits once: STATUS_KERNEL_APC if an APC ended a wait without a timeout.
#[inline(always)]
fn attempt<L: CanWait>(
    object: &Header,
    kind: u8,
    me: &'static Thread,
    due: Option<Due>,
    open: Openness,
    at: &mut Irql<L>,
) -> NtStatus {
    let nothing = at.nothing_in_service();
    let mut raised = at.raise::<Dispatch>();
    {
        let mut guard = object.lock(&mut raised);
        let (_, _inner) = guard.parts();
        let state = object.signal_state();
        if signal::is_free_in(state, object, kind, me) {
            // SAFETY: locked, and free.
            return NtStatus(unsafe { signal::take_in(state, object, kind, me) });
        }
        if due.is_none() {
            // SAFETY: the blocks are this thread's own, for its one wait (thread, I3); the lock is held.
            unsafe {
                let block = &raw mut (*me.blocks.get())[0];
                (*block).prepare(WaitType::Any, 0, me, object);
                object.register(block);
            }
            about(Kind::Wait, 1, object, ptr::from_ref(me).addr() as u64);
            me.wait.commit_open_at_once(open);
        }
    }
    if let Some(due) = due {
        drop(raised);
        return timeout::for_single(object, me, due, open, at);
    }
    let status = attend::block(me, For::one(object, false), open, &mut raised, nothing);
    if status.0 > NtStatus::ABANDONED_WAIT_0.0 {
        // Not by the object, so the block still is in its list.
        cold_path();
        // SAFETY: prepared above.
        unsafe { unregister(object, &raw mut (*me.blocks.get())[0], &mut raised) };
    }
    status
}

/// Takes `object` if it is signalled now; else STATUS_TIMEOUT. Never blocks.
#[doc(alias = "KeWaitForSingleObject")]
pub fn poll<L>(object: &impl Waitable, at: &mut Irql<L>) -> NtStatus
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let (object, kind) = (object.header(), object.kind());
    let mut raised = at.raise::<Dispatch>();
    // SAFETY: used by this thread's code alone. In a DPC it is the interrupted thread, which then takes the object, as on NT.
    let me = unsafe { thread::current(&*raised).unbound() };
    let mut guard = object.lock(&mut raised);
    let (_, _inner) = guard.parts();
    if !signal::is_free(object, kind, me) {
        return NtStatus::TIMEOUT;
    }
    // SAFETY: locked, and free.
    NtStatus(unsafe { signal::take(object, kind, me) })
}

/// Takes what is still registered of a wait that has ended out of its object's list (W2).
///
/// # Safety
/// `block` was prepared for `object`, by this thread.
pub(super) unsafe fn unregister(
    object: &Header,
    block: *mut super::block::WaitBlock,
    at: &mut Irql<Dispatch>,
) {
    let mut guard = object.lock(at);
    let _ = guard.parts();
    // SAFETY: the lock is held.
    unsafe { object.unregister(block) };
}
