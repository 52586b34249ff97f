//! A virtio device's common part: reset, features, queues.
//!
//! IRQL:       any, one caller at a time but for [`VirtioDevice::notify`]; made and ended at PASSIVE.
//! Sources:    VIRTIO 1.2, "Device Initialization", "Common configuration structure layout".

use sync::irql::{Irql, Passive};

use super::transport::Transport;
use crate::io::pci::Function;
use crate::io::pci::registers::Registers;
use crate::ke::clock;
use crate::rtl::NtStatus;

mod register {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_VECTOR: usize = 16;
    pub(super) const QUEUES: usize = 18;
    pub(super) const STATUS: usize = 20;
    pub(super) const GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY: usize = 30;
    pub(super) const QUEUE_DESCRIPTORS: usize = 32;
    pub(super) const QUEUE_AVAILABLE: usize = 40;
    pub(super) const QUEUE_USED: usize = 48;
}

mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const FAILED: u8 = 128;
}

/// It is of version 1, and says so.
const VERSION_1: u64 = 1 << 32;
/// No vector.
const NO_VECTOR: u16 = 0xFFFF;
/// Microseconds that a reset may take. QEMU's is over when the write is.
const RESET_LIMIT: u64 = 100_000;

/// A queue's memory, as the device sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueMemory {
    /// Descriptors.
    pub(super) size: u16,
    /// Physical addresses: descriptors, available ring, used ring.
    pub(super) parts: [u64; 3],
}

/// See the module.
pub(super) struct VirtioDevice {
    transport: Transport,
    common: Registers,
    notify: Registers,
    specific: Registers,
}

impl VirtioDevice {
    /// Maps the device's registers, resets it, and agrees on the features of `wanted` that it has, which are returned.
    ///
    /// # Errors
    /// STATUS_NOT_SUPPORTED: it is none of version 1; STATUS_IO_DEVICE_ERROR: it doesn't answer; STATUS_INSUFFICIENT_RESOURCES. It is
    /// left failed or reset.
    pub(super) fn begin(
        function: &Function,
        wanted: u64,
        at: &mut Irql<Passive>,
    ) -> Result<(Self, u64), NtStatus> {
        let transport =
            Transport::find(&mut function.config(at), function.bars()).ok_or(NtStatus::NOT_SUPPORTED)?;
        let mut map = |part: super::transport::Part| {
            function.map(part.bar.into(), part.offset.into(), part.length.into(), at)
        };
        let common = map(transport.common)?;
        let notify = match map(transport.notify) {
            Ok(notify) => notify,
            Err(status) => {
                common.end(at);
                return Err(status);
            }
        };
        let specific = match map(transport.specific) {
            Ok(specific) => specific,
            Err(status) => {
                common.end(at);
                notify.end(at);
                return Err(status);
            }
        };
        let device = Self { transport, common, notify, specific };
        match device.negotiate(wanted) {
            Ok(features) => Ok((device, features)),
            Err(status) => {
                device.end(at);
                Err(status)
            }
        }
    }

    fn negotiate(&self, wanted: u64) -> Result<u64, NtStatus> {
        if !self.reset() {
            return Err(NtStatus::IO_DEVICE_ERROR);
        }
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.common.write32(register::DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(self.common.read32(register::DEVICE_FEATURE)) << (32 * half);
        }
        if offered & VERSION_1 == 0 {
            self.add_status(status::FAILED);
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let agreed = offered & (wanted | VERSION_1);
        for half in 0..2 {
            self.common.write32(register::DRIVER_FEATURE_SELECT, half);
            self.common.write32(register::DRIVER_FEATURE, (agreed >> (32 * half)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        if self.common.read8(register::STATUS) & status::FEATURES_OK == 0 {
            self.add_status(status::FAILED);
            return Err(NtStatus::NOT_SUPPORTED);
        }
        self.common.write16(register::CONFIG_VECTOR, NO_VECTOR);
        Ok(agreed)
    }

    fn add_status(&self, bit: u8) {
        let now = self.common.read8(register::STATUS);
        self.common.write8(register::STATUS, now | bit);
    }

    /// Resets it: once this returns true, it reads and writes no memory, and has no buffer. False: it doesn't say so, so it may.
    pub(super) fn reset(&self) -> bool {
        self.common.write8(register::STATUS, 0);
        let start = clock::since_start();
        loop {
            match self.common.read8(register::STATUS) {
                0 => return true,
                // All ones: it was pulled out, and reads nothing any more.
                0xFF => return true,
                _ if clock::since_start() - start > RESET_LIMIT => return false,
                _ => arch::cpu::spin_hint(),
            }
        }
    }

    /// How many queues it has.
    pub(super) fn queues(&self) -> u16 {
        self.common.read16(register::QUEUES)
    }

    /// The most descriptors that a queue can have; 0: there is no such queue.
    pub(super) fn queue_limit(&self, queue: u16) -> u16 {
        self.common.write16(register::QUEUE_SELECT, queue);
        self.common.read16(register::QUEUE_SIZE)
    }

    /// Gives a queue its memory and its message; returns where it is notified.
    ///
    /// # Errors
    /// STATUS_DEVICE_PROTOCOL_ERROR: it is notified where nothing is; STATUS_INSUFFICIENT_RESOURCES: the device has no room for the
    /// message.
    pub(super) fn enable_queue(
        &self,
        queue: u16,
        memory: QueueMemory,
        vector: u16,
    ) -> Result<usize, NtStatus> {
        self.common.write16(register::QUEUE_SELECT, queue);
        self.common.write16(register::QUEUE_SIZE, memory.size);
        let places = [register::QUEUE_DESCRIPTORS, register::QUEUE_AVAILABLE, register::QUEUE_USED];
        for (place, address) in places.into_iter().zip(memory.parts) {
            self.common.write32(place, address as u32);
            self.common.write32(place + 4, (address >> 32) as u32);
        }
        self.common.write16(register::QUEUE_VECTOR, vector);
        if self.common.read16(register::QUEUE_VECTOR) != vector {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let notify = self.common.read16(register::QUEUE_NOTIFY);
        let offset = self.transport.notify_offset(notify).ok_or(NtStatus::DEVICE_PROTOCOL_ERROR)?;
        self.common.write16(register::QUEUE_ENABLE, 1);
        Ok(offset)
    }

    /// From now on it works.
    pub(super) fn go(&self) {
        self.add_status(status::DRIVER_OK);
    }

    /// Tells it that `queue` has something new; `offset` is what [`enable_queue`](Self::enable_queue) returned.
    #[inline]
    pub(super) fn notify(&self, queue: u16, offset: usize) {
        self.notify.write16(offset, queue);
    }

    /// Words of what the kind of device has, read while the device didn't change them.
    pub(super) fn specific<const N: usize>(&self, offset: usize) -> [u32; N] {
        loop {
            let before = self.common.read8(register::GENERATION);
            let mut words = [0; N];
            for (index, word) in words.iter_mut().enumerate() {
                let place = offset + 4 * index;
                *word = if place + 4 <= self.specific.bytes() { self.specific.read32(place) } else { 0 };
            }
            if self.common.read8(register::GENERATION) == before {
                return words;
            }
        }
    }

    /// Gives its registers back.
    pub(super) fn end(self, at: &mut Irql<Passive>) {
        self.common.end(at);
        self.notify.end(at);
        self.specific.end(at);
    }
}
