//! A node stands in one queue at a time.
use core::pin::pin;
use sync::irql::{Irql, Passive, PrcbLock, ThreadLock};
use sync::queued::{Node, QueuedLock};

pub fn f(one: &QueuedLock<u32, ThreadLock>, two: &QueuedLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let (mut node, mut other) = (pin!(Node::new()), pin!(Node::new()));
    let mut guard = one.lock(node.as_mut(), at);
    let (_, at) = guard.parts();
    #[cfg(refused)]
    drop(two.lock(node.as_mut(), at));
    #[cfg(not(refused))]
    drop(two.lock(other.as_mut(), at));
}
