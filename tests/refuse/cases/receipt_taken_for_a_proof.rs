//! A receipt alone doesn't allow a switch: its interrupt may have hit another handler.
use arch::service::{NothingInService, Retired};

/// # Safety
/// `interrupted` is the level that this interrupt hit.
pub unsafe fn f(retired: Retired<'_>, interrupted: u8) -> Option<NothingInService> {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(refused)]
        return Some(NothingInService::after(retired, interrupted));
        #[cfg(not(refused))]
        return NothingInService::after(retired, interrupted);
    }
}
