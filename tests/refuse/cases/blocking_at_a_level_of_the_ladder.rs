//! Nor for a level that exists.
use sync::irql::{Dispatch, Irql, MayBlock, Passive};

#[cfg(refused)]
impl MayBlock for Dispatch {}

pub fn f<L: MayBlock>(at: &Irql<L>) {
    at.check();
}

pub fn g(passive: &Irql<Passive>, _: &Irql<Dispatch>) {
    f(passive);
}
