//! Whatever may switch needs the raise to be over, and with it the reference.
#![no_std]
use arch::service::NothingInService;
use kernel::ke::prcb::Prcb;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> (NothingInService, u32) {
    #[cfg(refused)]
    let (prcb, _) = Prcb::here(&mut at.raise::<Dispatch>());
    #[cfg(not(refused))]
    let number = Prcb::here(&mut at.raise::<Dispatch>()).0.number();
    let nothing = at.nothing_in_service();
    #[cfg(refused)]
    let number = prcb.number();
    (nothing, number)
}
