//! IRQL tokens, locks and the lock-free protocols of the kernel. No hardware, no NT objects.
//!
//! Reading order:
//! 1. [`rank`], the ladder of levels and lock ranks, and [`irql`], the tokens that walk it; [`paged`], what else a token says
//! 2. [`spin`], the lock that most things use, around the word in `word`; [`queued`], the same in order of arrival;
//!    [`rwspin`], with readers; [`interrupt_lock`], at a level known at run time; [`lock_set`], several at once; [`seq`], for
//!    readers that must not write
//! 3. [`ipi`], [`disconnect`], [`log_ring`]: protocols between processors, each with its timeline
//! 4. [`raw`], levels and locks for drivers, which have no types to show; [`lock_order`], what watches them
//! 5. `prim`, the atomics underneath: core's, interruptible ones on the host, or a model checker's
#![cfg_attr(target_os = "none", no_std)]

pub mod disconnect;
pub mod interrupt_lock;
pub mod ipi;
pub mod irql;
pub mod lock_order;
pub mod lock_set;
pub mod log_ring;
#[cfg(feature = "verifier")]
mod owner;
pub mod paged;
mod prim;
pub mod queued;
pub mod rank;
pub mod raw;
pub mod rwspin;
pub mod seq;
pub mod spin;
mod word;

/// One-time initialisation, for tables that are filled once and then only read.
pub use ::spin::Once;

pub use interrupt_lock::{InterruptGuard, InterruptLock};
pub use irql::{Irql, Raised};
pub use lock_set::LockSet;
pub use paged::Paged;
pub use queued::{QueuedGuard, QueuedLock};
pub use rwspin::RwSpinLock;
pub use seq::SeqLock;
pub use spin::{SpinGuard, SpinLock};
