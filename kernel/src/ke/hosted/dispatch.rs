//! The work of DISPATCH of a virtual processor, in the order of the shipped dispatch.rs: DPCs, then the scheduler's look.

use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql};

use super::super::sched;
use super::prcb::Prcb;

/// Asks another processor for a look.
pub(in crate::ke) fn request_on(there: &Prcb) {
    there.pcr().interrupt(arch::level::DISPATCH);
}

/// DPCs; true: there is work for [`run`].
pub(super) fn retire() -> bool {
    // SAFETY: the way out of an interrupt that hit code below DISPATCH: CR8 is 2, and no token is in use.
    unsafe {
        Irql::<Dispatch>::with(|at| {
            let (here, at) = Prcb::here(at);
            here.dpc.retire(at);
            here.sched.wants_look()
        })
    }
}

/// The look.
pub(super) fn run() {
    // SAFETY: as above; every handler has ended.
    let nothing = unsafe { NothingInService::assume() };
    // SAFETY: as above, IF=1.
    unsafe { Irql::<Dispatch>::with(|at| sched::look_uninterrupted(nothing, at)) }
}
