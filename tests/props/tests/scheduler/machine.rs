//! The machine's part of the scheduler without locks: what ready.rs, look.rs, balance.rs and change.rs do between the decisions, written
//! out again.

use std::ptr::NonNull;

use kernel::ke::sched::decide::{Next, PUSHED_AT_ONCE, Turns, belongs_elsewhere, keeps_its_boost_from};
use kernel::ke::sched::place::choose;
use kernel::ke::sched::queues::{Admitted, Queues, Shared, ThreadPtr};
use kernel::ke::sched::{Place, REAL_TIME, Schedulable};
use sync::idle_set::IdleSet;

use super::{QUANTUM, THREADS};

pub(super) struct Processor {
    pub(super) queues: Queues,
    pub(super) shared: Shared,
    /// `None`: the idle thread.
    pub(super) running: Option<usize>,
    /// An interrupt is on its way.
    pub(super) asked: bool,
    /// Its own code looks on its way out, unless it waits before that.
    pub(super) in_view: bool,
    pub(super) quantum_look: bool,
    /// The end of a quantum is armed for.
    pub(super) ticking: bool,
    pub(super) told: bool,
}

impl Processor {
    pub(super) fn wants_look(&self) -> bool {
        self.shared.has_standby() || self.quantum_look
    }

    /// ready.rs, `asks_for_a_tick`.
    pub(super) fn asks_for_a_tick(&mut self, wanted: bool) -> bool {
        let asks = wanted && !self.ticking;
        self.quantum_look |= asks;
        asks
    }

    /// To look, it is sent an interrupt by others, and does by itself.
    pub(super) fn ask(&mut self, by_itself: bool) {
        if by_itself { self.in_view = true } else { self.asked = true }
    }
}

pub(super) struct World {
    pub(super) processors: Vec<Processor>,
    pub(super) idle: IdleSet,
    /// They don't move.
    pub(super) threads: Box<[Schedulable]>,
    pub(super) waits: Vec<bool>,
}

impl World {
    pub(super) fn new(count: u32) -> Self {
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

    pub(super) fn count(&self) -> u32 {
        self.processors.len() as u32
    }

    pub(super) fn pointer(&self, thread: usize) -> ThreadPtr {
        NonNull::from(&self.threads[thread])
    }

    pub(super) fn index(&self, thread: ThreadPtr) -> usize {
        self.threads.iter().position(|it| NonNull::from(it) == thread).expect("a thread of this world")
    }

    pub(super) fn runs(&mut self, me: u32, next: ThreadPtr) {
        let next = self.index(next);
        self.threads[next].set_place(Place::Running(me));
        self.processors[me as usize].running = Some(next);
    }

    pub(super) fn tell_idle(&mut self, allowed: u64) {
        if self.idle.after_queueing() & allowed != 0
            && let Some(told) = self.idle.claim(allowed)
        {
            self.tell(told);
        }
    }

    pub(super) fn tell(&mut self, number: u32) {
        let there = &mut self.processors[number as usize];
        (there.told, there.quantum_look, there.asked) = (true, true, true);
    }

    pub(super) fn pass_on(&mut self, me: u32) {
        if std::mem::take(&mut self.processors[me as usize].told) {
            while let Some(other) = self.idle.claim(u64::MAX) {
                self.tell(other);
            }
        }
    }

    /// ready.rs, `place`.
    pub(super) fn place(&mut self, thread: usize, here: u32) {
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
    pub(super) fn look(&mut self, me: u32) {
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
    pub(super) fn push(&mut self, me: u32) {
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
    pub(super) fn ask_the_boosted(&mut self, me: u32) {
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
    pub(super) fn switch_away(&mut self, me: u32) -> usize {
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
    pub(super) fn end(&mut self, me: u32, joins: usize) -> usize {
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

    pub(super) fn vacate(&mut self, me: u32) {
        let old = self.switch_away(me);
        self.place(old, me);
        self.look_by_interrupt(me);
    }

    /// ready.rs, `woken_before_it_was_saved`; and whatever else has no way out on which it looks.
    pub(super) fn look_by_interrupt(&mut self, me: u32) {
        let there = &mut self.processors[me as usize];
        there.asked |= std::mem::take(&mut there.in_view);
    }

    /// balance.rs, `go_idle_look`.
    pub(super) fn go_idle(&mut self, me: u32) {
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
    pub(super) fn change(&mut self, thread: usize, how: impl Fn(&Schedulable)) {
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

    pub(super) fn tick(&mut self, me: u32, spent: i64) {
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

    pub(super) fn yields(&mut self, me: u32) {
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
}
