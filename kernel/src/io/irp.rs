//! Packets for drivers in safe Rust: who has one is its owner, and has to do something with it.
//!
//! A driver's routine is given an [`Irp`] and must return a [`Handled`], which there is only for an `Irp` that was completed, sent on
//! or queued. So a packet is neither lost, nor touched after it has gone, nor returned as pending without its mark: that doesn't
//! compile. What was queued comes back as a [`Pended`], for which there is no `Handled`.
//!
//! Owns:       the two kinds of ownership. Not: the queue (csq.rs).
//! IRQL:       up to DISPATCH.
//! Invariants: I1 an `Irp` is a packet at a location of its driver's, whose routine runs (packet.rs, I2); a `Pended` the same, marked
//!                pending. There is one of either for a packet, and it is not copied.
//!             I2 the parameters of a location are those that its maker's buffers were made for: safe code does not change them.
//! Tests:      selftest `io::*`; crash `irp_dropped`; tests/refuse/cases/irp_*, pended_*.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use sync::irql::Irql;

use super::layout::{DeviceControl, IoStatus, KIrp, ReadWrite};
use super::{MayDoIo, call, complete, packet};
use crate::ke::bugcheck::StopCode;
use crate::rtl::NtStatus;

/// A packet that a driver's routine was called with.
#[must_use = "a packet that is dropped never comes back to its maker"]
pub struct Irp<'c> {
    packet: NonNull<KIrp>,
    /// It doesn't outlive the routine's call.
    call: PhantomData<&'c mut ()>,
}

/// A packet that its driver keeps, having returned STATUS_PENDING for it.
#[must_use = "a packet that is dropped never comes back to its maker"]
pub struct Pended {
    packet: NonNull<KIrp>,
}

// SAFETY: a packet is its owner's, whichever thread that runs in.
unsafe impl Send for Pended {}

/// What a driver's routine returns: the packet that it was called with was completed, sent on or queued.
#[must_use = "it is what the driver's routine returns"]
pub struct Handled<'c> {
    status: NtStatus,
    call: PhantomData<&'c mut ()>,
}

impl Handled<'_> {
    /// What NT's caller is told.
    pub(super) fn status(self) -> NtStatus {
        self.status
    }
}

/// What can be asked of a packet, whoever has it.
macro_rules! questions {
    () => {
        /// The major function: one of [`major`](super::layout::major).
        #[inline(always)]
        pub fn major(&self) -> u8 {
            // SAFETY: ours (I1).
            unsafe { (*packet::current(self.packet).as_ptr()).major_function }
        }

        /// The minor function.
        #[inline(always)]
        pub fn minor(&self) -> u8 {
            // SAFETY: ours (I1).
            unsafe { (*packet::current(self.packet).as_ptr()).minor_function }
        }

        /// The parameters of a read or a write.
        #[inline(always)]
        pub fn read_write(&self) -> ReadWrite {
            // SAFETY: ours (I1).
            ReadWrite::from_words(unsafe { (*packet::current(self.packet).as_ptr()).parameters })
        }

        /// The parameters of a device control.
        #[inline(always)]
        pub fn device_control(&self) -> DeviceControl {
            // SAFETY: ours (I1).
            DeviceControl::from_words(unsafe { (*packet::current(self.packet).as_ptr()).parameters })
        }

        /// Has somebody asked for it to be cancelled?
        #[inline(always)]
        pub fn is_cancelled(&self) -> bool {
            // SAFETY: ours (I1).
            unsafe { (*self.packet.as_ptr()).cancel.get() }
        }

        #[inline(always)]
        fn end<L: MayDoIo>(self, end: (NtStatus, usize), increment: u8, at: &mut Irql<L>) {
            if end.0 == NtStatus::PENDING {
                ended_as_pending(self.packet);
            }
            let this = ManuallyDrop::new(self);
            // SAFETY: ours (I1), and no more.
            unsafe {
                (*this.packet.as_ptr()).io_status = IoStatus::new(end.0, end.1);
                complete::complete(this.packet, increment, at);
            }
        }
    };
}

impl<'c> Irp<'c> {
    /// # Safety
    /// The packet is the caller's, a driver's routine that was called with it and returns what this becomes; once.
    #[inline(always)]
    pub(super) unsafe fn from_raw(packet: NonNull<KIrp>) -> Self {
        Self { packet, call: PhantomData }
    }

    questions!();

    /// The packet, for raw routines; it stays this one's.
    pub fn packet(&self) -> NonNull<KIrp> {
        self.packet
    }

    /// Ends it with a status and a number, mostly of bytes.
    #[doc(alias = "IoCompleteRequest")]
    #[inline(always)]
    pub fn complete<L: MayDoIo>(self, status: NtStatus, information: usize, at: &mut Irql<L>) -> Handled<'c> {
        self.end((status, information), 0, at);
        Handled { status, call: PhantomData }
    }

    /// Sends it on to the device that its own was attached to, as if this driver weren't there; there is none: STATUS_INVALID_DEVICE_REQUEST.
    #[doc(alias = "IoSkipCurrentIrpStackLocation")]
    #[inline(always)]
    pub fn forward<L: MayDoIo>(self, at: &mut Irql<L>) -> Handled<'c> {
        // SAFETY: ours (I1); a location's device is there (device.rs, I4).
        let below = unsafe {
            let device = (*packet::current(self.packet).as_ptr()).device_object;
            (*device).io_extension().attached_to.load(Relaxed)
        };
        let Some(below) = NonNull::new(below) else {
            return self.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, at);
        };
        let this = ManuallyDrop::new(self);
        // SAFETY: ours (I1), and no more. The device below stays as long as this one (device.rs, I3), which stays for the packet (I4).
        let status = unsafe {
            packet::skip_current(this.packet);
            call::call_driver(below, this.packet)
        };
        Handled { status, call: PhantomData }
    }

    /// Keeps it; `queue` has it from now on, and may have ended it already.
    #[inline(always)]
    pub(super) fn pend(self, queue: impl FnOnce(NonNull<KIrp>)) -> Handled<'c> {
        let this = ManuallyDrop::new(self);
        // SAFETY: ours (I1).
        unsafe { packet::mark_pending(this.packet) };
        queue(this.packet);
        Handled { status: NtStatus::PENDING, call: PhantomData }
    }
}

impl Pended {
    /// # Safety
    /// The packet is the caller's, marked pending, and from now on this one's.
    pub(super) unsafe fn from_raw(packet: NonNull<KIrp>) -> Self {
        Self { packet }
    }

    questions!();

    /// Ends it with a status and a number, mostly of bytes; threads that this wakes are boosted by `increment`.
    #[doc(alias = "IoCompleteRequest")]
    pub fn complete<L: MayDoIo>(self, status: NtStatus, information: usize, increment: u8, at: &mut Irql<L>) {
        self.end((status, information), increment, at);
    }
}

/// Whoever waits for it would take that for the promise of another end.
#[cold]
fn ended_as_pending(packet: NonNull<KIrp>) -> ! {
    /// As `verify::Violation::CompletedPending`, in every build.
    const COMPLETED_PENDING: u64 = 0x1003;
    let packet = packet.addr().get() as u64;
    super::bugcheck(StopCode::DriverVerifierIomanagerViolation, [COMPLETED_PENDING, 0, packet, 0]);
}

/// A packet that nobody has any more will never end.
#[cold]
fn dropped(packet: NonNull<KIrp>) -> ! {
    /// As `verify::Violation::Lost`, in every build.
    const LOST: u64 = 0x1005;
    super::bugcheck(StopCode::DriverVerifierIomanagerViolation, [LOST, 0, packet.addr().get() as u64, 0]);
}

impl Drop for Irp<'_> {
    fn drop(&mut self) {
        dropped(self.packet);
    }
}

impl Drop for Pended {
    fn drop(&mut self) {
        dropped(self.packet);
    }
}
