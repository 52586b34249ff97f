//! A shared guard reads.
use sync::RwSpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

pub fn f(lock: &RwSpinLock<u32, ObjectLock>, at: &mut Irql<Passive>) {
    #[cfg(refused)]
    let mut guard = lock.shared(at);
    #[cfg(not(refused))]
    let mut guard = lock.exclusive(at);
    *guard += 1;
}
