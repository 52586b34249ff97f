//! A copy would survive the raise that lends out the original.
use sync::irql::{Irql, Passive};

pub fn f(at: &mut Irql<Passive>) {
    #[cfg(refused)]
    let at = &mut Irql::<Passive>::clone(at);
    let second = at;
    second.check();
}
