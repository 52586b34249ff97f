//! A packet that a queue gave out was returned as pending long ago: completing it says nothing of the one that is here now.
#![no_std]
use kernel::io::MayDoIo;
use kernel::io::csq::CancelSafeQueue;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::rtl::NtStatus;
use sync::irql::Irql;

struct Device(CancelSafeQueue);

impl Driver for Device {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        if let Some(other) = self.0.take(at) {
            #[cfg(refused)]
            return other.complete(NtStatus::SUCCESS, 0, 1, at);
            #[cfg(not(refused))]
            other.complete(NtStatus::SUCCESS, 0, 1, at);
        }
        irp.complete(NtStatus::SUCCESS, 0, at)
    }
}
