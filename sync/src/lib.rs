//! IRQL tokens, locks and the lock-free protocols of the kernel. No hardware, no NT objects.
//!
//! Reading order:
//! 1. [`rank`], the ladder of levels and lock ranks, and [`irql`], the tokens that walk it; [`paged`], what else a token says
//! 2. [`spin`], the lock that most things use, around the word in `word`; [`queued`], the same in order of arrival;
//!    [`rwspin`], with readers; [`interrupt_lock`], at a level known at run time; [`lock_set`], several at once; [`seq`], for
//!    readers that must not write; [`bit_lock`], in an object's header
//! 3. [`deferred`], [`ipi`], [`shootdown`], [`disconnect`], [`log_ring`], [`clock_owner`], [`system_time`], [`timer`],
//!    [`deadline`], [`page_counts`], [`toggle`], [`references`], [`stash`], [`slist`], [`pile`], [`cancel`],
//!    [`handles`]: protocols between processors; [`virtqueue`], with a device
//! 4. [`wait_word`], [`handoff`], [`idle_set`], [`watch`], [`attention`], [`ownership`]: who ends a wait, when its thread may run elsewhere, who
//!    looks for it, what it must look at itself, and what it holds
//! 5. [`event`], what protocols between threads ask of the scheduler: [`rundown`], [`push_lock`], [`fast_mutex`], [`resource`],
//!    [`in_flight`]
//! 6. [`raw`], levels and locks for drivers, which have no types to show; [`lock_order`], what watches them
//! 7. [`layout`], NT's names for the bytes of what drivers see
//! 8. `guard`, what all guards of locks give; `prim`, the atomics underneath: core's, interruptible ones on the host, or a model
//!    checker's
#![cfg_attr(target_os = "none", no_std)]

pub mod attention;
pub mod bit_lock;
pub mod cancel;
pub mod clock_owner;
pub mod deadline;
pub mod deferred;
pub mod disconnect;
pub mod event;
pub mod fast_mutex;
mod guard;
pub mod handles;
pub mod handoff;
pub mod idle_set;
pub mod in_flight;
pub mod interrupt_lock;
pub mod ipi;
pub mod irql;
pub mod layout;
pub mod lock_order;
pub mod lock_set;
pub mod log_ring;
#[cfg(feature = "verifier")]
mod owner;
pub mod ownership;
pub mod page_counts;
pub mod paged;
pub mod pile;
mod prim;
pub mod push_lock;
pub mod queued;
pub mod rank;
pub mod raw;
pub mod references;
pub mod resource;
pub mod rundown;
pub mod rwspin;
pub mod seq;
pub mod shootdown;
pub mod slist;
pub mod spin;
pub mod stash;
pub mod system_time;
#[cfg(all(test, not(loom)))]
mod testing;
pub mod timer;
pub mod toggle;
pub mod virtqueue;
pub mod wait_word;
pub mod watch;
mod word;

/// One-time initialisation, for tables that are filled once and then only read.
pub use ::spin::Once;

pub use fast_mutex::FastMutex;
pub use interrupt_lock::{InterruptGuard, InterruptLock};
pub use irql::{Irql, Raised};
pub use lock_set::LockSet;
pub use paged::Paged;
pub use push_lock::PushLock;
pub use queued::{QueuedGuard, QueuedLock};
pub use rwspin::RwSpinLock;
pub use seq::SeqLock;
pub use spin::{SpinGuard, SpinLock};
