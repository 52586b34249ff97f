//! Alerts, and what else ends a wait for reasons of the thread's own: who may end which wait.
//!
//! An alert is a flag of the thread, one for each mode. It ends an alertable wait, or makes the next one end at once. Whoever's claim
//! of the wait wins takes the flag back: the alerter, or the thread itself, both under the thread's lock.
//!
//! IRQL:    at or below DISPATCH.
//! Sources: WDK, "Waits and APCs"; `KeWaitForSingleObject` (Alertable, WaitMode); `NtAlertThread`, `NtTestAlert`.

use sync::attention::Signs;
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};
use sync::wait_word::{Claim, Openness};

use super::super::thread::{self, Thread};
use super::queue;
use super::{ProcessorMode, is_deliverable};
use crate::ke::wait::CanWait;
use crate::rtl::NtStatus;

/// What may end a wait besides its objects and its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alertable {
    /// Nothing.
    No,
    /// An alert; of a wait on behalf of user mode, a user APC, too.
    Yes(ProcessorMode),
}

impl Alertable {
    /// What a wait at L is open for.
    #[inline(always)]
    pub(in crate::ke) const fn openness<L: CanWait>(self) -> Openness {
        let open = if L::HIGHEST == arch::level::PASSIVE { Openness::KERNEL_APC } else { Openness::NOTHING };
        match self {
            Self::No => open,
            Self::Yes(mode) => open.alertable(matches!(mode, ProcessorMode::User)),
        }
    }
}

fn sign(mode: ProcessorMode) -> Signs {
    match mode {
        ProcessorMode::Kernel => Signs::ALERT_KERNEL,
        ProcessorMode::User => Signs::ALERT_USER,
    }
}

/// Ends an alertable wait of `thread` with STATUS_ALERTED, or has its next one end at once. An alert of user mode ends waits of user mode
/// only. True: it was alerted already, and nothing changes.
#[doc(alias = "KeAlertThread")]
#[doc(alias = "ZwAlertThread")]
pub fn alert<L>(thread: &Thread, mode: ProcessorMode, at: &mut Irql<L>) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    let (before, woken) = {
        let mut guard = thread.lock.lock(&mut raised);
        let _ = guard.parts();
        let before = thread.attention.raise(sign(mode));
        let claim = if before {
            Claim::Lost
        } else {
            thread.wait.claim_if(NtStatus::ALERTED.0, |open| open.to_alerts(mode == ProcessorMode::User))
        };
        if matches!(claim, Claim::Wake | Claim::Noted) {
            thread.attention.clear(sign(mode));
        }
        (before, claim == Claim::Wake)
    };
    queue::finish::<L>(thread, woken, 0, &mut raised);
    before
}

/// Was the running thread alerted in `mode`? It isn't afterwards. In user mode, what user APCs are queued are made pending, too.
#[doc(alias = "KeTestAlertThread")]
#[doc(alias = "ZwTestAlert")]
pub fn test_alert<L>(mode: ProcessorMode, at: &mut Irql<L>) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut raised = at.raise::<Dispatch>();
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(&*raised).unbound() };
    let mut guard = me.lock.lock(&mut raised);
    let _ = guard.parts();
    let alerted = me.attention.clear(sign(mode));
    if !alerted && mode == ProcessorMode::User && me.attention.any(Signs::USER_APC) {
        me.attention.raise(Signs::USER_APC_PENDING);
    }
    alerted
}

/// Does anything that was left for `me`, the running thread, end the wait that it has just committed? Then it has: the status, and the
/// thread goes on. Nothing: it is to block.
#[cold]
pub(in crate::ke) fn end_at_once(me: &Thread, open: Openness, at: &mut Irql<Dispatch>) -> Option<NtStatus> {
    if open.to_kernel_apcs() && is_deliverable(me, at) {
        return (me.wait.claim(NtStatus::KERNEL_APC.0) == Claim::Wake).then_some(NtStatus::KERNEL_APC);
    }
    if !open.to_alerts(false) {
        return None;
    }
    let mut guard = me.lock.lock(at);
    let _ = guard.parts();
    let signs = me.attention.look();
    let user = open.to_alerts(true);
    let (status, sign) = if user && signs.any(Signs::ALERT_USER) {
        (NtStatus::ALERTED, Signs::ALERT_USER)
    } else if user && signs.any(Signs::USER_APC.and(Signs::USER_APC_PENDING)) {
        (NtStatus::USER_APC, Signs::NONE)
    } else if signs.any(Signs::ALERT_KERNEL) {
        (NtStatus::ALERTED, Signs::ALERT_KERNEL)
    } else {
        return None;
    };
    if me.wait.claim(status.0) != Claim::Wake {
        return None;
    }
    if status == NtStatus::USER_APC {
        me.attention.raise(Signs::USER_APC_PENDING);
    } else {
        me.attention.clear(sign);
    }
    Some(status)
}
