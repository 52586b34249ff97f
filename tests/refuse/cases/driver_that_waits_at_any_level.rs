//! A driver's routine is called up to DISPATCH: it may not wait.
#![no_std]
use kernel::io::MayDoIo;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::rtl::NtStatus;
use sync::irql::Irql;

struct Device;

impl Driver for Device {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        #[cfg(refused)]
        let _ = delay(Due::In(1), at);
        irp.complete(NtStatus::SUCCESS, 0, at)
    }
}

pub fn f(at: &mut Irql<sync::irql::Passive>) -> NtStatus {
    delay(Due::In(1), at)
}
