//! Requests: a packet that is made, sent and waited for.
//!
//! IRQL:       sent up to DISPATCH, waited for at PASSIVE or APC.
//! Invariants: I1 a request has its packet from its making until it is sent, and again from its end.
//!             I2 the packet's end signals an event that nobody else knows: of who waits at once it is on its stack, and is signalled where
//!                the packet was marked pending; a [`Request`] has its own in the pool. After that the end touches neither.
//!             I3 the packet is not given back at its end (`KEPT`), so its memory is the request's.
//! Tests:      selftest `io::*`.
//! Sources:    WDK, `IoBuildSynchronousFsdRequest`, "Handling IRPs: What You Need to Know", scenario 5 and 6.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use sync::event::MayWait;
use sync::irql::{Irql, Passive};

use super::layout::{DeviceControl, IoStatus, KIrp, ReadWrite, allocation, control, irp_flags, major};
use super::objects::{KDeviceObject, KFileObject};
use super::transfer::{MayTransfer, Transfer};
use super::{MayDoIo, allocate, call, cancel, packet, stack, violation};
use crate::ke::current_level::{above_dispatch, at_current_level};
use crate::ke::event::{Event, EventKind};
use crate::ke::timer::Due;
use crate::ke::wait;
use crate::mm::pool::Owned;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

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
}

/// The same, as a location has it.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) major: u8,
    pub(super) parameters: [u64; 4],
}

impl Parts {
    /// A function without parameters.
    pub(super) const fn plain(major: u8) -> Self {
        Self { major, parameters: [0; 4] }
    }
}

impl Function {
    #[inline(always)]
    fn parts(self) -> Parts {
        match self {
            Self::Read(parameters) => Parts { major: major::READ, parameters: parameters.words() },
            Self::Write(parameters) => Parts { major: major::WRITE, parameters: parameters.words() },
            Self::Control(parameters) => {
                Parts { major: major::DEVICE_CONTROL, parameters: parameters.words() }
            }
            Self::Flush => Parts::plain(major::FLUSH_BUFFERS),
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
    // SAFETY: no file, no buffer.
    unsafe { send_for_file(device, function.parts(), ptr::null_mut(), at) }
}

/// The same for a file, or null.
///
/// # Errors
/// As [`send_and_wait`].
///
/// # Safety
/// The file, and what the parameters lead the packet to, stay until this returns.
#[inline]
pub(super) unsafe fn send_for_file<L: MayWait + MayDoIo + wait::CanWait>(
    device: &ObRef<KDeviceObject>,
    parts: Parts,
    file: *mut KFileObject,
    at: &mut Irql<L>,
) -> Result<IoStatus, NtStatus> {
    let irp = allocate::allocate(device.stack_size(), at)?;
    // SAFETY: the packet is ours, and again when it has ended; the caller's.
    unsafe {
        prepare(irp, parts, file);
        send_prepared(device, irp, at);
        let end = (*irp.as_ptr()).io_status;
        allocate::free(irp, at);
        Ok(end)
    }
}

/// The same, with buffers.
///
/// # Errors
/// As [`send_and_wait`], and as [`Transfer::attach`].
///
/// # Safety
/// As [`send_for_file`], and as [`Transfer::attach`].
pub(super) unsafe fn send_transfer<L: MayTransfer>(
    device: &ObRef<KDeviceObject>,
    parts: Parts,
    file: *mut KFileObject,
    transfer: &Transfer,
    at: &mut Irql<L>,
) -> Result<IoStatus, NtStatus> {
    let irp = allocate::allocate(device.stack_size(), at)?;
    // SAFETY: as above; the buffers are finished when the packet has ended.
    unsafe {
        prepare(irp, parts, file);
        let end = transfer.attach(irp, at).map(|()| {
            send_prepared(device, irp, at);
            transfer.finish(irp, at)
        });
        allocate::free(irp, at);
        end
    }
}

/// Sends a packet, and waits until it has ended: it is the caller's again.
///
/// # Safety
/// The packet is the caller's, with all that it leads to until this returns.
#[inline(always)]
unsafe fn send_prepared<L: MayWait + MayDoIo + wait::CanWait>(
    device: &ObRef<KDeviceObject>,
    irp: NonNull<KIrp>,
    at: &mut Irql<L>,
) {
    let event = Event::new(EventKind::Notification, false);
    // SAFETY: the packet is ours until it is sent, and from its end on (I3), which is before the return where that isn't STATUS_PENDING,
    // else before the event. The event stays until the wait is over, which is behind its last use (I2); the device stays, as it is borrowed.
    unsafe {
        let it = irp.as_ptr();
        (*it).allocation_flags |= allocation::KEPT;
        (*it).flags |= irp_flags::SYNCHRONOUS_API;
        (*it).user_event = (&raw const event).cast_mut();
        let status = call::call_driver(device.as_ptr(), irp);
        if status == NtStatus::PENDING {
            let _ = wait::for_single(&event, None, at);
        }
    }
}

/// Sends a request of plug and play's, and waits for its end. Whoever knows nothing of it leaves STATUS_NOT_SUPPORTED.
///
/// # Errors
/// As [`send_and_wait`].
///
/// # Safety
/// What the parameters lead to stays until this returns.
pub(super) unsafe fn send_pnp(
    device: &ObRef<KDeviceObject>,
    minor: u8,
    parameters: [u64; 4],
    at: &mut Irql<Passive>,
) -> Result<IoStatus, NtStatus> {
    let irp = allocate::allocate(device.stack_size(), at)?;
    // SAFETY: as in `send_for_file`.
    unsafe {
        prepare(irp, Parts { major: major::PNP, parameters }, ptr::null_mut());
        (*packet::next(irp).as_ptr()).minor_function = minor;
        (*irp.as_ptr()).io_status = IoStatus::new(NtStatus::NOT_SUPPORTED, 0);
        send_prepared(device, irp, at);
        let end = (*irp.as_ptr()).io_status;
        allocate::free(irp, at);
        Ok(end)
    }
}

/// Sends a driver's packet to the device below with a location of its own, and waits until it has come back.
///
/// # Safety
/// The packet is the caller's, a driver's, and is again when this returns; `device` stays.
pub(super) unsafe fn send_below_and_wait<L: MayWait + MayDoIo + wait::CanWait>(
    device: NonNull<KDeviceObject>,
    irp: NonNull<KIrp>,
    at: &mut Irql<L>,
) {
    const ALL: u8 = control::INVOKE_ON_SUCCESS | control::INVOKE_ON_ERROR | control::INVOKE_ON_CANCEL;
    let event = Event::new(EventKind::Notification, false);
    // SAFETY: the caller's; the event is as in `send_prepared`. The routine keeps the packet.
    unsafe {
        packet::copy_current_to_next(irp);
        packet::set_completion(irp, has_come_back, (&raw const event).cast_mut().cast(), ALL);
        if call::call_driver(device, irp) == NtStatus::PENDING {
            let _ = wait::for_single(&event, None, at);
        }
    }
}

/// Keeps a packet that has come back; who marked it has returned STATUS_PENDING, or will, so its sender waits for the event.
unsafe extern "win64" fn has_come_back(
    _: *mut KDeviceObject,
    irp: *mut KIrp,
    event: *mut c_void,
) -> NtStatus {
    // SAFETY: the packet is its completer's; where it is marked the event stays until it is signalled. Whoever completes has its token
    // borrowed, and holds no lock; the level is that of the token.
    unsafe {
        if (*irp).pending_returned {
            let event = &*event.cast::<Event>();
            at_current_level!(at => event.set(1, at), above => above_dispatch(above, 0));
        }
    }
    NtStatus::MORE_PROCESSING_REQUIRED
}

/// # Safety
/// The packet is the caller's.
#[inline(always)]
pub(super) unsafe fn prepare(irp: NonNull<KIrp>, parts: Parts, file: *mut KFileObject) {
    // SAFETY: the caller's.
    unsafe {
        let next = packet::next(irp).as_ptr();
        (*next).major_function = parts.major;
        (*next).parameters = parts.parameters;
        (*next).file_object = file;
        (*irp.as_ptr()).original_file_object = file;
    }
}

/// A request that goes on while its maker does something else.
///
/// | state | packet is |
/// |---|---|
/// | not sent | the request's |
/// | sent | its drivers', until its event is signalled |
pub struct Request {
    device: ObRef<KDeviceObject>,
    file: Option<ObRef<KFileObject>>,
    irp: NonNull<KIrp>,
    /// I2.
    ended: Owned<Event>,
    sent: bool,
}

// SAFETY: the packet is reached by its owner alone, but for the cancel flag and routine.
unsafe impl Send for Request {}
// SAFETY: as above; `cancel` is what takes a shared reference.
unsafe impl Sync for Request {}

impl Request {
    /// One for `device`.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn new<L: MayDoIo>(device: ObRef<KDeviceObject>, at: &mut Irql<L>) -> Result<Self, NtStatus> {
        Self::of(device, None, at)
    }

    /// One for a file: it goes to the top of its device's stack, as that is now.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_file<L: MayDoIo>(file: ObRef<KFileObject>, at: &mut Irql<L>) -> Result<Self, NtStatus> {
        let device = stack::top_of(&file.device(), at);
        Self::of(device, Some(file), at)
    }

    fn of<L: MayDoIo>(
        device: ObRef<KDeviceObject>,
        file: Option<ObRef<KFileObject>>,
        at: &mut Irql<L>,
    ) -> Result<Self, NtStatus> {
        let event = Event::new(EventKind::Notification, false);
        let ended = Owned::try_new(allocate::TAG, event, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        let irp = allocate::allocate(device.stack_size(), at)?;
        Ok(Self { device, file, irp, ended, sent: false })
    }

    /// Sends it; false: it is sent already, and not waited for. Its end may be before this returns.
    #[must_use = "false: it was sent before"]
    pub fn send<L: MayDoIo>(&mut self, function: Function, at: &mut Irql<L>) -> bool {
        if self.sent {
            return false;
        }
        self.sent = true;
        self.ended.reset(at);
        let file = self.file.as_ref().map_or(ptr::null_mut(), |file| file.as_ptr().as_ptr());
        // SAFETY: the packet is ours. Event, device and file are there as long as the request, which isn't dropped before its end; the end
        // keeps the packet (I3).
        unsafe {
            packet::reuse(self.irp, NtStatus::PENDING);
            prepare(self.irp, function.parts(), file);
            (*self.irp.as_ptr()).allocation_flags |= allocation::KEPT;
            (*self.irp.as_ptr()).user_event = (&raw const *self.ended).cast_mut();
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

    /// Has it ended, or was it never sent? Stale at once, unless true.
    pub fn is_ended(&self) -> bool {
        !self.sent || self.ended.is_signalled()
    }

    /// Waits for its end; how it ended. Not sent: STATUS_INVALID_PARAMETER.
    pub fn wait<L: MayWait + MayDoIo + wait::CanWait>(&mut self, at: &mut Irql<L>) -> IoStatus {
        self.wait_until(None, at)
    }

    /// [`wait`](Self::wait), no longer than until `due`: STATUS_TIMEOUT, and it is under way still.
    pub fn wait_until<L: MayWait + MayDoIo + wait::CanWait>(
        &mut self,
        due: Option<Due>,
        at: &mut Irql<L>,
    ) -> IoStatus {
        if !self.sent {
            return IoStatus::new(NtStatus::INVALID_PARAMETER, 0);
        }
        let status = wait::for_single(&*self.ended, due, at);
        if status != NtStatus::SUCCESS {
            return IoStatus::new(status, 0);
        }
        self.sent = false;
        // SAFETY: ended, so ours (I1).
        unsafe { (*self.irp.as_ptr()).io_status }
    }
}

impl Drop for Request {
    /// One that was sent and not waited for leaves its packet to nobody: a bugcheck.
    fn drop(&mut self) {
        if self.sent {
            violation::dropped(self.irp.addr().get());
        }
        // SAFETY: ours (I1). Whoever drops it has no token in use that a free could want; the level is that of the token.
        unsafe { at_current_level!(at => allocate::free(self.irp, at), above => above_dispatch(above, 0)) }
    }
}
