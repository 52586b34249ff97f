//! `QueuedLock`: exclusion, publication, order of arrival, and that no hand-over is lost.
//!
//! A lost hand-over leaves a waiter spinning for ever, which loom reports as too many branches; a node that is touched after
//! its owner left is reported as an access to a dropped object.
//! Bound: two threads with two sections each, any number of idle looks; three with one each, eight idle looks; at most three
//! preemptions, two for the order of arrival and for the node that is used again.
#![cfg(loom)]

use core::pin::pin;
use loom::sync::Arc;
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::QueuedLock;
use sync::irql::{Passive, PrcbLock};
use sync::queued::Node;

fn processors_add(others: u32, rounds: usize) {
    let lock = Arc::new(QueuedLock::<_, PrcbLock>::new(0));
    let add = move |lock: &QueuedLock<usize, PrcbLock>, number| {
        on_processor::<Passive, _>(number, |at| {
            // A node for each round: its memory is gone when the next one starts.
            (0..rounds).for_each(|_| *lock.lock(pin!(Node::new()), at) += 1);
        });
    };
    let threads: Vec<_> = (1..=others)
        .map(|number| {
            let lock = lock.clone();
            thread::spawn(move || add(&lock, number))
        })
        .collect();
    add(&lock, 0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let total = on_processor::<Passive, _>(0, |at| *lock.lock(pin!(Node::new()), at));
    assert_eq!(total, (others as usize + 1) * rounds);
}

#[test]
fn two_processors_exclude_each_other_twice() {
    explore(Some(3), || processors_add(1, 2));
}

#[test]
fn three_processors_exclude_each_other() {
    explore_looks(Some(3), 8, || processors_add(2, 1));
}

/// Processor 2 starts only when processor 1 stands in the queue, so it must come after it.
#[test]
fn waiters_are_served_in_order_of_arrival() {
    explore(Some(2), || {
        let lock = Arc::new(QueuedLock::<_, PrcbLock>::new(Vec::new()));
        let arrive = |number: u32| {
            let lock = lock.clone();
            thread::spawn(move || {
                on_processor::<Passive, _>(number, |at| lock.lock(pin!(Node::new()), at).push(number));
            })
        };
        let (mut first, mut second) = (None, None);
        on_processor::<Passive, _>(0, |at| {
            let node = pin!(Node::new());
            let mut guard = lock.lock(node, at);
            guard.push(0);
            first = Some(arrive(1));
            while !guard.is_contended() {
                arch::cpu::spin_hint();
            }
            second = Some(arrive(2));
        });
        first.into_iter().chain(second).for_each(|thread| thread.join().unwrap());
        let order = on_processor::<Passive, _>(0, |at| lock.lock(pin!(Node::new()), at).clone());
        assert_eq!(order, [0, 1, 2]);
    });
}

/// Reusing one node: stale links of the first section must not reach into the second.
#[test]
fn a_node_is_used_again_while_another_processor_waits() {
    explore(Some(2), || {
        let lock = Arc::new(QueuedLock::<_, PrcbLock>::new(0));
        let twice = |lock: &QueuedLock<usize, PrcbLock>, number| {
            on_processor::<Passive, _>(number, |at| {
                let mut node = pin!(Node::new());
                (0..2).for_each(|_| *lock.lock(node.as_mut(), at) += 1);
            });
        };
        let theirs = lock.clone();
        let other = thread::spawn(move || twice(&theirs, 1));
        twice(&lock, 0);
        other.join().unwrap();
        assert_eq!(on_processor::<Passive, _>(0, |at| *lock.lock(pin!(Node::new()), at)), 4);
    });
}
