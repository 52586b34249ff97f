//! IRQL tokens, locks and the lock-free protocols of the kernel. No hardware, no NT objects.
//!
//! Reading order:
//! 1. [`rank`], the ladder of levels and lock ranks, and [`irql`], the tokens that walk it
//! 2. [`spin`], the lock that most things use, around the word in `word`; [`queued`], the same in order of arrival
//! 3. [`ipi`], [`disconnect`], [`log_ring`]: protocols between processors, each with its timeline
//! 4. `prim`, the atomics underneath: core's, interruptible ones on the host, or a model checker's
#![cfg_attr(target_os = "none", no_std)]

pub mod disconnect;
pub mod ipi;
pub mod irql;
pub mod log_ring;
mod prim;
pub mod queued;
pub mod rank;
pub mod spin;
mod word;

/// One-time initialisation, for tables that are filled once and then only read.
pub use ::spin::Once;

pub use irql::{Irql, Raised};
pub use queued::{QueuedGuard, QueuedLock};
pub use spin::{SpinGuard, SpinLock};
