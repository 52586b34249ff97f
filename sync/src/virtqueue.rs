//! A virtqueue: the two rings through which a driver and a virtio device, which is one more processor to it, hand each other buffers.
//!
//! ```text
//! driver                                          device
//! descriptors of a chain            (Relaxed)
//! available ring: the chain's head  (Relaxed)
//! available index + 1               (Release) ──► index (Acquire), head, descriptors, the driver's data
//! fence; used flags: wants to be told?            data; used ring: head and length
//!                                                 used index + 1 (Release)
//! used index (Acquire) ◄───────────────────────── fence; available flags: wants an interrupt?
//! head, length, the device's data; the chain is free
//! ```
//!
//! Who is about to sleep clears its flag, has a fence, and looks once more; who adds has a fence between that and its look at the other's
//! flag. So either the sleeper sees what was added, or the other one sees that it must be told.
//!
//! Owns:       the rings' layout ([`Rings`]), the driver's end. Not: which memory that is, how a device is told, locks.
//! IRQL:       any; a [`DriverEnd`] is one caller's at a time.
//! Invariants: I1 a descriptor is in the free list, or in one chain that the device has: `chained[head]` of them.
//!             I2 links are kept here as well: what the device writes is read for the head and the length of what it has used, and nothing
//!                else, and a head that it hasn't is [`Broken`]. So a device that lies can't have a chain freed twice, or make one endless.
//!             I3 `available - seen` chains are the device's, at most `size`.
//! Not as virtio: no event indices, no indirect descriptors, no packed ring: none is needed for what a queue carries here.
//! Tests:      tests/models/tests/virtqueue.rs; tests/props/tests/virtqueue.rs.
//! Sources:    OASIS, "Virtual I/O Device (VIRTIO) Version 1.2", "Split Virtqueues".

use core::mem::offset_of;

use crate::prim::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(target_os = "none"))]
pub mod hosted;

/// The chain goes on.
const NEXT: u16 = 1;
/// The device writes the buffer, instead of reading it.
const WRITE: u16 = 2;
/// Of the available ring's flags: no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Of the used ring's flags: no notifications.
const NO_NOTIFY: u16 = 1;

/// A descriptor as the device reads it.
#[repr(C)]
struct Descriptor {
    address: AtomicU64,
    length: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

/// The driver writes it.
#[repr(C)]
struct Available<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [AtomicU16; N],
    used_event: AtomicU16,
}

/// What the device has done with a chain.
#[repr(C)]
struct Element {
    head: AtomicU32,
    length: AtomicU32,
}

/// The device writes it.
#[repr(C)]
struct Used<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [Element; N],
    available_event: AtomicU16,
}

/// The memory that both share, of a queue of at most `N` descriptors. Zeroes are an empty one.
#[repr(C, align(16))]
pub struct Rings<const N: usize> {
    descriptors: [Descriptor; N],
    available: Available<N>,
    used: Used<N>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Descriptor>() == 16 && size_of::<Element>() == 8);
#[cfg(not(loom))]
const _: () = assert!(offset_of!(Rings<128>, used) % 4 == 0 && size_of::<Rings<128>>() <= 4096);

impl<const N: usize> Rings<N> {
    /// Where in it the available ring is.
    pub const AVAILABLE: usize = offset_of!(Self, available);
    /// Where in it the used ring is.
    pub const USED: usize = offset_of!(Self, used);

    /// An empty one, for hosts: the kernel's are zeroed pages.
    #[cfg(not(target_os = "none"))]
    pub fn new() -> Self {
        use core::array::from_fn;
        let half = |_| AtomicU16::new(0);
        Self {
            descriptors: from_fn(|_| Descriptor {
                address: AtomicU64::new(0),
                length: AtomicU32::new(0),
                flags: AtomicU16::new(0),
                next: AtomicU16::new(0),
            }),
            available: Available { flags: half(0), index: half(0), ring: from_fn(half), used_event: half(0) },
            used: Used {
                flags: half(0),
                index: half(0),
                ring: from_fn(|_| Element { head: AtomicU32::new(0), length: AtomicU32::new(0) }),
                available_event: half(0),
            },
        }
    }
}

#[cfg(not(target_os = "none"))]
impl<const N: usize> Default for Rings<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// A piece of memory of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where, as the device sees it.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// The device writes it.
    pub is_written: bool,
}

/// Too few descriptors are free for a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The device has used what it hasn't, or more than it has: nothing that it says is to be believed until it was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A chain that the device has used, and has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What [`DriverEnd::add`] returned.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// The driver's end of a queue.
pub struct DriverEnd<const N: usize> {
    /// Descriptors in use of the `N`: a power of two.
    size: u16,
    /// The first free one, and how many there are.
    free: (u16, u16),
    /// See I2.
    next: [u16; N],
    /// See I1; 0: no chain begins here.
    chained: [u16; N],
    /// Heads that were made available.
    available: u16,
    /// Used ones that were seen.
    seen: u16,
}

impl<const N: usize> DriverEnd<N> {
    /// Of an empty queue of `size` descriptors.
    ///
    /// # Panics
    /// It is no power of two up to `N`.
    pub const fn new(size: u16) -> Self {
        assert!(size.is_power_of_two() && size as usize <= N, "a size that a queue can have");
        let mut next = [0; N];
        let mut at = 0;
        while at + 1 < size {
            next[at as usize] = at + 1;
            at += 1;
        }
        Self { size, free: (0, size), next, chained: [0; N], available: 0, seen: 0 }
    }

    /// Descriptors that are free.
    pub const fn free(&self) -> u16 {
        self.free.1
    }

    /// The head that the next chain gets; nothing without a free descriptor.
    pub const fn next_head(&self) -> Option<u16> {
        if self.free.1 == 0 { None } else { Some(self.free.0) }
    }

    /// Chains that are the device's.
    pub const fn outstanding(&self) -> u16 {
        self.available.wrapping_sub(self.seen)
    }

    /// Makes a chain of buffers available, those that the device reads in front; returns its head. The device may be done with it at once.
    ///
    /// # Errors
    /// Nothing is changed then.
    ///
    /// # Panics
    /// There is no buffer.
    pub fn add(&mut self, rings: &Rings<N>, buffers: &[Buffer]) -> Result<u16, Full> {
        let (head, free) = self.free;
        assert!(!buffers.is_empty(), "a chain has a buffer");
        if buffers.len() > free.into() {
            return Err(Full);
        }
        let mut at = head;
        for (number, buffer) in buffers.iter().enumerate() {
            let descriptor = &rings.descriptors[usize::from(at)];
            let next = self.next[usize::from(at)];
            let goes_on = if number + 1 < buffers.len() { NEXT } else { 0 };
            let written = if buffer.is_written { WRITE } else { 0 };
            descriptor.address.store(buffer.address, Ordering::Relaxed);
            descriptor.length.store(buffer.length, Ordering::Relaxed);
            descriptor.flags.store(goes_on | written, Ordering::Relaxed);
            descriptor.next.store(next, Ordering::Relaxed);
            at = next;
        }
        self.free = (at, free - buffers.len() as u16);
        self.chained[usize::from(head)] = buffers.len() as u16;
        let slot = usize::from(self.available & (self.size - 1));
        rings.available.ring[slot].store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        // Release: the chain, and the driver's data, before the index that the device acquires.
        rings.available.index.store(self.available, Ordering::Release);
        Ok(head)
    }

    /// Is the device to be told of what was added?
    pub fn must_notify(&self, rings: &Rings<N>) -> bool {
        // Between the index and the look: the device has one between its flag and its look at the index.
        fence(Ordering::SeqCst);
        rings.used.flags.load(Ordering::Relaxed) & NO_NOTIFY == 0
    }

    /// The next chain that the device has used; its descriptors are free.
    ///
    /// # Errors
    /// The device is broken, and nothing is freed any more.
    pub fn take(&mut self, rings: &Rings<N>) -> Result<Option<Finished>, Broken> {
        // Acquire: what the device wrote before it raised the index.
        let index = rings.used.index.load(Ordering::Acquire);
        let left = index.wrapping_sub(self.seen);
        if left == 0 {
            return Ok(None);
        }
        if left > self.outstanding() {
            return Err(Broken);
        }
        let element = &rings.used.ring[usize::from(self.seen & (self.size - 1))];
        let head = element.head.load(Ordering::Relaxed);
        let length = element.length.load(Ordering::Relaxed);
        let count = self.chained.get(head as usize).copied().unwrap_or(0);
        if count == 0 {
            return Err(Broken);
        }
        let head = head as u16;
        self.chained[usize::from(head)] = 0;
        self.give_back(head, count);
        self.seen = self.seen.wrapping_add(1);
        Ok(Some(Finished { head, length }))
    }

    /// A chain's descriptors are free again (I1).
    fn give_back(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free.0;
        self.free = (head, self.free.1 + count);
    }

    /// From now on the device need not interrupt. It may all the same.
    pub fn suppress_interrupts(&self, rings: &Rings<N>) {
        rings.available.flags.store(NO_INTERRUPT, Ordering::Relaxed);
    }

    /// From now on the device interrupts for what it uses. True: it has used something already, and may not interrupt for that.
    #[must_use = "true: look again, or wait for ever"]
    pub fn expect_interrupts(&self, rings: &Rings<N>) -> bool {
        rings.available.flags.store(0, Ordering::Relaxed);
        // Between the flag and the look: the device has one between its index and its look at the flag.
        fence(Ordering::SeqCst);
        rings.used.index.load(Ordering::Relaxed) != self.seen
    }
}
