//! The drivers that do nothing: `Null`, which takes all and gives nothing, and `Filter`, which lets all through.
//!
//! Sources:    WDK, "Writing Dispatch Routines".

use sync::irql::Irql;

use super::MayDoIo;
use super::driver::Driver;
use super::irp::{Handled, Irp};
use super::layout::major;
use crate::rtl::NtStatus;

/// NT's `\Device\Null`: what is written to it is gone, and a read is at the end at once.
pub struct Null;

impl Driver for Null {
    // Into the routine of every function, and that of plug and play: a call would be a tenth of the packet's way.
    #[inline(always)]
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::READ => irp.complete(NtStatus::END_OF_FILE, 0, at),
            major::WRITE => {
                let length = irp.read_write().length as usize;
                irp.complete(NtStatus::SUCCESS, length, at)
            }
            major::CREATE | major::CLEANUP | major::CLOSE | major::FLUSH_BUFFERS => {
                irp.complete(NtStatus::SUCCESS, 0, at)
            }
            _ => irp.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, at),
        }
    }
}

/// A filter that changes nothing.
pub struct Filter;

impl Driver for Filter {
    // As above.
    #[inline(always)]
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        irp.forward(at)
    }
}
