//! What a processor does next: the decisions of the look, of a yield, of the quantum's end, of a change, made on its queues. Pure; under
//! that processor's `PrcbLock`, as everything in `queues`.
//!
//! Invariants: those of queues.rs, which hold behind each of these; what runs is passed in, `None` for the idle thread.
//! Tests:      tests/props/tests/scheduler.rs, on virtual processors.

use super::place::{Level, level_of};
use super::priority;
use super::queues::{Admitted, Queues, Shared, ThreadPtr};
use super::schedulable::{PRIORITIES, Place, REAL_TIME, Schedulable};

/// What a look or a yield comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// What runs runs on.
    Stay,
    /// What runs may not run here any more: it must leave. Nothing was changed.
    Leave,
    /// A switch: what ran was queued, unless it is the idle thread.
    Switch {
        /// To this thread, which is the caller's now.
        next: ThreadPtr,
        /// For what was queued, an idle processor must be looked for, and a tick armed: neither follows from `next` having been queued.
        left_behind: bool,
    },
}

/// What follows from a change of what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Changed {
    /// The processor must switch.
    pub has_standby: bool,
    /// As [`Admitted::Standby`]'s.
    pub displaced: u64,
}

/// What a yield to equals comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turns {
    /// Nobody is queued who could run instead.
    Nobody,
    /// As [`Next::Switch`].
    Taken {
        /// See there.
        next: ThreadPtr,
        /// See there.
        left_behind: bool,
    },
    /// Something above what runs is queued; nothing was changed.
    Otherwise,
}

impl Queues {
    /// Is the standby thread to run? What runs then is queued before its equals, or behind them if its turn is over.
    #[inline(always)]
    pub fn preempt(&mut self, shared: &Shared, me: u32, running: Option<ThreadPtr>, turn_over: bool) -> Next {
        // SAFETY: what runs stays.
        if running.is_some_and(|it| !unsafe { it.as_ref() }.may_run_on(me)) {
            return Next::Leave;
        }
        let Some(next) = self.take_standby(shared) else { return Next::Stay };
        // SAFETY: standby here until just now, and ours.
        shared.runs(Some(unsafe { next.as_ref() }.priority()));
        if let Some(running) = running {
            self.insert(shared, me, running, !turn_over);
        }
        Next::Switch { next, left_behind: running.is_some() }
    }

    /// `thread` has become ready on this processor, by the code that runs: is it to run at once, instead of being standby? Then what runs
    /// was queued before its equals, and `thread` runs by its place. False: nothing was changed.
    #[inline(always)]
    pub fn overtake(
        &mut self,
        shared: &Shared,
        me: u32,
        running: Option<ThreadPtr>,
        thread: &Schedulable,
    ) -> bool {
        let priority = thread.priority();
        if shared.level() >= level_of(priority) || shared.has_standby() {
            return false;
        }
        if let Some(running) = running {
            // SAFETY: what runs stays.
            if !unsafe { running.as_ref() }.may_run_on(me) {
                return false;
            }
            self.insert(shared, me, running, true);
        }
        shared.runs(Some(priority));
        thread.set_place(Place::Running(me));
        true
    }

    /// What runs leaves this processor for good, and `thread` has become ready on it: is it what runs next? Then it runs by its place, and
    /// what is queued stays so. False: something that is queued is to run before it; nothing was changed.
    #[inline(always)]
    pub fn succeed(&mut self, shared: &Shared, me: u32, thread: &Schedulable) -> bool {
        let priority = thread.priority();
        if shared.summary() >> priority != 0 || shared.has_standby() {
            return false;
        }
        shared.runs(Some(priority));
        thread.set_place(Place::Running(me));
        true
    }

    /// Gives way to an equal that is queued: what runs goes behind the others. The usual yield, if nobody has asked this processor for a look:
    /// then nothing is standby, and what runs may run here.
    #[inline(always)]
    pub fn take_turns(&mut self, shared: &Shared, me: u32, running: ThreadPtr) -> Turns {
        // SAFETY: what runs stays.
        let it = unsafe { running.as_ref() };
        let priority = it.priority();
        match shared.summary() >> priority {
            0 => Turns::Nobody,
            1 => {
                // SAFETY: the bit is set; what runs is in no queue.
                let next = unsafe { self.rotate(me, running, priority) };
                // Who could run what ran has found `next`, if it may run that.
                // SAFETY: taken just now.
                let left_behind = it.affinity() & !unsafe { next.as_ref() }.affinity() != 0;
                Turns::Taken { next, left_behind }
            }
            _ => Turns::Otherwise,
        }
    }

    /// Gives way to the standby thread, or to one that is queued and not below what runs: in any case.
    pub fn yield_to(&mut self, shared: &Shared, me: u32, running: ThreadPtr) -> Next {
        // SAFETY: what runs stays.
        let it = unsafe { running.as_ref() };
        if !it.may_run_on(me) {
            return Next::Leave;
        }
        let next = self.take_standby(shared).or_else(|| self.take_best(shared, it.priority()));
        let Some(next) = next else { return Next::Stay };
        // SAFETY: taken just now.
        shared.runs(Some(unsafe { next.as_ref() }.priority()));
        self.insert(shared, me, running, false);
        Next::Switch { next, left_behind: true }
    }

    /// What runs was charged: is its quantum over? Then the next begins, it competes with what it decays to, and the best of its new
    /// equals and those above is standby. True: its turn is over, whoever runs next.
    pub fn end_quantum(&mut self, shared: &Shared, me: u32, running: &Schedulable) -> bool {
        if running.quantum() > 0 {
            return false;
        }
        priority::quantum_over(running);
        if !shared.has_standby() {
            shared.runs(Some(running.priority()));
            if let Some(next) = self.take_best(shared, running.priority()) {
                self.set_standby(shared, me, next);
            }
        }
        true
    }

    /// What runs has another priority: a standby thread that is below it now goes back, one that is above it is found.
    pub fn running_changed(&mut self, shared: &Shared, me: u32, running: &Schedulable) -> Changed {
        let level = level_of(running.priority());
        let mut displaced = 0;
        if let Some(standby) = self.standby(shared) {
            // SAFETY: standby here, so it stays.
            let it = unsafe { standby.as_ref() };
            if level_of(it.priority()) >= level {
                return Changed { has_standby: true, displaced };
            }
            displaced = it.affinity();
            let _ = self.take_standby(shared);
            self.insert(shared, me, standby, true);
        }
        shared.runs(Some(running.priority()));
        self.refill(shared, me);
        Changed { has_standby: shared.has_standby(), displaced }
    }

    /// The standby thread is taken away from a processor that runs `running`: the best of the queue takes its place, if it is above
    /// that. True: it did, and the processor must be asked again. It may have found no standby thread in between, without the lock, and
    /// so have made no look.
    #[must_use]
    pub fn take_standby_away(&mut self, shared: &Shared, me: u32, running: Option<u8>) -> bool {
        let _ = self.take_standby(shared);
        shared.runs(running);
        self.refill(shared, me);
        shared.has_standby()
    }

    /// Without a standby thread: the best of the queue becomes it, if it is above what runs.
    fn refill(&mut self, shared: &Shared, me: u32) {
        // What runs has level 0 if it is the idle thread: then any will do.
        let least = shared.level();
        if least < PRIORITIES
            && let Some(next) = self.take_best(shared, least)
        {
            self.set_standby(shared, me, next);
        }
    }

    /// Once a second: notes of each that is queued that it was found so.
    pub fn count_waits(&mut self, shared: &Shared) {
        for queued in self.iter(shared) {
            // SAFETY: queued, hence valid, under the lock.
            let it = unsafe { queued.as_ref() };
            it.set_waits(it.waits().saturating_add(1));
        }
    }

    /// A thread that was found queued `after` times gets the highest dynamic priority, and competes with that. `None`: there is none.
    pub fn relieve_one(&mut self, shared: &Shared, me: u32, after: u8) -> Option<Admitted> {
        let starves = |it: &Schedulable| it.waits() >= after && it.priority() < REAL_TIME - 1;
        let found = self.take_if(shared, starves)?;
        // SAFETY: taken out just now. Its priority may be written under the lock of its processor alone here: who else writes it has
        //         the thread's lock and this one.
        let it = unsafe { found.as_ref() };
        priority::relieve(it);
        it.set_quantum(it.quantum_reset());
        Some(self.admit(shared, me, found))
    }
}

/// Is `running` above a thread of priority `waiting` by nothing but its boost?
pub fn keeps_its_boost_from(running: &Schedulable, waiting: u8) -> bool {
    running.is_boosted() && running.base() < waiting
}

/// So many threads go to processors that run something lower at one tick: a tick is not to take for ever.
pub const PUSHED_AT_ONCE: u32 = 16;

/// Does some processor other than `me` that `thread` may run on run something lower? For what is queued.
pub fn belongs_elsewhere(thread: &Schedulable, me: u32, level: impl Fn(u32) -> Level) -> bool {
    let mut left = thread.affinity() & !(1 << me);
    while left != 0 {
        let other = left.trailing_zeros();
        left &= left - 1;
        if level(other) < level_of(thread.priority()) {
            return true;
        }
    }
    false
}
