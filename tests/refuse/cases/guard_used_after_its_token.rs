//! Once the token is used again, the guard that borrowed it is over.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock};

fn at_passive(_: &mut Irql<Passive>) {}

pub fn f(lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut guard = lock.lock(at);
    #[cfg(not(refused))]
    let mut guard = {
        drop(guard);
        at_passive(at);
        lock.lock(at)
    };
    #[cfg(refused)]
    at_passive(at);
    *guard += 1;
}
