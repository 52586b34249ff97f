//! The kernel proper: processors, exceptions, bugchecks, requests between processors, interrupts, deferred work, time.
//!
//! Reading order: `prcb` (what a processor has), `vectors` (who takes which interrupt), `dispatch` (what DISPATCH level does),
//! `dpc`, `clock` (how time is read), `tick` (when the clock interrupts), `timer`; then the rest. On a host `hosted` stands in for what
//! needs a machine, so that dispatcher objects and waits run there as they ship.

#[cfg(all(target_os = "none", feature = "verifier"))]
pub mod aim;
#[cfg(target_os = "none")]
pub mod apc;
#[cfg(target_os = "none")]
pub mod backtrace;
pub mod bugcheck;
#[cfg(target_os = "none")]
pub mod clock;
pub(crate) mod current_level;
#[cfg(target_os = "none")]
pub mod dispatch;
#[cfg(target_os = "none")]
pub mod dpc;
pub mod event;
#[cfg(target_os = "none")]
pub mod extended;
#[cfg(target_os = "none")]
pub mod freeze;
pub mod gate;
#[cfg(not(target_os = "none"))]
pub mod hosted;
pub mod idle;
pub mod interrupt;
#[cfg(target_os = "none")]
pub mod ipi;
#[cfg(all(target_os = "none", feature = "verifier"))]
pub mod late;
pub mod mutant;
pub mod object;
#[cfg(target_os = "none")]
pub mod prcb;
pub mod queue;
pub mod rate;
pub mod sched;
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

#[cfg(not(target_os = "none"))]
pub use hosted::{apc, clock, thread};
#[cfg(not(target_os = "none"))]
use hosted::{dispatch, extended, prcb, tick};
