//! What ends a run for what a driver, or who sends packets, has done: DRIVER_VERIFIER_IOMANAGER_VIOLATION (0xC9), in every build where it
//! costs nothing to find.
//!
//! Not as NT: the numbers are the kernel's own.

use super::bugcheck;
use crate::ke::bugcheck::StopCode;

/// The first parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Violation {
    /// STATUS_PENDING was returned, and the packet was not marked: the routine, the packet. Checked build.
    PendingUnmarked = 0x1001,
    /// The packet was marked pending, and another status was returned: the routine, the packet, the status. Checked build.
    MarkedNotPending = 0x1002,
    /// A packet was completed with STATUS_PENDING: 0, the packet.
    CompletedPending = 0x1003,
    /// A packet was completed with a cancel routine set: 0, the packet. Checked build.
    CompletedCancelable = 0x1004,
    /// A packet was dropped by who had it: 0, the packet.
    Lost = 0x1005,
    /// A driver was unloaded with a file open on one of its devices: the driver, the device, how many.
    UnloadedInUse = 0x1006,
}

/// Ends the run.
#[cold]
pub(super) fn violation(what: Violation, first: usize, second: usize, third: u32) -> ! {
    let parameters = [what as u64, first as u64, second as u64, third.into()];
    bugcheck(StopCode::DriverVerifierIomanagerViolation, parameters);
}

/// A packet that nobody has any more will never end.
#[cfg(target_os = "none")]
#[cold]
pub(super) fn dropped(packet: usize) -> ! {
    violation(Violation::Lost, 0, packet, 0);
}
