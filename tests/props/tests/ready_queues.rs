//! One processor's queues, as shipped, against lists, thread by thread: order, front and back, removal, rotation, relief.
//! Operations: some 180 000.

use std::ptr::NonNull;

use kernel::ke::sched::Schedulable;
use kernel::ke::sched::decide::Turns;
use kernel::ke::sched::queues::{Queues, Shared};
use proptest::prelude::*;
use proptest::test_runner::Config;

const CASES: u32 = if cfg!(miri) { 4 } else { 600 };
const OPERATIONS: usize = if cfg!(miri) { 60 } else { 300 };
const THREADS: usize = 12;
const QUANTUM: i64 = 100;

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn queues_are_lists_by_priority(
        steps in prop::collection::vec((0..6_u8, 0..THREADS, 1..15_u8), OPERATIONS),
    ) {
        let threads: Box<[_]> = (0..THREADS).map(|_| Schedulable::new(8, 1, 0, QUANTUM)).collect();
        let pointer = |n: usize| NonNull::from(&threads[n]);
        let (mut queues, shared) = (Queues::new(), Shared::new());
        let mut lists: Vec<Vec<usize>> = vec![Vec::new(); 32];
        // A thread above all runs, so that nothing is standby.
        shared.runs(Some(31));
        for (step, thread, priority) in steps {
            let queued = lists.iter().any(|list| list.contains(&thread));
            match step {
                0 | 1 if !queued => {
                    threads[thread].set_priority(priority);
                    queues.insert(&shared, 0, pointer(thread), step == 0);
                    let list = &mut lists[usize::from(priority)];
                    if step == 0 { list.insert(0, thread) } else { list.push(thread) }
                }
                2 if queued => {
                    queues.remove(&shared, pointer(thread));
                    lists.iter_mut().for_each(|list| list.retain(|&it| it != thread));
                }
                3 => {
                    let best = lists.iter_mut().skip(usize::from(priority)).rev().find(|list| !list.is_empty());
                    let expected = best.map(|list| pointer(list.remove(0)));
                    prop_assert_eq!(queues.take_best(&shared, priority), expected);
                }
                4 if !queued => {
                    threads[thread].set_priority(priority);
                    let above = lists.iter().skip(usize::from(priority) + 1).any(|list| !list.is_empty());
                    let list = &mut lists[usize::from(priority)];
                    let found = queues.take_turns(&shared, 0, pointer(thread));
                    if above {
                        prop_assert_eq!(found, Turns::Otherwise);
                    } else if list.is_empty() {
                        prop_assert_eq!(found, Turns::Nobody);
                    } else {
                        list.push(thread);
                        let next = pointer(list.remove(0));
                        prop_assert_eq!(found, Turns::Taken { next, left_behind: false });
                    }
                }
                5 => {
                    queues.count_waits(&shared);
                    let order = (0..15).rev().flat_map(|priority| lists[priority].clone());
                    let starved = order.into_iter().find(|&it| threads[it].waits() >= 5);
                    let relieved = queues.relieve_one(&shared, 0, 5);
                    prop_assert_eq!(relieved.is_some(), starved.is_some());
                    if let Some(starved) = starved {
                        lists.iter_mut().for_each(|list| list.retain(|&it| it != starved));
                        lists[15].push(starved);
                        prop_assert_eq!(threads[starved].priority(), 15);
                    }
                }
                _ => {}
            }
            let expected: Vec<_> = lists.iter().rev().flatten().map(|&it| pointer(it)).collect();
            prop_assert_eq!(queues.iter(&shared).collect::<Vec<_>>(), expected);
            let summary = (0..32).filter(|&p| !lists[p].is_empty()).fold(0_u32, |bits, p| bits | 1 << p);
            prop_assert_eq!(shared.summary(), summary);
        }
    }
}
