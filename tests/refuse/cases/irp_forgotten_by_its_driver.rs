//! A driver's routine says what became of its packet: there is nothing else to return, and it can't be made by hand.
#![no_std]
use kernel::io::MayDoIo;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::rtl::NtStatus;
#[cfg(refused)]
use core::marker::PhantomData;
use sync::irql::Irql;

struct Device;

impl Driver for Device {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        #[cfg(not(refused))]
        return irp.complete(NtStatus::SUCCESS, 0, at);
        #[cfg(refused)]
        let _ = (irp, at);
        #[cfg(refused)]
        Handled { status: NtStatus::SUCCESS, call: PhantomData }
    }
}
