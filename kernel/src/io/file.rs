//! Files: what a path through a device leads to. A device's parse procedure makes one and asks the driver by IRP_MJ_CREATE.
//!
//! Owns:       the file object's making and end. Not: reads and writes of files, which come with handles.
//! IRQL:       PASSIVE.
//! Invariants: I1 a file has a reference to its device, from its making to the end of its delete procedure.
//!             I2 a file whose driver said yes to its create gets a cleanup and a close, once, with its last reference; no other does.
//! Not as NT:  until there are handles, cleanup comes with the last reference, in front of the close. A close waits for memory, as NT's does.
//! Tests:      selftest `io::paths_through_a_device_are_files`.
//! Sources:    WDK, "IRP_MJ_CREATE", "IRP_MJ_CLEANUP", "IRP_MJ_CLOSE", FILE_OBJECT.

use core::ptr::{self, NonNull};

use sync::irql::{Irql, Passive};

use super::device;
use super::layout::IoStatus;
use super::objects::{IO_TYPE_FILE, KDeviceObject, KFileObject};
use super::request::{Function, send_for_file};
use crate::ke::event::{Event, EventKind};
use crate::ke::timer::Due;
use crate::ke::wait::delay;
use crate::mm::pool::Tag;
use crate::ob::{Body, ObRef, ObjectType, Parsed, Request, create_with_extra};
use crate::rtl::{KListEntry, NtStatus, UnicodeString};

/// NT's FO_FILE_OPEN_CANCELLED: the driver said no, and knows nothing of the file.
const OPEN_CANCELLED: u32 = 0x0020_0000;

static FILE: ObjectType<KFileObject> =
    ObjectType::new("File", Tag::new(b"File"), device::MAPPING, device::ALL);

// SAFETY: the fields are the I/O manager's, constant once made, or the driver's, who answers for them.
unsafe impl Send for KFileObject {}
// SAFETY: as above.
unsafe impl Sync for KFileObject {}

impl Body for KFileObject {
    fn object_type() -> &'static ObjectType<Self> {
        &FILE
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        let Some(device) = NonNull::new(self.device_object) else { return };
        // SAFETY: the file's own (I1).
        let device = unsafe { ObRef::from_raw(device) };
        if self.flags & OPEN_CANCELLED == 0 {
            for function in [Function::Cleanup, Function::Close] {
                while send_to_top(&device, function, self, at).is_err() {
                    let _ = delay(Due::In(100_000), at);
                }
            }
        }
        device.release_deferred();
    }
}

/// Sends a packet of the file to the top of its device's stack.
fn send_to_top(
    device: &ObRef<KDeviceObject>,
    function: Function,
    file: *mut KFileObject,
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let top = device::top_of(device, at);
    // SAFETY: the file is there until the packet has come back, which is waited for.
    unsafe { send_for_file(&top, function, file, at) }
}

/// The parse procedure of devices.
///
/// # Errors
/// The driver's; STATUS_OBJECT_TYPE_MISMATCH: something else than a file is wanted; STATUS_INSUFFICIENT_RESOURCES.
pub(super) fn parse(
    device: &ObRef<KDeviceObject>,
    request: Request<'_>,
    at: &mut Irql<Passive>,
) -> Result<Parsed, NtStatus> {
    if request.wanted.is_some_and(|wanted| !wanted.is(FILE.any())) {
        return Err(NtStatus::OBJECT_TYPE_MISMATCH);
    }
    let units = request.rest.units();
    let bytes = u16::try_from(size_of_val(units)).map_err(|_| NtStatus::OBJECT_NAME_INVALID)?;
    let file = create_with_extra(KFileObject::new(), bytes.into(), at)?;
    let place = file.as_ptr().as_ptr();
    // SAFETY: nobody else knows the file. The extra bytes are as many as the name's, aligned, and stay with it.
    unsafe {
        (*place).device_object = device.clone().into_raw().as_ptr();
        let buffer = file.extra().cast::<u16>();
        ptr::copy_nonoverlapping(units.as_ptr(), buffer.as_ptr(), units.len());
        (*place).file_name = UnicodeString { length: bytes, maximum_length: bytes, buffer: buffer.as_ptr() };
    }
    let end = send_to_top(device, Function::Create, place, at);
    let status = end.map_or_else(|status| status, |end| end.status);
    if !status.is_success() {
        // SAFETY: as above: the driver knows nothing of it any more.
        unsafe { (*place).flags |= OPEN_CANCELLED };
        return Err(status);
    }
    Ok(Parsed::Object(file.upcast()))
}

impl KFileObject {
    /// Not opened yet, without a name; without a device, as what is not made an object goes without its delete procedure.
    fn new() -> Self {
        Self {
            kind: IO_TYPE_FILE,
            size: size_of::<Self>() as i16,
            device_object: ptr::null_mut(),
            vpb: ptr::null_mut(),
            fs_context: ptr::null_mut(),
            fs_context_2: ptr::null_mut(),
            section_object_pointer: ptr::null_mut(),
            private_cache_map: ptr::null_mut(),
            final_status: NtStatus::SUCCESS,
            related_file_object: ptr::null_mut(),
            lock_operation: false,
            delete_pending: false,
            access: [false; 6],
            flags: 0,
            file_name: UnicodeString { length: 0, maximum_length: 0, buffer: ptr::null_mut() },
            current_byte_offset: 0,
            waiters: 0,
            busy: 0,
            last_lock: ptr::null_mut(),
            lock: Event::new(EventKind::Synchronization, true),
            event: Event::new(EventKind::Notification, false),
            completion_context: ptr::null_mut(),
            irp_list_lock: sync::raw::KSpinLock::new(),
            irp_list: KListEntry::UNLINKED,
            file_object_extension: ptr::null_mut(),
        }
    }
}
