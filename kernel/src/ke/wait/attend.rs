//! Blocking, and what a thread looks at right before: whatever was left for it (`attention`).

use arch::service::NothingInService;
use sync::attention::Signs;
use sync::irql::{Dispatch, Irql};
use sync::wait_word::Openness;

use super::super::apc::alert;
use super::super::thread::Thread;
use super::super::{queue, sched};
use super::chain::{self, For};
use crate::rtl::NtStatus;

/// The wait of `me`, the running thread, for `what`, is committed and open for `open`: blocks until it is over; its status.
#[inline(always)]
pub(super) fn block(
    me: &'static Thread,
    what: For,
    open: Openness,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) -> NtStatus {
    let noted = chain::begin(me, what, at);
    let status = if me.attention.any(Signs::BEFORE_A_WAIT) {
        attend::<true>(me, open, at, nothing)
    } else {
        // SAFETY: committed; whoever ends the wait makes this thread ready.
        unsafe { sched::block(at, nothing) };
        NtStatus(me.wait.status())
    };
    chain::end(me, noted, at);
    status
}

/// [`block`] for an entry of the queue that `me` belongs to, which doesn't count it.
pub(super) fn block_for_its_queue(
    me: &'static Thread,
    what: For,
    open: Openness,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) -> NtStatus {
    let noted = chain::begin(me, what, at);
    let status = attend::<false>(me, open, at, nothing);
    chain::end(me, noted, at);
    status
}

/// `COUNTED`: if it belongs to a queue, that counts it, and does without it while it waits.
#[cold]
#[inline(never)]
fn attend<const COUNTED: bool>(
    me: &'static Thread,
    open: Openness,
    at: &mut Irql<Dispatch>,
    nothing: NothingInService,
) -> NtStatus {
    if let Some(status) = alert::end_at_once(me, open, at) {
        return status;
    }
    let queue = if COUNTED { queue::of(me) } else { None };
    // SAFETY: queues that threads belong to live for ever.
    let queue = queue.map(|queue| unsafe { queue.as_ref() });
    if let Some(queue) = queue {
        queue.stops(at);
    }
    // SAFETY: as above.
    unsafe { sched::block(at, nothing) };
    if let Some(queue) = queue {
        queue.goes_on(at);
    }
    NtStatus(me.wait.status())
}
