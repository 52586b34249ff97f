//! What the unit tests of this crate have in common.

use crate::irql::{Irql, Passive};

/// Runs `f` as a processor at PASSIVE would: what a thread of a test is.
pub(crate) fn at_passive<R>(f: impl for<'a> FnOnce(&'a mut Irql<Passive>) -> R) -> R {
    // SAFETY: the thread's own level is PASSIVE, and it uses this token only.
    unsafe { Irql::with(f) }
}
