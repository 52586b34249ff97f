//! Files: what a path through a device leads to. A device's parse procedure makes one and asks the driver by IRP_MJ_CREATE.
//!
//! Owns:       the file object's making and end. Not: its reads and writes (file_io.rs).
//! IRQL:       PASSIVE.
//! Invariants: I1 a file has a reference to its device, from its making to the end of its delete procedure, and is counted among the device's
//!                files for as long.
//!             I2 a file whose driver said yes to its create gets a cleanup, once: with its last handle, or with its last reference if it never
//!                had a handle; and then, with its last reference, a close. No other file gets either.
//!             I3 rights are looked at before the driver is asked: who may not have them makes nothing happen.
//! Not as NT:  a file that gets a handle again behind its cleanup has no second one. A cleanup and a close wait for memory, as NT's do.
//! Tests:      selftest `io::paths_through_a_device_are_files`, `io::a_file_is_cleaned_up_with_its_last_handle`; mutants
//!             `refused_file_closed`, `cleanup_with_each_handle`, `created_before_its_rights`.
//! Sources:    WDK, "IRP_MJ_CREATE", "IRP_MJ_CLEANUP", "IRP_MJ_CLOSE", FILE_OBJECT.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32};

use sync::irql::{Irql, Passive};

use super::layout::{Create, IoStatus, SecurityContext, major};
use super::objects::{IO_TYPE_FILE, KDeviceObject, KFileObject, file_flags};
use super::request::{Parts, send_for_file};
use super::{device, stack};
use crate::ke::event::{Event, EventKind};
use crate::ke::object::Header;
use crate::ke::timer::Due;
use crate::ke::wait::{Waitable, delay};
use crate::mm::pool::Tag;
use crate::ob::{Body, ObRef, ObjectType, Parsed, Request, create_with_extra};
use crate::rtl::{KListEntry, NtStatus, UnicodeString};

static FILE: ObjectType<KFileObject> =
    ObjectType::new("File", Tag::new(b"File"), device::MAPPING, device::ALL);

// SAFETY: the fields are the I/O manager's, atomic or constant once made, or the driver's, who answers for them.
unsafe impl Send for KFileObject {}
// SAFETY: as above.
unsafe impl Sync for KFileObject {}

impl Body for KFileObject {
    fn object_type() -> &'static ObjectType<Self> {
        &FILE
    }

    fn close(this: &ObRef<Self>, left: u32, at: &mut Irql<Passive>) {
        this.flags.fetch_or(file_flags::HANDLE_CREATED, Relaxed);
        if left == 0 {
            this.clean_up(at);
        }
    }

    fn dispatcher(&self) -> Option<&Header> {
        Some(self.event.header())
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        let Some(device) = NonNull::new(self.device_object) else { return };
        // SAFETY: the file's own (I1).
        let device = unsafe { ObRef::from_raw(device) };
        if self.flags() & file_flags::OPEN_CANCELLED == 0 {
            // One that never had a handle.
            self.clean_up(at);
            self.send_surely(&device, major::CLOSE, at);
        }
        device::end_use(&device, at);
        device.release_deferred();
    }
}

impl KFileObject {
    /// What it was opened on.
    pub fn device(&self) -> ObRef<KDeviceObject> {
        // SAFETY: I1; set before anybody knew the file.
        unsafe { ObRef::of_raw(NonNull::new_unchecked(self.device_object)) }
    }

    /// I2: once.
    fn clean_up(&self, at: &mut Irql<Passive>) {
        let before = self.flags.fetch_or(file_flags::CLEANUP_COMPLETE, Relaxed);
        if before & file_flags::CLEANUP_COMPLETE == 0 {
            self.send_surely(&self.device(), major::CLEANUP, at);
        }
    }

    /// Sends what the driver is owed: it waits for memory.
    fn send_surely(&self, device: &ObRef<KDeviceObject>, function: u8, at: &mut Irql<Passive>) {
        while send_to_top(device, Parts::plain(function), ptr::from_ref(self).cast_mut(), at).is_err() {
            let _ = delay(Due::In(100_000), at);
        }
    }
}

/// Sends a packet of the file to the top of its device's stack.
fn send_to_top(
    device: &ObRef<KDeviceObject>,
    parts: Parts,
    file: *mut KFileObject,
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let top = stack::top_of(device, at);
    // SAFETY: the file, and what the caller's parameters lead to, is there until the packet has come back, which is waited for.
    unsafe { send_for_file(&top, parts, file, at) }
}

/// The parse procedure of devices.
///
/// # Errors
/// The driver's; STATUS_OBJECT_TYPE_MISMATCH: something else than a file is wanted; STATUS_ACCESS_DENIED: rights that files don't have;
/// STATUS_NO_SUCH_DEVICE: the device goes; STATUS_INSUFFICIENT_RESOURCES.
pub(super) fn parse(
    device: &ObRef<KDeviceObject>,
    request: Request<'_>,
    at: &mut Irql<Passive>,
) -> Result<Parsed, NtStatus> {
    if request.wanted.is_some_and(|wanted| !wanted.is(FILE.any())) {
        return Err(NtStatus::OBJECT_TYPE_MISMATCH);
    }
    // I3.
    FILE.any().grant(request.access)?;
    let units = request.rest.units();
    let bytes = u16::try_from(size_of_val(units)).map_err(|_| NtStatus::OBJECT_NAME_INVALID)?;
    let options = request.context.and_then(|context| context.downcast_ref::<OpenOptions>().copied());
    let options = options.unwrap_or_default();
    let file = create_with_extra(KFileObject::new(options.flags), bytes.into(), at)?;
    device::begin_use(device, at)?;
    let place = file.as_ptr().as_ptr();
    // SAFETY: nobody else knows the file. The extra bytes are as many as the name's, aligned, and stay with it.
    unsafe {
        (*place).device_object = device.clone().into_raw().as_ptr();
        let buffer = file.extra().cast::<u16>();
        ptr::copy_nonoverlapping(units.as_ptr(), buffer.as_ptr(), units.len());
        (*place).file_name = UnicodeString { length: bytes, maximum_length: bytes, buffer: buffer.as_ptr() };
    }
    let mut security = SecurityContext::new(request.access.0, options.options);
    let parts = Parts { major: major::CREATE, parameters: options.create(&mut security).words() };
    let end = send_to_top(device, parts, place, at);
    let status = end.map_or_else(|status| status, |end| end.status);
    if !status.is_success() {
        file.flags.fetch_or(file_flags::OPEN_CANCELLED, Relaxed);
        return Err(status);
    }
    Ok(Parsed::Object(file.upcast()))
}

/// What who opens a file says beside the path: the context of a device's parse procedure.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Of [`file_flags`]: whether it is synchronous.
    pub(super) flags: u32,
    /// The disposition in bits 24–31, NT's FILE_ options below.
    pub(super) options: u32,
    /// FILE_ATTRIBUTE_ of a new file.
    pub(super) attributes: u16,
    /// FILE_SHARE_.
    pub(super) share: u16,
}

impl OpenOptions {
    fn create(self, security: &mut SecurityContext) -> Create {
        Create {
            security,
            options: self.options,
            attributes: self.attributes,
            share: self.share,
            ea_length: 0,
        }
    }
}

impl KFileObject {
    /// Not opened yet, without a name; without a device, as what is not made an object goes without its delete procedure.
    fn new(flags: u32) -> Self {
        Self {
            kind: IO_TYPE_FILE,
            size: size_of::<Self>() as i16,
            device_object: ptr::null_mut(),
            vpb: ptr::null_mut(),
            fs_context: AtomicPtr::new(ptr::null_mut()),
            fs_context_2: AtomicPtr::new(ptr::null_mut()),
            section_object_pointer: ptr::null_mut(),
            private_cache_map: ptr::null_mut(),
            final_status: AtomicU32::new(0),
            related_file_object: ptr::null_mut(),
            lock_operation: false,
            delete_pending: false,
            access: [false; 6],
            flags: AtomicU32::new(flags),
            file_name: UnicodeString { length: 0, maximum_length: 0, buffer: ptr::null_mut() },
            current_byte_offset: AtomicI64::new(0),
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
