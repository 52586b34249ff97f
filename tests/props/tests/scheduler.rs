//! The scheduler's policy, on one to eight virtual processors: `place`, `queues`, `decide`, `priority` and the idle set as shipped, with the
//! few steps of the machine's part between them (ready.rs, look.rs, balance.rs, change.rs) written out again, without locks.
//!
//! Threads become ready, block, end, yield, use up their quanta, change priority and affinity at random; looks that processors are asked for are
//! made later, in any order, so that several things happen in between. After each step, a processor with a queue has a tick or a look ahead,
//! and one with a standby thread a look. Whenever all looks have been made, contract.md's rules hold: each thread is in one place, in its
//! affinity; what runs is not below its own queue; none is idle while a thread that may run there is ready; after some ticks of the
//! processors that have one, no queued thread is above what some processor runs that it may run on, boosts not counted.
//! Operations: some 180 000.

use std::ptr::NonNull;

use kernel::ke::sched::decide::{Next, PUSHED_AT_ONCE, Turns, belongs_elsewhere, keeps_its_boost_from};
use kernel::ke::sched::place::{choose, level_of};
use kernel::ke::sched::queues::{Admitted, Queues, Shared, ThreadPtr};
use kernel::ke::sched::{Place, REAL_TIME, Schedulable, priority};
use proptest::prelude::*;
use proptest::test_runner::Config;
use sync::idle_set::IdleSet;

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

struct Processor {
    queues: Queues,
    shared: Shared,
    /// `None`: the idle thread.
    running: Option<usize>,
    /// An interrupt is on its way.
    asked: bool,
    /// Its own code looks on its way out, unless it waits before that.
    in_view: bool,
    quantum_look: bool,
    /// The end of a quantum is armed for.
    ticking: bool,
    told: bool,
}

impl Processor {
    fn wants_look(&self) -> bool {
        self.shared.has_standby() || self.quantum_look
    }

    /// ready.rs, `asks_for_a_tick`.
    fn asks_for_a_tick(&mut self, wanted: bool) -> bool {
        let asks = wanted && !self.ticking;
        self.quantum_look |= asks;
        asks
    }

    /// To look, it is sent an interrupt by others, and does by itself.
    fn ask(&mut self, by_itself: bool) {
        if by_itself { self.in_view = true } else { self.asked = true }
    }
}

struct World {
    processors: Vec<Processor>,
    idle: IdleSet,
    /// They don't move.
    threads: Box<[Schedulable]>,
    waits: Vec<bool>,
}

impl World {
    fn new(count: u32) -> Self {
        let processor = || Processor {
            queues: Queues::new(),
            shared: Shared::new(),
            running: None,
            asked: true,
            in_view: false,
            quantum_look: false,
            ticking: false,
            told: false,
        };
        let all = (1 << count) - 1;
        let thread = |n: usize| Schedulable::new(4 + n as u8 % 5, all, n as u32 % count, QUANTUM);
        Self {
            processors: (0..count).map(|_| processor()).collect(),
            idle: IdleSet::new(),
            threads: (0..THREADS).map(thread).collect(),
            waits: vec![true; THREADS],
        }
    }

    fn count(&self) -> u32 {
        self.processors.len() as u32
    }

    fn pointer(&self, thread: usize) -> ThreadPtr {
        NonNull::from(&self.threads[thread])
    }

    fn index(&self, thread: ThreadPtr) -> usize {
        self.threads.iter().position(|it| NonNull::from(it) == thread).expect("a thread of this world")
    }

    fn runs(&mut self, me: u32, next: ThreadPtr) {
        let next = self.index(next);
        self.threads[next].set_place(Place::Running(me));
        self.processors[me as usize].running = Some(next);
    }

    fn tell_idle(&mut self, allowed: u64) {
        if self.idle.after_queueing() & allowed != 0
            && let Some(told) = self.idle.claim(allowed)
        {
            self.tell(told);
        }
    }

    fn tell(&mut self, number: u32) {
        let there = &mut self.processors[number as usize];
        (there.told, there.quantum_look, there.asked) = (true, true, true);
    }

    fn pass_on(&mut self, me: u32) {
        if std::mem::take(&mut self.processors[me as usize].told) {
            while let Some(other) = self.idle.claim(u64::MAX) {
                self.tell(other);
            }
        }
    }

    /// ready.rs, `place`.
    fn place(&mut self, thread: usize, here: u32) {
        let it = &self.threads[thread];
        let target =
            choose(it, here, self.idle.get(), |number| self.processors[number as usize].shared.level());
        assert!(it.may_run_on(target), "placed outside its affinity");
        let (pointer, affinity) = (self.pointer(thread), it.affinity());
        let there = &mut self.processors[target as usize];
        let admitted = there.queues.admit(&there.shared, target, pointer);
        let asked = there.asks_for_a_tick(admitted.wants_a_tick());
        match admitted {
            Admitted::Standby { displaced } => {
                there.ask(target == here);
                self.tell_idle(displaced);
                self.idle.leave(target);
            }
            Admitted::Queued { .. } => {
                if asked {
                    there.ask(target == here);
                }
                self.tell_idle(affinity);
            }
        }
    }

    /// look.rs, `look`.
    fn look(&mut self, me: u32) {
        let there = &mut self.processors[me as usize];
        (there.asked, there.in_view) = (false, false);
        let mut turn_over = false;
        if there.quantum_look {
            self.push(me);
            self.ask_the_boosted(me);
            let there = &mut self.processors[me as usize];
            (there.quantum_look, there.in_view) = (false, false);
            if let Some(running) = there.running {
                turn_over = there.queues.end_quantum(&there.shared, me, &self.threads[running]);
                there.ticking |= there.shared.summary() != 0 || there.shared.has_standby();
                self.pass_on(me);
            }
        }
        let there = &mut self.processors[me as usize];
        let running = there.running.map(|running| NonNull::from(&self.threads[running]));
        match there.queues.preempt(&there.shared, me, running, turn_over) {
            Next::Stay => {}
            Next::Leave => return self.vacate(me),
            Next::Switch { next, left_behind } => {
                assert_eq!(left_behind, running.is_some());
                match there.running {
                    Some(old) => self.tell_idle(self.threads[old].affinity()),
                    None => {
                        self.idle.leave(me);
                        self.pass_on(me);
                    }
                }
                // `gave_way`
                let there = &mut self.processors[me as usize];
                there.ticking |= there.shared.summary() != 0;
                self.runs(me, next);
            }
        }
        if self.processors[me as usize].running.is_none() {
            self.go_idle(me);
        }
    }

    /// balance.rs, `push`.
    fn push(&mut self, me: u32) {
        for _ in 0..PUSHED_AT_ONCE {
            let levels: Vec<_> = self.processors.iter().map(|there| there.shared.level()).collect();
            let there = &mut self.processors[me as usize];
            let runs_lower = |it: &Schedulable| belongs_elsewhere(it, me, |number| levels[number as usize]);
            let Some(found) = there.queues.take_if(&there.shared, runs_lower) else { return };
            let found = self.index(found);
            self.threads[found].set_place(Place::Waiting(me));
            self.place(found, me);
        }
    }

    /// balance.rs, `ask_the_boosted`.
    fn ask_the_boosted(&mut self, me: u32) {
        let here = &self.processors[me as usize];
        let Some(highest) = here.shared.summary().checked_ilog2() else { return };
        let others = here.queues.affinities(&here.shared);
        for (number, there) in (0..).zip(&mut self.processors) {
            let boosted =
                there.running.is_some_and(|it| keeps_its_boost_from(&self.threads[it], highest as u8));
            if number != me && others >> number & 1 != 0 && !there.ticking && boosted {
                (there.quantum_look, there.asked) = (true, true);
            }
        }
    }

    /// What runs leaves the processor, to the best of what is there.
    fn switch_away(&mut self, me: u32) -> usize {
        let there = &mut self.processors[me as usize];
        let old = there.running.take().expect("something runs");
        // What it had in view, as `leave_a_look` says; what others asked for is asked for.
        there.asked |= std::mem::take(&mut there.in_view) && there.quantum_look;
        self.threads[old].set_place(Place::Waiting(me));
        match there.queues.take_next(&there.shared) {
            Some(next) => {
                // SAFETY: a thread of this world.
                there.shared.runs(Some(unsafe { next.as_ref() }.priority()));
                self.runs(me, next);
            }
            None => {
                there.shared.runs(None);
                there.asked = true;
            }
        }
        old
    }

    /// ready.rs, `succeed`, and local.rs, `leave_for_good`.
    fn end(&mut self, me: u32, joins: usize) -> usize {
        let level = |number: u32| self.processors[number as usize].shared.level();
        let it = &self.threads[joins];
        let is_here = choose(it, me, self.idle.get(), level) == me;
        let there = &mut self.processors[me as usize];
        // SAFETY: threads of this world.
        let before = |other: ThreadPtr| unsafe { other.as_ref() }.priority() >= it.priority();
        let others = there.shared.has_standby() || there.queues.iter(&there.shared).any(before);
        if is_here && there.queues.succeed(&there.shared, me, it) {
            assert!(!others, "it runs before those that were ready before it");
            let old = there.running.take().expect("something runs");
            there.asked |= std::mem::take(&mut there.in_view) && there.quantum_look;
            self.threads[old].set_place(Place::Waiting(me));
            self.runs(me, self.pointer(joins));
            return old;
        }
        assert!(others || !is_here, "it is queued, and is next");
        self.place(joins, me);
        self.switch_away(me)
    }

    fn vacate(&mut self, me: u32) {
        let old = self.switch_away(me);
        self.place(old, me);
        self.look_by_interrupt(me);
    }

    /// ready.rs, `woken_before_it_was_saved`; and whatever else has no way out on which it looks.
    fn look_by_interrupt(&mut self, me: u32) {
        let there = &mut self.processors[me as usize];
        there.asked |= std::mem::take(&mut there.in_view);
    }

    /// balance.rs, `go_idle_look`.
    fn go_idle(&mut self, me: u32) {
        let there = &mut self.processors[me as usize];
        there.told = false;
        self.idle.enter(me);
        if there.shared.has_standby() || there.shared.summary() != 0 {
            if !there.shared.has_standby()
                && let Some(next) = there.queues.take_best(&there.shared, 0)
            {
                there.queues.set_standby(&there.shared, me, next);
            }
            there.asked = true;
            return;
        }
        for other in (me + 1..self.count()).chain(0..me) {
            let there = &mut self.processors[other as usize];
            if let Some(found) = there.queues.take_if(&there.shared, |it| it.may_run_on(me)) {
                let found = self.index(found);
                self.threads[found].set_place(Place::Waiting(other));
                self.processors[me as usize].asked = true;
                self.place(found, me);
                return self.look_by_interrupt(me);
            }
        }
        // tick.rs, `go_idle`
        self.processors[me as usize].ticking = false;
    }

    /// change.rs, `try_change`.
    fn change(&mut self, thread: usize, how: impl Fn(&Schedulable)) {
        let it = &self.threads[thread];
        let pointer = self.pointer(thread);
        match it.place() {
            Place::Running(number) => {
                how(it);
                let there = &mut self.processors[number as usize];
                let changed = there.queues.running_changed(&there.shared, number, it);
                let mut tell = changed.has_standby | there.asks_for_a_tick(changed.displaced != 0);
                if !it.may_run_on(number) {
                    (there.quantum_look, tell) = (true, true);
                }
                if tell {
                    there.ask(number == 0);
                }
                self.tell_idle(changed.displaced);
            }
            Place::Ready(number) => {
                let there = &mut self.processors[number as usize];
                there.queues.remove(&there.shared, pointer);
                it.set_place(Place::Waiting(number));
                how(it);
                self.place(thread, 0);
            }
            Place::Standby(number) => {
                let there = &mut self.processors[number as usize];
                let running = there.running.map(|running| self.threads[running].priority());
                // The interrupt that is on its way may come in the middle of this, and find no reason to look.
                there.asked &= there.quantum_look || running.is_none();
                if there.queues.take_standby_away(&there.shared, number, running) {
                    there.ask(number == 0);
                }
                it.set_place(Place::Waiting(number));
                how(it);
                self.place(thread, 0);
            }
            _ => how(it),
        }
    }

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

    fn tick(&mut self, me: u32, spent: i64) {
        let there = &mut self.processors[me as usize];
        let Some(running) = there.running else { return };
        let it = &self.threads[running];
        it.set_quantum(it.quantum() - spent);
        if !std::mem::take(&mut there.ticking) {
            return;
        }
        there.quantum_look = true;
        let (before, base, left) = (it.priority(), it.base(), it.quantum());
        self.look(me);
        let after = self.threads[running].priority();
        let used_up = if left > 0 { 0 } else { 1 - left / QUANTUM };
        let decayed = if before < REAL_TIME { base.max(before - before.min(used_up as u8)) } else { before };
        assert_eq!(after, decayed, "decay of {before} over {base}");
    }

    fn yields(&mut self, me: u32) {
        let there = &mut self.processors[me as usize];
        let Some(running) = there.running else { return };
        let pointer = NonNull::from(&self.threads[running]);
        if !there.shared.has_standby() && !there.quantum_look {
            match there.queues.take_turns(&there.shared, me, pointer) {
                Turns::Nobody => {
                    let mine = self.threads[running].priority();
                    let there = &self.processors[me as usize];
                    assert!(
                        // SAFETY: threads of this world.
                        there.queues.iter(&there.shared).all(|it| unsafe { it.as_ref() }.priority() < mine)
                    );
                    return;
                }
                Turns::Taken { next, left_behind } => {
                    if left_behind {
                        self.tell_idle(self.threads[running].affinity());
                    }
                    assert!(self.processors[me as usize].ticking, "a queue without a tick");
                    return self.runs(me, next);
                }
                Turns::Otherwise => {}
            }
        }
        match there.queues.yield_to(&there.shared, me, pointer) {
            Next::Stay => {}
            Next::Leave => self.vacate(me),
            Next::Switch { next, .. } => {
                self.tell_idle(self.threads[running].affinity());
                self.processors[me as usize].ticking = true;
                self.runs(me, next);
            }
        }
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
