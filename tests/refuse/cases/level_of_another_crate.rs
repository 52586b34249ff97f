//! The ladder is closed: a foreign level of value 0 "above" DISPATCH would lower inside a DPC.
use sync::irql::Level;

pub enum Mine {}

#[cfg(refused)]
impl Level for Mine {
    const NAME: &'static str = "MINE";
    const LOWEST: u8 = 0;
    const HIGHEST: u8 = 0;
    const POSITION: usize = 99;
}

pub fn name<L: Level>() -> &'static str {
    L::NAME
}
