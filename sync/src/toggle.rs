//! A page that is written or run, never both, whatever processors have cached: how its right changes.
//!
//! ```text
//! processor 0 is to run it                      processor 1 is to write to it
//! Write ─► Neither               (exchange) ──► faults: sees Neither, so it waits, and answers calls
//! flush: all forget the right to write          .
//! Neither ─► Run                 (exchange) ──► Run ─► Neither, flush, Neither ─► Write
//! ```
//!
//! Owns:       the order of the steps. Not: what an entry looks like, or the flush ([`crate::shootdown`]).
//! IRQL:       below IPI, interrupts on. From the first exchange to the second at CLOCK, whatever the level before: nothing interrupts
//!             those steps that could fault on the page, or wait for what the interrupted code holds. So who waits, waits for a flush.
//! Invariants: I1 of an entry that says Neither, one processor is between its two exchanges, and nobody else changes the rights.
//!             I2 an entry gets a right only after a flush in which it had none: so no processor has the other one cached.
//! Ordering:   both exchanges are AcqRel: what was written comes before the right to run it.
//! Not so:     an entry that another may take over would spare the wait, but needs a number in it that never comes back.
//! Tests:      tests/models/tests/toggle.rs (I2, and nobody waits for ever); tests/props/tests/injection.rs (no interrupt finds Neither);
//!             mutants `mm/right_given_before_the_flush`, `mm/right_taken_before_the_raise`.

use crate::irql::{AtOrBelow, Below, Clock, Ipi, Irql};

/// What an entry allows beside reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// To write.
    Write,
    /// To run.
    Run,
    /// Neither: somebody changes it.
    Neither,
}

/// The entry of such a page.
pub trait Entry {
    /// What it says now, by an Acquire load; `None`: it is no such page's any more.
    fn rights(&self) -> Option<Rights>;

    /// From `from`, if it says that, to `to`, by an AcqRel exchange. Says whether.
    fn exchange(&self, from: Rights, to: Rights) -> bool;
}

/// The entry allows `wanted`, or did a moment ago: behind it the access is tried again. False: it is no such page's any more.
///
/// `flush` returns when no processor has anything cached that the entry said before it. `wait` passes a moment, in which this processor
/// serves others' flushes.
#[must_use = "without the right the access would fault for ever"]
pub fn change<L: AtOrBelow<Clock> + Below<Ipi>>(
    entry: &impl Entry,
    wanted: Rights,
    mut wait: impl FnMut(&mut Irql<L>),
    flush: impl FnOnce(&mut Irql<Clock>),
    at: &mut Irql<L>,
) -> bool {
    loop {
        match entry.rights() {
            None => return false,
            // Another processor was first. What is cached here was forgotten by the fault.
            Some(found) if found == wanted => return true,
            Some(Rights::Neither) => wait(at),
            Some(found) => {
                let mut at = at.raise::<Clock>();
                if entry.exchange(found, Rights::Neither) {
                    flush(&mut at);
                    return entry.exchange(Rights::Neither, wanted);
                }
            }
        }
    }
}
