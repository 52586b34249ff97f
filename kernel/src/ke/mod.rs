//! The kernel proper: processors, exceptions, bugchecks, requests between processors, interrupts.

#[cfg(target_os = "none")]
pub mod backtrace;
pub mod bugcheck;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod freeze;
#[cfg(target_os = "none")]
pub mod idle;
#[cfg(target_os = "none")]
pub mod ipi;
#[cfg(target_os = "none")]
pub mod prcb;
#[cfg(target_os = "none")]
pub mod trap;
#[cfg(target_os = "none")]
pub mod vectors;
