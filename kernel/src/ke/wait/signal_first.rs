//! A signal and a wait in one, without a switch in between: what NT's `Wait` parameter of `KeSetEvent` and others is for.
//!
//! Not as NT: there the signal leaves the level raised and a lock held, and the caller promises to wait next. Here it is one call, and
//!            no lock is held between the two.
//! Sources:   WDK, `KeSetEvent` (Wait), `NtSignalAndWaitForSingleObject`.

use sync::irql::{Dispatch, Irql};

use super::super::event::Event;
use super::super::timer::Due;
use super::super::{sched, thread};
use super::single::Waitable;
use super::{Alertable, CanWait, timeout};
use crate::rtl::NtStatus;

/// Signals `event`, whose waiters are boosted by `increment`, and waits for `object`, no longer than until `due`: those that this wakes
/// run here at the earliest when the running thread waits.
#[doc(alias = "KeSetEvent")]
#[doc(alias = "ZwSignalAndWaitForSingleObject")]
pub fn signal_and_wait<L: CanWait>(
    event: &Event,
    increment: u8,
    object: &impl Waitable,
    mut due: Option<Due>,
    alertable: Alertable,
    at: &mut Irql<L>,
) -> NtStatus {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    let open = alertable.openness::<L>();
    let (object, mut signals) = (object.header(), true);
    loop {
        let nothing = at.nothing_in_service();
        let (status, until) = {
            let mut raised = at.raise::<Dispatch>();
            if core::mem::take(&mut signals) {
                event.set_and_stay(increment, &mut raised);
            }
            let ended = timeout::attempt_raised(object, me, due, open, &mut raised, nothing);
            // What was woken has run if this thread had to wait.
            sched::after_signal::<L>(&mut raised);
            ended
        };
        if status != NtStatus::KERNEL_APC {
            return status;
        }
        due = timeout::after_an_apc(due, until, at);
    }
}
