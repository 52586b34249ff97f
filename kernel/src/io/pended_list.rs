//! Packets that a driver keeps, first in, first out, linked through themselves: under a lock of the driver's, without memory.
//!
//! IRQL:       any, as the driver's lock has it.
//! Invariants: I1 a packet in the list is the list's; its `list_entry.next` is the next one's address, or null.

use core::ptr::{self, NonNull};

use super::irp::Pended;
use super::layout::KIrp;
use super::violation;

/// See the module.
pub struct PendedList {
    first: *mut KIrp,
    last: *mut KIrp,
}

// SAFETY: it owns its packets, which are their owner's whichever thread that runs in.
unsafe impl Send for PendedList {}

impl PendedList {
    /// Without packets.
    pub const fn new() -> Self {
        Self { first: ptr::null_mut(), last: ptr::null_mut() }
    }

    /// Has it none?
    pub const fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Adds one behind all.
    pub fn push(&mut self, packet: Pended) {
        let packet = packet.into_raw().as_ptr();
        // SAFETY: the packet is ours from here on, and so is the last one (I1).
        unsafe {
            (*packet).list_entry.next = ptr::null_mut();
            if self.last.is_null() {
                self.first = packet;
            } else {
                (*self.last).list_entry.next = packet.cast();
            }
        }
        self.last = packet;
    }

    /// Takes the first one out.
    pub fn pop(&mut self) -> Option<Pended> {
        let packet = NonNull::new(self.first)?;
        // SAFETY: ours (I1), and no more.
        unsafe {
            self.first = (*packet.as_ptr()).list_entry.next.cast();
            if self.first.is_null() {
                self.last = ptr::null_mut();
            }
            Some(Pended::from_raw(packet))
        }
    }

    /// Puts one in front of all.
    pub fn push_front(&mut self, packet: Pended) {
        let packet = packet.into_raw().as_ptr();
        // SAFETY: the packet is ours from here on.
        unsafe { (*packet).list_entry.next = self.first.cast() };
        if self.first.is_null() {
            self.last = packet;
        }
        self.first = packet;
    }
}

impl Default for PendedList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PendedList {
    /// With packets in it: as a packet that was dropped.
    fn drop(&mut self) {
        if !self.is_empty() {
            violation::dropped(self.first.addr());
        }
    }
}
