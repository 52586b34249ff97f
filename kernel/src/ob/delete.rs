//! The end of an object whose last reference is gone.
//!
//! | last released | ends |
//! |---|---|
//! | at PASSIVE, with interrupts on | there, before the release returns |
//! | up to DISPATCH | soon, in a worker thread |
//! | above | never: IRQL_NOT_LESS_OR_EQUAL |
//!
//! At DISPATCH the releaser may hold a spin lock, and nothing says which. So what is to be ended is put on a pile, which takes no lock, and who
//! finds the pile empty queues a DPC, whose lock is above every rank of that level; the DPC queues the work item, holding nothing.
//!
//! Invariants: D1 an object on the pile has no reference and gets none: names and handles have one of their own.
//!             D2 the pile isn't empty => the DPC or the item is queued, or whoever put the first one on is about to queue it.
//! Tests:      tests/models/tests/pile.rs (D2); tests/props/tests/ob_references.rs; selftest `ob::*`; crash
//!             `object_released_above_dispatch`.
//! Sources:    WDK, `ObDereferenceObject`, `ObDereferenceObjectDeferDelete`.

use core::ptr::NonNull;

use sync::irql::{Irql, Passive};

use super::header::{self, Header};
use super::machine;

/// The last reference is gone: ends the object, now or soon.
///
/// # Safety
/// No reference is left, and the caller's was the last.
#[cold]
#[inline(never)]
pub(super) unsafe fn last(header: NonNull<Header>) {
    if machine::is_passive() {
        // SAFETY: 1. that is the level. 2. whoever drops a reference uses no token until the drop returns; and one that it has is of
        //         PASSIVE, since a guard or a raise of any kind would have raised the level.
        unsafe { Irql::<Passive>::with(|at| end(header, at)) }
    } else {
        // SAFETY: the caller's.
        unsafe { later(header) }
    }
}

/// The same, soon.
///
/// # Safety
/// As [`last`].
///
/// # Bugchecks
/// IRQL_NOT_LESS_OR_EQUAL above DISPATCH: the level, DISPATCH, 0, 0.
#[cold]
pub(super) unsafe fn later(header: NonNull<Header>) {
    // Each, not just the one that has to ask: the others would pass or not as the pile is.
    machine::check_level();
    // SAFETY: nobody else has it (D1), and its memory stays until `work` has taken it.
    if unsafe { machine::pile().put(Header::doomed(header)) } {
        machine::ask_for_work();
    }
}

/// Ends what is on the pile.
pub(super) fn work(at: &mut Irql<Passive>) {
    for entry in machine::pile().take() {
        // SAFETY: put there by `later`: a header's, without references (D1); and taken.
        unsafe { end(Header::of_doomed(entry), at) };
    }
}

/// # Safety
/// As [`last`].
unsafe fn end(header: NonNull<Header>, at: &mut Irql<Passive>) {
    // SAFETY: the body is of that type, and the caller's alone; then it is gone.
    unsafe {
        (header.as_ref().type_.end)(Header::body(header), at);
        header::free(header, at);
    }
}
