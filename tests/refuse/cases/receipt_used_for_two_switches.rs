//! A receipt allows one switch.
use arch::service::{NothingInService, Retired};

pub fn f(retired: Retired<'_>) -> Option<NothingInService> {
    #[cfg(refused)]
    drop(NothingInService::after(retired, 0));
    NothingInService::after(retired, 0)
}
