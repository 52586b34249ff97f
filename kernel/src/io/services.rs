//! What kernel code does with files by their handles: NT's `Zw` calls.
//!
//! IRQL:       PASSIVE.
//! Not as NT:  whether a call waits is the caller's to say, by which it calls, not the file's; a synchronous file takes no call that doesn't.
//! Tests:      selftest `io_files::*`.
//! Sources:    WDK, `ZwCreateFile`, `ZwOpenFile`, `ZwReadFile`, `ZwWriteFile`, `ZwDeviceIoControlFile`, `ZwQueryInformationFile`.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use sync::irql::{Irql, Passive};

use super::async_io::{self, Told};
use super::file::OpenOptions;
use super::file_io::{self, Operation, Target};
use super::layout::{IoStatus, major};
use super::objects::{KFileObject, file_flags};
use super::transfer::Buffer;
use crate::ke::apc::ProcessorMode;
use crate::ke::wait;
use crate::ob::services::Named;
use crate::ob::{self, AccessMask, Body, Handle, ObRef};
use crate::rtl::NtStatus;

/// What becomes of a file that exists, or doesn't: NT's create dispositions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Disposition {
    /// It is replaced.
    Supersede = 0,
    /// It must exist.
    #[default]
    Open = 1,
    /// It must not exist.
    Create = 2,
    /// It is made if it doesn't exist.
    OpenIf = 3,
    /// It must exist, and is emptied.
    Overwrite = 4,
    /// It is emptied, or made.
    OverwriteIf = 5,
}

/// How a file is opened, besides its path and rights.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions {
    /// Of a file that exists, or doesn't.
    pub disposition: Disposition,
    /// NT's FILE_ create options.
    pub options: u32,
    /// FILE_ATTRIBUTE_ of a new file.
    pub attributes: u16,
    /// FILE_SHARE_: what others may do meanwhile.
    pub share: u16,
}

impl CreateOptions {
    /// FILE_SYNCHRONOUS_IO_ALERT.
    pub const SYNCHRONOUS_IO_ALERT: u32 = 0x10;
    /// FILE_SYNCHRONOUS_IO_NONALERT.
    pub const SYNCHRONOUS_IO_NONALERT: u32 = 0x20;

    /// An existing file, whose requests are done one after the other.
    pub const SYNCHRONOUS: Self = Self {
        disposition: Disposition::Open,
        options: Self::SYNCHRONOUS_IO_NONALERT,
        attributes: 0,
        share: 7,
    };

    fn open_options(self, access: AccessMask) -> Result<OpenOptions, NtStatus> {
        const BOTH: u32 = CreateOptions::SYNCHRONOUS_IO_ALERT | CreateOptions::SYNCHRONOUS_IO_NONALERT;
        let flags = match self.options & BOTH {
            0 => 0,
            BOTH => return Err(NtStatus::INVALID_PARAMETER),
            // Who waits for each request has to be allowed to.
            _ if !access
                .mapped(KFileObject::object_type().any().mapping())
                .contains(AccessMask::SYNCHRONIZE) =>
            {
                return Err(NtStatus::INVALID_PARAMETER);
            }
            Self::SYNCHRONOUS_IO_ALERT => file_flags::SYNCHRONOUS_IO | file_flags::ALERTABLE_IO,
            _ => file_flags::SYNCHRONOUS_IO,
        };
        if self.options >> 24 != 0 {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let options = self.options | u32::from(self.disposition as u8) << 24;
        Ok(OpenOptions { flags, options, attributes: self.attributes, share: self.share })
    }
}

/// A handle to the file at a path through a device.
///
/// # Errors
/// The driver's; STATUS_INVALID_PARAMETER: without a path, or options that contradict each other or the rights; as
/// [`HandleTable::open_by_name`](crate::ob::HandleTable::open_by_name).
#[doc(alias = "ZwCreateFile")]
#[doc(alias = "ZwOpenFile")]
pub fn create_file(
    named: &Named<'_>,
    access: AccessMask,
    options: CreateOptions,
    at: &mut Irql<Passive>,
) -> Result<Handle, NtStatus> {
    let path = named.path.ok_or(NtStatus::INVALID_PARAMETER)?;
    let mut options = options.open_options(access)?;
    let file = Some(KFileObject::object_type().any());
    let table = ob::kernel_handles();
    table.open_by_name_with(ob::namespace(), path, file, access, named.attributes, Some(&mut options), at)
}

fn file(handle: Handle, at: &mut Irql<Passive>) -> Result<ObRef<KFileObject>, NtStatus> {
    ob::kernel_handles().reference(handle, AccessMask::NONE, ProcessorMode::Kernel, at)
}

/// Reads from a place, or the file's own, which then moves on.
///
/// # Errors
/// STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH; as [`file_io::read`].
#[doc(alias = "ZwReadFile")]
pub fn read_file(
    handle: Handle,
    place: Option<i64>,
    buffer: &mut [u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    file_io::read(&file(handle, at)?, place, buffer, at)
}

/// Writes to a place, or the file's own, which then moves on.
///
/// # Errors
/// As [`read_file`].
#[doc(alias = "ZwWriteFile")]
pub fn write_file(
    handle: Handle,
    place: Option<i64>,
    buffer: &[u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    file_io::write(&file(handle, at)?, place, buffer, at)
}

/// [`read_file`], but that it goes on by itself: STATUS_PENDING, or how it has ended, which has been told then unless it failed.
///
/// # Errors
/// As [`read_file`]; STATUS_INVALID_PARAMETER: a synchronous file.
///
/// # Safety
/// `bytes` bytes at `buffer`, and the status block, are the request's to write until it has ended; the routine may be called with its context.
#[doc(alias = "ZwReadFile")]
pub unsafe fn read_file_and_go_on(
    handle: Handle,
    place: i64,
    buffer: NonNull<u8>,
    bytes: u32,
    told: Told,
    at: &mut Irql<Passive>,
) -> Result<NtStatus, NtStatus> {
    let buffer = Buffer { address: buffer.as_ptr(), bytes };
    // SAFETY: the caller's.
    unsafe { async_io::send(file(handle, at)?, &Operation::Read(buffer, Some(place)), told, at) }
}

/// [`write_file`], but that it goes on by itself, as [`read_file_and_go_on`].
///
/// # Errors
/// As [`read_file_and_go_on`].
///
/// # Safety
/// As [`read_file_and_go_on`], but that the buffer is only read.
#[doc(alias = "ZwWriteFile")]
pub unsafe fn write_file_and_go_on(
    handle: Handle,
    place: i64,
    buffer: NonNull<u8>,
    bytes: u32,
    told: Told,
    at: &mut Irql<Passive>,
) -> Result<NtStatus, NtStatus> {
    let buffer = Buffer { address: buffer.as_ptr(), bytes };
    // SAFETY: the caller's.
    unsafe { async_io::send(file(handle, at)?, &Operation::Write(buffer, Some(place)), told, at) }
}

/// Has the file's device do what `code` says.
///
/// # Errors
/// As [`read_file`].
#[doc(alias = "ZwDeviceIoControlFile")]
pub fn device_control(
    handle: Handle,
    code: u32,
    input: &[u8],
    output: &mut [u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    file_io::control(&file(handle, at)?, code, input, output, at)
}

/// Has what was written become lasting.
///
/// # Errors
/// As [`read_file`].
#[doc(alias = "ZwFlushBuffersFile")]
pub fn flush_file(handle: Handle, at: &mut Irql<Passive>) -> Result<IoStatus, NtStatus> {
    file_io::flush(&file(handle, at)?, at)
}

/// NT's FilePositionInformation.
pub const POSITION_INFORMATION: u32 = 14;

/// What a file has of a class of information, into `buffer`: of its place the I/O manager knows, the rest is asked of its driver.
///
/// # Errors
/// As [`read_file`]; STATUS_INFO_LENGTH_MISMATCH: a buffer that is too small.
#[doc(alias = "ZwQueryInformationFile")]
pub fn query_file(
    handle: Handle,
    class: u32,
    buffer: &mut [u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let file = file(handle, at)?;
    if class == POSITION_INFORMATION {
        let place = file.current_byte_offset().to_le_bytes();
        let to = buffer.get_mut(..place.len()).ok_or(NtStatus::INFO_LENGTH_MISMATCH)?;
        to.copy_from_slice(&place);
        return Ok(IoStatus::new(NtStatus::SUCCESS, place.len()));
    }
    let bytes = u32::try_from(buffer.len()).map_err(|_| NtStatus::INVALID_PARAMETER)?;
    let to = Buffer { address: buffer.as_mut_ptr(), bytes };
    let operation = Operation::Information(major::QUERY_INFORMATION, class, to);
    // SAFETY: the buffer is borrowed until this returns.
    unsafe { file_io::perform(Target::File(&file), &operation, ProcessorMode::Kernel, at) }
}

/// Moves the place of a file whose requests are done one after the other.
///
/// # Errors
/// STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH; STATUS_INVALID_PARAMETER: below zero, or a file that keeps no place.
#[doc(alias = "ZwSetInformationFile")]
pub fn set_position(handle: Handle, place: i64, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let file = file(handle, at)?;
    if place < 0 || file.flags() & file_flags::SYNCHRONOUS_IO == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    // F1 (file_io.rs): a read that is under way moves the place when it has ended.
    let _ = wait::for_single(&file.lock, None, at);
    file.current_byte_offset.store(place, Relaxed);
    file.lock.set(0, at);
    Ok(())
}
