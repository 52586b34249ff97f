//! A forgotten guard leaves its node linked; the node's drop must find the lock alive.
use core::pin::pin;
use sync::irql::{Irql, Passive, PrcbLock};
use sync::queued::{Node, QueuedLock};

pub fn f(at: &mut Irql<Passive>) {
    #[cfg(refused)]
    let mut node = pin!(Node::new());
    let lock = QueuedLock::<u32, PrcbLock>::new(0);
    #[cfg(not(refused))]
    let mut node = pin!(Node::new());
    drop(lock.lock(node.as_mut(), at));
}
