//! Two locks of one rank at once: another processor may take them the other way round.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock};

pub fn f(one: &SpinLock<u32, PrcbLock>, other: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut first = one.lock(at);
    *first += 1;
    #[cfg(refused)]
    drop(other.lock(first.token()));
    drop(first);
    drop(other.lock(at));
}
