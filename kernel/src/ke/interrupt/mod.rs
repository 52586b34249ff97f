//! Interrupt objects: an ISR connected to a line or to messages, alone or in a chain.
//!
//! Reading order: `object` (what a driver has), `connection` (the same, owned), `chain` (what a vector runs, and why the EOI comes last), `routing` (whose a vector
//! is), `lines` (the I/O APICs); `wiring`, `allocator` and `storm` are pure and tested on the host.
//!
//! ```text
//! connect                              interrupt                          disconnect
//! routing::bind    vector, entry       stub: CR8 = vector >> 4, IF=1      routing::close    last: mask
//! chain publish    into a slot         chain: enter slot, lock, ISR       chain withdraw    wait for ISRs
//! routing::open    unmask              EOI (level: the line is seen again) routing::unbind   last: wait for EOI, free
//! ```
//!
//! Not here: DPCs that an ISR queues (ke::dpc); which line a PCI device has (its bus driver).

pub mod allocator;
#[cfg(target_os = "none")]
mod chain;
#[cfg(target_os = "none")]
mod connection;
#[cfg(target_os = "none")]
pub mod lines;
#[cfg(target_os = "none")]
mod object;
#[cfg(target_os = "none")]
mod routing;
pub mod storm;
pub mod wiring;

#[cfg(target_os = "none")]
pub(crate) use chain::init;
#[cfg(target_os = "none")]
pub use chain::{CHAIN_LIMIT, unclaimed_count};
#[cfg(target_os = "none")]
pub use connection::Connection;
#[cfg(target_os = "none")]
pub use object::{Claim, Interrupt, OwnInterrupt, ServiceRoutine};
#[cfg(target_os = "none")]
pub use routing::{ConnectError, Request, Route, Share, Source, reserve};
pub use wiring::Line;
