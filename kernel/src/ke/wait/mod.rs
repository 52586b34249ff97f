//! Waits: for one object, for any or all of several, with a timeout, or for time alone.
//!
//! Owns:       how a thread registers with objects and blocks. Not: who ends a wait (`signal`), what an object is (event.rs, ...).
//! Called by:  whoever may block. Calls: `sched::block`, the thread's own timer.
//! IRQL:       PASSIVE or APC ([`CanWait`]); `poll` at or below DISPATCH.
//! Locks:      an object's (`ObjectLock`), one after the other; for a wait for all, all of them at once by a `LockSet`.
//! Invariants: W1 a thread's wait word says whether it waits, and is what everybody who would end the wait must win (`sync::wait_word`).
//!             W2 whoever wins takes from the object what a wait takes, and takes the winning block out, under the object's lock.
//!                The waiter takes out the others, each under its object's lock: so when a wait has returned, nobody is at its
//!                blocks or, on account of this wait, at its objects any more.
//!             W3 after the thread's timer was cancelled, or has ended the wait, its expiry doesn't touch the wait word: both are
//!                under the timer's lock.
//! One object: registered and committed under its lock, in one go, so nobody ever sees such a wait in progress.
//! Any:        object by object, the word in progress; the first to win, signaller, timer or the waiter itself, ends it.
//! All:        registered under all locks. A signaller that meets such a waiter can't judge under the lock of one object:
//!             it takes the right to look, lets go of its own object and looks under all of them.
//! APCs:       a wait at PASSIVE is open to kernel APCs: one that is queued ends it as a signal would, with STATUS_KERNEL_APC. The thread
//!             leaves all lists, lowers, delivers, and waits anew for what is left of its time, behind the others that wait.
//! Not as NT:  a signal goes to those that wait for its object alone, or for any, before it is tried on those that wait for all. The list of
//!             waiters is no LIST_ENTRY ring.
//! Tests:      tests/models/tests/{wait_word,mutant,queue}.rs; tests/props/tests/{dispatcher,wait_schedules}.rs; selftest `waits::*`.
//! Sources:    WDK, `KeWaitForSingleObject`, `KeWaitForMultipleObjects`, `KeDelayExecutionThread`.

mod attend;
pub mod block;
#[cfg(all(target_os = "none", feature = "verifier"))]
pub mod chain;
#[cfg(feature = "verifier")]
pub mod lost;
mod multiple;
pub(in crate::ke) mod signal;
mod signal_first;
mod single;
mod timeout;
#[cfg(not(all(target_os = "none", feature = "verifier")))]
mod unnoted;

use sync::irql::{Apc, AtOrBelow, Below, Dispatch, MayBlock, ObjectLock};

pub use super::apc::alert::Alertable;
#[cfg(all(target_os = "none", feature = "verifier"))]
pub(crate) use chain::sleep_behind;
pub use multiple::{MAXIMUM_WAIT_OBJECTS, for_all, for_all_alertable, for_any, for_any_alertable};
pub use signal_first::signal_and_wait;
pub use single::{Waitable, for_single, for_single_alertable, poll};
pub(in crate::ke) use timeout::{after_an_apc, in_queue};
pub use timeout::{delay, delay_alertable};
#[cfg(not(all(target_os = "none", feature = "verifier")))]
use unnoted as chain;
#[cfg(all(target_os = "none", not(feature = "verifier")))]
pub(crate) use unnoted::sleep_behind;

/// PASSIVE and APC, with what the code of a wait needs to know of them.
pub trait CanWait: MayBlock + Below<ObjectLock> + AtOrBelow<Dispatch> + AtOrBelow<Apc> {}

impl<L: MayBlock + Below<ObjectLock> + AtOrBelow<Dispatch> + AtOrBelow<Apc>> CanWait for L {}
