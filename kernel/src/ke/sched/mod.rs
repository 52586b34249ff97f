//! The scheduler: per-processor ready queues, no lock that all of them share.
//!
//! Reading order: [`schedulable`] (what it knows of a thread), [`priority`], [`place`], [`queues`], [`decide`]: the policy, pure, the same
//! on a host; then the machine's: `local` (a processor's part, and the switch), `ready` (a thread becomes ready), `look` (the work of
//! DISPATCH: preemption, quantum end), `balance` (idle processors, starvation), `change` (priority, affinity).
//!
//! Locks:      a thread's own (`ThreadLock`), then one processor's (`PrcbLock`). No two processors' at once.
//! Invariants: S1 a thread is in at most one place (schedulable.rs, I1).
//!             S2 a thread is ready in the queue of p => p has a clock interrupt ahead (`tick`, quantum), or is to look at its quantum
//!                (`quantum_look`): asked by an interrupt, or by code of p that looks on its way out, or leaves the look to who runs next.
//!             S3 a thread is standby at p => p is asked for a look, or is about to make one.
//!             S4 a processor halts => since it last set its bit in the idle set it has found no thread that may run there queued anywhere,
//!                and the bit is still set: who has queued one since clears it and interrupts (`sync::idle_set`).
//!             S5 a processor that is asked for a look is interrupted, or watches, and looks when it stops (`sync::watch`).
//! Switch:     `PrcbLock` of the processor is held across it, taken on the old stack and released on the new one (`local`): what
//!             was queued can't be taken before its context is saved. A thread that waits is in no queue; there
//!             `sync::handoff` does the same.
//! Not as NT:  no dispatcher lock, no deferred-ready list of a processor: who ends waits makes their threads ready, one after the
//!             other. The clock ticks only where a thread is queued; a thread alone on its processor uses up its quanta without.
//! Tests:      tests/props/tests/scheduler.rs; tests/models/tests/{handoff,wait_word,idle_set}.rs; selftest `threads::*`.
//! Sources:    WDK, "Scheduling Priorities", `KeSetPriorityThread`, `KeSetBasePriorityThread`; Win32, "Context Switches",
//!             "Priority Boosts", "Priority Inversion".

mod balance;
mod change;
pub mod decide;
mod local;
mod look;
pub mod place;
pub mod priority;
pub mod queues;
mod ready;
pub mod schedulable;
#[cfg(feature = "verifier")]
mod verify;

pub use schedulable::{PRIORITIES, Place, REAL_TIME, Schedulable};

#[cfg(not(target_os = "none"))]
pub(in crate::ke) use super::hosted::sched::{
    after_signal, block, leave_a_look, make_ready, make_ready_and_leave,
};
pub(in crate::ke) use balance::{go_idle_look, may_halt, watch};
#[cfg(target_os = "none")]
pub(in crate::ke) use change::runs_on;
pub use change::{set_affinity, set_base_priority, set_ideal_processor};
pub use local::PerProcessor;
#[cfg(all(target_os = "none", feature = "verifier"))]
pub(crate) use local::time_stays_by_thread;
#[cfg(target_os = "none")]
pub(in crate::ke) use local::{block, leave_a_look};
pub(in crate::ke) use local::{charge_running, finish_switch, leave_for_good};
#[cfg(target_os = "none")]
pub(in crate::ke) use look::after_signal;
pub use look::yield_now;
pub(in crate::ke) use look::{look, look_uninterrupted};
pub(in crate::ke) use ready::start;
#[cfg(target_os = "none")]
pub(in crate::ke) use ready::{make_ready, make_ready_and_leave};
#[cfg(all(target_os = "none", feature = "verifier"))]
pub use verify::ready_again;

/// What ends waits and begins them as it ships, for a host's threads that have a processor; others have a test in its place.
#[cfg(not(target_os = "none"))]
pub(in crate::ke) mod shipped {
    pub(in crate::ke) use super::local::{IDLE, block, leave_a_look};
    pub(in crate::ke) use super::look::after_signal;
    pub(in crate::ke) use super::ready::{make_ready, make_ready_and_leave};
}
