//! Drivers and devices as objects, and what a driver in safe Rust is.
//!
//! A driver is a type that is [`Driver`]: a value of it is a device's state, in NT's device extension. [`register`] makes the DRIVER_OBJECT,
//! whose major functions all lead to [`Driver::dispatch`]; a foreign driver's lead to its own routines, and nothing else differs.
//!
//! Owns:       making, stacking and ending of devices and drivers. Not: packets (irp.rs, request.rs).
//! IRQL:       made, stacked and unstacked at PASSIVE or APC; references up to DISPATCH.
//! Locks:      `STACKS`, of rank `ObjectLock`: who is attached to whom, and a driver's list of devices.
//! Invariants: I1 the body of a device of a [`Driver`] `D` has a D for its extension, and `vtable` of D for its object extension, until
//!                its delete procedure; its driver's functions are those of D.
//!             I2 a device has a reference to its driver, so a driver ends, and is unloaded, behind all its devices.
//!             I3 `attached_device` is a reference to the device above, under the lock; that one has one to this in its [`Lower`].
//!                The circle ends by [`detach`].
//!             I4 a packet is in a stack only while its maker has a reference to the device that it was sent to.
//! Not as NT:  names are given to drivers and devices that are there already.
//! Tests:      selftest `io::*`.
//! Sources:    WDK, `IoCreateDevice`, `IoDeleteDevice`, `IoAttachDeviceToDeviceStack`, `IoDetachDevice`, "Unloading a Driver".

use core::mem::size_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use sync::SpinLock;
use sync::deferred::Entry as KDpc;
use sync::event::MayWait;
use sync::irql::{Apc, Dispatch as AtDispatch, Fixed, Irql, ObjectLock, Passive};
use sync::raw::KSpinLock;

use super::irp::{Handled, Irp};
use super::layout::{KIrp, major};
use super::objects::{
    DEVICE_QUEUE_OBJECT, IO_TYPE_DEVICE, IO_TYPE_DRIVER, KDeviceObject, KDeviceQueue, KDriverObject,
};
use super::packet::MOST_LOCATIONS;
use super::{MayDoIo, device_queue, layout};
use crate::ke::event::{Event, EventKind};
use crate::mm::pool::Tag;
use crate::ob::{
    AccessMask, Body, GenericMapping, ObRef, ObjectType, Parsed, Path, Permanence, Request, create,
    create_with_extra, namespace,
};
use crate::rtl::{KListEntry, NtStatus, UnicodeString, WideStr};

/// A device's state, and what its driver does.
pub trait Driver: Send + Sync + Sized + 'static {
    /// The device is to handle a packet, at its caller's level: PASSIVE, APC or DISPATCH.
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c>;

    /// The driver's last device has ended, and nobody has a reference to the driver: its last routine, at PASSIVE.
    #[doc(alias = "DRIVER_UNLOAD")]
    fn unload(at: &mut Irql<Passive>) {
        let _ = at;
    }
}

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
static DRIVER: ObjectType<KDriverObject> = ObjectType::new("Driver", Tag::new(b"Driv"), MAPPING, ALL);

/// I3, and the drivers' lists.
static STACKS: SpinLock<(), ObjectLock> = SpinLock::new(());

// SAFETY: the fields are the I/O manager's, under `STACKS` or constant, or the driver's, who answers for them.
unsafe impl Send for KDeviceObject {}
// SAFETY: as above.
unsafe impl Sync for KDeviceObject {}
// SAFETY: constant once made, but for the list under `STACKS`.
unsafe impl Send for KDriverObject {}
// SAFETY: as above.
unsafe impl Sync for KDriverObject {}

/// What the I/O manager knows of a device in Rust (I1).
struct Vtable {
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

impl Body for KDeviceObject {
    fn object_type() -> &'static ObjectType<Self> {
        &DEVICE
    }

    const PARSES: bool = true;

    fn parse(this: &ObRef<Self>, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        super::file::parse(this, request, at)
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        unlist(self, at);
        if let Some(vtable) = NonNull::new(self.device_object_extension.cast::<Vtable>()) {
            let _at = at.raise::<Apc>();
            // SAFETY: I1: nobody has a reference, so no packet is here (I4).
            unsafe { (vtable.as_ref().drop_extension)(self.device_extension.cast()) };
        }
        if let Some(driver) = NonNull::new(self.driver_object) {
            // SAFETY: I2: the device's own reference.
            unsafe { ObRef::from_raw(driver) }.release_deferred();
        }
    }
}

impl Body for KDriverObject {
    fn object_type() -> &'static ObjectType<Self> {
        &DRIVER
    }

    fn delete(&mut self, _: &mut Irql<Passive>) {
        if let Some(unload) = self.driver_unload {
            // SAFETY: its own, at PASSIVE, once; no device is left (I2).
            unsafe { unload(self) };
        }
    }
}

/// Makes a driver of `D`.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
pub fn register<D: Driver, L: MayDoIo>(at: &mut Irql<L>) -> Result<ObRef<KDriverObject>, NtStatus> {
    let driver = KDriverObject {
        kind: IO_TYPE_DRIVER,
        size: size_of::<KDriverObject>() as i16,
        device_object: AtomicPtr::new(ptr::null_mut()),
        flags: 0,
        driver_start: ptr::null_mut(),
        driver_size: 0,
        driver_section: ptr::null_mut(),
        driver_extension: ptr::null_mut(),
        driver_name: UnicodeString { length: 0, maximum_length: 0, buffer: ptr::null_mut() },
        hardware_database: ptr::null_mut(),
        fast_io_dispatch: ptr::null_mut(),
        driver_init: None,
        driver_start_io: None,
        driver_unload: Some(unload::<D>),
        major_function: [Some(dispatch::<D> as layout::Dispatch); major::COUNT],
    };
    create(driver, at)
}

unsafe extern "win64" fn unload<D: Driver>(_: *mut KDriverObject) {
    // SAFETY: called at PASSIVE by the delete procedure, which doesn't use its token meanwhile.
    unsafe { Irql::<Passive>::with(|at| D::unload(at)) };
}

/// The routine of every function of a driver in Rust.
unsafe extern "win64" fn dispatch<D: Driver>(device: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: called as a driver's routine: with a device of it (I1), which stays while the packet is here (I4), and a packet that is
    // this driver's now. The level is the one of the token; whoever calls has none in use.
    unsafe {
        let state = &*(*device).device_extension.cast::<D>();
        let irp = Irp::from_raw(NonNull::new_unchecked(irp));
        match arch::irql::current() {
            Passive::CR8 => Irql::<Passive>::lend(|at| state.dispatch(irp, at).status()),
            Apc::CR8 => Irql::<Apc>::lend(|at| state.dispatch(irp, at).status()),
            _ => Irql::<AtDispatch>::lend(|at| state.dispatch(irp, at).status()),
        }
    }
}

/// A device of `driver`, whose state is `state`, on its own.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; STATUS_INVALID_PARAMETER: it is a driver of something else than a D.
#[doc(alias = "IoCreateDevice")]
pub fn create_device<D: Driver, L: MayWait + MayDoIo>(
    driver: &ObRef<KDriverObject>,
    state: D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    make(driver, 1, |_| state, at)
}

/// What a device sends packets on to: the device below it, for as long as it has this.
pub struct Lower(ObRef<KDeviceObject>);

impl Lower {
    /// Which.
    #[inline(always)]
    pub fn device(&self) -> &ObRef<KDeviceObject> {
        &self.0
    }
}

/// A device of `driver` on top of the stack that `target` is in; its state is made with what is below it.
///
/// # Errors
/// As [`create_device`]; STATUS_DEVICE_ALREADY_ATTACHED: another one was quicker; STATUS_INVALID_PARAMETER: the stack is too high.
#[doc(alias = "IoAttachDeviceToDeviceStack")]
pub fn create_attached<D: Driver, L: MayWait + MayDoIo>(
    driver: &ObRef<KDriverObject>,
    target: &ObRef<KDeviceObject>,
    state: impl FnOnce(Lower) -> D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    let below = top_of(target, at);
    if below.stack_size >= MOST_LOCATIONS {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let place = below.as_ptr();
    let stack_size = below.stack_size + 1;
    let device = make(driver, stack_size, |_| state(Lower(below)), at)?;
    let attached = {
        let _guard = STACKS.lock(at);
        // SAFETY: `device` has a reference to what is below.
        let above = unsafe { &place.as_ref().attached_device };
        let is_free = above.load(Relaxed).is_null();
        if is_free {
            above.store(device.clone().into_raw().as_ptr(), Relaxed);
        }
        is_free
    };
    if attached { Ok(device) } else { Err(NtStatus::DEVICE_ALREADY_ATTACHED) }
}

/// Gives a driver or a device its name, in `\Driver` or `\Device`; it has that until [`take_name`].
///
/// # Errors
/// As [`Namespace::enter`](crate::ob::Namespace::enter).
pub fn give_name<T: Body>(object: &ObRef<T>, path: &WideStr, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    namespace().enter(Path::new(path), &object.clone().upcast(), Permanence::Permanent, at)
}

/// Takes its name away: nobody finds it any more. What is open stays, and so does the device until its last reference.
#[doc(alias = "IoDeleteDevice")]
pub fn take_name<T: Body>(object: &ObRef<T>, at: &mut Irql<Passive>) {
    object.make_temporary(at);
}

/// Takes `device` off the stack below it. What is under way through it goes on; it ends with its last reference.
#[doc(alias = "IoDetachDevice")]
pub fn detach<L: MayDoIo>(device: &ObRef<KDeviceObject>, lower: &ObRef<KDeviceObject>, at: &mut Irql<L>) {
    let reference = {
        let _guard = STACKS.lock(at);
        let above = &lower.attached_device;
        let is_it = above.load(Relaxed) == device.as_ptr().as_ptr();
        if is_it { NonNull::new(above.swap(ptr::null_mut(), Relaxed)) } else { None }
    };
    // SAFETY: the one that the lower one had (I3).
    drop(reference.map(|device| unsafe { ObRef::from_raw(device) }));
}

/// The highest device of the stack that `device` is in: what packets for it are sent to.
#[doc(alias = "IoGetAttachedDeviceReference")]
pub fn top_of<L: MayDoIo>(device: &ObRef<KDeviceObject>, at: &mut Irql<L>) -> ObRef<KDeviceObject> {
    let _guard = STACKS.lock(at);
    let mut top = device.as_ptr();
    // SAFETY: under the lock: each has a reference to the one above (I3).
    unsafe {
        while let Some(above) = NonNull::new(top.as_ref().attached_device.load(Relaxed)) {
            top = above;
        }
        ObRef::of_raw(top)
    }
}

/// A device with a state behind it.
fn make<D: Driver, L: MayDoIo>(
    driver: &ObRef<KDriverObject>,
    stack_size: i8,
    state: impl FnOnce(()) -> D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    const { assert!(align_of::<D>() <= 16, "the extension is aligned to 16") };
    const { assert!(size_of::<D>() + size_of::<KDeviceObject>() <= u16::MAX as usize, "the size field tells it") };
    if driver.major_function[0]
        .is_none_or(|routine| routine as usize != dispatch::<D> as layout::Dispatch as usize)
    {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let size = size_of::<KDeviceObject>() + size_of::<D>();
    let device = create_with_extra(KDeviceObject::alone(size as u16, stack_size), size_of::<D>() as u32, at)?;
    let place = device.as_ptr().as_ptr();
    // SAFETY: nobody else knows the device. The extra bytes are D's, and aligned; from here on it has one (I1).
    unsafe {
        let extension = device.extra().cast::<D>();
        extension.write(state(()));
        (*place).device_extension = extension.as_ptr().cast();
        (*place).device_object_extension = ptr::from_ref(vtable::<D>()).cast_mut().cast();
        (*place).driver_object = driver.clone().into_raw().as_ptr();
        // Its place is the queue's for good.
        device_queue::initialize(NonNull::new_unchecked(&raw mut (*place).device_queue));
    }
    {
        let _guard = STACKS.lock(at);
        device.next_device.store(driver.device_object.load(Relaxed), Relaxed);
        driver.device_object.store(place, Relaxed);
    }
    Ok(device)
}

/// Takes a device off its driver's list.
fn unlist(device: &mut KDeviceObject, at: &mut Irql<Passive>) {
    let this = ptr::from_mut(device);
    let Some(driver) = NonNull::new(device.driver_object) else { return };
    let _guard = STACKS.lock(at);
    // SAFETY: under the lock, whose list it is; what is in it is not deleted yet, as this function comes first. The driver is there (I2).
    unsafe {
        let mut link = &driver.as_ref().device_object;
        while !link.load(Relaxed).is_null() && link.load(Relaxed) != this {
            link = &(*link.load(Relaxed)).next_device;
        }
        if !link.load(Relaxed).is_null() {
            link.store((*this).next_device.load(Relaxed), Relaxed);
        }
    }
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
    fn alone(size: u16, stack_size: i8) -> Self {
        Self {
            kind: IO_TYPE_DEVICE,
            size,
            reference_count: 0,
            driver_object: ptr::null_mut(),
            next_device: AtomicPtr::new(ptr::null_mut()),
            attached_device: AtomicPtr::new(ptr::null_mut()),
            current_irp: ptr::null_mut(),
            timer: ptr::null_mut(),
            flags: 0,
            characteristics: 0,
            vpb: ptr::null_mut(),
            device_extension: ptr::null_mut(),
            device_type: 0,
            stack_size,
            queue: [0; 9],
            alignment_requirement: 0,
            device_queue: KDeviceQueue {
                kind: DEVICE_QUEUE_OBJECT,
                size: size_of::<KDeviceQueue>() as i16,
                list: KListEntry::UNLINKED,
                lock: KSpinLock::new(),
                busy: false,
            },
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
