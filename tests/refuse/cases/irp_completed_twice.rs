//! A packet that was completed is its maker's, and may be gone.
#![no_std]
use kernel::io::MayDoIo;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::rtl::NtStatus;
use sync::irql::Irql;

struct Device;

impl Driver for Device {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        let handled = irp.complete(NtStatus::SUCCESS, 0, at);
        #[cfg(refused)]
        let handled = irp.complete(NtStatus::SUCCESS, 0, at);
        handled
    }
}
