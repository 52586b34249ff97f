//! What stands in for `chain` in the release build and on a host, where waits leave no notes.

#[cfg(target_os = "none")]
use sync::event::Behind;
#[cfg(target_os = "none")]
use sync::irql::Apc;
use sync::irql::{Dispatch, Irql};

use super::super::object::Header;
use super::super::thread::Thread;

/// Nothing.
#[derive(Clone, Copy)]
pub(super) struct For;

impl For {
    #[inline(always)]
    pub(super) fn one(_: &Header, _: bool) -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn time() -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn several<'a>(_: impl Iterator<Item = &'a Header> + Clone, _: bool, _: bool) -> Self {
        Self
    }
}

/// Nothing.
pub(super) struct Noted;

#[inline(always)]
pub(super) fn begin(_: &Thread, _: For, _: &mut Irql<Dispatch>) -> Noted {
    Noted
}

#[inline(always)]
pub(super) fn end(_: &Thread, _: Noted, _: &mut Irql<Dispatch>) {}

#[cfg(target_os = "none")]
#[inline(always)]
pub(crate) fn sleep_behind<R>(
    _: Option<Behind<'_>>,
    at: &mut Irql<Apc>,
    wait: impl FnOnce(&mut Irql<Apc>) -> R,
) -> R {
    wait(at)
}
