//! A static is every processor's.
use sync::irql::{Irql, Passive};

#[cfg(refused)]
pub static TOKEN: Option<Irql<Passive>> = None;
#[cfg(not(refused))]
pub const TOKEN: Option<Irql<Passive>> = None;
