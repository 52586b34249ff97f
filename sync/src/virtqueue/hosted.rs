//! A device's end of a queue, for models and host tests: as the specification wants devices to be.

use super::{Buffer, Element, NEXT, NO_INTERRUPT, NO_NOTIFY, Rings, WRITE};
use crate::prim::{Ordering, fence};

/// A device's end of a queue of `N` descriptors.
pub struct DeviceEnd {
    size: u16,
    seen: u16,
    used: u16,
}

impl DeviceEnd {
    /// Of an empty queue.
    pub fn new(size: u16) -> Self {
        Self { size, seen: 0, used: 0 }
    }

    /// The next chain's head.
    pub fn take<const N: usize>(&mut self, rings: &Rings<N>) -> Option<u16> {
        if rings.available.index.load(Ordering::Acquire) == self.seen {
            return None;
        }
        let slot = usize::from(self.seen & (self.size - 1));
        self.seen = self.seen.wrapping_add(1);
        Some(rings.available.ring[slot].load(Ordering::Relaxed))
    }

    /// The buffers of a chain.
    ///
    /// # Panics
    /// It has more than the queue has descriptors.
    pub fn chain<const N: usize>(&self, rings: &Rings<N>, head: u16) -> Vec<Buffer> {
        let (mut at, mut buffers) = (head, Vec::new());
        loop {
            assert!(buffers.len() < self.size.into(), "a chain without an end");
            let descriptor = &rings.descriptors[usize::from(at)];
            let flags = descriptor.flags.load(Ordering::Relaxed);
            buffers.push(Buffer {
                address: descriptor.address.load(Ordering::Relaxed),
                length: descriptor.length.load(Ordering::Relaxed),
                is_written: flags & WRITE != 0,
            });
            if flags & NEXT == 0 {
                return buffers;
            }
            at = descriptor.next.load(Ordering::Relaxed);
        }
    }

    /// Gives a chain back. True: the driver wants an interrupt.
    pub fn put<const N: usize>(&mut self, rings: &Rings<N>, head: u32, length: u32) -> bool {
        let Element { head: place, length: written } =
            &rings.used.ring[usize::from(self.used & (self.size - 1))];
        place.store(head, Ordering::Relaxed);
        written.store(length, Ordering::Relaxed);
        self.used = self.used.wrapping_add(1);
        rings.used.index.store(self.used, Ordering::Release);
        fence(Ordering::SeqCst);
        rings.available.flags.load(Ordering::Relaxed) & NO_INTERRUPT == 0
    }

    /// Says that it has used so many more than it has.
    pub fn lie<const N: usize>(&mut self, rings: &Rings<N>, more: u16) {
        self.used = self.used.wrapping_add(more);
        rings.used.index.store(self.used, Ordering::Release);
    }

    /// From now on it looks by itself.
    pub fn suppress_notifications<const N: usize>(&self, rings: &Rings<N>) {
        rings.used.flags.store(NO_NOTIFY, Ordering::Relaxed);
    }

    /// From now on it wants to be told. True: something is there already.
    #[must_use = "true: look again"]
    pub fn expect_notifications<const N: usize>(&self, rings: &Rings<N>) -> bool {
        rings.used.flags.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        rings.available.index.load(Ordering::Relaxed) != self.seen
    }
}
