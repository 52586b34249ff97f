//! Code that is called with no token in hand: what a value's end does, the allocator, routines with NT's signatures.

use arch::level::DISPATCH;

use super::bugcheck::StopCode;

/// Runs `$call` with a token for the level that this processor is at, as [`Irql::with`](sync::irql::Irql::with), so it is unsafe, and its
/// second condition the caller's. Above DISPATCH it is `$otherwise`, to which that level is told.
macro_rules! at_current_level {
    ($at:ident => $call:expr, $above:ident => $otherwise:expr) => {{
        use sync::irql::{Apc, Dispatch, Irql, Passive};
        // The level is read here, and what interrupts this code restores it: the first condition.
        match arch::irql::current() {
            arch::level::PASSIVE => Irql::<Passive>::with(|$at| $call),
            arch::level::APC => Irql::<Apc>::with(|$at| $call),
            arch::level::DISPATCH => Irql::<Dispatch>::with(|$at| $call),
            $above => $otherwise,
        }
    }};
}
pub(crate) use at_current_level;

/// For what may be called up to DISPATCH: IRQL_NOT_LESS_OR_EQUAL with the level, DISPATCH, 0 and what it was about.
#[cold]
pub(crate) fn above_dispatch(level: u8, what: u64) -> ! {
    let parameters = [level.into(), DISPATCH.into(), 0, what];
    #[cfg(target_os = "none")]
    super::bugcheck::bugcheck(StopCode::IrqlNotLessOrEqual, parameters);
    // On a host: a panic, which `arch::stop::catch` tells.
    #[cfg(not(target_os = "none"))]
    arch::fatal(StopCode::IrqlNotLessOrEqual as u32, parameters)
}
