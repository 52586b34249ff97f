//! Where a virtio device's registers are: its vendor-specific capabilities say in which range, and where there. Pure.
//!
//! Tests:      tests/props/tests/pci.rs.
//! Sources:    VIRTIO 1.2, "Virtio Structure PCI Capabilities".

use crate::io::pci::bar::{Bars, Space};
use crate::io::pci::capability::{capabilities, id};
use crate::io::pci::config::Config;

/// Who all of them are from.
pub const VENDOR: u16 = 0x1AF4;

/// Bytes of the common registers that are used.
pub const COMMON_BYTES: u32 = 56;

/// A part of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The range's register.
    pub bar: u8,
    /// Where in it.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// All of them that a driver needs, each within its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Status, features, queues.
    pub common: Part,
    /// Where the device is told of queues.
    pub notify: Part,
    /// From one queue's register there to the next one's.
    pub notify_multiplier: u32,
    /// What the kind of device has.
    pub specific: Part,
}

impl Transport {
    /// A function's; `None`: a part is missing or lies where it can't, so it is none of version 1.
    pub fn find(config: &mut impl Config, bars: &Bars) -> Option<Self> {
        const COMMON: u8 = 1;
        const NOTIFY: u8 = 2;
        const SPECIFIC: u8 = 4;
        /// A capability of each kind may be there twice: the first one is the device's preference.
        fn first<T>(slot: &mut Option<T>, found: Option<T>) {
            if slot.is_none() {
                *slot = found;
            }
        }
        let (mut common, mut notify, mut specific) = (None, None, None);
        // An iterator borrows the configuration, so each look begins anew; a list has 48 at most.
        for number in 0..48 {
            let Some(found) = capabilities(&mut *config).nth(number) else { break };
            if found.id != u16::from(id::VENDOR) || found.at + 20 > 0x100 {
                continue;
            }
            let kind = config.read8(found.at + 3);
            let part = part_at(config, found.at, bars);
            match kind {
                COMMON => first(&mut common, part.filter(|part| part.length >= COMMON_BYTES)),
                NOTIFY => {
                    let multiplier = config.read(found.at + 16);
                    first(&mut notify, part.filter(|part| part.length >= 2).map(|part| (part, multiplier)));
                }
                SPECIFIC => first(&mut specific, part),
                _ => {}
            }
        }
        let (notify, notify_multiplier) = notify?;
        Some(Self { common: common?, notify, notify_multiplier, specific: specific? })
    }

    /// Where in the part for it a queue is notified, by what the device says of the queue; `None`: outside.
    pub fn notify_offset(&self, queue: u16) -> Option<usize> {
        let offset = u32::from(queue).checked_mul(self.notify_multiplier)?;
        let is_in = offset.is_multiple_of(2) && offset.checked_add(2)? <= self.notify.length;
        is_in.then_some(offset as usize)
    }
}

/// What a capability says, if it lies within a range of memory, aligned to 4.
fn part_at(config: &mut impl Config, at: u16, bars: &Bars) -> Option<Part> {
    let bar = config.read8(at + 4);
    let part = Part { bar, offset: config.read(at + 8), length: config.read(at + 12) };
    let range = bars.get(usize::from(bar)).copied().flatten()?;
    let end = u64::from(part.offset) + u64::from(part.length);
    let fits = matches!(range.space, Space::Memory { .. }) && part.length > 0 && end <= range.length;
    (fits && part.offset.is_multiple_of(4)).then_some(part)
}
