//! Beside the reference, locks are taken with the token that came with it.
#![no_std]
use kernel::ke::prcb::Prcb;
use sync::SpinLock;
use sync::irql::{Dispatch, Irql, PrcbLock};

pub fn f(lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Dispatch>) {
    #[cfg(refused)]
    let (prcb, _) = Prcb::here(at);
    #[cfg(not(refused))]
    let (prcb, at) = Prcb::here(at);
    let mut guard = lock.lock(at);
    *guard = prcb.number();
}
