//! A packet that was sent on is another driver's.
#![no_std]
use kernel::io::MayDoIo;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::rtl::NtStatus;
use sync::irql::Irql;

struct Device;

impl Driver for Device {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        #[cfg(not(refused))]
        let _ = irp.major();
        let handled = irp.forward(at);
        #[cfg(refused)]
        let _ = irp.major();
        handled
    }
}
