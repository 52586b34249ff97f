//! Drivers as objects, and what a driver in safe Rust is; how one is unloaded.
//!
//! A driver is a type that is [`Driver`]: a value of it is a device's state, in NT's device extension. [`register`] makes the DRIVER_OBJECT,
//! whose major functions all lead to [`Driver::dispatch`]; a foreign driver's lead to its own routines, and nothing else differs.
//!
//! ```text
//! unload: no new files, nothing attached any more
//!   no device has a file or something above it: the routine is called, once, and deletes the devices
//!   else: by whoever ends the last of these
//! the driver's object ends with its last reference: behind the last of its devices
//! ```
//!
//! Owns:       making, unloading and ending of drivers. Not: their devices (device.rs).
//! IRQL:       made up to DISPATCH, unloaded at PASSIVE.
//! Invariants: U1 the unload routine is called once at most, by who sets `UNLOAD_INVOKED` under `STACKS`, when no device of the driver has
//!                a file or a device above it; from `unload_pending` on none gets one.
//! Not as NT:  a driver that ends without having been unloaded isn't told. Whoever sends to a device without a file isn't waited for: a
//!             driver in Rust keeps the device's state until its last reference, so that does no harm.
//! Tests:      selftest `io::a_driver_is_unloaded_behind_its_last_file`; mutant `unloaded_under_a_file`.
//! Sources:    WDK, DRIVER_OBJECT, DRIVER_UNLOAD, `ZwUnloadDriver`, "Unloading a Driver".

use core::any::TypeId;
use core::mem::size_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicPtr, AtomicU32};

use sync::irql::{Apc, Dispatch as AtDispatch, Fixed, Irql, Passive};

use super::MayDoIo;
use super::device::{self, STACKS};
use super::irp::{Handled, Irp, Started};
use super::layout::{self, KIrp, major};
use super::objects::{IO_TYPE_DRIVER, KDeviceObject, KDriverExtension, KDriverObject, driver_flags};
use super::violation::{Violation, violation};
use crate::mm::pool::Tag;
use crate::ob::{Body, ObRef, ObjectType, create_with_extra};
use crate::rtl::{NtStatus, UnicodeString};

/// A device's state, and what its driver does.
pub trait Driver: Send + Sync + Sized + 'static {
    /// The device is to handle a packet, at its caller's level: PASSIVE, APC or DISPATCH.
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c>;

    /// A request of plug and play's, always at PASSIVE. What isn't told otherwise is handled as any packet.
    fn pnp<'c>(&self, irp: Irp<'c>, at: &mut Irql<Passive>) -> Handled<'c> {
        self.dispatch(irp, at)
    }

    /// The device begins with a packet that was [started](Irp::start); the next one comes when this has ended.
    #[doc(alias = "DRIVER_STARTIO")]
    fn start_io(&self, irp: Started, at: &mut Irql<AtDispatch>) {
        irp.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, 0, at);
    }

    /// The driver is unloaded: no file of its devices is open, and nothing is attached to them. They are deleted next.
    #[doc(alias = "DRIVER_UNLOAD")]
    fn unload(at: &mut Irql<Passive>) {
        let _ = at;
    }
}

static DRIVER: ObjectType<KDriverObject> =
    ObjectType::new("Driver", Tag::new(b"Driv"), device::MAPPING, device::ALL);

// SAFETY: constant once made, but for the list under `STACKS` and atomics; pointers lead to what lives as long.
unsafe impl Send for KDriverObject {}
// SAFETY: as above.
unsafe impl Sync for KDriverObject {}

impl Body for KDriverObject {
    fn object_type() -> &'static ObjectType<Self> {
        &DRIVER
    }
}

impl KDriverObject {
    /// Behind it.
    pub(super) fn extension(&self) -> &KDriverExtension {
        // SAFETY: set by `register` before anybody knew the driver, to the bytes behind it.
        unsafe { &*self.driver_extension }
    }

    /// Is it a driver of `D`s?
    pub(super) fn is_of<D: Driver>(&self) -> bool {
        self.extension().state == Some(TypeId::of::<D>())
    }

    /// Was it asked to go? Under `STACKS`.
    pub(super) fn is_going(&self) -> bool {
        self.extension().unload_pending.load(Relaxed) != 0
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
        flags: AtomicU32::new(0),
        driver_start: ptr::null_mut(),
        driver_size: 0,
        driver_section: ptr::null_mut(),
        driver_extension: ptr::null_mut(),
        driver_name: UnicodeString { length: 0, maximum_length: 0, buffer: ptr::null_mut() },
        hardware_database: ptr::null_mut(),
        fast_io_dispatch: ptr::null_mut(),
        driver_init: None,
        driver_start_io: Some(start_io::<D>),
        driver_unload: Some(unload_routine::<D>),
        major_function: const {
            let mut functions = [Some(dispatch::<D> as layout::Dispatch); major::COUNT];
            functions[major::PNP as usize] = Some(dispatch_pnp::<D> as layout::Dispatch);
            functions
        },
    };
    let driver = create_with_extra(driver, size_of::<KDriverExtension>() as u32, at)?;
    let place = driver.as_ptr().as_ptr();
    let extension = driver.extra().cast::<KDriverExtension>();
    // SAFETY: nobody else knows the driver; as many bytes are behind it, aligned to 16.
    unsafe {
        extension.write(KDriverExtension {
            driver_object: place,
            add_device: None,
            count: 0,
            service_key_name: UnicodeString { length: 0, maximum_length: 0, buffer: ptr::null_mut() },
            state: Some(TypeId::of::<D>()),
            unload_pending: AtomicU32::new(0),
        });
        (*place).driver_extension = extension.as_ptr();
    }
    Ok(driver)
}

/// The routine of every function of a driver in Rust.
unsafe extern "win64" fn dispatch<D: Driver>(device: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: called as a driver's routine: with a device of it (device.rs, I1), which stays while the packet is here (I4), and a packet
    // that is this driver's now. The level is the one of the token; whoever calls has none in use.
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

/// The routine for plug and play of a driver in Rust. At another level than PASSIVE, NT's manager never calls it.
unsafe extern "win64" fn dispatch_pnp<D: Driver>(device: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    if arch::irql::current() != Passive::CR8 {
        // SAFETY: as of `dispatch`: the packet is this driver's now.
        return unsafe { super::driver_default(device, irp) };
    }
    // SAFETY: as of `dispatch`; the level was just read.
    unsafe {
        let state = &*(*device).device_extension.cast::<D>();
        let irp = Irp::from_raw(NonNull::new_unchecked(irp));
        Irql::<Passive>::lend(|at| state.pnp(irp, at).status())
    }
}

/// The StartIo routine of a driver in Rust.
unsafe extern "win64" fn start_io<D: Driver>(device: *mut KDeviceObject, irp: *mut KIrp) {
    // SAFETY: as above; called at DISPATCH with a packet that the device is busy with from now on (start_io.rs, S2).
    unsafe {
        let state = &*(*device).device_extension.cast::<D>();
        let irp = Started::from_raw(NonNull::new_unchecked(irp));
        Irql::<AtDispatch>::lend(|at| state.start_io(irp, at));
    }
}

/// The unload routine of a driver in Rust.
unsafe extern "win64" fn unload_routine<D: Driver>(driver: *mut KDriverObject) {
    // SAFETY: called at PASSIVE, once, by `run`, which has a reference and doesn't use its token meanwhile.
    unsafe {
        let driver = ObRef::of_raw(NonNull::new_unchecked(driver));
        Irql::<Passive>::with(|at| {
            D::unload(at);
            while let Some(device) = device::first_of(&driver, at) {
                device::delete_device(&device, at);
                // U1. It would stay in the list, and this go on for ever.
                if device.files() != 0 {
                    let (driver, device_) = (driver.as_ptr().addr().get(), device.as_ptr().addr().get());
                    violation(Violation::UnloadedInUse, driver, device_, device.files().unsigned_abs());
                }
            }
        });
    }
}

/// Whether an unload was done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a driver that is in use is still there"]
pub enum Unload {
    /// The routine has returned.
    Done,
    /// A device is in use: whoever ends that calls the routine.
    Deferred,
}

/// Has the driver go, as soon as no device of it has a file or a device above it.
///
/// # Errors
/// STATUS_INVALID_DEVICE_REQUEST: it has no unload routine; STATUS_DELETE_PENDING: it goes, or has gone, already.
#[doc(alias = "ZwUnloadDriver")]
pub fn unload(driver: &ObRef<KDriverObject>, at: &mut Irql<Passive>) -> Result<Unload, NtStatus> {
    if driver.driver_unload.is_none() {
        return Err(NtStatus::INVALID_DEVICE_REQUEST);
    }
    {
        let _guard = STACKS.lock(at);
        if driver.is_going() {
            return Err(NtStatus::DELETE_PENDING);
        }
        driver.extension().unload_pending.store(1, Relaxed);
    }
    Ok(if unload_if_unused(driver, at) { Unload::Done } else { Unload::Deferred })
}

/// Unloads it now, if it is to go, nobody uses it, and nobody else does so; true then.
pub(super) fn unload_if_unused(driver: &ObRef<KDriverObject>, at: &mut Irql<Passive>) -> bool {
    let is_ours = {
        let _guard = STACKS.lock(at);
        // U1.
        let is_due = driver.is_going() && !device::is_any_used(driver);
        is_due
            && driver.flags.fetch_or(driver_flags::UNLOAD_INVOKED, Relaxed) & driver_flags::UNLOAD_INVOKED
                == 0
    };
    if is_ours {
        if let Some(routine) = driver.driver_unload {
            // SAFETY: its own, at PASSIVE, once (U1), with a driver that stays; the token isn't used meanwhile.
            unsafe { routine(driver.as_ptr().as_ptr()) };
        }
        driver.make_temporary(at);
    }
    is_ours
}
