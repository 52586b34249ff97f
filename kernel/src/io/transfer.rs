//! Buffers of a request: how the maker's memory reaches the driver, and what comes back.
//!
//! | method | the driver gets | when it has ended |
//! |---|---|---|
//! | buffered | a system buffer with a copy of what goes in, as large as the larger side | what came out is copied back |
//! | direct | a list of the locked pages; of a control, the input as a system buffer | the pages are let go |
//! | neither | the maker's addresses | nothing |
//!
//! No bytes: no system buffer and no list, whatever the method. Reads and writes are done as the device's flags say, controls as their code.
//!
//! Owns:       `Transfer`. Not: packets (file_io.rs).
//! IRQL:       PASSIVE and APC, in the context of whom the buffer belongs to.
//! Invariants: B1 a packet with `BUFFERED_IO` has a system buffer of as many bytes as the larger of the two lengths of its first location, all
//!                of them written. Safe code doesn't change these (irp.rs, I2).
//!             B2 what `attach` gave a packet `finish` takes back, once, when it has ended.
//! Not as NT:  the system buffer's tail is cleared, so a driver that says more than it has written tells nothing of the kernel; and no more is
//!             copied back than there is room for, whatever a driver says.
//! Tests:      selftest `io_buffers::*`; mutants `tail_of_a_buffer_not_cleared`, `copied_back_unbounded`, `pages_kept_behind_the_end`.
//! Sources:    WDK, "Methods for Accessing Data Buffers", "Buffer Descriptions for I/O Control Codes", CTL_CODE.

use core::ptr::{self, NonNull};

use sync::event::MayWait;
use sync::irql::{AddressSpaceLock, Apc, AtOrBelow, Below, Irql, PageCacheAccess, PfnLock};

use super::MayDoIo;
use super::layout::{KIrp, irp_flags};
use super::objects::device_flags;
use crate::ke::apc::ProcessorMode;
use crate::ke::wait::CanWait;
use crate::mm::mdl::{Mdl, flags as mdl_flags};
use crate::mm::mdl_pages::{self, Operation};
use crate::mm::pool::{self, Tag};
use crate::mm::user;
use crate::rtl::NtStatus;

/// Of system buffers.
const TAG: Tag = Tag::new(b"IoBu");

/// PASSIVE and APC: where buffers are copied, locked and let go.
pub trait MayTransfer:
    MayWait
    + MayDoIo
    + CanWait
    + AtOrBelow<Apc>
    + Below<AddressSpaceLock>
    + Below<PfnLock>
    + Below<PageCacheAccess>
{
}

impl<L> MayTransfer for L where
    L: MayWait
        + MayDoIo
        + CanWait
        + AtOrBelow<Apc>
        + Below<AddressSpaceLock>
        + Below<PfnLock>
        + Below<PageCacheAccess>
{
}

/// NT's METHOD_ numbers, the lowest two bits of a control code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// By a system buffer.
    Buffered = 0,
    /// The output buffer's pages, which are only read.
    InDirect = 1,
    /// The output buffer's pages, which may be written.
    OutDirect = 2,
    /// By addresses.
    Neither = 3,
}

impl Method {
    /// A control code's.
    #[doc(alias = "METHOD_FROM_CTL_CODE")]
    pub const fn of_code(code: u32) -> Self {
        match code & 3 {
            0 => Self::Buffered,
            1 => Self::InDirect,
            2 => Self::OutDirect,
            _ => Self::Neither,
        }
    }

    /// Of reads or writes of a device with these flags.
    const fn of_device(flags: u32, is_read: bool) -> Self {
        if flags & device_flags::BUFFERED_IO != 0 {
            Self::Buffered
        } else if flags & device_flags::DIRECT_IO == 0 {
            Self::Neither
        } else if is_read {
            Self::OutDirect
        } else {
            Self::InDirect
        }
    }
}

/// Memory of whoever makes a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) address: *mut u8,
    pub(super) bytes: u32,
}

impl Buffer {
    pub(super) const NONE: Self = Self { address: ptr::null_mut(), bytes: 0 };
}

/// What a request moves, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    method: Method,
    /// What goes to the driver by a copy, or its address.
    input: Buffer,
    /// What comes from it; with a direct method, the buffer that is locked.
    output: Buffer,
    /// Whose memory it is.
    mode: ProcessorMode,
}

impl Transfer {
    /// Nothing.
    pub(super) const NONE: Self = Self {
        method: Method::Neither,
        input: Buffer::NONE,
        output: Buffer::NONE,
        mode: ProcessorMode::Kernel,
    };

    /// A read of a device with these flags.
    pub(super) const fn read(flags: u32, buffer: Buffer, mode: ProcessorMode) -> Self {
        Self { method: Method::of_device(flags, true), input: Buffer::NONE, output: buffer, mode }
    }

    /// A write to one.
    pub(super) const fn write(flags: u32, buffer: Buffer, mode: ProcessorMode) -> Self {
        let method = Method::of_device(flags, false);
        // By a system buffer, it goes in; else by its pages or its address, as a read's.
        let (input, output) =
            if matches!(method, Method::Buffered) { (buffer, Buffer::NONE) } else { (Buffer::NONE, buffer) };
        Self { method, input, output, mode }
    }

    /// A control.
    pub(super) const fn control(code: u32, input: Buffer, output: Buffer, mode: ProcessorMode) -> Self {
        Self { method: Method::of_code(code), input, output, mode }
    }

    /// Gives the packet its buffers.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES, STATUS_ACCESS_VIOLATION, STATUS_GUARD_PAGE_VIOLATION: the packet has got nothing.
    ///
    /// # Safety
    /// The packet is the caller's. The memory stays, and may be used so, until [`finish`](Self::finish).
    pub(super) unsafe fn attach<L: MayTransfer>(
        &self,
        irp: NonNull<KIrp>,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        // SAFETY: the caller's.
        unsafe {
            match self.method {
                Method::Buffered => self.attach_system_buffer(irp, self.output, at),
                Method::Neither => {
                    (*irp.as_ptr()).user_buffer = self.output.address.cast();
                    Ok(())
                }
                Method::InDirect | Method::OutDirect => {
                    self.attach_system_buffer(irp, Buffer::NONE, at)?;
                    let attached = self.attach_pages(irp, at);
                    if attached.is_err() {
                        free_system_buffer(irp, at);
                    }
                    attached
                }
            }
        }
    }

    /// # Safety
    /// As [`attach`](Self::attach).
    unsafe fn attach_system_buffer<L: MayTransfer>(
        &self,
        irp: NonNull<KIrp>,
        output: Buffer,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let (bytes, given) = (self.input.bytes.max(output.bytes) as usize, self.input.bytes as usize);
        if bytes == 0 {
            return Ok(());
        }
        let block =
            pool::allocate(TAG, bytes, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?.cast::<u8>();
        // SAFETY: a block of so many bytes, of which the tail is written here (B1); the caller's memory.
        unsafe {
            block.add(given).write_bytes(0, bytes - given);
            let copied = match self.mode {
                ProcessorMode::Kernel => {
                    block.as_ptr().copy_from(self.input.address, given);
                    Ok(())
                }
                ProcessorMode::User => {
                    block.write_bytes(0, given);
                    let slice = core::slice::from_raw_parts_mut(block.as_ptr(), given);
                    user::copy_from_user(slice, self.input.address.addr() as u64, at)
                }
            };
            if let Err(status) = copied {
                pool::free(block, TAG, at);
                return Err(status);
            }
            let it = irp.as_ptr();
            (*it).associated = block.as_ptr().cast();
            (*it).flags |= irp_flags::BUFFERED_IO | irp_flags::DEALLOCATE_BUFFER;
            if output.bytes != 0 {
                (*it).flags |= irp_flags::INPUT_OPERATION;
                (*it).user_buffer = output.address.cast();
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`attach`](Self::attach).
    unsafe fn attach_pages<L: MayTransfer>(
        &self,
        irp: NonNull<KIrp>,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        if self.output.bytes == 0 {
            return Ok(());
        }
        let list = mdl_pages::allocate(self.output.address, self.output.bytes, at);
        let mut list = list.map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        let operation = if self.method == Method::OutDirect { Operation::Write } else { Operation::Read };
        if let Err(error) = mdl_pages::probe_and_lock(&mut list, self.mode, operation, at) {
            // SAFETY: allocated above, and nobody else's.
            unsafe { mdl_pages::free(list, at) };
            return Err(error.status());
        }
        // SAFETY: the caller's.
        unsafe { (*irp.as_ptr()).mdl_address = list.as_raw().as_ptr() };
        Ok(())
    }

    /// Copies back what came out of an ended packet, and takes its buffers back; how it ended, with what that did.
    ///
    /// # Safety
    /// The packet has ended, and is the caller's; this is what it was attached with, and the memory is still there.
    pub(super) unsafe fn finish<L: MayTransfer>(
        &self,
        irp: NonNull<KIrp>,
        at: &mut Irql<L>,
    ) -> super::layout::IoStatus {
        let it = irp.as_ptr();
        // SAFETY: the caller's; B1, B2.
        unsafe {
            let mut end = (*it).io_status;
            if (*it).flags & irp_flags::INPUT_OPERATION != 0 && !end.status.is_error() {
                let bytes = end.information.min(self.output.bytes as usize);
                let from = core::slice::from_raw_parts((*it).associated.cast::<u8>(), bytes);
                let copied = match self.mode {
                    ProcessorMode::Kernel => {
                        self.output.address.copy_from(from.as_ptr(), bytes);
                        Ok(())
                    }
                    ProcessorMode::User => user::copy_to_user(self.output.address.addr() as u64, from, at),
                };
                if let Err(status) = copied {
                    end.status = status;
                }
            }
            free_system_buffer(irp, at);
            free_lists(irp, at);
            end
        }
    }
}

/// # Safety
/// The packet is the caller's; what it has came from `attach`.
unsafe fn free_system_buffer<L: MayTransfer>(irp: NonNull<KIrp>, at: &mut Irql<L>) {
    let it = irp.as_ptr();
    // SAFETY: the caller's.
    unsafe {
        if (*it).flags & irp_flags::DEALLOCATE_BUFFER == 0 {
            return;
        }
        (*it).flags &= !(irp_flags::BUFFERED_IO | irp_flags::DEALLOCATE_BUFFER | irp_flags::INPUT_OPERATION);
        let block = core::mem::replace(&mut (*it).associated, ptr::null_mut());
        pool::free(NonNull::new_unchecked(block.cast()), TAG, at);
    }
}

/// The list, and those that drivers have chained to it.
///
/// # Safety
/// As [`free_system_buffer`].
unsafe fn free_lists<L: MayTransfer>(irp: NonNull<KIrp>, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe {
        let mut next = core::mem::replace(&mut (*irp.as_ptr()).mdl_address, ptr::null_mut());
        while let Some(raw) = NonNull::new(next) {
            next = (*raw.as_ptr()).next;
            let mut list = Mdl::from_raw(raw);
            if list.has(mdl_flags::PAGES_LOCKED) {
                mdl_pages::unlock(&mut list, at);
            }
            mdl_pages::free(list, at);
        }
    }
}
