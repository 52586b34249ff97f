//! x86-64 mechanism: processor, traps, APIC, paging, context switch. No policy, no locks, no IRQL tokens.
//!
//! Two back ends stand behind one set of names:
//! - `x86_64` for `target_os = "none"`: the machine itself. IRQL is CR8.
//! - `hosted` for everything else: a processor is an OS thread and CR8 is that thread's own variable, so that the code
//!   above can be tested, model-checked (`cfg(loom)`) and interrupted at every point on a developer's machine.
//!
//! Reading order: [`service`] (the proof that an interrupt was retired), then `x86_64::trap` (the interrupt path that the
//! rest of the project is about), `pcr`, `tables`, `apic`, and what is left by need.
//!
//! This crate calls up through [`upcalls`] alone, a table that the kernel registers once at start.
#![cfg_attr(target_os = "none", no_std)]

pub mod frame;
pub mod msi;
pub mod redirection;
pub mod request;
pub mod service;
pub mod trace;
pub mod upcalls;

#[cfg(target_os = "none")]
mod x86_64;
#[cfg(target_os = "none")]
pub use x86_64::*;

#[cfg(not(target_os = "none"))]
mod hosted;
#[cfg(not(target_os = "none"))]
pub use hosted::*;

pub use upcalls::fatal_at;

/// Vectors with a fixed meaning. A vector's upper four bits are the IRQL at which it is delivered.
pub mod vector {
    /// Software interrupt that delivers kernel APCs (IRQL 1).
    pub const APC: u8 = 0x1F;
    /// Software interrupt that retires DPCs and switches threads (IRQL 2).
    pub const DISPATCH: u8 = 0x2F;
    /// First vector of device interrupts (IRQL 3).
    pub const DEVICE_FIRST: u8 = 0x30;
    /// Last vector of device interrupts (IRQL 11).
    pub const DEVICE_LAST: u8 = 0xBF;
    /// Clock (IRQL 13).
    pub const CLOCK: u8 = 0xD1;
    /// The shared clock needs an owner (IRQL 13).
    pub const CLOCK_OWNER: u8 = 0xD2;
    /// Inter-processor request (IRQL 14): calls, later TLB shootdown.
    pub const IPI: u8 = 0xE1;
    /// Local APIC error (IRQL 15).
    pub const APIC_ERROR: u8 = 0xFE;
    /// Spurious interrupt (IRQL 15): never in service, so never acknowledged.
    pub const SPURIOUS: u8 = 0xFF;
}

/// CR8 values that the mechanism itself needs; the typed levels are `sync::irql`'s.
pub mod level {
    /// Threads.
    pub const PASSIVE: u8 = 0;
    /// Kernel APCs.
    pub const APC: u8 = 1;
    /// DPCs and the scheduler.
    pub const DISPATCH: u8 = 2;
    /// Inter-processor interrupts.
    pub const IPI: u8 = 14;
    /// Everything maskable is masked.
    pub const HIGH: u8 = 15;
}
