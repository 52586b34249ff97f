//! I/O: packets, and the drivers that they travel through.
//!
//! Reading order: `layout` and `objects` (NT's bytes), `packet` (locations), `call` and `complete` (down and back up), `cancel`, `csq` and
//! `csq_raw` (ending early), `device_queue` (waiting for a device); `allocate`; then the same in safe Rust: `irp`, `driver`, `device`, `stack`, `request`,
//! `file`, `transfer` (buffers), `file_io`, `async_io`, `services` (by handles), `start_io`,
//! `remove_lock`, `work_item`, `shutdown` and `null`. What the checked build watches: `verify`.

#[cfg(target_os = "none")]
pub mod allocate;
#[cfg(target_os = "none")]
pub mod async_io;
pub mod call;
pub mod cancel;
pub mod complete;
#[cfg(target_os = "none")]
pub mod csq;
pub mod csq_raw;
#[cfg(target_os = "none")]
pub mod device;
pub mod device_queue;
pub mod disk;
pub mod dma;
#[cfg(target_os = "none")]
pub mod driver;
#[cfg(target_os = "none")]
pub mod file;
#[cfg(target_os = "none")]
pub mod file_io;
#[cfg(target_os = "none")]
pub mod irp;
pub mod layout;
#[cfg(target_os = "none")]
pub mod null;
pub mod objects;
pub mod packet;
pub mod pci;
#[cfg(target_os = "none")]
pub mod pended_list;
pub mod pnp;
#[cfg(target_os = "none")]
pub mod ramdisk;
pub mod remove_lock;
#[cfg(target_os = "none")]
pub mod request;
#[cfg(target_os = "none")]
pub mod services;
#[cfg(target_os = "none")]
pub mod shutdown;
#[cfg(target_os = "none")]
pub mod stack;
#[cfg(target_os = "none")]
mod start_io;
#[cfg(target_os = "none")]
pub mod transfer;
#[cfg(feature = "verifier")]
pub mod verify;
pub mod violation;
pub mod virtio;
#[cfg(target_os = "none")]
pub mod work_item;

use sync::event::MaySignal;
use sync::irql::{Below, Ipi, PoolAccess, SpaceLock};

use crate::ke::bugcheck::StopCode;
use crate::ke::current_level::{above_dispatch, at_current_level};
use crate::rtl::NtStatus;
use layout::KIrp;
use objects::KDeviceObject;

/// Up to DISPATCH and under no lock: where a packet may be sent on, completed or cancelled, all of which calls drivers.
pub trait MayDoIo: MaySignal + Below<PoolAccess> + Below<SpaceLock> + Below<Ipi> {}

impl<L: MaySignal + Below<PoolAccess> + Below<SpaceLock> + Below<Ipi>> MayDoIo for L {}

#[cfg(target_os = "none")]
fn bugcheck(code: StopCode, parameters: [u64; 4]) -> ! {
    crate::ke::bugcheck::bugcheck(code, parameters)
}

/// On a host: a panic, which `arch::stop::catch` tells.
#[cfg(not(target_os = "none"))]
#[track_caller]
fn bugcheck(code: StopCode, parameters: [u64; 4]) -> ! {
    arch::fatal(code as u32, parameters)
}

/// [`complete::complete`] for who has no token: raw drivers.
///
/// # Safety
/// As [`complete::complete`], at most at DISPATCH, and no token of this processor is used meanwhile.
#[doc(alias = "IofCompleteRequest")]
pub unsafe extern "win64" fn complete_request(irp: *mut KIrp, increment: i8) {
    let Some(irp) = core::ptr::NonNull::new(irp) else { return };
    let increment = increment.max(0) as u8;
    // SAFETY: the caller's; the level is the one of the token that is lent.
    unsafe {
        at_current_level!(at => complete::complete(irp, increment, at), above => above_dispatch(above, irp.addr().get() as u64))
    }
}

/// What a driver that has no routine for a function is taken to do.
unsafe extern "win64" fn driver_default(_: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    let status = NtStatus::INVALID_DEVICE_REQUEST;
    // SAFETY: called with a packet that is now ours, as any driver's routine.
    unsafe {
        (*irp).io_status = layout::IoStatus::new(status, 0);
        complete_request(irp, 0);
    }
    status
}
