//! Levels come down in reverse order: dropping the outer guard first would lower under the inner one.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};

pub fn f(outer: &SpinLock<u32, ThreadLock>, inner: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut first = outer.lock(at);
    let second = inner.lock(first.token());
    #[cfg(refused)]
    drop((first, second));
    #[cfg(not(refused))]
    drop(second);
}
