//! Threads of the host have their registers to themselves.

use super::thread::Thread;

/// # Safety
/// As the shipped one.
pub(in crate::ke) unsafe fn switch(_: &Thread, _: &Thread) {}
