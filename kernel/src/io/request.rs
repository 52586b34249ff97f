//! Requests: a packet that is made, sent and waited for.
//!
//! IRQL:       sent up to DISPATCH, waited for at PASSIVE or APC.
//! Invariants: I1 a request has its packet from its making until it is sent, and again from its end.
//!             I2 the event of who waits is on its stack, until the packet's end has signalled it, which it does where the packet was
//!                marked pending; the packet is not touched between its sending and its end.
//!             I3 the packet's end keeps it: the routine at its top says that more processing is required, so its memory is the
//!                request's.
//! Tests:      selftest `io::*`.
//! Sources:    WDK, `IoBuildSynchronousFsdRequest`, "Handling IRPs: What You Need to Know", scenario 5 and 6.

use core::ffi::c_void;
use core::ptr::NonNull;

use sync::event::MayWait;
use sync::irql::{Apc, Dispatch, Fixed, Irql, Passive};

use super::layout::{DeviceControl, IoStatus, KIrp, ReadWrite, control, major};
use super::objects::{KDeviceObject, KFileObject};
use super::{MayDoIo, allocate, call, cancel, packet};
use crate::ke::event::{Event, EventKind};
use crate::ke::wait;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

const ALL: u8 = control::INVOKE_ON_SUCCESS | control::INVOKE_ON_ERROR | control::INVOKE_ON_CANCEL;

/// What is wanted of a device, without a buffer.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    /// So many bytes of nothing: the device sees length and place, and no buffer.
    Read(ReadWrite),
    /// The same.
    Write(ReadWrite),
    /// A code.
    Control(DeviceControl),
    /// What was written is to be lasting.
    Flush,
    /// Of a file: it is opened.
    Create,
    /// Of a file: its last handle is gone.
    Cleanup,
    /// Of a file: its last reference is gone.
    Close,
}

impl Function {
    #[inline(always)]
    fn parts(self) -> (u8, [u64; 4]) {
        match self {
            Self::Read(parameters) => (major::READ, parameters.words()),
            Self::Write(parameters) => (major::WRITE, parameters.words()),
            Self::Control(parameters) => (major::DEVICE_CONTROL, parameters.words()),
            Self::Flush => (major::FLUSH_BUFFERS, [0; 4]),
            Self::Create => (major::CREATE, [0; 4]),
            Self::Cleanup => (major::CLEANUP, [0; 4]),
            Self::Close => (major::CLOSE, [0; 4]),
        }
    }
}

/// Sends a packet and waits for its end.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES for the packet; else how it ended is the status block's to say.
#[inline]
pub fn send_and_wait<L: MayWait + MayDoIo + wait::CanWait>(
    device: &ObRef<KDeviceObject>,
    function: Function,
    at: &mut Irql<L>,
) -> Result<IoStatus, NtStatus> {
    // SAFETY: no file.
    unsafe { send_for_file(device, function, core::ptr::null_mut(), at) }
}

/// The same for a file, or null.
///
/// # Errors
/// As [`send_and_wait`].
///
/// # Safety
/// The file stays until this returns.
#[inline]
pub(super) unsafe fn send_for_file<L: MayWait + MayDoIo + wait::CanWait>(
    device: &ObRef<KDeviceObject>,
    function: Function,
    file: *mut KFileObject,
    at: &mut Irql<L>,
) -> Result<IoStatus, NtStatus> {
    let irp = allocate::allocate(device.stack_size, at)?;
    let event = Event::new(EventKind::Notification, false);
    // SAFETY: the packet is ours until it is sent, and from its end on (I3), which is before the return where that isn't STATUS_PENDING,
    // else before the event. The event stays until the wait is over, which is behind its last use (I2); the device stays, as it is borrowed.
    unsafe {
        prepare(irp, function);
        (*packet::next(irp).as_ptr()).file_object = file;
        (*irp.as_ptr()).original_file_object = file;
        packet::set_completion(irp, ended_late, (&raw const event).cast_mut().cast(), ALL);
        let status = call::call_driver(device.as_ptr(), irp);
        if status == NtStatus::PENDING {
            let _ = wait::for_single(&event, None, at);
        }
        let end = (*irp.as_ptr()).io_status;
        allocate::free(irp, at);
        Ok(end)
    }
}

/// At the top of a packet that is waited for, if at all: who marked it has returned STATUS_PENDING, or will.
unsafe extern "win64" fn ended_late(
    device: *mut KDeviceObject,
    irp: *mut KIrp,
    event: *mut c_void,
) -> NtStatus {
    // SAFETY: the packet is still its completer's. Where it is marked its maker waits for the event (I2).
    unsafe {
        if (*irp).pending_returned { ended(device, irp, event) } else { NtStatus::MORE_PROCESSING_REQUIRED }
    }
}

/// # Safety
/// The packet is the caller's.
#[inline(always)]
unsafe fn prepare(irp: NonNull<KIrp>, function: Function) {
    let (major, parameters) = function.parts();
    // SAFETY: the caller's.
    unsafe {
        let next = packet::next(irp).as_ptr();
        (*next).major_function = major;
        (*next).parameters = parameters;
    }
}

/// A request that goes on while its maker does something else; pinned by being a static, or by who answers for it.
///
/// | state | packet is |
/// |---|---|
/// | not sent | the request's |
/// | sent | its drivers', until `done` is set |
pub struct Request {
    device: ObRef<KDeviceObject>,
    irp: NonNull<KIrp>,
    done: &'static Event,
    sent: bool,
}

// SAFETY: the packet is reached by its owner alone, but for the cancel flag and routine.
unsafe impl Send for Request {}
// SAFETY: as above; `cancel` is what takes a shared reference.
unsafe impl Sync for Request {}

impl Request {
    /// One for `device`; `done` is set at its end.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn new<L: MayDoIo>(
        device: ObRef<KDeviceObject>,
        done: &'static Event,
        at: &mut Irql<L>,
    ) -> Result<Self, NtStatus> {
        let irp = allocate::allocate(device.stack_size, at)?;
        Ok(Self { device, irp, done, sent: false })
    }

    /// Sends it; false: it is sent already, and not waited for. Its end may be before this returns.
    #[must_use = "false: it was sent before"]
    pub fn send<L: MayDoIo>(&mut self, function: Function, at: &mut Irql<L>) -> bool {
        if self.sent {
            return false;
        }
        self.sent = true;
        self.done.reset(at);
        // SAFETY: the packet is ours; `done` is there for good, the device as long as the request. Its end keeps the packet (I3).
        unsafe {
            packet::reuse(self.irp, NtStatus::PENDING);
            prepare(self.irp, function);
            packet::set_completion(self.irp, ended, core::ptr::from_ref(self.done).cast_mut().cast(), ALL);
            // How it ended, the packet tells when the event is set.
            let _ = call::call_driver(self.device.as_ptr(), self.irp);
        }
        true
    }

    /// Has it end soon, if its driver lets it. True: its cancel routine was called.
    pub fn cancel<L: MayDoIo>(&self, at: &mut Irql<L>) -> bool {
        // SAFETY: its memory is ours as long as the request is there (I3).
        unsafe { cancel::cancel(self.irp, at) }
    }

    /// Waits for its end; how it ended. Not sent: STATUS_INVALID_PARAMETER.
    pub fn wait<L: MayWait + MayDoIo + wait::CanWait>(&mut self, at: &mut Irql<L>) -> IoStatus {
        if !self.sent {
            return IoStatus::new(NtStatus::INVALID_PARAMETER, 0);
        }
        let _ = wait::for_single(self.done, None, at);
        self.sent = false;
        // SAFETY: ended, so ours (I1).
        unsafe { (*self.irp.as_ptr()).io_status }
    }
}

impl Drop for Request {
    /// One that was sent and not waited for leaves its packet to nobody: a bugcheck.
    fn drop(&mut self) {
        if self.sent {
            let packet = self.irp.addr().get() as u64;
            super::bugcheck(
                crate::ke::bugcheck::StopCode::DriverVerifierIomanagerViolation,
                [0x1005, 0, packet, 0],
            );
        }
        // SAFETY: ours (I1). Whoever drops it has no token in use that a free could want; the level is that of the token.
        unsafe {
            match arch::irql::current() {
                Passive::CR8 => Irql::<Passive>::lend(|at| allocate::free(self.irp, at)),
                Apc::CR8 => Irql::<Apc>::lend(|at| allocate::free(self.irp, at)),
                _ => Irql::<Dispatch>::lend(|at| allocate::free(self.irp, at)),
            }
        }
    }
}

/// At the top of a request's packet.
unsafe extern "win64" fn ended(_: *mut KDeviceObject, _: *mut KIrp, context: *mut c_void) -> NtStatus {
    // SAFETY: set with an event that is there for good, or until it is signalled; whoever completes has its token borrowed, and holds no lock.
    unsafe {
        let done = &*context.cast::<Event>();
        match arch::irql::current() {
            Passive::CR8 => Irql::<Passive>::lend(|at| done.set(1, at)),
            Apc::CR8 => Irql::<Apc>::lend(|at| done.set(1, at)),
            _ => Irql::<Dispatch>::lend(|at| done.set(1, at)),
        };
    }
    NtStatus::MORE_PROCESSING_REQUIRED
}
