//! Two readers that both wait to become the writer wait for ever: the shared guard holds the rank already.
use sync::RwSpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

pub fn f(lock: &RwSpinLock<u32, ObjectLock>, at: &mut Irql<Passive>) {
    let mut shared = lock.shared(at);
    let (_, _at) = shared.parts();
    #[cfg(refused)]
    drop(lock.exclusive(_at));
    drop(shared);
    drop(lock.exclusive(at));
}
