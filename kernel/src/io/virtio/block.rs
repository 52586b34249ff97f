//! The driver of virtio disks: a queue and a message for each processor, as far as there are.
//!
//! Owns:       the devices' states, which packets are good. Not: what happens to those (queue.rs).
//! IRQL:       packets up to DISPATCH; plug and play at PASSIVE.
//! Invariants: I1 `disk` is there from a successful start to the end of the rundown behind `end`; who uses it is protected by `running`.
//!             I2 a disk is ended in this order: nobody new comes in; no queue takes more; the device is reset; its messages are
//!                disconnected; DPCs have run; its packets end; its memory goes.
//! Not as NT:  a request of more than 32 runs of pages is refused, where NT's class driver would cut it up; no partitions.
//! Tests:      selftest `disk::*`.
//! Sources:    VIRTIO 1.2, "Block Device"; WDK, `IRP_MJ_READ`, `IRP_MJ_FLUSH_BUFFERS`.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use sync::InterruptLock;
use sync::irql::{DeviceLevel, Dispatch, Irql, Passive};

use super::device::VirtioDevice;
pub use super::queue::Counts;
use super::queue::{Doorbell, Kind, MOST, MOST_RUNS, Queue, Vector};
use super::transport::VENDOR;
use crate::ex::Rundown;
use crate::io::MayDoIo;
use crate::io::disk::{self, Geometry, SECTOR};
use crate::io::driver::Driver;
use crate::io::irp::{Handled, Irp, Pended};
use crate::io::layout::major;
use crate::io::objects::KDeviceObject;
use crate::io::pci::Function;
use crate::io::pci::header::Header;
use crate::io::pci::messages::{Message, Messages, Wanted};
use crate::io::pnp::function::{self, FunctionDriver, Removal};
use crate::io::pnp::resources::ResourceList;
use crate::ke::interrupt::OwnInterrupt;
use crate::ke::prcb;
use crate::ke::{dpc, ipi};
use crate::mm::pool::{Owned, Tag};
use crate::ob::ObRef;
use crate::rtl::NtStatus;

const TAG: Tag = Tag::new(b"VBlk");

/// The IRQL of its messages.
const LEVEL: DeviceLevel = DeviceLevel::new(7).unwrap();

/// Queues of a disk, at most: a level has 16 vectors, which two disks share.
const MOST_LANES: usize = 8;

/// Version 1's device id of a disk; that of one that can be driven by older drivers, too.
const IDS: [u16; 2] = [0x1042, 0x1001];

mod feature {
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const SEVERAL_QUEUES: u64 = 1 << 12;
}

/// The device's own registers.
mod register {
    pub(super) const CAPACITY: usize = 0;
    /// In its upper half.
    pub(super) const QUEUES: usize = 32;
}

/// A device's state.
pub struct VirtioDisk {
    physical: ObRef<KDeviceObject>,
    running: Rundown,
    /// See I1.
    disk: AtomicPtr<Disk>,
}

/// What a disk has while it is started.
struct Disk {
    device: VirtioDevice,
    features: u64,
    /// Sectors.
    capacity: u64,
    messages: Messages,
    /// The first `count` are there.
    lanes: [Option<Lane>; MOST_LANES],
    count: u32,
}

/// A queue with all that belongs to it.
struct Lane {
    queue: Owned<Queue<Bell>>,
    message: Message<Vector>,
    bell: Owned<Bell>,
}

/// How a queue tells its device.
struct Bell {
    disk: AtomicPtr<Disk>,
    queue: u16,
    offset: usize,
}

impl Bell {
    fn disk(&self) -> Option<&Disk> {
        // SAFETY: null, or the disk whose lane this is, which stays until its queues are stopped and DPCs have run (I2).
        NonNull::new(self.disk.load(Ordering::Acquire)).map(|disk| unsafe { disk.as_ref() })
    }
}

impl Doorbell for Bell {
    #[inline]
    fn ring(&self) {
        if let Some(disk) = self.disk() {
            disk.device.notify(self.queue, self.offset);
        }
    }

    fn place(packet: &Pended) -> (Kind, u64) {
        // It was looked at before it was handed over.
        let sector = packet.read_write().byte_offset as u64 / SECTOR;
        match packet.major() {
            major::READ => (Kind::Read, sector),
            major::WRITE => (Kind::Write, sector),
            _ => (Kind::Flush, 0),
        }
    }

    fn broken(&self, at: &mut Irql<Dispatch>) {
        crate::error!("virtio disk: queue {} has used what it hasn't; the device is stopped", self.queue);
        if let Some(disk) = self.disk() {
            // Where it isn't reset, nothing is given back before its end.
            let _ = disk.stop(NtStatus::DEVICE_PROTOCOL_ERROR, at);
        }
    }
}

impl Disk {
    /// Sets the device to work.
    ///
    /// # Errors
    /// Nothing is left.
    fn begin(function: &Function, at: &mut Irql<Passive>) -> Result<Owned<Self>, NtStatus> {
        // A queue names its message by the number in that table.
        if function.msix().is_none() {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let wanted = feature::READ_ONLY | feature::FLUSH | feature::SEVERAL_QUEUES;
        let (device, features) = VirtioDevice::begin(function, wanted, at)?;
        let messages = match Messages::begin(function, at) {
            Ok(messages) => messages,
            Err(status) => {
                device.reset();
                device.end(at);
                return Err(status);
            }
        };
        let [low, high] = device.specific(register::CAPACITY);
        let capacity = u64::from(low) | u64::from(high) << 32;
        let disk =
            Self { device, features, capacity, messages, lanes: [const { None }; MOST_LANES], count: 0 };
        let mut disk = match Owned::try_new(TAG, disk, at) {
            Ok(disk) => disk,
            Err((_, disk)) => {
                disk.end(at);
                return Err(NtStatus::INSUFFICIENT_RESOURCES);
            }
        };
        match disk.make_lanes(at) {
            Ok(()) => Ok(disk),
            Err(status) => {
                Self::end_owned(disk, at);
                Err(status)
            }
        }
    }

    /// A lane for each processor, as far as the device has queues and messages, and the machine vectors.
    fn make_lanes(&mut self, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let offered = if self.features & feature::SEVERAL_QUEUES != 0 {
            let [word] = self.device.specific(register::QUEUES);
            ((word >> 16) as u16).min(self.device.queues())
        } else {
            1
        };
        let most = (MOST_LANES as u32).min(prcb::count()) as u16;
        let wanted = offered.min(self.messages.count()).min(most).max(1);
        for queue in 0..wanted {
            match self.make_lane(queue, at) {
                Ok(lane) => {
                    self.lanes[usize::from(queue)] = Some(lane);
                    self.count += 1;
                }
                // With one it works.
                Err(_) if queue > 0 => break,
                Err(status) => return Err(status),
            }
        }
        self.device.go();
        let this = NonNull::from(&*self);
        for lane in self.lanes.iter().flatten() {
            lane.bell.disk.store(this.as_ptr(), Ordering::Release);
            // SAFETY: the bell goes with its lane, behind all of I2.
            unsafe { lane.queue.go(NonNull::from(&*lane.bell), at) };
        }
        Ok(())
    }

    fn make_lane(&self, number: u16, at: &mut Irql<Passive>) -> Result<Lane, NtStatus> {
        let size = self.device.queue_limit(number).min(MOST as u16);
        if size < MOST_RUNS as u16 + 2 {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        // A power of two, as the limit need not be.
        let size = 1 << size.ilog2();
        let queue = Queue::new(size, at)?;
        let bell = Bell { disk: AtomicPtr::new(ptr::null_mut()), queue: number, offset: 0 };
        let mut bell = Owned::try_new(TAG, bell, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        let object =
            OwnInterrupt::new(InterruptLock::new(LEVEL, queue.vector()), |vector, at| vector.serve(at));
        let object = Owned::try_new(TAG, object, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        let own = 1 << (u32::from(number) % prcb::count());
        let wanted = |affinity| Wanted { level: LEVEL, affinity };
        let message = match self.messages.connect(object, wanted(own), at) {
            Ok(message) => message,
            // A processor that no message can name.
            Err((_, object)) => {
                self.messages.connect(object, wanted(ipi::online()), at).map_err(|(status, _)| status)?
            }
        };
        match self.device.enable_queue(number, queue.device_memory(), message.index()) {
            Ok(offset) => {
                bell.offset = offset;
                Ok(Lane { queue, message, bell })
            }
            Err(status) => {
                drop(self.messages.disconnect(message, at));
                // A late interrupt of who had the vector before may have queued it, though this device never sent one.
                dpc::flush(at);
                Err(status)
            }
        }
    }

    /// The lane of this processor.
    fn lane(&self) -> Option<&Lane> {
        self.lanes[(arch::cpu::number() % self.count.max(1)) as usize].as_ref()
    }

    /// Everything that was asked of it ends with `status`, and so does what comes. False: the device doesn't say that it is reset, so it
    /// may still write: its packets don't end.
    fn stop<L: MayDoIo>(&self, status: NtStatus, at: &mut Irql<L>) -> bool {
        let lanes = || self.lanes.iter().flatten();
        lanes().for_each(|lane| lane.queue.stop(status, at));
        if !self.device.reset() {
            crate::error!("virtio disk: it is not reset; what it was asked for does not end");
            return false;
        }
        // SAFETY: stopped, and reset behind that.
        lanes().for_each(|lane| unsafe { lane.queue.drain(status, at) });
        true
    }

    /// See I2, from the second step on. Nobody submits any more.
    fn end_owned(mut disk: Owned<Self>, at: &mut Irql<Passive>) {
        let is_quiet = disk.stop(NtStatus::DEVICE_DOES_NOT_EXIST, at);
        // A DPC that looked before the stop may still be at the disk, or queue itself once more: behind this none does either.
        dpc::flush(at);
        let mut kept = [const { None }; MOST_LANES];
        let Self { lanes, messages, .. } = &mut *disk;
        for (lane, place) in lanes.iter_mut().zip(&mut kept) {
            *place = lane.take().map(|Lane { queue, message, bell }| {
                drop(messages.disconnect(message, at));
                (queue, bell)
            });
        }
        // What an ISR has queued before its message was disconnected.
        dpc::flush(at);
        if is_quiet {
            drop(kept);
        } else {
            // What the device may still write stays its own, for ever.
            core::mem::forget(kept);
        }
        disk.into_inner(at).end(at);
    }

    /// Without lanes.
    fn end(self, at: &mut Irql<Passive>) {
        self.device.reset();
        self.messages.end(at);
        self.device.end(at);
    }
}

impl VirtioDisk {
    /// Protects what is there, if it is, for as long as `f` runs.
    fn with_disk<L: MayDoIo, R>(
        &self,
        at: &mut Irql<L>,
        f: impl FnOnce(Option<&Disk>, &mut Irql<L>) -> R,
    ) -> R {
        if !self.running.acquire() {
            return f(None, at);
        }
        // SAFETY: null, or there as long as it is protected (I1).
        let disk = NonNull::new(self.disk.load(Ordering::Acquire)).map(|disk| unsafe { disk.as_ref() });
        let result = f(disk, at);
        // SAFETY: acquired above.
        unsafe { self.running.release(at) };
        result
    }

    fn transfer<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        self.with_disk(at, |disk, at| {
            let Some(disk) = disk else { return irp.complete(NtStatus::DEVICE_DOES_NOT_EXIST, 0, at) };
            let parameters = irp.read_write();
            let Some((_, count)) = disk::sectors(parameters.length, parameters.byte_offset, disk.capacity)
            else {
                return irp.complete(NtStatus::INVALID_PARAMETER, 0, at);
            };
            if irp.major() == major::WRITE && disk.features & feature::READ_ONLY != 0 {
                return irp.complete(NtStatus::MEDIA_WRITE_PROTECTED, 0, at);
            }
            if count == 0 {
                return irp.complete(NtStatus::SUCCESS, 0, at);
            }
            let mut runs = irp.runs();
            let bytes: u64 = runs.by_ref().take(MOST_RUNS).map(|run| u64::from(run.bytes)).sum();
            if bytes != parameters.length.into() {
                // No list, a short one, or one of too many runs.
                let status = if runs.next().is_some() {
                    NtStatus::INVALID_BUFFER_SIZE
                } else {
                    NtStatus::INVALID_PARAMETER
                };
                return irp.complete(status, 0, at);
            }
            submit(disk, irp, at)
        })
    }

    fn control<'c, L: MayDoIo>(&self, mut irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        self.with_disk(at, |disk, at| {
            let Some(disk) = disk else { return irp.complete(NtStatus::DEVICE_DOES_NOT_EXIST, 0, at) };
            let answered = match irp.device_control().code {
                disk::IOCTL_DISK_GET_LENGTH_INFO => {
                    disk::answer(&mut irp, &(disk.capacity * SECTOR).to_le_bytes())
                }
                disk::IOCTL_DISK_GET_DRIVE_GEOMETRY => {
                    disk::answer(&mut irp, &Geometry::of(disk.capacity).bytes())
                }
                _ => Err(NtStatus::INVALID_DEVICE_REQUEST),
            };
            match answered {
                Ok(bytes) => irp.complete(NtStatus::SUCCESS, bytes, at),
                Err(status) => irp.complete(status, 0, at),
            }
        })
    }

    /// What each queue has done, by queue; how many queues there are.
    pub fn counts<L: MayDoIo>(&self, counts: &mut [Counts], at: &mut Irql<L>) -> usize {
        self.with_disk(at, |disk, _| {
            let Some(disk) = disk else { return 0 };
            for (count, lane) in counts.iter_mut().zip(disk.lanes.iter().flatten()) {
                *count = lane.queue.counts();
            }
            disk.count as usize
        })
    }
}

fn submit<'c, L: MayDoIo>(disk: &Disk, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
    match disk.lane() {
        Some(lane) => irp.pend_with(|packet| lane.queue.submit(packet, at)),
        None => irp.complete(NtStatus::DEVICE_NOT_READY, 0, at),
    }
}

impl Driver for VirtioDisk {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::READ | major::WRITE => self.transfer(irp, at),
            major::FLUSH_BUFFERS => self.with_disk(at, |disk, at| match disk {
                Some(disk) if disk.features & feature::FLUSH != 0 => submit(disk, irp, at),
                Some(_) => irp.complete(NtStatus::SUCCESS, 0, at),
                None => irp.complete(NtStatus::DEVICE_DOES_NOT_EXIST, 0, at),
            }),
            major::DEVICE_CONTROL => self.control(irp, at),
            major::CREATE | major::CLEANUP | major::CLOSE => irp.complete(NtStatus::SUCCESS, 0, at),
            _ => irp.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, at),
        }
    }

    fn pnp<'c>(&self, irp: Irp<'c>, at: &mut Irql<Passive>) -> Handled<'c> {
        function::handle(self, irp, at)
    }
}

impl FunctionDriver for VirtioDisk {
    fn is_for(header: &Header) -> bool {
        header.vendor == VENDOR && IDS.contains(&header.device)
    }

    fn new(physical: ObRef<KDeviceObject>) -> Self {
        Self { physical, running: Rundown::new(), disk: AtomicPtr::new(ptr::null_mut()) }
    }

    fn start(&self, _: &ResourceList, at: &mut Irql<Passive>) -> NtStatus {
        let Some(function) = Function::of(&self.physical) else { return NtStatus::NO_SUCH_DEVICE };
        match Disk::begin(function, at) {
            Ok(disk) => {
                let (sectors, queues) = (disk.capacity, disk.count);
                crate::info!("disk: {} KiB, {queues} queues, pci {}", sectors / 2, function.address());
                self.disk.store(disk.into_raw().as_ptr(), Ordering::Release);
                NtStatus::SUCCESS
            }
            Err(status) => status,
        }
    }

    fn end(&self, _: Removal, at: &mut Irql<Passive>) {
        // Who is in the middle of a submit comes out; who comes finds nothing.
        self.running.wait(at);
        let disk = self.disk.swap(ptr::null_mut(), Ordering::Acquire);
        if let Some(disk) = NonNull::new(disk) {
            // SAFETY: from `into_raw`, once, with its tag; nobody is protected any more (I1).
            Disk::end_owned(unsafe { Owned::from_raw(disk, TAG) }, at);
        }
    }
}
