//! IRQL tokens, locks and the lock-free protocols of the kernel. No hardware, no NT objects.
//!
//! Reading order:
//! 1. [`rank`], the ladder of levels and lock ranks, and [`irql`], the tokens that walk it
//! 2. [`spin`], the lock that most things use
#![cfg_attr(target_os = "none", no_std)]

pub mod irql;
mod prim;
pub mod rank;
pub mod spin;
mod word;

pub use irql::{Irql, Raised};
pub use spin::{SpinGuard, SpinLock};
