//! Devices as objects: made, named, used by files, deleted.
//!
//! | reference to a device | from | until |
//! |---|---|---|
//! | its driver's list's | [`create_device`] | [`delete_device`], and the end of its last file |
//! | its name's | [`give_name`] | [`take_name`], [`delete_device`] |
//! | the one of the device below, if any | [`create_attached`](super::stack::create_attached) | [`detach`](super::stack::detach) |
//! | each file's, and of each device above | they are made | they end |
//!
//! Owns:       devices' life. Not: stacks (stack.rs), drivers (driver.rs), packets (irp.rs, request.rs).
//! IRQL:       made at PASSIVE or APC, deleted at PASSIVE; references up to DISPATCH.
//! Locks:      `STACKS`, of rank `ObjectLock`: who is attached to whom, a driver's list of devices, who uses a device and who wants it gone.
//! Invariants: I1 the body of a device of a [`Driver`] `D` has a D for its extension and an `Extension` with D's `vtable` behind that, until
//!                its delete procedure; its driver's functions are those of D.
//!             I2 a device has a reference to its driver, so a driver's object ends behind all its devices.
//!             I3 `attached_device` is a reference to the device above, under the lock; `attached_to` is one to the device below, from the
//!                attachment to the upper device's end. The circle ends by `detach`.
//!             I4 a packet is in a stack only while its maker has a reference to the device that it was sent to; by I3 all below stay.
//!             I5 a device that is to go, or whose driver is, gets no new file and nothing attached to it.
//! Not as NT:  names are given to devices that are there already. A device that is deleted while it is attached is detached first.
//! Tests:      selftest `io::*`.
//! Sources:    WDK, `IoCreateDevice`, `IoDeleteDevice`, DEVICE_OBJECT.

use core::cell::UnsafeCell;
use core::mem::size_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32};

use sync::SpinLock;
use sync::deferred::Entry as KDpc;
use sync::event::MayWait;
use sync::irql::{Apc, Irql, ObjectLock, Passive};
use sync::raw::KSpinLock;

use super::driver::{self, Driver};
use super::objects::{
    DEVICE_QUEUE_OBJECT, IO_TYPE_DEVICE, KDeviceObject, KDeviceQueue, KDriverObject, device_flags,
};
use super::{MayDoIo, device_queue, stack};
use crate::ke::event::{Event, EventKind};
use crate::mm::pool::Tag;
use crate::ob::{
    AccessMask, Body, GenericMapping, ObRef, ObjectType, Parsed, Path, Permanence, Request,
    create_with_extra, namespace,
};
use crate::rtl::{KListEntry, NtStatus, WideStr};

/// Rights to devices and drivers: those of files.
pub(super) const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask(0x0012_0089),
    write: AccessMask(0x0012_0116),
    execute: AccessMask(0x0012_00A0),
    all: AccessMask(0x001F_01FF),
};

/// All rights to them.
pub(super) const ALL: AccessMask = AccessMask(0x001F_01FF);

static DEVICE: ObjectType<KDeviceObject> = ObjectType::new("Device", Tag::new(b"Devi"), MAPPING, ALL);

/// See the module.
pub(super) static STACKS: SpinLock<(), ObjectLock> = SpinLock::new(());

// SAFETY: the fields are the I/O manager's, under `STACKS`, atomic or constant once made, or the driver's, who answers for them.
unsafe impl Send for KDeviceObject {}
// SAFETY: as above.
unsafe impl Sync for KDeviceObject {}

/// What the I/O manager knows of a device in Rust (I1).
pub(super) struct Vtable {
    drop_extension: unsafe fn(*mut ()),
}

/// The one of D's devices.
const fn vtable<D: Driver>() -> &'static Vtable {
    /// # Safety
    /// `extension` is a D that nobody uses any more.
    unsafe fn drop_extension<D>(extension: *mut ()) {
        // SAFETY: the caller's.
        unsafe { extension.cast::<D>().drop_in_place() };
    }
    const { &Vtable { drop_extension: drop_extension::<D> } }
}

/// The I/O manager's part of a device, behind its state: NT's DEVOBJ_EXTENSION, of which the first three are public.
#[repr(C)]
#[doc(alias = "DEVOBJ_EXTENSION")]
pub(super) struct Extension {
    kind: i16,
    size: u16,
    device_object: *mut KDeviceObject,
    vtable: &'static Vtable,
    /// I3; set once.
    pub(super) attached_to: AtomicPtr<KDeviceObject>,
    /// It is to go. Under `STACKS`.
    delete_pending: AtomicU32,
    /// 1: its StartIo is under way, and more: it asked for the next one, too (start_io.rs).
    pub(super) starts: AtomicU32,
}

/// NT's IO_TYPE_DEVICE_OBJECT_EXTENSION.
const IO_TYPE_DEVICE_OBJECT_EXTENSION: i16 = 13;

impl KDeviceObject {
    /// Behind its state.
    #[inline(always)]
    pub(super) fn io_extension(&self) -> &Extension {
        // SAFETY: I1: set by `make` before anybody knew the device, and there as long as it is.
        unsafe { &*self.device_object_extension.cast() }
    }

    /// Its driver.
    pub fn driver(&self) -> ObRef<KDriverObject> {
        // SAFETY: I2; `make` set it before anybody knew the device.
        unsafe { ObRef::of_raw(NonNull::new_unchecked(self.driver_object)) }
    }

    /// I5. Under `STACKS`.
    pub(super) fn is_going(&self) -> bool {
        // SAFETY: I2.
        let driver = unsafe { &*self.driver_object };
        self.io_extension().delete_pending.load(Relaxed) != 0 || driver.is_going()
    }
}

impl Body for KDeviceObject {
    fn object_type() -> &'static ObjectType<Self> {
        &DEVICE
    }

    const PARSES: bool = true;

    fn parse(this: &ObRef<Self>, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        super::file::parse(this, request, at)
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        // Behind `make`: what is refused there is no object with a delete procedure.
        let Some(extension) = NonNull::new(self.device_object_extension.cast::<Extension>()) else { return };
        debug_assert!(self.attached_device.load(Relaxed).is_null(), "what is above has a reference (I3)");
        // SAFETY: I1: nobody has a reference, so no packet is here (I4).
        unsafe {
            let _at = at.raise::<Apc>();
            (extension.as_ref().vtable.drop_extension)(self.device_extension.cast());
        }
        // SAFETY: as above; both are the device's own references (I3, I2).
        unsafe {
            let below = NonNull::new(extension.as_ref().attached_to.load(Relaxed));
            below.into_iter().for_each(|below| ObRef::from_raw(below).release_deferred());
            ObRef::from_raw(NonNull::new_unchecked(self.driver_object)).release_deferred();
        }
    }
}

/// A device of `driver`, whose state is `state`, on its own. It is there until it is deleted.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; STATUS_INVALID_PARAMETER: it is a driver of something else than a D; STATUS_DELETE_PENDING: the
/// driver goes.
#[doc(alias = "IoCreateDevice")]
pub fn create_device<D: Driver, L: MayWait + MayDoIo>(
    driver: &ObRef<KDriverObject>,
    state: D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    create_device_with(driver, 0, state, at)
}

/// [`create_device`], with `flags` of [`device_flags`]: how reads and writes bring their buffers.
///
/// # Errors
/// As [`create_device`].
#[doc(alias = "IoCreateDevice")]
pub fn create_device_with<D: Driver, L: MayWait + MayDoIo>(
    driver: &ObRef<KDriverObject>,
    flags: u32,
    state: D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    let device =
        make(driver, 1, flags & (device_flags::BUFFERED_IO | device_flags::DIRECT_IO), || state, at)?;
    let is_listed = {
        let _guard = STACKS.lock(at);
        list(&device, driver)
    };
    if is_listed { Ok(device) } else { Err(NtStatus::DELETE_PENDING) }
}

/// The state of a device, if it is one of a D.
pub fn state_of<D: Driver>(device: &ObRef<KDeviceObject>) -> Option<&D> {
    // SAFETY: I1; it stays as long as the device, to which the caller has a reference.
    device.driver().is_of::<D>().then(|| unsafe { &*device.device_extension.cast::<D>() })
}

/// Gives a driver or a device its name, in `\Driver` or `\Device`; it has that until [`take_name`].
///
/// # Errors
/// As [`Namespace::enter`](crate::ob::Namespace::enter).
pub fn give_name<T: Body>(object: &ObRef<T>, path: &WideStr, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    namespace().enter(Path::new(path), &object.clone().upcast(), Permanence::Permanent, at)
}

/// Takes its name away: nobody finds it any more, once it has no handle. What is open stays.
pub fn take_name<T: Body>(object: &ObRef<T>, at: &mut Irql<Passive>) {
    object.make_temporary(at);
}

/// Has a device go: off its stack, without a name, off its driver's list when no file of it is open any more. It ends with its last reference.
#[doc(alias = "IoDeleteDevice")]
pub fn delete_device(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) {
    stack::detach(device, at);
    let gone = {
        let _guard = STACKS.lock(at);
        device.io_extension().delete_pending.store(1, Relaxed);
        take_off_unused(device)
    };
    device.make_temporary(at);
    drop(gone);
}

/// A file of it is about to be made; it is used until [`end_use`].
///
/// # Errors
/// STATUS_NO_SUCH_DEVICE: it goes, or isn't there yet (I5).
pub(super) fn begin_use(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let _guard = STACKS.lock(at);
    if device.is_going() || device.flags() & device_flags::DEVICE_INITIALIZING != 0 {
        return Err(NtStatus::NO_SUCH_DEVICE);
    }
    device.reference_count.fetch_add(1, Relaxed);
    Ok(())
}

/// A file of it has ended, and with it maybe what keeps the device, or its driver.
pub(super) fn end_use(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) {
    let gone = {
        let _guard = STACKS.lock(at);
        device.reference_count.fetch_sub(1, Relaxed);
        take_off_unused(device)
    };
    drop(gone);
    driver::unload_if_unused(&device.driver(), at);
}

/// The reference of its driver's list, if the device is to go and nobody uses it. Under `STACKS`.
fn take_off_unused(device: &ObRef<KDeviceObject>) -> Option<ObRef<KDeviceObject>> {
    let is_due = device.io_extension().delete_pending.load(Relaxed) != 0 && device.files() == 0;
    if is_due { unlist(device) } else { None }
}

/// Has any device of `driver` a file, or something above it? Under `STACKS`.
pub(super) fn is_any_used(driver: &ObRef<KDriverObject>) -> bool {
    let mut next = driver.device_object.load(Relaxed);
    // SAFETY: under the lock, whose list it is, with a reference to each.
    while let Some(device) = unsafe { next.as_ref() } {
        if device.files() != 0 || !device.attached_device.load(Relaxed).is_null() {
            return true;
        }
        next = device.next_device.load(Relaxed);
    }
    false
}

/// The driver's first device.
pub fn first_of<L: MayDoIo>(driver: &ObRef<KDriverObject>, at: &mut Irql<L>) -> Option<ObRef<KDeviceObject>> {
    let _guard = STACKS.lock(at);
    // SAFETY: under the lock, with a reference of the list.
    NonNull::new(driver.device_object.load(Relaxed)).map(|device| unsafe { ObRef::of_raw(device) })
}

/// Puts a device on its driver's list, with a reference; false: the driver goes. Under `STACKS`.
#[must_use]
pub(super) fn list(device: &ObRef<KDeviceObject>, driver: &ObRef<KDriverObject>) -> bool {
    if driver.is_going() {
        return false;
    }
    device.next_device.store(driver.device_object.load(Relaxed), Relaxed);
    driver.device_object.store(device.clone().into_raw().as_ptr(), Relaxed);
    true
}

/// Takes a device off its driver's list, if it is there: the list's reference. Under `STACKS`.
fn unlist(device: &ObRef<KDeviceObject>) -> Option<ObRef<KDeviceObject>> {
    let this = device.as_ptr().as_ptr();
    // SAFETY: I2; and what is in the list has a reference.
    unsafe {
        let mut link = &(*device.driver_object).device_object;
        while let Some(next) = NonNull::new(link.load(Relaxed)) {
            if next.as_ptr() == this {
                link.store(device.next_device.load(Relaxed), Relaxed);
                return Some(ObRef::from_raw(next));
            }
            link = &(*next.as_ptr()).next_device;
        }
    }
    None
}

/// A device with a state behind it, on no list.
pub(super) fn make<D: Driver, L: MayDoIo>(
    driver: &ObRef<KDriverObject>,
    stack_size: i8,
    flags: u32,
    state: impl FnOnce() -> D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    const { assert!(align_of::<D>() <= 16, "the extension is aligned to 16") };
    let state_bytes = const {
        let bytes = size_of::<D>().next_multiple_of(align_of::<Extension>());
        assert!(bytes + size_of::<KDeviceObject>() <= u16::MAX as usize, "the size field tells it");
        bytes
    };
    if !driver.is_of::<D>() {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let size = (size_of::<KDeviceObject>() + size_of::<D>()) as u16;
    let extra = (state_bytes + size_of::<Extension>()) as u32;
    let device = create_with_extra(KDeviceObject::alone(size, stack_size, flags), extra, at)?;
    let place = device.as_ptr().as_ptr();
    // SAFETY: nobody else knows the device. The extra bytes are a D's and an `Extension`'s, and aligned; from here on they are there (I1).
    unsafe {
        let extension = device.extra().cast::<u8>();
        extension.cast::<D>().write(state());
        let own = extension.add(state_bytes).cast::<Extension>();
        own.write(Extension {
            kind: IO_TYPE_DEVICE_OBJECT_EXTENSION,
            size: 0,
            device_object: place,
            vtable: vtable::<D>(),
            attached_to: AtomicPtr::new(ptr::null_mut()),
            delete_pending: AtomicU32::new(0),
            starts: AtomicU32::new(0),
        });
        (*place).device_extension = extension.as_ptr().cast();
        (*place).driver_object = driver.clone().into_raw().as_ptr();
        (*place).device_object_extension = own.as_ptr().cast();
        // Its place is the queue's for good.
        device_queue::initialize(device.queue());
    }
    Ok(device)
}

/// Never queued: a driver sets its own by IoInitializeDpcRequest.
unsafe extern "win64" fn no_dpc(
    _: *mut KDpc,
    _: *mut core::ffi::c_void,
    _: *mut core::ffi::c_void,
    _: *mut core::ffi::c_void,
) {
}

impl KDeviceObject {
    /// With no state, on no stack, of no driver.
    fn alone(size: u16, stack_size: i8, flags: u32) -> Self {
        Self {
            kind: IO_TYPE_DEVICE,
            size,
            reference_count: AtomicI32::new(0),
            driver_object: ptr::null_mut(),
            next_device: AtomicPtr::new(ptr::null_mut()),
            attached_device: AtomicPtr::new(ptr::null_mut()),
            current_irp: AtomicPtr::new(ptr::null_mut()),
            timer: ptr::null_mut(),
            flags: AtomicU32::new(flags),
            characteristics: 0,
            vpb: ptr::null_mut(),
            device_extension: ptr::null_mut(),
            device_type: 0,
            stack_size,
            queue: [0; 9],
            alignment_requirement: 0,
            device_queue: UnsafeCell::new(KDeviceQueue {
                kind: DEVICE_QUEUE_OBJECT,
                size: size_of::<KDeviceQueue>() as i16,
                list: KListEntry::UNLINKED,
                lock: KSpinLock::new(),
                busy: false,
            }),
            dpc: KDpc::new(0, no_dpc, ptr::null_mut()),
            active_thread_count: 0,
            security_descriptor: ptr::null_mut(),
            device_lock: Event::new(EventKind::Synchronization, true),
            sector_size: 0,
            spare: 0,
            device_object_extension: ptr::null_mut(),
            reserved: ptr::null_mut(),
        }
    }
}
