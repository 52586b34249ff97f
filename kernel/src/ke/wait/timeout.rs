//! Timeouts: the thread's own timer is one more object that ends its waits, with STATUS_TIMEOUT as its key.

use arch::service::NothingInService;
use arch::trace::{Kind, about};
use sync::irql::{Dispatch, Irql};
use sync::wait_word::Openness;

use super::super::object::Header;
use super::super::queue::{Queue, QueueEntry};
use super::super::thread::{OWN_OBJECTS, Thread};
use super::super::timer::{self, Due, Options};
use super::super::{apc, clock, thread};
use super::block::WaitType;
use super::chain::For;
use super::{Alertable, CanWait, attend, signal, single};
use crate::rtl::NtStatus;

/// Sets the timer of `me`, the running thread, whose wait is in progress.
pub(super) fn arm(me: &'static Thread, due: Due, at: &mut Irql<Dispatch>) {
    let header = me.timer.header();
    {
        let mut guard = header.word.lock(at);
        let _ = guard.parts();
        about(Kind::Wait, 0, header, core::ptr::from_ref(me).addr() as u64);
        // SAFETY: the block is this thread's own, and its place in this list for good but for when it has ended a wait; the lock is
        //         held.
        unsafe {
            let block = &raw mut (*me.blocks.get())[OWN_OBJECTS];
            if !(*block).is_linked() {
                (*block).prepare(WaitType::Any, NtStatus::TIMEOUT.0 as u16, me, header);
                header.register(block);
            }
        }
    }
    // SAFETY: the timer is part of a thread, which takes it back before its wait is over; no DPC.
    let was_set = unsafe { timer::set(me.timer.pointer(), due, Options::default(), None, at) };
    debug_assert!(!was_set, "it was taken back after the last wait");
}

/// Takes the timer of `me` back after a wait that ended with `status`: after this its expiry can't reach the wait word any more (W3).
/// Until when it was set.
pub(super) fn disarm(me: &'static Thread, status: NtStatus, at: &mut Irql<Dispatch>) -> u64 {
    if status != NtStatus::TIMEOUT {
        // SAFETY: as above.
        let _ = unsafe { timer::cancel(me.timer.pointer(), at) };
    }
    me.timer.due()
}

/// How an attempt ended: its status, and until when its timer was set, which the APC of STATUS_KERNEL_APC may have set anew by the time
/// that the level has fallen.
pub(in crate::ke) type Ended = (NtStatus, u64);

/// An APC is delivered in the middle of a wait that was to last until `until`; what is left of `due` then.
fn deliver_and_go_on<L: CanWait>(due: Due, until: u64, at: &mut Irql<L>) -> Due {
    apc::deliver_before_a_wait(at);
    match due {
        Due::In(_) => Due::In(until.saturating_sub(clock::interrupt_time_precise())),
        Due::At(_) => due,
    }
}

/// [`super::for_single`] of an object that wasn't signalled, with a timeout.
#[inline(never)]
pub(super) fn for_single<L: CanWait>(
    object: &Header,
    me: &'static Thread,
    mut due: Due,
    open: Openness,
    at: &mut Irql<L>,
) -> NtStatus {
    loop {
        let (status, until) = attempt(object, me, due, open, at);
        if status != NtStatus::KERNEL_APC {
            return status;
        }
        due = deliver_and_go_on(due, until, at);
    }
}

/// The same, once.
#[inline(always)]
fn attempt<L: CanWait>(
    object: &Header,
    me: &'static Thread,
    due: Due,
    open: Openness,
    at: &mut Irql<L>,
) -> Ended {
    let nothing = at.nothing_in_service();
    attempt_raised(object, me, Some(due), open, &mut at.raise::<Dispatch>(), nothing)
}

/// Waits for `object` once, with a timeout or none, at DISPATCH already.
#[inline(always)]
pub(super) fn attempt_raised(
    object: &Header,
    me: &'static Thread,
    due: Option<Due>,
    open: Openness,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) -> Ended {
    // SAFETY: this thread's own, for its one wait (thread, I3).
    let block = unsafe { &raw mut (*me.blocks.get())[0] };
    me.wait.begin_open(open);
    if let Some(due) = due {
        arm(me, due, at);
    }
    let ended = {
        let mut guard = object.lock(&mut *at);
        let (_, _inner) = guard.parts();
        if signal::is_free(object, object.kind(), me) && me.wait.withdraw(NtStatus::SUCCESS.0) {
            // SAFETY: locked, and free; the wait is over by this thread.
            Err(unsafe { signal::take(object, object.kind(), me) })
        } else {
            // SAFETY: as above; the lock is held.
            unsafe {
                (*block).prepare(WaitType::Any, 0, me, object);
                object.register(block);
            }
            me.wait.commit_open(open)
        }
    };
    let status = match ended {
        Ok(()) => attend::block(me, For::one(object, due.is_some()), open, at, nothing),
        Err(status) => NtStatus(status),
    };
    let until = if due.is_some() { disarm(me, status, at) } else { 0 };
    if status != NtStatus::SUCCESS {
        // SAFETY: prepared above, or never registered.
        unsafe { single::unregister(object, block, at) };
    }
    (status, until)
}

/// Waits once for an entry of `queue`, to which `me` belongs from then on: SUCCESS, and it.
pub(in crate::ke) fn in_queue<L: CanWait>(
    queue: &'static Queue,
    me: &'static Thread,
    due: Option<Due>,
    open: Openness,
    at: &mut Irql<L>,
) -> (Ended, Option<&'static QueueEntry>) {
    let nothing = at.nothing_in_service();
    let mut at = at.raise::<Dispatch>();
    queue.enter(me, &mut at);
    let object = queue.header();
    // SAFETY: this thread's own, for its one wait (thread, I3).
    let block = unsafe { &raw mut (*me.blocks.get())[0] };
    me.wait.begin_open(open);
    if let Some(due) = due {
        arm(me, due, &mut at);
    }
    let ended = {
        let mut guard = object.lock(&mut at);
        let (_, _inner) = guard.parts();
        if queue.has_entry_and_room() {
            Err(if me.wait.withdraw(NtStatus::SUCCESS.0) {
                queue.take_for(me);
                NtStatus::SUCCESS.0
            } else {
                me.wait.status()
            })
        } else {
            // SAFETY: as above; the lock is held.
            unsafe {
                (*block).prepare(WaitType::Any, 0, me, object);
                object.register(block);
            }
            me.wait.commit_open(open)
        }
    };
    let status = match ended {
        Ok(()) => attend::block_for_its_queue(me, For::one(object, due.is_some()), open, &mut at, nothing),
        Err(status) => NtStatus(status),
    };
    let until = if due.is_some() { disarm(me, status, &mut at) } else { 0 };
    if status != NtStatus::SUCCESS {
        // SAFETY: prepared above, or never registered.
        unsafe { single::unregister(object, block, &mut at) };
    }
    let entry = queue.leave_with(me, status, &mut at);
    ((status, until), entry)
}

/// Waits until `due`. STATUS_SUCCESS.
#[doc(alias = "KeDelayExecutionThread")]
pub fn delay<L: CanWait>(due: Due, at: &mut Irql<L>) -> NtStatus {
    delay_alertable(due, Alertable::No, at)
}

/// [`delay`], which an alert, or a user APC, ends, too: STATUS_ALERTED, STATUS_USER_APC.
#[doc(alias = "KeDelayExecutionThread")]
pub fn delay_alertable<L: CanWait>(mut due: Due, alertable: Alertable, at: &mut Irql<L>) -> NtStatus {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    let open = alertable.openness::<L>();
    loop {
        match delay_once(due, me, open, at) {
            (NtStatus::TIMEOUT, _) => return NtStatus::SUCCESS,
            (NtStatus::KERNEL_APC, until) => due = deliver_and_go_on(due, until, at),
            (status, _) => return status,
        }
    }
}

fn delay_once<L: CanWait>(due: Due, me: &'static Thread, open: Openness, at: &mut Irql<L>) -> Ended {
    let nothing = at.nothing_in_service();
    let mut at = at.raise::<Dispatch>();
    me.wait.begin_open(open);
    arm(me, due, &mut at);
    let status = match me.wait.commit_open(open) {
        Ok(()) => attend::block(me, For::time(), open, &mut at, nothing),
        Err(status) => NtStatus(status),
    };
    let until = disarm(me, status, &mut at);
    (status, until)
}

/// For a wait of any kind that an APC ended.
pub(in crate::ke) fn after_an_apc<L: CanWait>(due: Option<Due>, until: u64, at: &mut Irql<L>) -> Option<Due> {
    match due {
        Some(due) => Some(deliver_and_go_on(due, until, at)),
        None => {
            apc::deliver_before_a_wait(at);
            None
        }
    }
}
