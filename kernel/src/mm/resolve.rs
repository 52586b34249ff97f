//! Page faults resolved: what [`fault`](super::fault) decides is done here, by the part of memory that the address belongs to.
//!
//! Called by:  ke/trap.rs. Calls: `paged`, and the address space for the user's half.
//! IRQL:       APC, interrupts on: whatever was interrupted had them on and was at or below APC.
//! Invariants: I1 a page that somebody else made there meanwhile is no error: the instruction is tried again.
//! Checked:    interrupts are on, else MEMORY_MANAGEMENT (0x412, address, RIP).

use sync::irql::{Apc, Irql};

use super::fault::{Decision, Fault};
use super::paged;
use super::process::here;
#[cfg(feature = "verifier")]
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::rtl::status::NtStatus;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The instruction can be tried again.
    Resolved,
    /// It can't, and its code expects that: a copy returns this status, user mode gets an exception with it.
    Refused(NtStatus),
    /// It can't, which breaks the kernel.
    Fatal,
}

/// Does what was decided of `fault`.
pub(crate) fn resolve(decision: Decision, fault: &Fault, at: &mut Irql<Apc>) -> Resolution {
    // A page may have to be waited for, one day; and others' calls are to be served meanwhile.
    #[cfg(feature = "verifier")]
    if !arch::cpu::interrupts_enabled() {
        bugcheck(StopCode::MemoryManagement, [0x412, fault.address, fault.rip, 0]);
    }
    match decision {
        Decision::PagedPool => paged::resolve(fault.address, at),
        Decision::User => match here::resolve(fault.address, fault.kind(), at).map(|it| it.status()) {
            Some(NtStatus::SUCCESS) => Resolution::Resolved,
            Some(status) => Resolution::Refused(status),
            // No address space is loaded.
            None => Resolution::Refused(NtStatus::ACCESS_VIOLATION),
        },
        Decision::AccessViolation => Resolution::Refused(NtStatus::ACCESS_VIOLATION),
        // Not here, as it happens at higher levels, too: ke/trap.rs.
        Decision::Toggle | Decision::Fatal(_) => Resolution::Fatal,
    }
}
