//! Nor into that of locks, as the upper or the lower one.
use sync::irql::{Below, Dispatch, High, Irql};

pub enum Mine {}

#[cfg(refused)]
impl Below<Mine> for Dispatch {}
#[cfg(refused)]
impl Below<High> for Mine {}

pub fn f<L: Below<High>>(at: &Irql<L>, _: (Mine, Dispatch)) {
    at.check();
}
