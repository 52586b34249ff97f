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

use sync::irql::{Dispatch, Irql};

use super::dma::Runs;
use super::layout::{DeviceControl, IoStatus, KIrp, ReadWrite, irp_flags, major};
use super::objects::{KDeviceObject, KFileObject};
use super::transfer::Method;
use super::violation::{Violation, dropped, violation};
use super::{MayDoIo, call, complete, packet, start_io};
use crate::mm::mdl::{Mdl, flags as mdl_flags};
use crate::mm::mdl_pages;
use crate::mm::tables::{Access, Caching};
use crate::ob::ObRef;
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

        /// The class of information that a query of a file is about.
        pub fn information_class(&self) -> u32 {
            // SAFETY: ours (I1).
            unsafe { (*packet::current(self.packet).as_ptr()).parameters[1] as u32 }
        }

        /// The file that it is a request of, if it is one's.
        pub fn file(&self) -> Option<&KFileObject> {
            // SAFETY: ours (I1); its maker keeps the file until the packet has come back.
            unsafe { (*packet::current(self.packet).as_ptr()).file_object.as_ref() }
        }

        /// What came with it in a system buffer: of a write or a control. Empty without one.
        pub fn input(&self) -> &[u8] {
            // SAFETY: ours (I1), and borrowed as long.
            unsafe { system_buffer(self.packet, false).as_ref() }
        }

        /// Where what goes back is put, in a system buffer: of a read or a control, whose input it takes the place of. Empty without one.
        pub fn output(&mut self) -> &mut [u8] {
            // SAFETY: ours (I1), and borrowed as long.
            unsafe { system_buffer(self.packet, true).as_mut() }
        }

        /// The pages of its buffer, mapped for the kernel: of direct I/O. None: it has none, as it is of no bytes or comes otherwise.
        ///
        /// # Errors
        /// STATUS_INSUFFICIENT_RESOURCES.
        #[doc(alias = "MmGetSystemAddressForMdlSafe")]
        pub fn pages<L: MayDoIo>(&mut self, at: &mut Irql<L>) -> Result<Option<Pages<'_>>, NtStatus> {
            // SAFETY: ours (I1), and borrowed as long.
            unsafe { map_pages(self.packet, at) }
        }

        /// Where the bytes of a read or write lie, for a device that reaches memory by itself; nothing where it has no list of pages.
        pub fn runs(&self) -> Runs<'_> {
            // SAFETY: ours (I1), while it is borrowed.
            unsafe { runs_of(self.packet) }
        }

        /// Is what its list of pages has memory, and no device's?
        pub fn is_memory(&self) -> bool {
            // SAFETY: ours (I1); the list stays as long.
            let list = unsafe { (*self.packet.as_ptr()).mdl_address.as_ref() };
            list.is_some_and(|list| list.flags & mdl_flags::IO_SPACE == 0)
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
                // Whoever waits for it would take that for the promise of another end.
                violation(Violation::CompletedPending, 0, self.packet.addr().get(), 0);
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

/// The side of a packet's system buffer.
///
/// # Safety
/// The packet is the caller's, a driver.
unsafe fn system_buffer(packet: NonNull<KIrp>, is_output: bool) -> NonNull<[u8]> {
    // SAFETY: the caller's; lengths and buffer belong together (I2; transfer.rs, B1).
    unsafe {
        let location = packet::current(packet).as_ref();
        let bytes = match location.major_function {
            major::READ if is_output => ReadWrite::from_words(location.parameters).length,
            major::WRITE if !is_output => ReadWrite::from_words(location.parameters).length,
            major::QUERY_INFORMATION if is_output => location.parameters[0] as u32,
            major::DEVICE_CONTROL | major::INTERNAL_DEVICE_CONTROL => {
                let control = DeviceControl::from_words(location.parameters);
                let is_buffered = Method::of_code(control.code) == Method::Buffered;
                match (is_output, is_buffered) {
                    (true, true) => control.output_length,
                    (true, false) => 0,
                    (false, _) => control.input_length,
                }
            }
            _ => 0,
        };
        let has_buffer = (*packet.as_ptr()).flags & irp_flags::BUFFERED_IO != 0;
        match NonNull::new((*packet.as_ptr()).associated.cast::<u8>()) {
            Some(buffer) if has_buffer => NonNull::slice_from_raw_parts(buffer, bytes as usize),
            _ => NonNull::slice_from_raw_parts(NonNull::dangling(), 0),
        }
    }
}

/// The runs of a packet's buffer, up to the length of the read or write.
///
/// # Safety
/// As [`system_buffer`], as long as the runs are used.
unsafe fn runs_of<'a>(packet: NonNull<KIrp>) -> Runs<'a> {
    // SAFETY: the caller's: the list is the packet's, and stays as long.
    unsafe {
        let length = ReadWrite::from_words((*packet::current(packet).as_ptr()).parameters).length;
        let Some(list) = NonNull::new((*packet.as_ptr()).mdl_address) else { return Runs::new(&[], 0, 0) };
        let mdl = Mdl::from_raw(list);
        let (offset, bytes) = (mdl.header().byte_offset, mdl.bytes());
        let pages = core::slice::from_raw_parts(list.add(1).cast::<u64>().as_ptr(), mdl.page_count());
        Runs::new(pages, offset, bytes.min(length))
    }
}

/// # Safety
/// As [`system_buffer`].
unsafe fn map_pages<'a, L: MayDoIo>(
    packet: NonNull<KIrp>,
    at: &mut Irql<L>,
) -> Result<Option<Pages<'a>>, NtStatus> {
    // SAFETY: the caller's: the list is the packet's, whose pages are locked for what the packet asks; mapped for no more than that.
    unsafe {
        let Some(list) = NonNull::new((*packet.as_ptr()).mdl_address) else { return Ok(None) };
        let mut list = Mdl::from_raw(list);
        let is_writable = list.has(mdl_flags::WRITE_OPERATION);
        let mapped = mdl_flags::MAPPED_TO_SYSTEM_VA
            | mdl_flags::SOURCE_IS_NONPAGED_POOL
            | mdl_flags::PARENT_MAPPED_SYSTEM_VA;
        let address = if list.header().flags & mapped != 0 {
            NonNull::new_unchecked(list.header().mapped_system_va)
        } else {
            let access = if is_writable { Access::Write } else { Access::Read };
            mdl_pages::map(&mut list, access, Caching::WriteBack, at)
                .map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?
        };
        Ok(Some(Pages { address, bytes: list.bytes() as usize, is_writable, packet: PhantomData }))
    }
}

/// A request's buffer by its pages, as long as the packet is here. Its owner may look and write there meanwhile: so it is copied from and to.
pub struct Pages<'a> {
    address: NonNull<u8>,
    bytes: usize,
    is_writable: bool,
    packet: PhantomData<&'a mut ()>,
}

impl Pages<'_> {
    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "one of no bytes there isn't")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Where it is mapped, for who moves more than bytes: `len` bytes, as long as this.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Copies out of it from `start` on; how many bytes: what is there of them.
    pub fn read(&self, start: usize, to: &mut [u8]) -> usize {
        let bytes = to.len().min(self.bytes.saturating_sub(start));
        // SAFETY: within the mapping; `to` is the caller's.
        unsafe { to.as_mut_ptr().copy_from(self.address.as_ptr().add(start.min(self.bytes)), bytes) };
        bytes
    }

    /// Copies into it from `start` on; how many bytes: what there is room for, none in a buffer that is only to be read.
    pub fn write(&mut self, start: usize, from: &[u8]) -> usize {
        let room = if self.is_writable { self.bytes.saturating_sub(start) } else { 0 };
        let bytes = from.len().min(room);
        // SAFETY: within the mapping, which is writable.
        unsafe { self.address.as_ptr().add(start.min(self.bytes)).copy_from(from.as_ptr(), bytes) };
        bytes
    }
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
        let status = unsafe { call::call_in_place(below, this.packet) };
        Handled { status, call: PhantomData }
    }

    /// Has the driver's StartIo called with it, when the device has ended what came before; in order, or by `key`.
    #[doc(alias = "IoStartPacket")]
    pub fn start<L: MayDoIo>(self, key: Option<u32>, at: &mut Irql<L>) -> Handled<'c> {
        self.pend(|packet| {
            // SAFETY: ours, marked pending; a location's device is there (device.rs, I4), a driver's in Rust, which has a StartIo.
            unsafe {
                let device = NonNull::new_unchecked((*packet::current(packet).as_ptr()).device_object);
                start_io::start_packet(device, packet, key, at);
            }
        })
    }

    /// Sends it to the device that its own was attached to, and waits until it has come back: then it is this driver's again, with the status
    /// that it came with; STATUS_INVALID_DEVICE_REQUEST: there is none.
    pub fn send_and_wait<L>(self, at: &mut Irql<L>) -> Self
    where
        L: MayDoIo + sync::event::MayWait + crate::ke::wait::CanWait,
    {
        let this = ManuallyDrop::new(self);
        // SAFETY: ours (I1), and again when this returns. A location's device is there, and the one below as long (device.rs, I3, I4).
        unsafe {
            let device = (*packet::current(this.packet).as_ptr()).device_object;
            match NonNull::new((*device).io_extension().attached_to.load(Relaxed)) {
                Some(below) => super::request::send_below_and_wait(below, this.packet, at),
                None => {
                    (*this.packet.as_ptr()).io_status = IoStatus::new(NtStatus::INVALID_DEVICE_REQUEST, 0);
                }
            }
            Self::from_raw(this.packet)
        }
    }

    /// What it says so far of how it ends.
    pub fn status(&self) -> NtStatus {
        // SAFETY: ours (I1).
        unsafe { (*self.packet.as_ptr()).io_status.status }
    }

    /// Ends it with the status and the information that it has.
    pub fn complete_as_it_is<L: MayDoIo>(self, at: &mut Irql<L>) -> Handled<'c> {
        // SAFETY: ours (I1).
        let IoStatus { status, information, .. } = unsafe { (*self.packet.as_ptr()).io_status };
        self.complete(status, information, at)
    }

    /// Of a start of plug and play's: what the device has.
    pub fn start_resources(&self) -> Option<&super::pnp::resources::ResourceList> {
        use super::layout::pnp;
        if (self.major(), self.minor()) != (major::PNP, pnp::START_DEVICE) {
            return None;
        }
        // SAFETY: ours (I1), and so is its maker's list until it ends (pnp/manager.rs).
        unsafe {
            let [raw, ..] = (*packet::current(self.packet).as_ptr()).parameters;
            super::pnp::list_at(raw)
        }
    }

    /// Keeps it: `keep` has it from now on, and may have ended it when this returns.
    pub fn pend_with(self, keep: impl FnOnce(Pended)) -> Handled<'c> {
        // SAFETY: ours (I1), marked pending, and from now on that one's.
        self.pend(|packet| keep(unsafe { Pended::from_raw(packet) }))
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

    /// Its address, for who keeps it by that.
    pub(super) fn into_raw(self) -> NonNull<KIrp> {
        ManuallyDrop::new(self).packet
    }

    questions!();

    /// Ends it with a status and a number, mostly of bytes; threads that this wakes are boosted by `increment`.
    #[doc(alias = "IoCompleteRequest")]
    pub fn complete<L: MayDoIo>(self, status: NtStatus, information: usize, increment: u8, at: &mut Irql<L>) {
        self.end((status, information), increment, at);
    }
}

/// A packet that its device is busy with: its end starts the next one.
#[must_use = "a packet that is dropped never comes back to its maker"]
pub struct Started {
    packet: Pended,
    /// Which is busy with it.
    device: ObRef<KDeviceObject>,
}

impl Started {
    /// # Safety
    /// As [`Pended::from_raw`], by a StartIo routine that was called with it.
    pub(super) unsafe fn from_raw(packet: NonNull<KIrp>) -> Self {
        // SAFETY: the caller's; a location's device is there (device.rs, I4).
        unsafe {
            let device = NonNull::new_unchecked((*packet::current(packet).as_ptr()).device_object);
            Self { packet: Pended::from_raw(packet), device: ObRef::of_raw(device) }
        }
    }

    /// What it asks.
    pub fn request(&mut self) -> &mut Pended {
        &mut self.packet
    }

    /// Ends it, and starts the next one, if any waits.
    #[doc(alias = "IoStartNextPacket")]
    pub fn complete(self, status: NtStatus, information: usize, increment: u8, at: &mut Irql<Dispatch>) {
        let Self { packet, device } = self;
        packet.complete(status, information, increment, at);
        // SAFETY: once for each that was started, as this takes it by value. The device has a reference: the packet's end may have been
        // what kept it.
        unsafe { start_io::start_next_packet(device.as_ptr(), at) };
    }
}

impl Drop for Irp<'_> {
    fn drop(&mut self) {
        dropped(self.packet.addr().get());
    }
}

impl Drop for Pended {
    fn drop(&mut self) {
        dropped(self.packet.addr().get());
    }
}
