//! What ends waits of a machine's threads besides objects and timeouts: alerts as they ship, and a kernel APC that does nothing but that.

#[path = "../apc/alert.rs"]
pub mod alert;

use sync::attention::Signs;
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};
use sync::wait_word::Claim;

use super::super::thread::Thread;
use super::super::wait::CanWait;
use super::thread;
use crate::rtl::NtStatus;

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessorMode {
    /// The kernel's.
    Kernel = 0,
    /// The user's.
    User = 1,
}

pub(in crate::ke) mod region {
    use super::{CanWait, Irql, Thread};

    /// No normal APC is ever queued.
    pub(in crate::ke) fn mutants_released<L: CanWait>(_: &Thread, _: &mut Irql<L>) {}
}

mod queue {
    use sync::irql::Level;

    use super::super::sched;
    use super::{Dispatch, Irql, Thread};

    pub(super) fn finish<L: Level>(thread: &Thread, woken: bool, increment: u8, at: &mut Irql<Dispatch>) {
        if woken {
            // SAFETY: the caller ended its wait, just now.
            unsafe { sched::make_ready_and_leave::<L>(thread, increment, at) };
        }
    }
}

fn is_deliverable(me: &Thread, _: &mut Irql<Dispatch>) -> bool {
    me.attention.any(Signs::SPECIAL_APC)
}

/// A special kernel APC for `thread`: its wait, if one is under way at PASSIVE, ends, and begins anew; the steps of apc/queue.rs.
pub fn interrupt<L>(thread: &Thread, at: &mut Irql<L>)
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    let claim = {
        let mut guard = thread.lock.lock(&mut raised);
        let _ = guard.parts();
        thread.attention.raise(Signs::SPECIAL_APC);
        thread.wait.claim_if(NtStatus::KERNEL_APC.0, |open| open.to_kernel_apcs())
    };
    queue::finish::<L>(thread, claim == Claim::Wake, 0, &mut raised);
}

/// The only APC is delivered before a wait, and nowhere else.
pub(in crate::ke) fn requests_delivery(_: &Thread) -> bool {
    false
}

/// It is delivered: nothing but that.
pub(in crate::ke) fn deliver_before_a_wait<L: CanWait>(at: &mut Irql<L>) {
    thread::current(at).attention.clear(Signs::SPECIAL_APC);
}
