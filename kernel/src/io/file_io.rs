//! Reads, writes and controls of files and devices that are waited for.
//!
//! | who | by | serialised | place |
//! |---|---|---|---|
//! | a device | its stack's packets | no | given |
//! | a file | the same, at the top of its device's stack, with the file | if it is synchronous | given, or the file's own, which then moves on |
//!
//! IRQL:       PASSIVE.
//! Invariants: F1 requests of a synchronous file are under its lock, one after the other.
//! Not as NT:  a synchronous file's place is moved by the I/O manager; NT leaves that to file systems.
//! Tests:      selftest `io_buffers::*`.
//! Sources:    WDK, `ZwReadFile`, `ZwWriteFile`, `ZwDeviceIoControlFile`, "Synchronous and Asynchronous I/O".

use core::sync::atomic::Ordering::Relaxed;

use sync::irql::{Irql, Passive};

use super::layout::{DeviceControl, IoStatus, ReadWrite, major};
use super::objects::{KDeviceObject, KFileObject, file_flags};
use super::request::{Parts, send_transfer};
use super::stack;
use super::transfer::{Buffer, Transfer};
use crate::ke::apc::ProcessorMode;
use crate::ke::wait;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

/// To whom a request goes.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// To this device itself, whatever is above it.
    Device(&'a ObRef<KDeviceObject>),
    /// To the top of the stack that the file was opened on.
    File(&'a ObRef<KFileObject>),
}

impl<'a> From<&'a ObRef<KDeviceObject>> for Target<'a> {
    fn from(device: &'a ObRef<KDeviceObject>) -> Self {
        Self::Device(device)
    }
}

impl<'a> From<&'a ObRef<KFileObject>> for Target<'a> {
    fn from(file: &'a ObRef<KFileObject>) -> Self {
        Self::File(file)
    }
}

/// What is to be done; its memory is a caller's.
pub(super) enum Operation {
    /// From a place, or the file's own.
    Read(Buffer, Option<i64>),
    /// The same.
    Write(Buffer, Option<i64>),
    /// A code, what goes in, what comes out.
    Control(u32, Buffer, Buffer),
    /// A query of a file, the class of information, and where it goes.
    Information(u8, u32, Buffer),
    /// A function without a buffer.
    Plain(u8),
}

impl Operation {
    /// For a packet; `place` is the file's own.
    pub(super) fn parts(&self, device_flags: u32, place: i64, mode: ProcessorMode) -> (Parts, Transfer) {
        match *self {
            Self::Read(buffer, at) => {
                let parameters = ReadWrite::new(buffer.bytes, at.unwrap_or(place)).words();
                (Parts { major: major::READ, parameters }, Transfer::read(device_flags, buffer, mode))
            }
            Self::Write(buffer, at) => {
                let parameters = ReadWrite::new(buffer.bytes, at.unwrap_or(place)).words();
                (Parts { major: major::WRITE, parameters }, Transfer::write(device_flags, buffer, mode))
            }
            Self::Control(code, input, output) => {
                let mut control = DeviceControl::new(code, input.bytes, output.bytes);
                control.type_3_input = input.address.expose_provenance();
                let parts = Parts { major: major::DEVICE_CONTROL, parameters: control.words() };
                (parts, Transfer::control(code, input, output, mode))
            }
            Self::Information(function, class, to) => {
                let parts = Parts { major: function, parameters: [to.bytes.into(), class.into(), 0, 0] };
                // Always by a system buffer.
                (parts, Transfer::control(0, Buffer::NONE, to, mode))
            }
            Self::Plain(function) => (Parts::plain(function), Transfer::NONE),
        }
    }

    pub(super) fn moves(&self) -> bool {
        matches!(self, Self::Read(_, None) | Self::Write(_, None))
    }
}

/// Reads into `buffer` from a place of the target, or of the file's own.
///
/// # Errors
/// What kept it from being sent; else how it ended is the status block's to say. STATUS_INVALID_PARAMETER: 4 GiB or more, or a file that
/// isn't synchronous without a place.
#[doc(alias = "ZwReadFile")]
pub fn read<'a>(
    target: impl Into<Target<'a>>,
    place: Option<i64>,
    buffer: &mut [u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let buffer = Buffer { bytes: length(buffer)?, address: buffer.as_mut_ptr() };
    // SAFETY: the buffer is borrowed until this returns, to be written.
    unsafe { perform(target.into(), &Operation::Read(buffer, place), ProcessorMode::Kernel, at) }
}

/// Writes `buffer` to a place.
///
/// # Errors
/// As [`read`].
#[doc(alias = "ZwWriteFile")]
pub fn write<'a>(
    target: impl Into<Target<'a>>,
    place: Option<i64>,
    buffer: &[u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let buffer = Buffer { bytes: length(buffer)?, address: buffer.as_ptr().cast_mut() };
    // SAFETY: the buffer is borrowed until this returns, and is only read: its pages are locked for that.
    unsafe { perform(target.into(), &Operation::Write(buffer, place), ProcessorMode::Kernel, at) }
}

/// Has the target do what `code` says, with `input`; what comes back is in `output`. With METHOD_IN_DIRECT, `output` is read only.
///
/// # Errors
/// As [`read`].
#[doc(alias = "ZwDeviceIoControlFile")]
pub fn control<'a>(
    target: impl Into<Target<'a>>,
    code: u32,
    input: &[u8],
    output: &mut [u8],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let input = Buffer { bytes: length(input)?, address: input.as_ptr().cast_mut() };
    let output = Buffer { bytes: length(output)?, address: output.as_mut_ptr() };
    // SAFETY: both are borrowed until this returns, the output to be written.
    unsafe { perform(target.into(), &Operation::Control(code, input, output), ProcessorMode::Kernel, at) }
}

/// Has what was written become lasting.
///
/// # Errors
/// As [`read`].
#[doc(alias = "ZwFlushBuffersFile")]
pub fn flush<'a>(target: impl Into<Target<'a>>, at: &mut Irql<Passive>) -> Result<IoStatus, NtStatus> {
    // SAFETY: without a buffer.
    unsafe { perform(target.into(), &Operation::Plain(major::FLUSH_BUFFERS), ProcessorMode::Kernel, at) }
}

fn length(buffer: &[u8]) -> Result<u32, NtStatus> {
    u32::try_from(buffer.len()).map_err(|_| NtStatus::INVALID_PARAMETER)
}

/// Sends it, and waits.
///
/// # Errors
/// As [`read`].
///
/// # Safety
/// The memory that `operation` names stays, and may be used so, until this returns; on behalf of the user it is looked at here.
pub(super) unsafe fn perform(
    target: Target<'_>,
    operation: &Operation,
    mode: ProcessorMode,
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let file = match target {
        Target::Device(device) => {
            let (parts, transfer) = operation.parts(device.flags(), 0, mode);
            // SAFETY: the caller's; no file.
            return unsafe { send_transfer(device, parts, core::ptr::null_mut(), &transfer, at) };
        }
        Target::File(file) => file,
    };
    let top = stack::top_of(&file.device(), at);
    let is_synchronous = file.flags() & file_flags::SYNCHRONOUS_IO != 0;
    if operation.moves() && !is_synchronous {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    if is_synchronous {
        // F1: whoever takes it resets it.
        let _ = wait::for_single(&file.lock, None, at);
    }
    let (parts, transfer) = operation.parts(top.flags(), file.current_byte_offset(), mode);
    // SAFETY: the caller's; the file stays, as it is borrowed.
    let end = unsafe { send_transfer(&top, parts, file.as_ptr().as_ptr(), &transfer, at) };
    if let Ok(end) = &end {
        file.final_status.store(end.status.0, Relaxed);
        if operation.moves() && !end.status.is_error() {
            file.current_byte_offset.fetch_add(end.information as i64, Relaxed);
        }
    }
    if is_synchronous {
        file.lock.set(0, at);
    }
    end
}
