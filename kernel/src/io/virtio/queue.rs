//! A disk's queue: its rings, the packets that the device has, and those that wait for room.
//!
//! ```text
//! submit                                       ISR          DPC, on the processor that the message goes to
//! (lock) room, and nobody waits: a chain       queue DPC    (lock) chains that are used: their packets out; who waits goes in
//!        else behind those who wait                         completes them, without the lock
//! device is told, if it wants to be                         none left: interrupts on again, one more look
//! ```
//!
//! Owns:       [`Queue`]. Not: which packets are good (block.rs), the device's registers.
//! IRQL:       submit up to DISPATCH; finish at DISPATCH; made and ended at PASSIVE.
//! Locks:      the queue's, of rank `ObjectLock`. Packets are completed without it.
//! Invariants: I1 `packets[head]` is the packet of the chain that begins there, from its being made available to its being taken back.
//!             I2 a packet waits only while at least one chain is the device's, or `stopped` is set: so whoever ends chains lets it in.
//!             I3 the device reaches a packet's buffer, and a header, only while the chain is its: a stop resets it first.
//!             I4 `memory` is the rings' page and the headers' page behind it, until the drop.
//! Not as NT:  who waits for room isn't cancelled: those in front of it end.
//! Tests:      tests/models/tests/virtqueue.rs; selftest `disk::*`.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use arch::paging::PAGE;
use sync::SpinLock;
use sync::deferred::Entry as KDpc;
use sync::irql::{Device as DeviceLevel, Dispatch, Irql, ObjectLock, Passive};
use sync::virtqueue::{Buffer, DriverEnd, Rings};

use super::device::QueueMemory;
use crate::io::MayDoIo;
use crate::io::irp::Pended;
use crate::io::pended_list::PendedList;
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::ke::current_level::{above_dispatch, at_current_level};
use crate::ke::dpc;
use crate::ke::interrupt::Claim;
use crate::mm::contiguous::{self, Place};
use crate::mm::pool::{Owned, Tag};
use crate::rtl::NtStatus;

/// Descriptors of a queue, at most.
pub(super) const MOST: usize = 128;
/// Runs of a packet's buffer that go into one chain, beside header and status.
pub(super) const MOST_RUNS: usize = 32;
/// Packets that are completed between two holds of the lock.
const BATCH: usize = 8;
/// Batches before others at DISPATCH have their turn.
const BATCHES: usize = 16;

const TAG: Tag = Tag::new(b"VBlk");

/// What a chain asks for. virtio's VIRTIO_BLK_T numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// In front and behind a chain's data, by its head.
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
    rest: [u8; 15],
}

const STATUS: u64 = core::mem::offset_of!(Header, status) as u64;
const _: () = assert!(size_of::<Header>() == 32 && MOST * size_of::<Header>() <= PAGE as usize);

struct State {
    end: DriverEnd<MOST>,
    /// See I1.
    packets: [Option<(Pended, Kind)>; MOST],
    waiting: PendedList,
    /// What whoever comes is told, once the device is not asked any more.
    stopped: Option<NtStatus>,
    /// The device is told of chains, once it works.
    is_told: bool,
}

/// What a queue has done; stale at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the device has answered.
    pub completed: u64,
    /// Packets that waited for room.
    pub waited: u64,
}

/// What the queue needs of its disk: how the device is told.
pub(super) trait Doorbell: Sync {
    /// This queue has something new.
    fn ring(&self);
    /// The first sector of a packet that waits, and what it is.
    fn place(packet: &Pended) -> (Kind, u64);
    /// The device has said what can't be: it is to be stopped. At DISPATCH, without locks.
    fn broken(&self, at: &mut Irql<Dispatch>);
}

/// See the module. It stays where it is while its DPC may be queued.
pub(super) struct Queue<D> {
    dpc: KDpc,
    state: SpinLock<State, ObjectLock>,
    /// See I4.
    memory: NonNull<u8>,
    physical: u64,
    size: u16,
    /// The device's, while it works: set before its first interrupt.
    doorbell: AtomicPtr<D>,
    /// Packets that were completed, and packets that waited for room.
    completed: AtomicU64,
    waited: AtomicU64,
}

// SAFETY: what isn't atomic or under the lock is constant; the memory is shared with the device, by `Rings` and under the lock.
unsafe impl<D: Doorbell> Send for Queue<D> {}
// SAFETY: as above.
unsafe impl<D: Doorbell> Sync for Queue<D> {}

/// What a queue's ISR has.
pub(super) struct Vector(NonNull<KDpc>);

// SAFETY: the DPC may be queued anywhere.
unsafe impl Send for Vector {}

impl Vector {
    /// The ISR: the message is the queue's alone, so there is nothing to ask.
    pub(super) fn serve(&mut self, at: &mut Irql<DeviceLevel>) -> Claim {
        // SAFETY: 1. the queue stays until its message was disconnected and DPCs were flushed (block.rs). 2. the routine is `run` with the
        //         queue for its context. False: it is queued, and still has to look.
        let _ = unsafe { dpc::insert(self.0, [ptr::null_mut(); 2], at) };
        Claim::Claimed
    }
}

impl<D: Doorbell> Queue<D> {
    /// A queue of `size` descriptors, which the device doesn't know yet.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub(super) fn new(size: u16, at: &mut Irql<Passive>) -> Result<Owned<Self>, NtStatus> {
        const BYTES: u64 = 2 * PAGE;
        let refused = |_| NtStatus::INSUFFICIENT_RESOURCES;
        let memory = contiguous::allocate(BYTES, Place::ANYWHERE, at).map_err(refused)?;
        // SAFETY: just allocated.
        unsafe { memory.write_bytes(0, BYTES as usize) };
        let Some(physical) = contiguous::physical_address(memory) else {
            // Contiguous memory is mapped as long as it is somebody's.
            bugcheck(StopCode::MemoryManagement, [0x414, memory.addr().get() as u64, 0, 0]);
        };
        let queue = Self {
            dpc: KDpc::new(KDpc::ORDINARY, Self::run, ptr::null_mut()),
            state: SpinLock::new(State {
                end: DriverEnd::new(size),
                packets: [const { None }; MOST],
                waiting: PendedList::new(),
                stopped: None,
                is_told: false,
            }),
            memory,
            physical,
            size,
            doorbell: AtomicPtr::new(ptr::null_mut()),
            completed: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        };
        Owned::try_new(TAG, queue, at).map_err(|(error, _)| refused(error))
    }

    /// What the ISR needs.
    pub(super) fn vector(&self) -> Vector {
        Vector(NonNull::from(&self.dpc))
    }

    /// For the device.
    pub(super) fn device_memory(&self) -> QueueMemory {
        let rings = self.physical;
        let parts = [rings, rings + Rings::<MOST>::AVAILABLE as u64, rings + Rings::<MOST>::USED as u64];
        QueueMemory { size: self.size, parts }
    }

    /// The device works, and is told by `doorbell`.
    ///
    /// # Safety
    /// It stays until [`stop`](Self::stop) has returned and the DPC can't be queued any more.
    pub(super) unsafe fn go(&self, doorbell: NonNull<D>, at: &mut Irql<Passive>) {
        self.doorbell.store(doorbell.as_ptr(), Ordering::Release);
        self.state.lock(at).is_told = true;
    }

    fn doorbell(&self) -> Option<&D> {
        // SAFETY: null, or there (`go`).
        NonNull::new(self.doorbell.load(Ordering::Acquire)).map(|doorbell| unsafe { doorbell.as_ref() })
    }

    fn rings(&self) -> &Rings<MOST> {
        // SAFETY: I4: zeroed, which is empty rings, and aligned to a page; all of it is atomics.
        unsafe { self.memory.cast().as_ref() }
    }

    /// The header of a chain: its place, and how the device sees it.
    fn header(&self, head: u16) -> (NonNull<Header>, u64) {
        let offset = PAGE as usize + usize::from(head) * size_of::<Header>();
        // SAFETY: I4: within the headers' page, as a head is below `MOST`.
        (unsafe { self.memory.add(offset).cast() }, self.physical + offset as u64)
    }

    /// Hands a packet to the device, or has it wait for room. Where the device is stopped, the packet ends with that status.
    pub(super) fn submit<L: MayDoIo>(&self, packet: Pended, at: &mut Irql<L>) {
        let (refused, tell) = {
            let mut guard = self.state.lock(at);
            let state = &mut *guard;
            match state.stopped {
                Some(status) => (Some((packet, status)), false),
                None => {
                    let placed =
                        if state.waiting.is_empty() { self.place(state, packet) } else { Err(packet) };
                    if let Err(packet) = placed {
                        self.waited.fetch_add(1, Ordering::Relaxed);
                        state.waiting.push(packet);
                    }
                    (None, state.is_told && state.end.must_notify(self.rings()))
                }
            }
        };
        if tell && let Some(doorbell) = self.doorbell() {
            doorbell.ring();
        }
        if let Some((packet, status)) = refused {
            packet.complete(status, 0, 0, at);
        }
    }

    /// Makes a packet's chain available; or gives it back, if there is no room now.
    fn place(&self, state: &mut State, packet: Pended) -> Result<(), Pended> {
        let Some(head) = state.end.next_head() else { return Err(packet) };
        let (kind, sector) = D::place(&packet);
        let (header, device) = self.header(head);
        let mut buffers = [Buffer { address: 0, length: 0, is_written: false }; MOST_RUNS + 2];
        buffers[0] = Buffer { address: device, length: 16, is_written: false };
        let mut count = 1;
        if kind != Kind::Flush {
            for run in packet.runs().take(MOST_RUNS) {
                buffers[count] =
                    Buffer { address: run.address, length: run.bytes, is_written: kind == Kind::Read };
                count += 1;
            }
        }
        buffers[count] = Buffer { address: device + STATUS, length: 1, is_written: true };
        const NOTHING_YET: u8 = 0xFF;
        // SAFETY: the header of a head that is free: the device doesn't have it (I3).
        unsafe {
            header.write(Header {
                kind: kind as u32,
                reserved: 0,
                sector,
                status: NOTHING_YET,
                rest: [0; 15],
            });
        }
        if state.end.add(self.rings(), &buffers[..=count]).is_err() {
            return Err(packet);
        }
        state.packets[usize::from(head)] = Some((packet, kind));
        Ok(())
    }

    /// Ends what the device has used, and lets in who waits.
    fn finish(&self, at: &mut Irql<Dispatch>) {
        for _ in 0..BATCHES {
            let mut batch = [const { None }; BATCH];
            let (more, tell, broken) = self.collect(&mut batch, at);
            if tell && let Some(doorbell) = self.doorbell() {
                doorbell.ring();
            }
            for (packet, status, bytes) in batch.into_iter().flatten() {
                const DISK_INCREMENT: u8 = 1;
                self.completed.fetch_add(1, Ordering::Relaxed);
                packet.complete(status, bytes, DISK_INCREMENT, at);
            }
            if broken && let Some(doorbell) = self.doorbell() {
                return doorbell.broken(at);
            }
            if !more {
                return;
            }
        }
        // SAFETY: as in `serve`.
        let _ = unsafe { dpc::insert(NonNull::from(&self.dpc), [ptr::null_mut(); 2], at) };
    }

    /// Takes a batch of ended packets. Whether there may be more, whether the device is to be told, whether it is broken.
    fn collect(
        &self,
        batch: &mut [Option<(Pended, NtStatus, usize)>; BATCH],
        at: &mut Irql<Dispatch>,
    ) -> (bool, bool, bool) {
        let rings = self.rings();
        let mut guard = self.state.lock(at);
        let state = &mut *guard;
        if state.stopped.is_some() {
            return (false, false, false);
        }
        state.end.suppress_interrupts(rings);
        let mut more = true;
        for slot in batch.iter_mut() {
            match state.end.take(rings) {
                Ok(Some(finished)) => {
                    // I1. Without one the device's answer was for nothing, which `take` has refused.
                    let Some((packet, kind)) = state.packets[usize::from(finished.head)].take() else {
                        continue;
                    };
                    // SAFETY: the header is ours again: the Acquire of `take` comes behind the device's writes.
                    let status = unsafe {
                        (&raw const (*self.header(finished.head).0.as_ptr()).status).read_volatile()
                    };
                    *slot = Some(ended(packet, kind, status));
                }
                Ok(None) => {
                    more = state.end.expect_interrupts(rings);
                    break;
                }
                Err(_) => return (false, false, true),
            }
        }
        let mut added = false;
        while let Some(packet) = state.waiting.pop() {
            if let Err(packet) = self.place(state, packet) {
                state.waiting.push_front(packet);
                break;
            }
            added = true;
        }
        (more, added && state.end.must_notify(rings), false)
    }

    /// From now on packets end with `status`. Those that are here come out by [`drain`](Self::drain), once the device is reset.
    pub(super) fn stop<L: MayDoIo>(&self, status: NtStatus, at: &mut Irql<L>) {
        self.state.lock(at).stopped.get_or_insert(status);
    }

    /// Ends all packets that are here.
    ///
    /// # Safety
    /// The queue is stopped, and the device was reset behind that: it has no buffer any more (I3).
    pub(super) unsafe fn drain<L: MayDoIo>(&self, status: NtStatus, at: &mut Irql<L>) {
        for head in 0..MOST {
            let packet = self.state.lock(at).packets[head].take();
            if let Some((packet, _)) = packet {
                packet.complete(status, 0, 0, at);
            }
        }
        loop {
            let packet = self.state.lock(at).waiting.pop();
            let Some(packet) = packet else { break };
            packet.complete(status, 0, 0, at);
        }
    }

    /// Packets that it has completed, and those that waited for room.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            completed: self.completed.load(Ordering::Relaxed),
            waited: self.waited.load(Ordering::Relaxed),
        }
    }

    unsafe extern "win64" fn run(dpc: *mut KDpc, _: *mut c_void, _: *mut c_void, _: *mut c_void) {
        // SAFETY: 1. the DPC is a queue's field, and the queue stays until DPCs were flushed. 2. an ordinary DPC is at DISPATCH, and the
        //         retire loop's token isn't used meanwhile.
        unsafe {
            let queue = &*dpc.byte_sub(core::mem::offset_of!(Self, dpc)).cast::<Self>();
            Irql::<Dispatch>::lend(|at| queue.finish(at));
        }
    }
}

/// How a packet ended, by what the device says.
fn ended(packet: Pended, kind: Kind, status: u8) -> (Pended, NtStatus, usize) {
    const OK: u8 = 0;
    const UNSUPPORTED: u8 = 2;
    match status {
        OK => {
            let bytes = if kind == Kind::Flush { 0 } else { packet.read_write().length as usize };
            (packet, NtStatus::SUCCESS, bytes)
        }
        UNSUPPORTED => (packet, NtStatus::INVALID_DEVICE_REQUEST, 0),
        _ => (packet, NtStatus::IO_DEVICE_ERROR, 0),
    }
}

impl<D> Drop for Queue<D> {
    fn drop(&mut self) {
        // SAFETY: 1. I4, and nobody uses it any more: the device was reset, or never knew it. 2. whoever drops it has no token in use that
        //         a free could want; the level is that of the token.
        unsafe {
            at_current_level!(at => contiguous::free(self.memory, at), above => above_dispatch(above, 0))
        }
    }
}
