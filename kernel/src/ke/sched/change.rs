//! Priority, affinity and ideal processor of a thread, changed at once whatever it is doing.
//!
//! A thread that is ready or standby is taken out, changed, and placed anew, as if it had just become ready. One that runs is changed
//! where it is, and its processor told if something else should run there now.
//!
//! IRQL:  at or below DISPATCH.
//! Locks: the thread's, then that of the processor in its place, which is looked at again under it.

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, ThreadLock};

use super::super::prcb::{self, Prcb};
use super::super::thread::Thread;
use super::decide::Changed;
use super::schedulable::{PRIORITIES, Place, Schedulable};
use super::{look, priority, ready};
use crate::rtl::NtStatus;

/// Sets what `thread` runs with, and falls back to when a boost is used up; returns the old one.
///
/// # Errors
/// STATUS_INVALID_PARAMETER for priority 0, which is the zero-page thread's, or one above 31.
#[doc(alias = "KeSetPriorityThread")]
#[doc(alias = "KeSetBasePriorityThread")]
pub fn set_base_priority<L>(thread: &Thread, to: u8, at: &mut Irql<L>) -> Result<u8, NtStatus>
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    if to == 0 || to >= PRIORITIES {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    Ok(change(thread, Schedulable::base, |it| priority::set_base(it, to), at))
}

/// Sets the processors that `thread` may run on; returns the old ones. If it runs on another one, it has left that, or is about to,
/// when this returns.
///
/// # Errors
/// STATUS_INVALID_PARAMETER where none of them exists.
#[doc(alias = "KeSetAffinityThread")]
pub fn set_affinity<L>(thread: &Thread, to: u64, at: &mut Irql<L>) -> Result<u64, NtStatus>
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let to = to & prcb::online();
    if to == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let before = change(
        thread,
        Schedulable::affinity,
        |it| {
            it.set_affinity(to);
            if !it.may_run_on(it.ideal()) {
                it.set_ideal(to.trailing_zeros());
            }
        },
        at,
    );
    Ok(before)
}

/// Sets the processor that `thread` prefers; returns the old one. It takes effect when it is placed next.
///
/// # Errors
/// STATUS_INVALID_PARAMETER where it may not run there.
#[doc(alias = "KeSetIdealProcessorThread")]
pub fn set_ideal_processor<L>(thread: &Thread, to: u32, at: &mut Irql<L>) -> Result<u32, NtStatus>
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut at = at.raise::<Dispatch>();
    let mut guard = thread.lock.lock(&mut at);
    let ((), _) = guard.parts();
    if to >= prcb::count() || !thread.sched.may_run_on(to) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let before = thread.sched.ideal();
    thread.sched.set_ideal(to);
    Ok(before)
}

/// Applies `how` to `thread`, wherever it is; returns what `what` was before: under the same lock, so of two who change it at once the later
/// is told what the earlier has set.
fn change<L, R>(
    thread: &Thread,
    what: impl Fn(&Schedulable) -> R,
    how: impl Fn(&Schedulable),
    at: &mut Irql<L>,
) -> R
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut at = at.raise::<Dispatch>();
    let before = {
        let mut guard = thread.lock.lock(&mut at);
        let ((), at) = guard.parts();
        let before = what(&thread.sched);
        while !try_change(thread, &how, at) {}
        before
    };
    look::after_signal::<L>(&mut at);
    before
}

/// False: it was not where it seemed to be.
fn try_change(thread: &Thread, how: &impl Fn(&Schedulable), at: &mut Irql<ThreadLock>) -> bool {
    let it = &thread.sched;
    let place = it.place();
    let Some(number) = place.processor() else {
        // Nobody else places it without its lock.
        how(it);
        return true;
    };
    // SAFETY: places hold registered processors only.
    let there = unsafe { prcb::get_unchecked(number) }.prcb();
    let mut guard = there.sched.queues.lock(&mut *at);
    if it.place() != place {
        return false;
    }
    let shared = &there.sched.shared;
    match place {
        Place::Running(_) => {
            how(it);
            let Changed { has_standby: mut tell, displaced } = guard.running_changed(shared, number, it);
            // What was standby is queued, and its look finds nothing to do.
            tell |= ready::asks_for_a_tick(there, displaced != 0);
            if !it.may_run_on(number) {
                there.sched.ask_quantum_look();
                tell = true;
            }
            drop(guard);
            ready::tell_idle_of(displaced);
            if tell {
                tell_to_look(there, at);
            }
            true
        }
        _ => {
            let tell = if place == Place::Ready(number) {
                guard.remove(shared, thread.part());
                false
            } else {
                // SAFETY: its lock is held.
                let running = unsafe { there.running() }.map(Schedulable::priority);
                guard.take_standby_away(shared, number, running)
            };
            it.set_place(Place::Waiting(number));
            drop(guard);
            if tell {
                tell_to_look(there, at);
            }
            how(it);
            ready::place(thread, at);
            true
        }
    }
}

/// The processor that `thread` runs on, if it runs. Under its lock: if it doesn't, whichever processor switches to it next sees what was
/// stored before this.
#[cfg(target_os = "none")]
pub(in crate::ke) fn runs_on(thread: &Thread, at: &mut Irql<ThreadLock>) -> Option<u32> {
    let it = &thread.sched;
    loop {
        let place = it.place();
        let number = place.processor()?;
        // SAFETY: places hold registered processors only.
        let there = unsafe { prcb::get_unchecked(number) }.prcb();
        // A switch to it, or from it, is made under this lock as a whole.
        let _guard = there.sched.queues.lock(&mut *at);
        if it.place() == place {
            return matches!(place, Place::Running(_)).then_some(number);
        }
    }
}

/// A switch is to be made there, or what runs is to leave.
fn tell_to_look(there: &Prcb, at: &mut Irql<ThreadLock>) {
    let (here, _) = Prcb::here(at);
    // Here, the way out looks.
    if here.number() != there.number() {
        ready::ask_to_look(there);
    }
}
