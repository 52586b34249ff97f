//! What drivers allocate or read, byte for byte as NT has it: packets and their stack locations.
//!
//! The kernel's own code goes through raw pointers here: a driver may write a packet while it is the packet's owner. What two
//! processors reach at once are the cancel flag and the cancel routine (`sync::cancel`), and nothing else.
//!
//! Owns:       the layouts, and arithmetic on them. Not: the rules of who may do what when (call.rs, complete.rs).
//! Sources:    WDK `wdm.h`, IRP, IO_STACK_LOCATION, IO_STATUS_BLOCK.

use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use sync::cancel::{Cancelled, RoutineSlot};

use super::objects::{KDeviceObject, KFileObject};
use crate::ke::event::Event;
use crate::mm::mdl::KMdl;
use crate::rtl::{KListEntry, NtStatus};

/// A driver's routine for a function: its device, and the packet at the driver's location. At or below DISPATCH.
#[doc(alias = "DRIVER_DISPATCH")]
pub type Dispatch = unsafe extern "win64" fn(*mut KDeviceObject, *mut KIrp) -> NtStatus;

/// A completion routine: the device of whoever set it (null for the packet's maker), the packet, the context.
#[doc(alias = "IO_COMPLETION_ROUTINE")]
pub type CompletionRoutine = unsafe extern "win64" fn(*mut KDeviceObject, *mut KIrp, *mut c_void) -> NtStatus;

/// A cancel routine. It is called with the cancel lock held, and releases that at `cancel_irql`.
#[doc(alias = "DRIVER_CANCEL")]
pub type CancelRoutine = unsafe extern "win64" fn(*mut KDeviceObject, *mut KIrp);

/// What a cancel routine's address is stored as.
#[derive(Debug)]
pub enum CancelCode {}

/// How a request ended. NT's IO_STATUS_BLOCK.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "IO_STATUS_BLOCK")]
pub struct IoStatus {
    /// The status.
    pub status: NtStatus,
    _pad: u32,
    /// Mostly the number of bytes moved.
    pub information: usize,
}

const _: () = assert!(size_of::<IoStatus>() == 16);

sync::nt_layout! { [] IoStatus = "IO_STATUS_BLOCK" { status => "Status", information => "Information", } }

impl IoStatus {
    /// With both.
    pub const fn new(status: NtStatus, information: usize) -> Self {
        Self { status, _pad: 0, information }
    }
}

/// An I/O request packet: NT's IRP. `stack_count` locations stand behind it.
#[repr(C)]
#[doc(alias = "IRP")]
pub struct KIrp {
    /// [`IO_TYPE_IRP`](super::objects::IO_TYPE_IRP).
    pub kind: i16,
    /// Bytes, the locations included.
    pub size: u16,
    /// Of the buffer, for direct I/O.
    pub mdl_address: *mut KMdl,
    /// Of [`irp_flags`].
    pub flags: u32,
    /// The master packet, the number of associated ones, or the buffer of buffered I/O.
    pub associated: *mut c_void,
    /// In the list of its thread.
    pub thread_list_entry: KListEntry,
    /// How it ends: set by whoever completes it.
    pub io_status: IoStatus,
    /// KPROCESSOR_MODE.
    pub requestor_mode: i8,
    /// Was the location that is being unwound marked pending?
    pub pending_returned: bool,
    /// Locations behind it.
    pub stack_count: i8,
    /// Number of the current one: `stack_count` is the first, `stack_count + 1` before the first call.
    pub current_location: i8,
    /// See `sync::cancel`.
    pub cancel: Cancelled,
    /// What the cancel routine restores.
    pub cancel_irql: u8,
    /// KAPC_ENVIRONMENT.
    pub apc_environment: i8,
    /// Of [`allocation`].
    pub allocation_flags: u8,
    /// Where the maker wants `io_status`; or null.
    pub user_iosb: *mut IoStatus,
    /// What is signalled at the end; or null.
    pub user_event: *mut Event,
    /// The maker's APC and its context; or an allocation size.
    pub overlay: [*mut c_void; 2],
    /// See `sync::cancel`.
    pub cancel_routine: RoutineSlot<CancelCode>,
    /// The maker's buffer.
    pub user_buffer: *mut c_void,
    /// The owner's; the first three are its entry in a device queue.
    pub driver_context: [*mut c_void; 4],
    /// The thread that it was made for.
    pub thread: *mut c_void,
    /// Nobody's.
    pub auxiliary_buffer: *mut c_void,
    /// The owner's.
    pub list_entry: KListEntry,
    /// The location of number `current_location`.
    pub current_stack_location: *mut KStackLocation,
    /// The file of the request.
    pub original_file_object: *mut KFileObject,
    pub(super) _apc_rest: [u8; 3],
}

const _: () = {
    assert!(
        size_of::<KIrp>() == 208 && offset_of!(KIrp, io_status) == 0x30 && offset_of!(KIrp, cancel) == 0x44
    );
    assert!(offset_of!(KIrp, cancel_routine) == 0x68 && offset_of!(KIrp, driver_context) == 0x78);
    assert!(offset_of!(KIrp, current_stack_location) == 0xB8);
};

sync::nt_layout! {
    [] KIrp = "IRP" {
        kind => "Type", size => "Size", mdl_address => "MdlAddress", flags => "Flags", associated => "AssociatedIrp",
        thread_list_entry => "ThreadListEntry", io_status => "IoStatus", requestor_mode => "RequestorMode",
        pending_returned => "PendingReturned", stack_count => "StackCount", current_location => "CurrentLocation",
        cancel => "Cancel", cancel_irql => "CancelIrql", apc_environment => "ApcEnvironment",
        allocation_flags => "AllocationFlags", user_iosb => "UserIosb", user_event => "UserEvent",
        overlay => "Overlay", cancel_routine => "CancelRoutine", user_buffer => "UserBuffer",
        driver_context => "Tail.Overlay.DriverContext", thread => "Tail.Overlay.Thread",
        auxiliary_buffer => "Tail.Overlay.AuxiliaryBuffer", list_entry => "Tail.Overlay.ListEntry",
        current_stack_location => "Tail.Overlay.CurrentStackLocation",
        original_file_object => "Tail.Overlay.OriginalFileObject",
        _apc_rest => "Tail.Apc.ApcStateIndex" ..= "Tail.Apc.Inserted",
    }
}

/// Values of `flags` of a packet, NT's.
pub mod irp_flags {
    /// Whoever sent it waits, and needs to be told only if it was told to wait: STATUS_PENDING.
    pub const SYNCHRONOUS_API: u32 = 0x04;
    /// One of several that a master packet was split into.
    pub const ASSOCIATED_IRP: u32 = 0x08;
    /// `associated` is a system buffer.
    pub const BUFFERED_IO: u32 = 0x10;
    /// The system buffer is freed at the end.
    pub const DEALLOCATE_BUFFER: u32 = 0x20;
    /// What comes back in the system buffer is the maker's.
    pub const INPUT_OPERATION: u32 = 0x40;
}

/// Values of `allocation_flags`, the kernel's.
pub mod allocation {
    /// From the lists of packets; which: by the number of locations.
    pub const FROM_LISTS: u8 = 0x01;
    /// From the pool.
    pub const FROM_POOL: u8 = 0x02;
    /// It is its maker's again when it has ended; not its maker's memory: at its end it is given back.
    pub const KEPT: u8 = 0x04;
    /// Its end is told in its maker's thread (async_io.rs).
    pub const ASYNCHRONOUS: u8 = 0x08;
}

/// A driver's part of a packet: NT's IO_STACK_LOCATION.
#[derive(Clone, Copy)]
#[repr(C)]
#[doc(alias = "IO_STACK_LOCATION")]
pub struct KStackLocation {
    /// Of [`major`].
    pub major_function: u8,
    /// By the major one.
    pub minor_function: u8,
    /// By the function.
    pub flags: u8,
    /// Of [`control`].
    pub control: u8,
    /// In NT nothing. The checked build keeps here who must have marked the packet pending (verify.rs).
    pub(super) tracker: u32,
    /// By the function: [`ReadWrite`], [`DeviceControl`].
    pub parameters: [u64; 4],
    /// Whose location it is.
    pub device_object: *mut KDeviceObject,
    /// The file of the request.
    pub file_object: *mut KFileObject,
    /// Set by whoever is above: called when this location is unwound.
    pub completion_routine: Option<CompletionRoutine>,
    /// Its context.
    pub context: *mut c_void,
}

const _: () = {
    assert!(size_of::<KStackLocation>() == 72 && offset_of!(KStackLocation, parameters) == 8);
    assert!(
        offset_of!(KStackLocation, device_object) == 40
            && offset_of!(KStackLocation, completion_routine) == 56
    );
};

sync::nt_layout! {
    [] KStackLocation = "IO_STACK_LOCATION" {
        major_function => "MajorFunction", minor_function => "MinorFunction", flags => "Flags", control => "Control",
        parameters => "Parameters", device_object => "DeviceObject", file_object => "FileObject",
        completion_routine => "CompletionRoutine", context => "Context",
    }
}

impl KStackLocation {
    /// Nobody's.
    pub const EMPTY: Self = Self {
        major_function: 0,
        minor_function: 0,
        flags: 0,
        control: 0,
        tracker: 0,
        parameters: [0; 4],
        device_object: ptr::null_mut(),
        file_object: ptr::null_mut(),
        completion_routine: None,
        context: ptr::null_mut(),
    };
}

/// Values of `control`, NT's.
pub mod control {
    /// The driver returned, or returns, STATUS_PENDING.
    pub const PENDING_RETURNED: u8 = 0x01;
    /// The completion routine is called if it was cancelled.
    pub const INVOKE_ON_CANCEL: u8 = 0x20;
    /// The completion routine is called if it succeeded.
    pub const INVOKE_ON_SUCCESS: u8 = 0x40;
    /// The completion routine is called if it failed.
    pub const INVOKE_ON_ERROR: u8 = 0x80;
}

/// Major functions, NT's IRP_MJ_ numbers.
pub mod major {
    /// A file is opened or made.
    pub const CREATE: u8 = 0x00;
    /// The last reference to a file is gone.
    pub const CLOSE: u8 = 0x02;
    /// Bytes from the device.
    pub const READ: u8 = 0x03;
    /// Bytes to the device.
    pub const WRITE: u8 = 0x04;
    /// What a file is.
    pub const QUERY_INFORMATION: u8 = 0x05;
    /// What a file is to be.
    pub const SET_INFORMATION: u8 = 0x06;
    /// What was written is to be lasting.
    pub const FLUSH_BUFFERS: u8 = 0x09;
    /// A code that says what.
    pub const DEVICE_CONTROL: u8 = 0x0E;
    /// The same, between drivers.
    pub const INTERNAL_DEVICE_CONTROL: u8 = 0x0F;
    /// The machine is shut down.
    pub const SHUTDOWN: u8 = 0x10;
    /// The last handle of a file is closed.
    pub const CLEANUP: u8 = 0x12;
    /// Power.
    pub const POWER: u8 = 0x16;
    /// Plug and play.
    pub const PNP: u8 = 0x1B;
    /// The highest.
    pub const MAXIMUM: u8 = 0x1B;
    /// How many there are.
    pub const COUNT: usize = MAXIMUM as usize + 1;
}

/// What a create is told of who opens: NT's IO_SECURITY_CONTEXT. There as long as the create.
#[repr(C)]
#[doc(alias = "IO_SECURITY_CONTEXT")]
pub struct SecurityContext {
    security_qos: *mut c_void,
    access_state: *mut c_void,
    /// The rights that are wanted.
    pub desired_access: u32,
    /// As `options` of [`Create`].
    pub full_create_options: u32,
}

impl SecurityContext {
    /// Of who wants those rights.
    pub const fn new(desired_access: u32, full_create_options: u32) -> Self {
        Self {
            security_qos: ptr::null_mut(),
            access_state: ptr::null_mut(),
            desired_access,
            full_create_options,
        }
    }
}

/// The parameters of a create.
#[derive(Clone, Copy, Debug)]
pub struct Create {
    /// Whose it is.
    pub security: *mut SecurityContext,
    /// The disposition in bits 24–31, FILE_ options below.
    pub options: u32,
    /// FILE_ATTRIBUTE_ of a new file.
    pub attributes: u16,
    /// FILE_SHARE_.
    pub share: u16,
    /// Of extended attributes, which there are none of.
    pub ea_length: u32,
}

impl Create {
    /// As a location's parameters.
    pub fn words(self) -> [u64; 4] {
        let second = u64::from(self.attributes) | u64::from(self.share) << 16;
        [self.security.expose_provenance() as u64, self.options.into(), second, self.ea_length.into()]
    }
}

/// Minor functions of [`major::PNP`], NT's IRP_MN_ numbers.
pub mod pnp {
    /// The device is to work, with what the parameters say that it has.
    pub const START_DEVICE: u8 = 0x00;
    /// May it be removed?
    pub const QUERY_REMOVE_DEVICE: u8 = 0x01;
    /// It is removed.
    pub const REMOVE_DEVICE: u8 = 0x02;
    /// It stays after all.
    pub const CANCEL_REMOVE_DEVICE: u8 = 0x03;
    /// It is gone already.
    pub const SURPRISE_REMOVAL: u8 = 0x17;
}

/// The parameters of a read or a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReadWrite {
    /// Bytes.
    pub length: u32,
    _pad: u32,
    /// The caller's.
    pub key: u32,
    /// Of the request.
    pub flags: u32,
    /// Where on the device.
    pub byte_offset: i64,
}

/// The parameters of a device control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DeviceControl {
    /// Room for the answer, in bytes.
    pub output_length: u32,
    _pad: u32,
    /// Bytes that come with it.
    pub input_length: u32,
    _pad_too: u32,
    /// What to do: NT's CTL_CODE.
    pub code: u32,
    _pad_three: u32,
    /// The input of METHOD_NEITHER.
    pub type_3_input: usize,
}

const _: () = assert!(size_of::<ReadWrite>() == 24 && size_of::<DeviceControl>() == 32);

sync::nt_layout! {
    [] ReadWrite = "__typeof__(((IO_STACK_LOCATION*)0)->Parameters.Read)" {
        length => "Length", key => "Key", flags => "Flags", byte_offset => "ByteOffset",
    }
}

sync::nt_layout! {
    [] DeviceControl = "__typeof__(((IO_STACK_LOCATION*)0)->Parameters.DeviceIoControl)" {
        output_length => "OutputBufferLength", input_length => "InputBufferLength", code => "IoControlCode",
        type_3_input => "Type3InputBuffer",
    }
}

impl ReadWrite {
    /// So many bytes from there on.
    pub const fn new(length: u32, byte_offset: i64) -> Self {
        Self { length, _pad: 0, key: 0, flags: 0, byte_offset }
    }

    /// Out of a location's parameters.
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self {
            length: words[0] as u32,
            _pad: 0,
            key: words[1] as u32,
            flags: (words[1] >> 32) as u32,
            byte_offset: words[2] as i64,
        }
    }

    /// As a location's parameters.
    pub const fn words(self) -> [u64; 4] {
        [self.length as u64, self.key as u64 | (self.flags as u64) << 32, self.byte_offset as u64, 0]
    }
}

impl DeviceControl {
    /// With its code, and the sizes of both buffers.
    pub const fn new(code: u32, input_length: u32, output_length: u32) -> Self {
        Self { output_length, _pad: 0, input_length, _pad_too: 0, code, _pad_three: 0, type_3_input: 0 }
    }

    /// Out of a location's parameters.
    pub const fn from_words(words: [u64; 4]) -> Self {
        let mut parameters = Self::new(words[2] as u32, words[1] as u32, words[0] as u32);
        parameters.type_3_input = words[3] as usize;
        parameters
    }

    /// As a location's parameters.
    pub const fn words(self) -> [u64; 4] {
        [self.output_length as u64, self.input_length as u64, self.code as u64, self.type_3_input as u64]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_where_their_structures_have_them() {
        let read = ReadWrite { length: 1, _pad: 0, key: 2, flags: 3, byte_offset: -4 };
        let mut words = [0_u64; 4];
        // SAFETY: 24 bytes of 32, plain data.
        unsafe { ptr::from_mut(&mut words).cast::<ReadWrite>().write(read) };
        assert_eq!(words, read.words());
        assert_eq!(ReadWrite::from_words(words), read);
        let mut control = DeviceControl::new(0x22_2004, 5, 6);
        control.type_3_input = 7;
        // SAFETY: as above.
        unsafe { ptr::from_mut(&mut words).cast::<DeviceControl>().write(control) };
        assert_eq!(words, control.words());
        assert_eq!(DeviceControl::from_words(words), control);
    }
}
