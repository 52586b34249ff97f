//! Plug and play: which driver drives which device, and the order in which devices come and go.
//!
//! Reading order: `state` (what may be done when, pure), `resources` (what a device is told that it has), `function` (a driver's part). Here
//! is the manager: it has a node for each device that a bus has found, and sends the requests.
//!
//! Owns:       the nodes, the drivers that were installed.
//! IRQL:       PASSIVE.
//! Locks:      `TURN`: one device changes at a time, as on NT; `NODES`, of rank `ObjectLock`, for a look.
//! Invariants: I1 a node's state and its driver's device change only in a turn.
//!             I2 a node has a driver's device exactly in the states behind `Found`.
//! Not as NT:  a driver says itself what it is for, where NT has ids and a registry. A driver's device is deleted here, and not by the driver,
//!             behind its REMOVE_DEVICE. Nothing is rebalanced, so nothing is stopped. A bus tells of what it finds at the
//!             start, and never again.
//! Tests:      unit tests of `state`, `resources`; selftest `pci::*`, `disk::*`.
//! Sources:    WDK, "Adding a PnP Device to a Running System", "Removing a Device in a Function Driver", "Handling an
//!             IRP_MN_SURPRISE_REMOVAL Request".

#[cfg(target_os = "none")]
pub mod function;
#[cfg(target_os = "none")]
mod manager;
pub mod resources;
pub mod state;

#[cfg(target_os = "none")]
pub(super) use manager::list_at;
#[cfg(target_os = "none")]
pub use manager::{
    Device, cancel_remove, devices, install, query_remove, remove, start, start_device, surprise_remove,
    uninstall,
};
