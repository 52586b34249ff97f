//! The objects of I/O, byte for byte as NT has them: drivers, devices, files; and device queues.
//!
//! Owns:       the layouts. Not: how devices are made, stacked and ended (device.rs).
//! Sources:    WDK `wdm.h`, DRIVER_OBJECT, DEVICE_OBJECT, FILE_OBJECT, KDEVICE_QUEUE.

use core::ffi::c_void;
use core::mem::offset_of;
use core::sync::atomic::AtomicPtr;

use sync::deferred::Entry as KDpc;
use sync::raw::KSpinLock;

use super::layout::{Dispatch, KIrp, major};
use crate::ke::event::Event;
use crate::rtl::{KListEntry, NtStatus, UnicodeString};

/// Of [`KIrp::kind`].
pub const IO_TYPE_IRP: i16 = 6;
/// Of [`KDeviceObject::kind`].
pub const IO_TYPE_DEVICE: i16 = 3;
/// Of [`KDriverObject::kind`].
pub const IO_TYPE_DRIVER: i16 = 4;
/// Of [`KFileObject::kind`].
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
    pub kind: i16,
    /// Bytes, the extension included.
    pub size: u16,
    /// Files and devices above that use it.
    pub reference_count: i32,
    /// Whose it is.
    pub driver_object: *mut KDriverObject,
    /// The driver's next one.
    pub next_device: AtomicPtr<KDeviceObject>,
    /// The device that is attached to it, above.
    pub attached_device: AtomicPtr<KDeviceObject>,
    /// What StartIo works on.
    pub current_irp: *mut KIrp,
    /// Its timer.
    pub timer: *mut c_void,
    /// Of [`device_flags`].
    pub flags: u32,
    /// FILE_ characteristics.
    pub characteristics: u32,
    /// The volume mounted on it.
    pub vpb: *mut c_void,
    /// The driver's own.
    pub device_extension: *mut c_void,
    /// FILE_DEVICE_ number.
    pub device_type: u32,
    /// Locations that a packet for it needs.
    pub stack_size: i8,
    /// NT's WAIT_CONTEXT_BLOCK, or a list entry.
    pub queue: [u64; 9],
    /// Of buffers: a mask.
    pub alignment_requirement: u32,
    /// Of packets, for StartIo.
    pub device_queue: KDeviceQueue,
    /// The driver's, for its ISR.
    pub dpc: KDpc,
    /// Of a file system.
    pub active_thread_count: u32,
    /// Who may open it.
    pub security_descriptor: *mut c_void,
    /// Of a file system's mount.
    pub device_lock: Event,
    /// Bytes.
    pub sector_size: u16,
    /// Nobody's.
    pub spare: u16,
    /// The I/O manager's.
    pub device_object_extension: *mut c_void,
    /// Nobody's.
    pub reserved: *mut c_void,
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

/// A driver: NT's DRIVER_OBJECT.
#[repr(C)]
#[doc(alias = "DRIVER_OBJECT")]
pub struct KDriverObject {
    /// [`IO_TYPE_DRIVER`].
    pub kind: i16,
    /// Bytes.
    pub size: i16,
    /// Its devices, the last made first.
    pub device_object: AtomicPtr<KDeviceObject>,
    /// Of the I/O manager.
    pub flags: u32,
    /// Its image.
    pub driver_start: *mut c_void,
    /// Bytes of it.
    pub driver_size: u32,
    /// The loader's.
    pub driver_section: *mut c_void,
    /// The I/O manager's.
    pub driver_extension: *mut c_void,
    /// In `\Driver`.
    pub driver_name: UnicodeString,
    /// The key of the hardware.
    pub hardware_database: *mut UnicodeString,
    /// Without packets; null.
    pub fast_io_dispatch: *mut c_void,
    /// Its entry.
    pub driver_init: Option<DriverInitialize>,
    /// For packets of a device queue.
    pub driver_start_io: Option<DriverStartIo>,
    /// Without it, it stays.
    pub driver_unload: Option<DriverUnload>,
    /// By major function.
    pub major_function: [Option<Dispatch>; major::COUNT],
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

/// An open file: NT's FILE_OBJECT.
#[repr(C)]
#[doc(alias = "FILE_OBJECT")]
pub struct KFileObject {
    /// [`IO_TYPE_FILE`].
    pub kind: i16,
    /// Bytes.
    pub size: i16,
    /// What was opened.
    pub device_object: *mut KDeviceObject,
    /// The volume.
    pub vpb: *mut c_void,
    /// The file system's.
    pub fs_context: *mut c_void,
    /// The file system's, of this opening.
    pub fs_context_2: *mut c_void,
    /// Its sections.
    pub section_object_pointer: *mut c_void,
    /// The cache's.
    pub private_cache_map: *mut c_void,
    /// How the last request ended.
    pub final_status: NtStatus,
    /// That its name is relative to.
    pub related_file_object: *mut KFileObject,
    /// Was a range ever locked?
    pub lock_operation: bool,
    /// Is it deleted with its last handle?
    pub delete_pending: bool,
    /// What it was opened for, and what others may.
    pub access: [bool; 6],
    /// FO_ flags.
    pub flags: u32,
    /// Behind the device's.
    pub file_name: UnicodeString,
    /// Where the next request goes.
    pub current_byte_offset: i64,
    /// Who waits for the lock.
    pub waiters: u32,
    /// Is the lock taken?
    pub busy: u32,
    /// The last range lock.
    pub last_lock: *mut c_void,
    /// Of synchronous requests.
    pub lock: Event,
    /// Signalled when a request ends.
    pub event: Event,
    /// A completion port, and a key.
    pub completion_context: *mut c_void,
    /// Of the list.
    pub irp_list_lock: KSpinLock,
    /// Its packets.
    pub irp_list: KListEntry,
    /// The I/O manager's.
    pub file_object_extension: *mut c_void,
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
