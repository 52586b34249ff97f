//! Ending another thread.
//!
//! It is asked to, as by a special kernel APC: its wait ends, and it exits where the APC would be delivered, unless it is in a region or
//! holds a mutant; then at the end of that. A suspended one goes on to end.
//!
//! Not as NT: NT ends other threads on their way back to user mode, when they hold nothing of the kernel's, and system threads not at all.

use core::sync::atomic::Ordering;

use sync::irql::{Irql, Passive};

use super::super::apc;
use super::{Thread, exit};
use crate::rtl::NtStatus;

impl Thread {
    /// Has it end with `status`; does not wait for that. The running thread ends at once.
    ///
    /// # Errors
    /// STATUS_THREAD_IS_TERMINATING: it ends already.
    ///
    /// # Safety
    /// Wherever it runs or waits at PASSIVE in no region, holding no mutant, nothing outside of it relies on what is on its stack, or on
    /// what its code would have done next: nothing of it is dropped, and the stack is used again.
    #[doc(alias = "PspTerminateThreadByPointer")]
    #[doc(alias = "ZwTerminateThread")]
    pub unsafe fn terminate(&self, status: NtStatus, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        if core::ptr::eq(self, &raw const *super::current(at)) {
            exit(status, at);
        }
        let pending = NtStatus::PENDING.0;
        // The first one's status counts.
        if self
            .terminate_with
            .compare_exchange(pending, status.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return Err(NtStatus::THREAD_IS_TERMINATING);
        }
        if !apc::notify_termination(self, at) {
            return Err(NtStatus::THREAD_IS_TERMINATING);
        }
        let _ = self.force_resume(at);
        Ok(())
    }
}
