//! Locks are taken upwards in the ladder.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};

pub fn f(thread: &SpinLock<u32, ThreadLock>, prcb: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    #[cfg(refused)]
    let (mut first, second) = (prcb.lock(at), thread);
    #[cfg(not(refused))]
    let (mut first, second) = (thread.lock(at), prcb);
    drop(second.lock(first.token()));
}
