//! The objects of I/O, byte for byte as NT has them: drivers, devices, files; and device queues.
//!
//! Owns:       the layouts. Not: how devices are made, stacked and ended (device.rs).
//! Why so:     the fields of a driver, a device and a file are the I/O manager's, since whoever has a reference has a `&` to all of them, and
//!             most of what they lead to has to be there: safe code gets it by functions. What changes while others look is atomic or
//!             reached by pointers alone.
//! Sources:    WDK `wdm.h`, DRIVER_OBJECT, DEVICE_OBJECT, FILE_OBJECT, KDEVICE_QUEUE.

use core::any::TypeId;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32};

use sync::deferred::Entry as KDpc;
use sync::raw::KSpinLock;

use super::layout::{Dispatch, KIrp, major};
use crate::ke::event::Event;
use crate::rtl::{KListEntry, NtStatus, UnicodeString, WideStr};

/// Of [`KIrp::kind`].
pub const IO_TYPE_IRP: i16 = 6;
/// Of `KDeviceObject::kind`.
pub const IO_TYPE_DEVICE: i16 = 3;
/// Of `KDriverObject::kind`.
pub const IO_TYPE_DRIVER: i16 = 4;
/// Of `KFileObject::kind`.
pub const IO_TYPE_FILE: i16 = 5;
/// Of [`KDeviceQueue::kind`]: NT's DeviceQueueObject.
pub const DEVICE_QUEUE_OBJECT: i16 = 20;

/// NT's KDEVICE_QUEUE.
#[repr(C)]
#[doc(alias = "KDEVICE_QUEUE")]
pub struct KDeviceQueue {
    /// [`DEVICE_QUEUE_OBJECT`].
    pub kind: i16,
    /// Bytes.
    pub size: i16,
    /// What waits for the device.
    pub list: KListEntry,
    /// Of all else here.
    pub lock: KSpinLock,
    /// Is the device at work? The other bytes of the word are NT's.
    pub busy: bool,
}

/// NT's KDEVICE_QUEUE_ENTRY.
#[repr(C)]
#[doc(alias = "KDEVICE_QUEUE_ENTRY")]
pub struct KDeviceQueueEntry {
    /// In the queue.
    pub links: KListEntry,
    /// What the queue may be sorted by.
    pub sort_key: u32,
    /// Is it in a queue?
    pub inserted: bool,
}

const _: () = assert!(size_of::<KDeviceQueue>() == 40 && size_of::<KDeviceQueueEntry>() == 24);

sync::nt_layout! {
    [] KDeviceQueue = "KDEVICE_QUEUE" {
        kind => "Type", size => "Size", list => "DeviceListHead", lock => "Lock", busy => "Busy",
    }
}

sync::nt_layout! {
    [] KDeviceQueueEntry = "KDEVICE_QUEUE_ENTRY" {
        links => "DeviceListEntry", sort_key => "SortKey", inserted => "Inserted",
    }
}

/// A device: NT's DEVICE_OBJECT.
#[repr(C, align(16))]
#[doc(alias = "DEVICE_OBJECT")]
pub struct KDeviceObject {
    /// [`IO_TYPE_DEVICE`].
    pub(super) kind: i16,
    /// Bytes, the extension included.
    pub(super) size: u16,
    /// Files and devices above that use it.
    pub(super) reference_count: AtomicI32,
    /// Whose it is.
    pub(super) driver_object: *mut KDriverObject,
    /// The driver's next one.
    pub(super) next_device: AtomicPtr<KDeviceObject>,
    /// The device that is attached to it, above.
    pub(super) attached_device: AtomicPtr<KDeviceObject>,
    /// What StartIo works on.
    pub(super) current_irp: AtomicPtr<KIrp>,
    /// Its timer.
    pub(super) timer: *mut c_void,
    /// Of [`device_flags`].
    pub(super) flags: AtomicU32,
    /// FILE_ characteristics.
    pub(super) characteristics: u32,
    /// The volume mounted on it.
    pub(super) vpb: *mut c_void,
    /// The driver's own.
    pub(super) device_extension: *mut c_void,
    /// FILE_DEVICE_ number.
    pub(super) device_type: u32,
    /// Locations that a packet for it needs.
    pub(super) stack_size: i8,
    /// NT's WAIT_CONTEXT_BLOCK, or a list entry.
    pub(super) queue: [u64; 9],
    /// Of buffers: a mask.
    pub(super) alignment_requirement: u32,
    /// Of packets, for StartIo. Reached by pointers alone, under its own lock.
    pub(super) device_queue: UnsafeCell<KDeviceQueue>,
    /// The driver's, for its ISR.
    pub(super) dpc: KDpc,
    /// Of a file system.
    pub(super) active_thread_count: u32,
    /// Who may open it.
    pub(super) security_descriptor: *mut c_void,
    /// Of a file system's mount.
    pub(super) device_lock: Event,
    /// Bytes.
    pub(super) sector_size: u16,
    /// Nobody's.
    pub(super) spare: u16,
    /// The I/O manager's.
    pub(super) device_object_extension: *mut c_void,
    /// Nobody's.
    pub(super) reserved: *mut c_void,
}

const _: () = {
    assert!(size_of::<KDeviceObject>() == 336 && offset_of!(KDeviceObject, device_extension) == 0x40);
    assert!(offset_of!(KDeviceObject, stack_size) == 0x4C && offset_of!(KDeviceObject, device_queue) == 0xA0);
    assert!(
        offset_of!(KDeviceObject, dpc) == 0xC8 && offset_of!(KDeviceObject, device_object_extension) == 0x138
    );
};

sync::nt_layout! {
    [] KDeviceObject = "DEVICE_OBJECT" {
        kind => "Type", size => "Size", reference_count => "ReferenceCount", driver_object => "DriverObject",
        next_device => "NextDevice", attached_device => "AttachedDevice", current_irp => "CurrentIrp", timer => "Timer",
        flags => "Flags", characteristics => "Characteristics", vpb => "Vpb", device_extension => "DeviceExtension",
        device_type => "DeviceType", stack_size => "StackSize", queue => "Queue",
        alignment_requirement => "AlignmentRequirement", device_queue => "DeviceQueue", dpc => "Dpc",
        active_thread_count => "ActiveThreadCount", security_descriptor => "SecurityDescriptor",
        device_lock => "DeviceLock", sector_size => "SectorSize", spare => "Spare1",
        device_object_extension => "DeviceObjectExtension", reserved => "Reserved",
    }
}

/// Values of `flags` of a device, NT's.
pub mod device_flags {
    /// Reads and writes go through a system buffer.
    pub const BUFFERED_IO: u32 = 0x04;
    /// Reads and writes get a list of the buffer's pages.
    pub const DIRECT_IO: u32 = 0x10;
    /// Not to be opened or attached to yet.
    pub const DEVICE_INITIALIZING: u32 = 0x80;
}

/// Makes a device.
pub type DriverInitialize = unsafe extern "win64" fn(*mut KDriverObject, *mut UnicodeString) -> NtStatus;
/// Begins work on a packet. At DISPATCH.
pub type DriverStartIo = unsafe extern "win64" fn(*mut KDeviceObject, *mut KIrp);
/// Ends a driver. At PASSIVE.
pub type DriverUnload = unsafe extern "win64" fn(*mut KDriverObject);

/// Meets a device that the driver may serve. At PASSIVE.
pub type DriverAddDevice = unsafe extern "win64" fn(*mut KDriverObject, *mut KDeviceObject) -> NtStatus;

/// Values of `flags` of a driver, NT's.
pub mod driver_flags {
    /// Its unload routine was called, or is about to be.
    pub const UNLOAD_INVOKED: u32 = 0x01;
}

/// Behind a driver's object: NT's DRIVER_EXTENSION, of which the first four are public.
#[repr(C)]
#[doc(alias = "DRIVER_EXTENSION")]
pub struct KDriverExtension {
    /// Whose it is.
    pub(super) driver_object: *mut KDriverObject,
    /// For plug and play.
    pub(super) add_device: Option<DriverAddDevice>,
    /// How often it was asked to start again.
    pub(super) count: u32,
    /// Its key in the registry.
    pub(super) service_key_name: UnicodeString,
    /// What a driver in Rust keeps of each device; none: it isn't one.
    pub(super) state: Option<TypeId>,
    /// It is to be unloaded as soon as nobody uses its devices. Under the lock of stacks.
    pub(super) unload_pending: AtomicU32,
}

/// A driver: NT's DRIVER_OBJECT.
#[repr(C)]
#[doc(alias = "DRIVER_OBJECT")]
pub struct KDriverObject {
    /// [`IO_TYPE_DRIVER`].
    pub(super) kind: i16,
    /// Bytes.
    pub(super) size: i16,
    /// Its devices, the last made first.
    pub(super) device_object: AtomicPtr<KDeviceObject>,
    /// Of [`driver_flags`].
    pub(super) flags: AtomicU32,
    /// Its image.
    pub(super) driver_start: *mut c_void,
    /// Bytes of it.
    pub(super) driver_size: u32,
    /// The loader's.
    pub(super) driver_section: *mut c_void,
    /// Behind it.
    pub(super) driver_extension: *mut KDriverExtension,
    /// In `\Driver`.
    pub(super) driver_name: UnicodeString,
    /// The key of the hardware.
    pub(super) hardware_database: *mut UnicodeString,
    /// Without packets; null.
    pub(super) fast_io_dispatch: *mut c_void,
    /// Its entry.
    pub(super) driver_init: Option<DriverInitialize>,
    /// For packets of a device queue.
    pub(super) driver_start_io: Option<DriverStartIo>,
    /// Without it, it stays.
    pub(super) driver_unload: Option<DriverUnload>,
    /// By major function.
    pub(super) major_function: [Option<Dispatch>; major::COUNT],
}

const _: () = {
    assert!(size_of::<KDriverObject>() == 336 && offset_of!(KDriverObject, driver_name) == 0x38);
    assert!(offset_of!(KDriverObject, major_function) == 0x70);
};

sync::nt_layout! {
    [] KDriverObject = "DRIVER_OBJECT" {
        kind => "Type", size => "Size", device_object => "DeviceObject", flags => "Flags", driver_start => "DriverStart",
        driver_size => "DriverSize", driver_section => "DriverSection", driver_extension => "DriverExtension",
        driver_name => "DriverName", hardware_database => "HardwareDatabase", fast_io_dispatch => "FastIoDispatch",
        driver_init => "DriverInit", driver_start_io => "DriverStartIo", driver_unload => "DriverUnload",
        major_function => "MajorFunction",
    }
}

/// Values of `flags` of a file, NT's FO_.
pub mod file_flags {
    /// Its requests are done one after the other, and each waits for its end.
    pub const SYNCHRONOUS_IO: u32 = 0x02;
    /// An alert ends such a wait.
    pub const ALERTABLE_IO: u32 = 0x04;
    /// Its last handle is gone, and the driver was told.
    pub const CLEANUP_COMPLETE: u32 = 0x4000;
    /// It has, or had, a handle.
    pub const HANDLE_CREATED: u32 = 0x4_0000;
    /// The driver said no, and knows nothing of the file.
    pub const OPEN_CANCELLED: u32 = 0x20_0000;
}

/// An open file: NT's FILE_OBJECT.
#[repr(C)]
#[doc(alias = "FILE_OBJECT")]
pub struct KFileObject {
    /// [`IO_TYPE_FILE`].
    pub(super) kind: i16,
    /// Bytes.
    pub(super) size: i16,
    /// What was opened.
    pub(super) device_object: *mut KDeviceObject,
    /// The volume.
    pub(super) vpb: *mut c_void,
    /// The file system's.
    pub(super) fs_context: AtomicPtr<c_void>,
    /// The file system's, of this opening.
    pub(super) fs_context_2: AtomicPtr<c_void>,
    /// Its sections.
    pub(super) section_object_pointer: *mut c_void,
    /// The cache's.
    pub(super) private_cache_map: *mut c_void,
    /// How the last request ended: an NTSTATUS.
    pub(super) final_status: AtomicU32,
    /// That its name is relative to.
    pub(super) related_file_object: *mut KFileObject,
    /// Was a range ever locked?
    pub(super) lock_operation: bool,
    /// Is it deleted with its last handle?
    pub(super) delete_pending: bool,
    /// What it was opened for, and what others may.
    pub(super) access: [bool; 6],
    /// Of [`file_flags`].
    pub(super) flags: AtomicU32,
    /// Behind the device's.
    pub(super) file_name: UnicodeString,
    /// Where the next request goes.
    pub(super) current_byte_offset: AtomicI64,
    /// Who waits for the lock.
    pub(super) waiters: u32,
    /// Is the lock taken?
    pub(super) busy: u32,
    /// The last range lock.
    pub(super) last_lock: *mut c_void,
    /// Of synchronous requests.
    pub(super) lock: Event,
    /// Signalled when a request ends.
    pub(super) event: Event,
    /// A completion port, and a key.
    pub(super) completion_context: *mut c_void,
    /// Of the list.
    pub(super) irp_list_lock: KSpinLock,
    /// Its packets.
    pub(super) irp_list: KListEntry,
    /// The I/O manager's.
    pub(super) file_object_extension: *mut c_void,
}

const _: () = {
    assert!(size_of::<KFileObject>() == 216 && offset_of!(KFileObject, file_name) == 0x58);
    assert!(offset_of!(KFileObject, event) == 0x98 && offset_of!(KFileObject, irp_list) == 0xC0);
};

sync::nt_layout! {
    [] KFileObject = "FILE_OBJECT" {
        kind => "Type", size => "Size", device_object => "DeviceObject", vpb => "Vpb", fs_context => "FsContext",
        fs_context_2 => "FsContext2", section_object_pointer => "SectionObjectPointer",
        private_cache_map => "PrivateCacheMap", final_status => "FinalStatus",
        related_file_object => "RelatedFileObject", lock_operation => "LockOperation",
        delete_pending => "DeletePending", access => "ReadAccess" ..= "SharedDelete", flags => "Flags",
        file_name => "FileName", current_byte_offset => "CurrentByteOffset", waiters => "Waiters", busy => "Busy",
        last_lock => "LastLock", lock => "Lock", event => "Event", completion_context => "CompletionContext",
        irp_list_lock => "IrpListLock", irp_list => "IrpList", file_object_extension => "FileObjectExtension",
    }
}

impl KDeviceObject {
    /// Locations that a packet for it needs.
    #[inline(always)]
    pub fn stack_size(&self) -> i8 {
        self.stack_size
    }

    /// Of [`device_flags`].
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// NT's FILE_DEVICE_ number.
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// The driver's own, behind the device; of a driver in Rust its state.
    pub fn extension(&self) -> *mut c_void {
        self.device_extension
    }

    /// Open files of it; stale at once.
    pub fn files(&self) -> i32 {
        self.reference_count.load(Relaxed)
    }

    /// Its queue of packets, as drivers reach it.
    pub fn queue(&self) -> NonNull<KDeviceQueue> {
        // SAFETY: never null.
        unsafe { NonNull::new_unchecked(self.device_queue.get()) }
    }

    /// As a driver without the I/O manager sets up what it is to be called with: a test's.
    ///
    /// # Safety
    /// The memory is a device's, and nobody else's yet; both stay as long as the device is used.
    pub unsafe fn set_up(this: *mut Self, driver: *mut KDriverObject, extension: *mut c_void) {
        // SAFETY: the caller's.
        unsafe {
            (*this).driver_object = driver;
            (*this).device_extension = extension;
        }
    }
}

impl KDriverObject {
    /// Has packets of a major function go to `routine`, as a driver's entry does.
    ///
    /// # Safety
    /// The driver is valid, and nobody sends to its devices yet; the routine may be called with them.
    pub unsafe fn set_function(this: *mut Self, major: u8, routine: Dispatch) {
        // SAFETY: the caller's.
        unsafe { (*this).major_function[usize::from(major)] = Some(routine) };
    }
}

impl KFileObject {
    /// What follows the device's name of the path that it was opened by.
    pub fn name(&self) -> &WideStr {
        // SAFETY: made with the file, which it stays with, and never changed.
        unsafe { self.file_name.view() }.unwrap_or(crate::wide!(""))
    }

    /// Of [`file_flags`].
    pub fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Where the next request without a place of its own goes; stale at once.
    pub fn current_byte_offset(&self) -> i64 {
        self.current_byte_offset.load(Relaxed)
    }
}
