//! Nor under a spin lock.
use sync::SpinLock;
use sync::irql::{Irql, MayBlock, Passive, PrcbLock};

fn wait<L: MayBlock>(_: &mut Irql<L>) {}

pub fn f(lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut guard = lock.lock(at);
    *guard += 1;
    #[cfg(refused)]
    wait(guard.token());
    drop(guard);
    wait(at);
}
