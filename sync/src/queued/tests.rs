use super::*;
use crate::irql::{Dispatch, PrcbLock};
use crate::testing::at_passive;
use core::pin::pin;

#[test]
fn a_node_can_be_used_again_and_the_level_follows() {
    let lock = QueuedLock::<_, PrcbLock>::new(0);
    let mut node = pin!(Node::new());
    at_passive(|at| {
        for round in 0..3 {
            let mut guard = lock.lock(node.as_mut(), at);
            assert_eq!(*guard, round);
            *guard += 1;
            assert_eq!(guard.parts().1.level(), 2);
            assert!(lock.is_locked() && !guard.is_contended());
            drop(guard);
            assert!(!lock.is_locked());
            assert_eq!(arch::irql::current(), 0);
        }
    });
}

#[test]
fn processors_exclude_each_other() {
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 5_000 };
    let lock = QueuedLock::<_, PrcbLock>::new(0);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                at_passive(|at| (0..ROUNDS).for_each(|_| *lock.lock(pin!(Node::new()), at) += 1));
            });
        }
    });
    assert_eq!(lock.into_inner(), 3 * ROUNDS);
}

#[test]
fn the_drop_of_the_node_of_a_forgotten_guard_releases() {
    let lock = QueuedLock::<_, PrcbLock>::new(());
    at_passive(|at| {
        let mut at = at.raise::<Dispatch>();
        let mut node = pin!(Node::new());
        core::mem::forget(lock.lock(node.as_mut(), &mut at));
        assert!(lock.is_locked());
    });
    assert!(!lock.is_locked());
}

#[test]
fn queueing_a_linked_node_again_is_a_bugcheck() {
    let (first, second) = (QueuedLock::<_, PrcbLock>::new(()), QueuedLock::<_, PrcbLock>::new(()));
    let mut node = pin!(Node::new());
    at_passive(|at| {
        // From DISPATCH, so that the forgotten guard leaves the level where it was.
        let mut at = at.raise::<Dispatch>();
        core::mem::forget(first.lock(node.as_mut(), &mut at));
        let stop = arch::stop::catch(|| drop(second.lock(node.as_mut(), &mut at)));
        assert_eq!(stop.map(|stop| stop.code), Some(0x0F));
    });
    assert!(!second.is_locked());
}

#[cfg(feature = "verifier")]
#[test]
fn recursion_is_a_bugcheck() {
    let lock = QueuedLock::<_, PrcbLock>::new(());
    let (mut first, mut second) = (pin!(Node::new()), pin!(Node::new()));
    at_passive(|at| {
        let mut at = at.raise::<Dispatch>();
        core::mem::forget(lock.lock(first.as_mut(), &mut at));
        let stop = arch::stop::catch(|| drop(lock.lock(second.as_mut(), &mut at)));
        assert_eq!(stop.map(|stop| stop.code), Some(0x0F));
    });
}
