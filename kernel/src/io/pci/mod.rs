//! PCI and PCI Express: what is plugged in, what it answers where, and its interrupts as messages.
//!
//! Reading order: `config` (a function's registers, by a trait), `header`, `capability`, `bar`, `walk`, `msi`: pure, and tested on a host
//! against spaces of random content. `access` (the machine's way to the registers), `bus` (a device for each function), `registers` and
//! `messages` (what its driver gets).
//!
//! Not here: who drives what (io::pnp). Resources are as the firmware gave them; nothing is moved.

#[cfg(target_os = "none")]
pub mod access;
pub mod bar;
#[cfg(target_os = "none")]
pub mod bus;
pub mod capability;
pub mod config;
pub mod header;
#[cfg(target_os = "none")]
pub mod messages;
pub mod msi;
#[cfg(target_os = "none")]
pub mod registers;
pub mod walk;

#[cfg(target_os = "none")]
pub use bus::Function;
