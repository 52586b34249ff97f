//! Nor can another crate put the existing levels in another order.
use sync::irql::{Below, Dispatch, Irql, Passive};

#[cfg(refused)]
impl Below<Passive> for Dispatch {}

pub fn below<L: Below<Dispatch>>(at: &Irql<L>) -> u8 {
    at.level()
}

pub fn f(at: &Irql<Passive>) -> u8 {
    below(at)
}
