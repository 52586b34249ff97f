//! The scheduler's policy, on one to eight virtual processors: `place`, `queues`, `decide`, `priority` and the idle set as shipped, with the
//! few steps of the machine's part between them (ready.rs, look.rs, balance.rs, change.rs) written out again, without locks.
//!
//! Threads become ready, block, end, yield, use up their quanta, change priority and affinity at random; looks that processors are asked for are
//! made later, in any order, so that several things happen in between. After each step, a processor with a queue has a tick or a look ahead,
//! and one with a standby thread a look. Whenever all looks have been made, contract.md's rules hold: each thread is in one place, in its
//! affinity; what runs is not below its own queue; none is idle while a thread that may run there is ready; after some ticks of the
//! processors that have one, no queued thread is above what some processor runs that it may run on, boosts not counted.
//! Operations: some 180 000.

#[path = "scheduler/machine.rs"]
mod machine;

use kernel::ke::sched::decide::belongs_elsewhere;
use kernel::ke::sched::place::level_of;
use kernel::ke::sched::{Place, REAL_TIME, priority};
use proptest::prelude::*;
use proptest::test_runner::Config;

use machine::World;

const CASES: u32 = if cfg!(miri) { 4 } else { 600 };
const OPERATIONS: usize = if cfg!(miri) { 60 } else { 300 };
const THREADS: usize = 12;
const QUANTUM: i64 = 100;

#[derive(Clone, Debug)]
enum Operation {
    /// A waiting thread is woken from that processor, with that increment.
    Wake(usize, u32, u8),
    /// What runs there waits.
    Block(u32),
    /// What runs there ends, and with that the wait of a thread for it.
    End(u32, usize),
    Yield(u32),
    /// What runs there uses up that much, and the clock looks, if it is armed.
    Tick(u32, i64),
    Priority(usize, u8),
    Affinity(usize, u64),
    /// A look that was asked for there is made.
    Look(u32),
    /// All are, and the rules are looked at.
    Settle,
}

impl World {
    fn apply(&mut self, operation: &Operation) {
        let count = self.count();
        match *operation {
            Operation::Wake(thread, here, increment) => {
                if std::mem::take(&mut self.waits[thread]) {
                    let it = &self.threads[thread];
                    let (before, base) = (it.priority(), it.base());
                    priority::boost(it, increment);
                    let after = it.priority();
                    assert!(base < REAL_TIME || after == base, "a real-time thread is boosted");
                    assert!(base >= REAL_TIME || after < REAL_TIME, "boosted out of the dynamic range");
                    assert!(after >= before && after >= (base + increment).min(after), "a boost lowers");
                    self.place(thread, here % count);
                }
            }
            Operation::Block(me) => {
                if self.processors[(me % count) as usize].running.is_some() {
                    let old = self.switch_away(me % count);
                    self.waits[old] = true;
                }
            }
            Operation::End(me, joins) => {
                if self.processors[(me % count) as usize].running.is_some()
                    && std::mem::take(&mut self.waits[joins])
                {
                    let old = self.end(me % count, joins);
                    self.waits[old] = true;
                }
            }
            Operation::Yield(me) => self.yields(me % count),
            Operation::Tick(me, spent) => self.tick(me % count, spent),
            Operation::Priority(thread, to) => self.change(thread, |it| priority::set_base(it, to)),
            Operation::Affinity(thread, mask) => {
                let mask = mask & ((1 << count) - 1);
                if mask != 0 {
                    self.change(thread, |it| {
                        it.set_affinity(mask);
                        if !it.may_run_on(it.ideal()) {
                            it.set_ideal(mask.trailing_zeros());
                        }
                    });
                }
            }
            Operation::Look(me) => {
                let there = &self.processors[(me % count) as usize];
                if there.asked || there.in_view {
                    self.look(me % count);
                }
            }
            Operation::Settle => {
                self.settle();
                self.judge();
            }
        }
        self.judge_what_is_ahead();
    }

    /// Until nobody is asked for a look.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(me) = self.processors.iter().position(|there| there.asked || there.in_view) else {
                return;
            };
            self.look(me as u32);
        }
        panic!("processors ask each other for looks for ever");
    }

    fn judge_what_is_ahead(&self) {
        for (me, there) in self.processors.iter().enumerate() {
            assert!(
                there.asked || there.in_view || !there.wants_look(),
                "nobody makes the look of processor {me}"
            );
            let ticks = there.ticking || there.quantum_look || there.running.is_none();
            assert!(ticks || there.shared.summary() == 0, "processor {me} has a queue and no tick");
        }
    }

    fn judge(&self) {
        let mut found = [0; THREADS];
        for (me, there) in (0..).zip(&self.processors) {
            assert!(!there.shared.has_standby(), "a standby thread, and nobody looks");
            let running = there.running.map(|running| &self.threads[running]);
            if let (Some(index), Some(it)) = (there.running, running) {
                found[index] += 1;
                assert_eq!(it.place(), Place::Running(me));
                assert!(it.may_run_on(me), "runs outside its affinity");
            }
            let level = running.map_or(0, |it| it.priority() + 1);
            assert_eq!(there.shared.level(), level, "what processor {me} shows");
            let mut summary = 0;
            for queued in there.queues.iter(&there.shared) {
                let index = self.index(queued);
                let it = &self.threads[index];
                found[index] += 1;
                summary |= 1 << it.priority();
                assert_eq!(it.place(), Place::Ready(me));
                assert!(it.may_run_on(me), "queued outside its affinity");
                assert!(it.priority() < level, "a queued thread is above what runs");
                let idle = self
                    .processors
                    .iter()
                    .enumerate()
                    .find(|(number, other)| other.running.is_none() && it.may_run_on(*number as u32));
                assert!(
                    idle.is_none(),
                    "{:?} is idle, thread {index} is ready",
                    idle.map(|(number, _)| number)
                );
            }
            assert_eq!(there.shared.summary(), summary);
        }
        for (index, (&found, &waits)) in found.iter().zip(&self.waits).enumerate() {
            assert_eq!(found, u32::from(!waits), "thread {index} is in that many places");
            let it = &self.threads[index];
            assert!(it.base() <= it.priority() && (it.base() < REAL_TIME) == (it.priority() < REAL_TIME));
        }
    }

    /// As many quanta as a boost has steps, and then as many as there are threads, of those that tick and those that don't: nothing queued is
    /// above what it could displace.
    fn judge_after_ticks(&mut self) {
        for _ in 0..usize::from(REAL_TIME) + THREADS {
            for me in 0..self.count() {
                self.tick(me, QUANTUM);
                self.settle();
                self.judge_what_is_ahead();
            }
        }
        self.judge();
        let level = |number: u32| {
            let running = self.processors[number as usize].running;
            running.map_or(0, |it| level_of(self.threads[it].base()))
        };
        for (me, there) in (0..).zip(&self.processors) {
            for queued in there.queues.iter(&there.shared) {
                // SAFETY: a thread of this world.
                assert!(!belongs_elsewhere(unsafe { queued.as_ref() }, me, level), "it belongs elsewhere");
            }
        }
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let thread = || 0..THREADS;
    let processor = || 0..8_u32;
    prop_oneof![
        5 => (thread(), processor(), 0..12_u8).prop_map(|(t, p, i)| Operation::Wake(t, p, i)),
        3 => processor().prop_map(Operation::Block),
        1 => (processor(), thread()).prop_map(|(p, t)| Operation::End(p, t)),
        2 => processor().prop_map(Operation::Yield),
        2 => (processor(), 0..2 * QUANTUM).prop_map(|(p, spent)| Operation::Tick(p, spent)),
        2 => (thread(), 1..32_u8).prop_map(|(t, p)| Operation::Priority(t, p)),
        2 => (thread(), any::<u64>()).prop_map(|(t, mask)| Operation::Affinity(t, mask)),
        4 => processor().prop_map(Operation::Look),
        2 => Just(Operation::Settle),
    ]
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_rules_hold_whenever_all_looks_are_made(
        count in 1..=8_u32,
        operations in prop::collection::vec(operation(), OPERATIONS),
    ) {
        let mut world = World::new(count);
        for operation in &operations {
            world.apply(operation);
        }
        world.settle();
        world.judge_after_ticks();
    }
}

/// Several threads wait on one processor as others begin to run something lower: one tick spreads them.
#[test]
fn one_tick_spreads_what_is_queued() {
    for others in 1..=3 {
        let mut world = World::new(4);
        let start = |world: &mut World, thread: usize, priority, on: u32, affinity: u64| {
            world.threads[thread].set_affinity(affinity);
            world.threads[thread].set_ideal(on);
            priority::set_base(&world.threads[thread], priority);
            world.apply(&Operation::Wake(thread, on, 0));
            world.settle();
        };
        // On each of them something above all, and below all.
        for other in 1..4 {
            start(&mut world, other as usize, 20, other, 1 << other);
            start(&mut world, 4 + other as usize, 2, other, 1 << other);
        }
        for thread in 8..12 {
            start(&mut world, thread, 8, 0, 0b1111);
        }
        for thread in 8..12 {
            assert_eq!(world.threads[thread].place().processor(), Some(0));
        }
        for other in 1..=others {
            world.apply(&Operation::Block(other));
            world.settle();
        }
        world.tick(0, 1);
        world.settle();
        let spread = (8..12).filter(|&it| world.threads[it].place().processor() != Some(0)).count();
        assert_eq!(spread, others as usize, "threads that a tick spreads");
    }
}

/// Equals take turns by their quanta, one that is preempted keeps its place and the rest, and what is above them doesn't change the order.
#[test]
fn equals_take_turns() {
    let mut world = World::new(1);
    for thread in 0..3 {
        world.change(thread, |it| priority::set_base(it, 8));
        world.apply(&Operation::Wake(thread, 0, 0));
    }
    world.change(3, |it| priority::set_base(it, 12));
    world.settle();
    let mut order = Vec::new();
    for round in 0..9 {
        order.push(world.processors[0].running.expect("one runs"));
        if round % 2 == 0 {
            // Preempted in the middle, and back.
            world.apply(&Operation::Wake(3, 0, 0));
            world.settle();
            assert_eq!(world.processors[0].running, Some(3));
            world.apply(&Operation::Block(0));
            world.settle();
            assert_eq!(world.processors[0].running, order.last().copied(), "it lost its turn");
        }
        world.tick(0, QUANTUM);
        world.settle();
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    // A quantum that ends as something higher becomes ready is a turn over all the same.
    world.apply(&Operation::Wake(3, 0, 0));
    world.tick(0, QUANTUM);
    world.settle();
    world.apply(&Operation::Block(0));
    world.settle();
    assert_eq!(world.processors[0].running, Some(1));
}
