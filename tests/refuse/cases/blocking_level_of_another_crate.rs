//! Nor declare that waiting is legal there.
use sync::irql::{Irql, MayBlock};

pub enum Mine {}

#[cfg(refused)]
impl MayBlock for Mine {}

pub fn f<L: MayBlock>(at: &Irql<L>, _: Mine) {
    at.check();
}
