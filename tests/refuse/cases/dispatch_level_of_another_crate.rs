//! Nor claim that threads stay on their processor there.
use sync::irql::{AtLeastDispatch, Irql};

pub enum Mine {}

#[cfg(refused)]
impl AtLeastDispatch for Mine {}

pub fn f<L: AtLeastDispatch>(at: &Irql<L>, _: Mine) {
    at.check();
}
