//! A token is lent; its lender keeps it.
use sync::irql::{Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> u8 {
    #[cfg(refused)]
    let mine = *at;
    #[cfg(not(refused))]
    let mine = at;
    mine.level()
}
