//! A disk in memory: the simplest driver of a disk, without hardware. It answers what the virtio disk's does.
//!
//! Owns:       [`RamDisk`].
//! IRQL:       packets up to DISPATCH, ended where they come; made at PASSIVE or APC.
//! Locks:      the content's, of rank `ObjectLock`: a packet is copied whole. At most 1 MiB a packet, so that others at DISPATCH wait
//!             no longer than for other work there.
//! Invariants: I1 `content` is `sectors` sectors in a row, which are the disk's until its drop.
//! Tests:      selftest `disk::a_disk_in_memory_keeps_what_is_written`.

use core::ptr::NonNull;

use arch::paging::hhdm;
use sync::SpinLock;
use sync::irql::{Below, Irql, ObjectLock, PageCacheAccess};

use super::MayDoIo;
use super::disk::{self, Geometry, SECTOR};
use super::driver::Driver;
use super::irp::{Handled, Irp};
use super::layout::major;
use crate::ke::current_level::{above_dispatch, at_current_level};
use crate::mm::contiguous::{self, Place};
use crate::rtl::NtStatus;

/// Bytes of a packet, at most.
const MOST: u32 = 1 << 20;

/// See the module.
pub struct RamDisk {
    content: SpinLock<NonNull<u8>, ObjectLock>,
    /// See I1.
    sectors: u64,
}

// SAFETY: the content is the disk's alone, reached under its lock.
unsafe impl Send for RamDisk {}
// SAFETY: as above.
unsafe impl Sync for RamDisk {}

impl RamDisk {
    /// One of so many sectors, all zero.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn new<L: Below<PageCacheAccess>>(sectors: u64, at: &mut Irql<L>) -> Result<Self, NtStatus> {
        let refused = NtStatus::INSUFFICIENT_RESOURCES;
        let bytes = sectors.checked_mul(SECTOR).ok_or(refused)?;
        let content = contiguous::allocate(bytes, Place::ANYWHERE, at).map_err(|_| refused)?;
        // SAFETY: just allocated.
        unsafe { content.write_bytes(0, bytes as usize) };
        Ok(Self { content: SpinLock::new(content), sectors })
    }

    /// Moves a packet's bytes; how it ended, and how many those are.
    fn transfer<L: MayDoIo>(&self, irp: &Irp<'_>, at: &mut Irql<L>) -> (NtStatus, usize) {
        let parameters = irp.read_write();
        let Some((first, _)) = disk::sectors(parameters.length, parameters.byte_offset, self.sectors) else {
            return (NtStatus::INVALID_PARAMETER, 0);
        };
        if parameters.length > MOST {
            return (NtStatus::INVALID_BUFFER_SIZE, 0);
        }
        let bytes: u64 = irp.runs().map(|run| u64::from(run.bytes)).sum();
        if bytes != parameters.length.into() || !irp.is_memory() {
            return (NtStatus::INVALID_PARAMETER, 0);
        }
        let content = self.content.lock(at);
        // SAFETY: within the content, as the sectors are the disk's (I1).
        let mut place = unsafe { content.add((first * SECTOR) as usize).as_ptr() };
        for run in irp.runs() {
            let buffer = (hhdm() + run.address) as *mut u8;
            // SAFETY: 1. the content, of which as many bytes are left as the runs have. 2. memory, which the HHDM maps, and which is the
            //         packet's maker's to lend until the packet ends. 3. a buffer that is also the content's is nobody's to make.
            unsafe {
                if irp.major() == major::READ {
                    buffer.copy_from_nonoverlapping(place, run.bytes as usize);
                } else {
                    place.copy_from_nonoverlapping(buffer, run.bytes as usize);
                }
                place = place.add(run.bytes as usize);
            }
        }
        (NtStatus::SUCCESS, parameters.length as usize)
    }
}

impl Driver for RamDisk {
    fn dispatch<'c, L: MayDoIo>(&self, mut irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        let (status, information) = match irp.major() {
            major::READ | major::WRITE => self.transfer(&irp, at),
            major::CREATE | major::CLEANUP | major::CLOSE | major::FLUSH_BUFFERS => (NtStatus::SUCCESS, 0),
            major::DEVICE_CONTROL => match irp.device_control().code {
                disk::IOCTL_DISK_GET_LENGTH_INFO => {
                    answered(disk::answer(&mut irp, &(self.sectors * SECTOR).to_le_bytes()))
                }
                disk::IOCTL_DISK_GET_DRIVE_GEOMETRY => {
                    answered(disk::answer(&mut irp, &Geometry::of(self.sectors).bytes()))
                }
                _ => (NtStatus::INVALID_DEVICE_REQUEST, 0),
            },
            _ => (NtStatus::INVALID_DEVICE_REQUEST, 0),
        };
        irp.complete(status, information, at)
    }
}

fn answered(answer: Result<usize, NtStatus>) -> (NtStatus, usize) {
    answer.map_or_else(|status| (status, 0), |bytes| (NtStatus::SUCCESS, bytes))
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let content = *self.content.get_mut();
        // SAFETY: 1. I1, and nobody uses it any more. 2. whoever drops it has no token in use that a free could want; the level is that
        //         of the token.
        unsafe { at_current_level!(at => contiguous::free(content, at), above => above_dispatch(above, 0)) }
    }
}
