//! The machine: what is here calls up through [`crate::upcalls`] and takes no lock.
//!
//! Reading order: [`trap`] with [`pcr`] and [`tables`], [`irql`], [`apic`], then [`cpu`], [`clock`], [`paging`], [`switch`],
//! [`extended`], [`entry`], [`user`], [`serial`].

pub mod apic;
pub mod aside;
pub mod breakpoint;
pub mod clock;
pub mod cpu;
pub mod debugger;
pub mod entry;
pub mod exit;
pub mod extended;
pub mod ioapic;
pub mod irql;
pub mod paging;
pub mod pci;
pub mod pcr;
pub(crate) mod ring;
pub mod serial;
pub mod switch;
pub mod tables;
pub mod trap;
pub mod user;

pub use crate::upcalls::fatal;
