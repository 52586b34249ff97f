//! The data can be reached only while the lock is held.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock};

pub fn f(lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut guard = lock.lock(at);
    let (value, _) = guard.parts();
    #[cfg(not(refused))]
    {
        *value += 1;
    }
    drop(guard);
    #[cfg(refused)]
    {
        *value += 1;
    }
}
