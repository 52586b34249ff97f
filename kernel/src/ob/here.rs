//! What objects need of this machine: memory, and a thread at PASSIVE.

use core::ptr::NonNull;

use arch::level::{DISPATCH, PASSIVE};
use sync::irql::{Below, Irql, PoolAccess};
use sync::pile::Pile;

use super::delete;
use crate::ex::work::{Queue, WorkItem};
use crate::ke::current_level::{above_dispatch, at_current_level};
use crate::ke::dpc::Dpc;
use crate::mm::Exhausted;
use crate::mm::pool::{self, Tag};

/// What directories and objects are locked by.
pub(crate) use crate::ex::PushLock;

/// Nonpaged, aligned to 16.
#[track_caller]
pub(super) fn allocate<L: Below<PoolAccess>>(
    tag: Tag,
    bytes: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, Exhausted> {
    pool::allocate(tag, bytes, at).map(NonNull::cast)
}

/// # Safety
/// A block of [`allocate`], with its tag, that nobody uses any more.
pub(super) unsafe fn free<L: Below<PoolAccess>>(block: NonNull<u8>, tag: Tag, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe { pool::free(block, tag, at) };
}

/// May this thread wait, and call what wants PASSIVE?
pub(super) fn is_passive() -> bool {
    arch::irql::current() == PASSIVE && arch::cpu::interrupts_enabled()
}

/// Where [`delete::later`] puts them.
pub(super) fn pile() -> &'static Pile {
    static PILE: Pile = Pile::new();
    &PILE
}

static ITEM: WorkItem = WorkItem::new(|_, at| delete::work(at));
/// Queues it.
static DPC: Dpc = Dpc::new(|_, at, _| {
    // False: it is queued already, and still has to look.
    let _ = ITEM.queue(Queue::Delayed, at);
});

/// # Bugchecks
/// IRQL_NOT_LESS_OR_EQUAL above DISPATCH: the level, DISPATCH, 0, 0.
pub(super) fn check_level() {
    let level = arch::irql::current();
    if level > DISPATCH {
        above_dispatch(level, 0);
    }
}

/// Has [`delete::work`] called soon. At most at DISPATCH.
pub(super) fn ask_for_work() {
    // False: it is queued already, and still has to look.
    // SAFETY: whoever drops a reference uses no token until that returns. What it holds has a rank below the lock of a DPC queue, the only
    //         one that is taken before the level is that of the token.
    let _ = unsafe { at_current_level!(at => DPC.queue([0, 0], at), above => above_dispatch(above, 0)) };
}
