//! Threads of the host are attached to nothing.

use sync::irql::{Dispatch, Irql};

use super::thread::Thread;

/// # Safety
/// As the shipped one.
pub(in crate::ke) unsafe fn switch(_: &Thread, _: &Thread, at: &mut Irql<Dispatch>) {
    at.check();
}
