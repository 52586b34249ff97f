//! Which processor this is means nothing where the thread may move in the next instruction.
#![no_std]
use kernel::ke::prcb::Prcb;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> u32 {
    #[cfg(not(refused))]
    let at = &mut at.raise::<Dispatch>();
    Prcb::here(at).0.number()
}
