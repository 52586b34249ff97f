//! The kernel proper: processors, exceptions, bugchecks, requests between processors, interrupts, deferred work, time.
//!
//! Reading order: `prcb` (what a processor has), `vectors` (who takes which interrupt), `dispatch` (what DISPATCH level does),
//! `dpc`, `clock` (how time is read), `tick` (when the clock interrupts), `timer`; then the rest.

#[cfg(target_os = "none")]
pub mod apc;
#[cfg(target_os = "none")]
pub mod backtrace;
pub mod bugcheck;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod dispatch;
#[cfg(target_os = "none")]
pub mod dpc;
#[cfg(target_os = "none")]
pub mod event;
#[cfg(target_os = "none")]
pub mod extended;
#[cfg(target_os = "none")]
pub mod freeze;
#[cfg(target_os = "none")]
pub mod gate;
#[cfg(target_os = "none")]
pub mod idle;
pub mod interrupt;
#[cfg(target_os = "none")]
pub mod ipi;
#[cfg(target_os = "none")]
pub mod mutant;
pub mod object;
#[cfg(target_os = "none")]
pub mod prcb;
#[cfg(target_os = "none")]
pub mod queue;
pub mod rate;
pub mod sched;
#[cfg(target_os = "none")]
pub mod semaphore;
#[cfg(target_os = "none")]
pub mod shared_data;
#[cfg(target_os = "none")]
pub mod thread;
#[cfg(target_os = "none")]
pub mod tick;
pub mod timer;
#[cfg(all(target_os = "none", feature = "verifier"))]
pub mod torment;
#[cfg(target_os = "none")]
pub mod trap;
#[cfg(target_os = "none")]
pub mod vectors;
pub mod wait;
pub mod watchdog;
