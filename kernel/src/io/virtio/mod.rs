//! virtio devices on PCI, of version 1 and later.
//!
//! Reading order: `transport` (where its registers are, pure), `device` (reset, features, queues), `queue` (a queue's memory and packets),
//! `block` (the disk's driver). The rings themselves: `sync::virtqueue`.
//!
//! Sources: OASIS, "Virtual I/O Device (VIRTIO) Version 1.2".

#[cfg(target_os = "none")]
pub mod block;
#[cfg(target_os = "none")]
mod device;
#[cfg(target_os = "none")]
mod queue;
pub mod transport;
