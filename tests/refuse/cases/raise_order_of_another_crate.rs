//! Another crate can't put a level of its own into the order of raises.
use sync::irql::{AtOrBelow, High, Irql};

pub enum Mine {}

#[cfg(refused)]
impl AtOrBelow<High> for Mine {}

pub fn f<L: AtOrBelow<High>>(at: &Irql<L>, _: Mine) {
    at.check();
}
