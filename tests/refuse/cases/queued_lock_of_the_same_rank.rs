//! The ladder holds for queued locks as for others.
use core::pin::pin;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};
use sync::queued::{Node, QueuedLock};

type Thread = QueuedLock<u32, ThreadLock>;
type Prcb = QueuedLock<u32, PrcbLock>;

pub fn f(one: &Thread, same: &Thread, next: &Prcb, at: &mut Irql<Passive>) {
    let (first, second) = (pin!(Node::new()), pin!(Node::new()));
    let mut guard = one.lock(first, at);
    let (_, at) = guard.parts();
    #[cfg(refused)]
    drop((next, same.lock(second, at)));
    #[cfg(not(refused))]
    drop((same, next.lock(second, at)).1);
}
