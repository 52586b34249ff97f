//! Another crate can't give its own type a CR8 value.
use sync::irql::Fixed;

pub enum Mine {}

#[cfg(refused)]
impl Fixed for Mine {
    const CR8: u8 = 0;
}

pub fn cr8<L: Fixed>(_: Mine) -> u8 {
    L::CR8
}
