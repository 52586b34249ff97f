//! Below DISPATCH the thread may be on another processor: a reference to this one's block ends with the raise.
#![no_std]
use kernel::ke::prcb::Prcb;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> u32 {
    let mut raised = at.raise::<Dispatch>();
    let (prcb, _) = Prcb::here(&mut raised);
    #[cfg(not(refused))]
    let number = prcb.number();
    drop(raised);
    #[cfg(refused)]
    let number = prcb.number();
    number
}
