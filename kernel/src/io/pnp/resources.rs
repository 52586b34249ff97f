//! What a device has of the machine, as IRP_MN_START_DEVICE tells it: NT's CM_RESOURCE_LIST of one bus, with a bound.
//!
//! Owns:       the layout, and arithmetic on it.
//! Invariants: I1 the first `count` descriptors are written, each with one of the types here.
//! Not as NT:  raw and translated lists are the same: bus addresses are the processor's here. A message descriptor says how many there
//!             are, and no vector: that is found when one is connected.
//! Sources:    WDK `wdm.h`, CM_RESOURCE_LIST, CM_PARTIAL_RESOURCE_DESCRIPTOR.

use core::mem::offset_of;

/// NT's CM_PARTIAL_RESOURCE_DESCRIPTOR: 20 bytes, aligned to 4.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "CM_PARTIAL_RESOURCE_DESCRIPTOR")]
pub struct KResourceDescriptor {
    /// Of [`kind`].
    pub kind: u8,
    /// Of who may use it beside: 1 is the device alone.
    pub share_disposition: u8,
    /// By the type.
    pub flags: u16,
    /// Of ports and memory: where, the lower half first. Of messages: group and count, vector.
    pub start: [u32; 2],
    /// Of ports and memory: bytes. Of messages: the lower half of the affinity.
    pub length: u32,
    /// Of messages: the upper half.
    pub rest: u32,
}

const _: () = assert!(size_of::<KResourceDescriptor>() == 20 && offset_of!(KResourceDescriptor, start) == 4);

/// Values of `kind`, NT's CmResourceType numbers.
pub mod kind {
    /// Ports.
    pub const PORT: u8 = 1;
    /// A line, or messages.
    pub const INTERRUPT: u8 = 2;
    /// Memory.
    pub const MEMORY: u8 = 3;
    /// Memory of more than 4 GiB: lengths in units.
    pub const MEMORY_LARGE: u8 = 7;
}

/// Values of `flags`, NT's.
pub mod flags {
    /// Ports, not memory.
    pub const PORT_IO: u16 = 0x0001;
    /// Reading changes nothing.
    pub const MEMORY_PREFETCHABLE: u16 = 0x0004;
    /// `length` is in units of 256 bytes.
    pub const MEMORY_LARGE_40: u16 = 0x0200;
    /// `length` is in units of 64 KiB.
    pub const MEMORY_LARGE_48: u16 = 0x0400;
    /// `length` is in units of 4 GiB.
    pub const MEMORY_LARGE_64: u16 = 0x0800;
    /// Latched.
    pub const INTERRUPT_LATCHED: u16 = 0x0001;
    /// Messages, not a line.
    pub const INTERRUPT_MESSAGE: u16 = 0x0002;
}

/// A resource as Rust has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Ports.
    Port {
        /// The first.
        start: u64,
        /// How many.
        length: u64,
    },
    /// Memory.
    Memory {
        /// Physical address.
        start: u64,
        /// Bytes.
        length: u64,
        /// Reading changes nothing.
        is_prefetchable: bool,
    },
    /// Messages.
    Messages {
        /// How many the device can send.
        count: u16,
    },
}

/// Descriptors that a list has room for: six ranges and an interrupt.
pub const MOST: usize = 7;

/// NT's CM_RESOURCE_LIST of one CM_FULL_RESOURCE_DESCRIPTOR.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "CM_RESOURCE_LIST")]
pub struct ResourceList {
    /// Full descriptors: 1.
    lists: u32,
    /// INTERFACE_TYPE: PCIBus.
    interface: u32,
    bus: u32,
    version: u16,
    revision: u16,
    /// See I1.
    count: u32,
    descriptors: [KResourceDescriptor; MOST],
}

const _: () =
    assert!(offset_of!(ResourceList, interface) == 4 && offset_of!(ResourceList, descriptors) == 20);

// No member of the union has its last four bytes alone: they are named as the element behind an array's last.
sync::nt_layout! {
    [] KResourceDescriptor = "CM_PARTIAL_RESOURCE_DESCRIPTOR" {
        kind => "Type", share_disposition => "ShareDisposition", flags => "Flags", start => "u.Memory.Start",
        length => "u.Memory.Length", rest => "u.DevicePrivate.Data[3]",
    }
}

impl ResourceList {
    /// An empty one, of a PCI bus.
    pub const fn new(bus: u32) -> Self {
        const PCI_BUS: u32 = 5;
        let none = KResourceDescriptor {
            kind: 0,
            share_disposition: 0,
            flags: 0,
            start: [0; 2],
            length: 0,
            rest: 0,
        };
        let (version, revision) = (1, 1);
        Self { lists: 1, interface: PCI_BUS, bus, version, revision, count: 0, descriptors: [none; MOST] }
    }

    /// Adds one; false: there is no room.
    pub fn push(&mut self, resource: Resource) -> bool {
        let Some(slot) = self.descriptors.get_mut(self.count as usize) else { return false };
        *slot = KResourceDescriptor::of(resource);
        self.count += 1;
        true
    }

    /// NT's descriptors.
    pub fn descriptors(&self) -> &[KResourceDescriptor] {
        &self.descriptors[..(self.count as usize).min(MOST)]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Resource> + '_ {
        self.descriptors().iter().filter_map(KResourceDescriptor::resource)
    }
}

impl KResourceDescriptor {
    const DEVICE_EXCLUSIVE: u8 = 1;

    fn of(resource: Resource) -> Self {
        let (kind, flags, start, length, rest) = match resource {
            Resource::Port { start, length } => (kind::PORT, flags::PORT_IO, start, length as u32, 0),
            Resource::Memory { start, length, is_prefetchable } => {
                let prefetchable = if is_prefetchable { flags::MEMORY_PREFETCHABLE } else { 0 };
                let (kind, large, length) = units(length);
                (kind, prefetchable | large, start, length, 0)
            }
            // Group in the lowest 16 bits, the count behind, the vector above; any processor.
            Resource::Messages { count } => (
                kind::INTERRUPT,
                flags::INTERRUPT_LATCHED | flags::INTERRUPT_MESSAGE,
                u64::from(count) << 16,
                u32::MAX,
                u32::MAX,
            ),
        };
        let start = [start as u32, (start >> 32) as u32];
        Self { kind, share_disposition: Self::DEVICE_EXCLUSIVE, flags, start, length, rest }
    }

    fn resource(&self) -> Option<Resource> {
        let Self { kind, flags, start: [low, high], length, .. } = *self;
        let start = u64::from(low) | u64::from(high) << 32;
        let is_prefetchable = flags & flags::MEMORY_PREFETCHABLE != 0;
        match kind {
            kind::PORT => Some(Resource::Port { start, length: length.into() }),
            kind::MEMORY => Some(Resource::Memory { start, length: length.into(), is_prefetchable }),
            kind::MEMORY_LARGE => {
                let shift = match flags
                    & (flags::MEMORY_LARGE_40 | flags::MEMORY_LARGE_48 | flags::MEMORY_LARGE_64)
                {
                    flags::MEMORY_LARGE_40 => 8,
                    flags::MEMORY_LARGE_48 => 16,
                    flags::MEMORY_LARGE_64 => 32,
                    _ => return None,
                };
                Some(Resource::Memory { start, length: u64::from(length) << shift, is_prefetchable })
            }
            kind::INTERRUPT if flags & flags::INTERRUPT_MESSAGE != 0 => {
                Some(Resource::Messages { count: (low >> 16) as u16 })
            }
            _ => None,
        }
    }
}

/// A length of memory as NT has it: type, flag, number of units. Lengths are powers of two, so none is lost.
fn units(length: u64) -> (u8, u16, u32) {
    let in_units = |shift: u32| u32::try_from(length >> shift).ok();
    if let Some(bytes) = in_units(0) {
        (kind::MEMORY, 0, bytes)
    } else if let Some(units) = in_units(8) {
        (kind::MEMORY_LARGE, flags::MEMORY_LARGE_40, units)
    } else if let Some(units) = in_units(16) {
        (kind::MEMORY_LARGE, flags::MEMORY_LARGE_48, units)
    } else {
        (kind::MEMORY_LARGE, flags::MEMORY_LARGE_64, (length >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        let all = [
            Resource::Port { start: 0xC000, length: 32 },
            Resource::Memory { start: 0xFEBD_0000, length: 4096, is_prefetchable: false },
            Resource::Memory { start: 0x38_0000_0000, length: 1 << 32, is_prefetchable: true },
            Resource::Memory { start: 1 << 41, length: 1 << 41, is_prefetchable: true },
            Resource::Memory { start: 1 << 50, length: 1 << 50, is_prefetchable: false },
            Resource::Messages { count: 5 },
        ];
        let mut list = ResourceList::new(3);
        assert!(all.iter().all(|&resource| list.push(resource)));
        assert!(list.iter().eq(all));
        assert!(list.push(all[0]) && !list.push(all[0]), "there is room for seven");
        assert_eq!(list.descriptors()[5].start, [5 << 16, 0]);
    }
}
