//! A receipt allows one switch.
use arch::service::{NothingInService, Retired};

/// # Safety
/// This interrupt hit code at PASSIVE.
pub unsafe fn f(retired: Retired<'_>) -> Option<NothingInService> {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(refused)]
        drop(NothingInService::after(retired, 0));
        NothingInService::after(retired, 0)
    }
}
