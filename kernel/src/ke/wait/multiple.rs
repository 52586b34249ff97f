//! Waiting for any or all of several objects.

use core::ptr;

use arch::trace::{ENABLED, Kind, about};
use sync::irql::{Dispatch, Irql};
use sync::wait_word::Openness;

use super::super::thread;
use super::super::thread::{OWN_OBJECTS, Thread};
use super::super::timer::Due;
use super::block::{WaitBlock, WaitType};
use super::chain::For;
use super::single::Waitable;
use super::{Alertable, CanWait, attend, signal, single, timeout};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::rtl::NtStatus;

/// As many as a wait can be for.
pub const MAXIMUM_WAIT_OBJECTS: usize = 64;

/// The blocks of a wait for `count` objects: the caller's, or up to three of the thread's own.
///
/// # Bugchecks
/// MAXIMUM_WAIT_OBJECTS_EXCEEDED.
fn blocks<'a>(count: usize, given: Option<&'a mut [WaitBlock]>, me: &'static Thread) -> &'a mut [WaitBlock] {
    let blocks = match given {
        Some(given) => given,
        // SAFETY: the thread's own, for its one wait (thread, I3).
        None => unsafe { &mut (&mut *me.blocks.get())[..OWN_OBJECTS] },
    };
    if count == 0 || count > MAXIMUM_WAIT_OBJECTS || count > blocks.len() {
        bugcheck(
            StopCode::MaximumWaitObjectsExceeded,
            [count as u64, blocks.len() as u64, MAXIMUM_WAIT_OBJECTS as u64, 0],
        );
    }
    &mut blocks[..count]
}

/// Waits until one of `objects` is signalled, and takes from it what a wait takes; no longer than until `due`. More than three objects
/// need `blocks`, one each.
///
/// STATUS_SUCCESS or STATUS_ABANDONED_WAIT_0 plus the index of the object, the lowest of those signalled; STATUS_TIMEOUT.
///
/// # Bugchecks
/// MAXIMUM_WAIT_OBJECTS_EXCEEDED: no object, more than 64, more than there are blocks for.
#[doc(alias = "KeWaitForMultipleObjects")]
pub fn for_any<L: CanWait>(
    objects: &[&dyn Waitable],
    given: Option<&mut [WaitBlock]>,
    due: Option<Due>,
    at: &mut Irql<L>,
) -> NtStatus {
    for_any_alertable(objects, given, due, Alertable::No, at)
}

/// [`for_any`], which an alert, or a user APC, ends, too: STATUS_ALERTED, STATUS_USER_APC.
#[doc(alias = "KeWaitForMultipleObjects")]
pub fn for_any_alertable<L: CanWait>(
    objects: &[&dyn Waitable],
    given: Option<&mut [WaitBlock]>,
    due: Option<Due>,
    alertable: Alertable,
    at: &mut Irql<L>,
) -> NtStatus {
    for_several(WaitType::Any, objects, given, due, alertable, at)
}

/// Waits until all of `objects` are signalled at once, and takes from each what a wait takes; no longer than until `due`, when it
/// has taken nothing. More than three objects need `blocks`, one each.
///
/// STATUS_SUCCESS, STATUS_ABANDONED_WAIT_0 if any of them was, STATUS_TIMEOUT.
///
/// # Bugchecks
/// As [`for_any`]. An object named twice: INVALID_PARAMETER is returned.
#[doc(alias = "KeWaitForMultipleObjects")]
pub fn for_all<L: CanWait>(
    objects: &[&dyn Waitable],
    given: Option<&mut [WaitBlock]>,
    due: Option<Due>,
    at: &mut Irql<L>,
) -> NtStatus {
    for_all_alertable(objects, given, due, Alertable::No, at)
}

/// [`for_all`], which an alert, or a user APC, ends, too: STATUS_ALERTED, STATUS_USER_APC.
#[doc(alias = "KeWaitForMultipleObjects")]
pub fn for_all_alertable<L: CanWait>(
    objects: &[&dyn Waitable],
    given: Option<&mut [WaitBlock]>,
    due: Option<Due>,
    alertable: Alertable,
    at: &mut Irql<L>,
) -> NtStatus {
    for_several(WaitType::All, objects, given, due, alertable, at)
}

/// Inlined twice, each for one `kind`.
#[inline(always)]
fn for_several<L: CanWait>(
    kind: WaitType,
    objects: &[&dyn Waitable],
    given: Option<&mut [WaitBlock]>,
    mut due: Option<Due>,
    alertable: Alertable,
    at: &mut Irql<L>,
) -> NtStatus {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    let blocks = blocks(objects.len(), given, me);
    loop {
        let (status, until) = once(kind, objects, blocks, me, due, alertable.openness::<L>(), at);
        if status != NtStatus::KERNEL_APC {
            return status;
        }
        due = timeout::after_an_apc(due, until, at);
    }
}

#[inline(always)]
fn once<L: CanWait>(
    kind: WaitType,
    objects: &[&dyn Waitable],
    blocks: &mut [WaitBlock],
    me: &'static Thread,
    due: Option<Due>,
    open: Openness,
    at: &mut Irql<L>,
) -> timeout::Ended {
    let nothing = at.nothing_in_service();
    let mut at = at.raise::<Dispatch>();
    me.wait.begin_open(open);
    if ENABLED && let Some(first) = objects.first() {
        about(Kind::Wait, objects.len() as u16, first.header(), ptr::from_ref(me).addr() as u64);
    }
    if let Some(due) = due {
        timeout::arm(me, due, &mut at);
    }
    let (registered, ended) = match kind {
        WaitType::Any => register_each(objects, blocks, me, open, &mut at),
        WaitType::All => register_all(objects, blocks, me, open, &mut at),
    };
    let status = match ended {
        Ok(()) => {
            let what =
                For::several(objects.iter().map(|it| it.header()), kind == WaitType::Any, due.is_some());
            attend::block(me, what, open, &mut at, nothing)
        }
        Err(status) => NtStatus(status),
    };
    let until = if due.is_some() { timeout::disarm(me, status, &mut at) } else { 0 };
    for (block, object) in blocks[..registered].iter_mut().zip(objects) {
        // Who ended a wait for all by its objects took all blocks out before, under all locks, so no lock is needed to see that. Who
        // ended one for any may be at the object still.
        if kind == WaitType::Any || block.is_linked() {
            // SAFETY: registered above.
            unsafe { single::unregister(object.header(), block, &mut at) };
        }
    }
    (status, until)
}

/// Registers with one object after the other, until one is signalled or the wait has ended, and commits. How many; `Err`: the wait is
/// over, with this status.
#[inline(always)]
fn register_each(
    objects: &[&dyn Waitable],
    blocks: &mut [WaitBlock],
    me: &'static Thread,
    open: Openness,
    at: &mut Irql<Dispatch>,
) -> (usize, Result<(), u32>) {
    for (index, (object, block)) in objects.iter().zip(blocks).enumerate() {
        let object = object.header();
        let mut guard = object.lock(&mut *at);
        let (_, _inner) = guard.parts();
        if signal::is_free(object, object.kind(), me) {
            if !me.wait.withdraw(index as u32) {
                return (index, Err(me.wait.status()));
            }
            // SAFETY: locked, and free; the wait is over by this thread.
            let abandoned = unsafe { signal::take(object, object.kind(), me) };
            return (index, Err(index as u32 + abandoned));
        }
        block.prepare(WaitType::Any, index as u16, me, object);
        // SAFETY: the lock is held; the block stays until the wait is over and has taken it out (W2).
        unsafe { object.register(block) };
    }
    (objects.len(), me.wait.commit_open(open))
}

/// Under all locks: takes all if all are free, else registers with all. As [`register_each`].
fn register_all(
    objects: &[&dyn Waitable],
    blocks: &mut [WaitBlock],
    me: &'static Thread,
    open: Openness,
    at: &mut Irql<Dispatch>,
) -> (usize, Result<(), u32>) {
    for (index, (object, block)) in objects.iter().zip(&mut *blocks).enumerate() {
        block.prepare(WaitType::All, index as u16, me, object.header());
    }
    // SAFETY: the caller's objects, which it borrows for the wait; their locks are held in the closure.
    let done = unsafe {
        signal::locked(blocks, at, |blocks| {
            if signal::all_free(blocks, me) {
                if !me.wait.withdraw(NtStatus::SUCCESS.0) {
                    return (0, Err(me.wait.status()));
                }
                return (0, Err(signal::take_each(blocks, me).0));
            }
            // This thread's, before its wait is committed. The blocks stay until they have been taken out (W2).
            me.set_registered(blocks);
            for block in &mut *blocks {
                let object = block.object();
                (*object).register(block);
            }
            (blocks.len(), me.wait.commit_open(open))
        })
    };
    done.unwrap_or_else(|| {
        // Unless something else was first, which is then the status; an APC has it begin anew.
        me.wait.withdraw(NtStatus::INVALID_PARAMETER.0);
        (0, Err(me.wait.status()))
    })
}
