//! The timer wheel against a sorted list: what expires in each advance, in which order of ticks, and when it wants to be
//! woken next.
//!
//! The reference is a list of what is armed, each with the tick (25.6 µs) at which it may expire: the first that is not before
//! its due time, which is the present if that is over when it is armed. An advance to `now` must give out exactly those whose
//! tick has begun. So none is early, none is late by more than a tick and its tolerance, and none overtakes one of an earlier tick by
//! an advance. Due times are drawn from all magnitudes of the 64 bits, near the present, and past.
//! What was refused, as others held its lock, may be given out by any later advance, and must be by one a tick later.
//! Bound: 64 bits of 100 ns less the last tick, 58,000 years; what is due later than that is due at that.
//! Operations: some 10⁶ with optimisation, 10⁵ without (Miri: some hundred). `PROPTEST_CASES` changes nothing here; a failure prints its
//! operations, made as few as possible.

use kernel::ke::timer::wheel::Wheel;
use kernel::ke::timer::{KTimer, TimerKind};
use proptest::prelude::*;
use proptest::test_runner::Config;

const CASES: u32 = if cfg!(miri) {
    4
} else if cfg!(debug_assertions) {
    250
} else {
    2_500
};
const OPERATIONS: usize = if cfg!(miri) { 60 } else { 400 };
const TIMERS: usize = 48;
const TICK: u64 = 256;
/// The last moment that a tick begins at.
const LAST: u64 = u64::MAX - (TICK - 1);

#[derive(Clone, Debug)]
enum Operation {
    /// Arms timer n (takes it out first if it is armed), that long from now, or at that time.
    Arm {
        timer: usize,
        after: u64,
        at: bool,
        tolerance: u64,
        absolute: bool,
    },
    Cancel(usize),
    /// The next clock interrupt, or any later time.
    Advance {
        by: u64,
    },
    AdvanceToEarliest,
    /// To the tick before that: nothing is due yet.
    AdvanceShortOfEarliest {
        by: u64,
    },
    /// As above, while the timers in the mask are locked by others: they stay.
    AdvanceWithLocked {
        by: u64,
        locked: u64,
    },
    /// As above; each that expires is armed again at once, for a time long over or that long from the look.
    AdvanceWithArming {
        by: u64,
        after: Option<u64>,
        tolerance: u64,
    },
    SetSystemTime {
        delta: i64,
    },
}

/// A number of any magnitude, so that every level of the wheel is used as often as another.
fn magnitude(bits: u32) -> impl Strategy<Value = u64> {
    (0..=bits, any::<u64>()).prop_map(|(bits, random)| random & ((1_u128 << bits) - 1) as u64)
}

fn operation() -> impl Strategy<Value = Operation> {
    let tolerance = prop_oneof![3 => Just(0), 2 => magnitude(20), 1 => magnitude(64)];
    let timer = 0..TIMERS;
    prop_oneof![
        8 => (timer.clone(), magnitude(64), prop::bool::weighted(0.1), tolerance, any::<bool>()).prop_map(
            |(timer, after, at, tolerance, absolute)| Operation::Arm { timer, after, at, tolerance, absolute }
        ),
        3 => timer.prop_map(Operation::Cancel),
        3 => magnitude(30).prop_map(|by| Operation::Advance { by }),
        1 => magnitude(63).prop_map(|by| Operation::Advance { by }),
        3 => Just(Operation::AdvanceToEarliest),
        2 => (1..=TICK).prop_map(|by| Operation::AdvanceShortOfEarliest { by }),
        1 => (magnitude(34), any::<u64>())
            .prop_map(|(by, locked)| Operation::AdvanceWithLocked { by, locked }),
        1 => (magnitude(34), prop::option::of(magnitude(34)), prop_oneof![Just(0), magnitude(20)])
            .prop_map(|(by, after, tolerance)| Operation::AdvanceWithArming { by, after, tolerance }),
        1 => (magnitude(40), any::<bool>())
            .prop_map(|(delta, back)| Operation::SetSystemTime { delta: if back { -(delta as i64) } else { delta as i64 } }),
    ]
}

/// What the reference knows of an armed timer.
#[derive(Clone, Copy, Debug)]
struct Armed {
    due: u64,
    tick: u64,
    absolute: bool,
    tolerance: u64,
    /// It may be given out before its tick.
    refused: bool,
}

fn tick_of(time: u64) -> u64 {
    (u128::from(time).div_ceil(u128::from(TICK)) as u64).min(LAST / TICK)
}

/// The latest multiple of a power of two that tolerance allows: 2ⁿ − 1 ≤ tolerance.
fn coalesced(due: u64, tolerance: u64) -> u64 {
    let mut grain = 1_u128;
    while grain * 2 - 1 <= u128::from(tolerance) && grain < 1 << 63 {
        grain *= 2;
    }
    u64::try_from(u128::from(due).div_ceil(grain) * grain).unwrap_or(due)
}

struct Subject {
    wheel: Box<Wheel>,
    timers: Vec<KTimer>,
    armed: [Option<Armed>; TIMERS],
    now: u64,
    /// The latest time that was ever advanced to, in ticks.
    tick: u64,
}

impl Subject {
    fn new() -> Self {
        Self {
            wheel: Box::new(Wheel::new()),
            timers: (0..TIMERS).map(|_| KTimer::new(TimerKind::Notification)).collect(),
            armed: [None; TIMERS],
            now: 0,
            tick: 0,
        }
    }

    fn pointer(&self, timer: usize) -> *mut KTimer {
        (&raw const self.timers[timer]).cast_mut()
    }

    fn cancel(&mut self, timer: usize) {
        if self.armed[timer].take().is_some() {
            // SAFETY: linked, says the reference.
            unsafe { self.wheel.remove(self.pointer(timer)) };
        }
    }

    fn arm(&mut self, timer: usize, due: u64, tolerance: u64, absolute: bool) {
        self.cancel(timer);
        let armed = self.reference(due, tolerance, absolute);
        // SAFETY: in no table, and it lives as long as the subject.
        let start = unsafe { self.wheel.arm(self.pointer(timer), due, KTimer::options(tolerance, absolute)) };
        if let Some(start) = start {
            assert_eq!(start, armed.tick * TICK, "{armed:?} is to expire at {start}");
        }
        self.armed[timer] = Some(armed);
    }

    fn reference(&self, due: u64, tolerance: u64, absolute: bool) -> Armed {
        // What is due by then is due now, and waits for no other time.
        let passed = self.tick * TICK;
        let (due, absolute) = if due <= passed { (passed + 1, false) } else { (due, absolute) };
        let latest = coalesced(due, tolerance);
        assert!(latest >= due && latest - due <= tolerance);
        Armed { due, tick: tick_of(latest), absolute, tolerance, refused: false }
    }

    fn advance(&mut self, now: u64, locked: u64) {
        self.now = self.now.max(now);
        let to = now / TICK;
        let base = self.timers.as_ptr();
        let (mut expired, mut kept) = (Vec::new(), Vec::new());
        self.wheel.advance(now, |_, timer| {
            // SAFETY: one of ours.
            let timer = unsafe { timer.cast_const().offset_from(base) } as usize;
            let stays = locked >> (timer % 64) & 1 != 0;
            if stays {
                kept.push(timer)
            } else {
                expired.push(timer)
            }
            !stays
        });
        self.tick = self.tick.max(to);
        self.check_given_out(now, &[&expired[..], &kept].concat());
        for timer in expired {
            self.armed[timer] = None;
        }
        for timer in kept {
            let armed = self.armed[timer].as_mut().expect("checked above");
            armed.tick = (to + 1).min(LAST / TICK);
            armed.refused = true;
        }
    }

    /// An advance to `now` gave out the timers `given`: those that are due, once each.
    fn check_given_out(&self, now: u64, given: &[usize]) {
        for (timer, armed) in self.armed.iter().enumerate() {
            let due = armed.is_some_and(|armed| armed.tick <= now / TICK);
            let times = given.iter().filter(|&&other| other == timer).count();
            let may = armed.is_some_and(|armed| armed.refused);
            if times > 0 {
                assert!(armed.is_some_and(|armed| armed.due <= now), "early: {armed:?} at {now}");
            }
            assert!(times == due.into() || may && times == 1, "timer {timer}, {armed:?}, at {now}: {times}");
        }
    }

    /// What is armed by who is called in the look is not due in it: so the look ends, though each is armed for the past.
    fn advance_with_arming(&mut self, now: u64, after: Option<u64>, tolerance: u64) {
        self.now = self.now.max(now);
        let due = after.map_or(0, |after| (self.now + 1).saturating_add(after).min(LAST));
        let options = KTimer::options(tolerance, false);
        let mut expired = Vec::new();
        let base = self.timers.as_ptr();
        self.wheel.advance(now, |wheel, timer| {
            // SAFETY: one of ours.
            expired.push(unsafe { timer.cast_const().offset_from(base) } as usize);
            assert!(expired.len() <= TIMERS, "a look without an end");
            // SAFETY: it is linked nowhere now, and lives on.
            unsafe { wheel.arm(timer, due, options) };
            true
        });
        self.tick = self.tick.max(now / TICK);
        self.check_given_out(now, &expired);
        for timer in expired {
            self.armed[timer] = Some(self.reference(due, tolerance, false));
        }
    }

    /// A lower bound of the first tick, and not so low that the clock would interrupt just to spread a slot: after a cancel
    /// it may be as early as what was cancelled, but always after the last advance.
    fn check_earliest(&self, exact: bool) {
        let first = self.armed.iter().flatten().map(|armed| armed.tick * TICK).min();
        let earliest = self.wheel.earliest();
        match first {
            None => assert_eq!(earliest, u64::MAX),
            Some(first) if exact => assert_eq!(earliest, first),
            Some(first) => {
                assert!(earliest <= first, "{earliest} is after {first}");
                assert!(earliest > self.tick * TICK || self.tick == LAST / TICK, "{earliest} is over");
            }
        }
    }

    /// The slot that the first timer stands in begins at or before `earliest`.
    fn check_slot(&self) {
        let Some(first) = self.armed.iter().flatten().map(|armed| armed.tick).min() else { return };
        if first <= self.tick {
            return;
        }
        let level = (first ^ self.tick).ilog2() / 4;
        let slot = first >> (4 * level) << (4 * level);
        assert!(self.wheel.earliest() / TICK >= slot, "before the slot of the first");
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Arm { timer, after, at, tolerance, absolute } => {
                let due = if at { after } else { self.now.saturating_add(after) };
                self.arm(timer, due.min(LAST), tolerance, absolute);
            }
            Operation::Cancel(timer) => self.cancel(timer),
            Operation::Advance { by } => self.advance(self.now.saturating_add(by).min(LAST - TICK), 0),
            Operation::AdvanceToEarliest => {
                let earliest = self.wheel.earliest();
                if earliest < LAST {
                    self.advance(earliest.max(self.now), 0);
                }
            }
            Operation::AdvanceShortOfEarliest { by } => {
                let earliest = self.wheel.earliest();
                if earliest < LAST {
                    self.advance(earliest.saturating_sub(by).max(self.now), 0);
                }
            }
            Operation::AdvanceWithLocked { by, locked } => {
                self.advance(self.now.saturating_add(by).min(LAST - TICK), locked);
            }
            Operation::AdvanceWithArming { by, after, tolerance } => {
                self.advance_with_arming(self.now.saturating_add(by).min(LAST - TICK), after, tolerance);
            }
            Operation::SetSystemTime { delta } => self.move_absolute(delta),
        }
    }

    fn move_absolute(&mut self, delta: i64) {
        self.wheel.move_absolute(delta as u64);
        for timer in 0..TIMERS {
            let Some(armed) = self.armed[timer].filter(|armed| armed.absolute) else { continue };
            let moved = i128::from(armed.due) - i128::from(delta);
            let due = u64::try_from(moved.max(0)).unwrap_or(LAST).min(LAST);
            self.armed[timer] = Some(self.reference(due, armed.tolerance, true));
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_wheel_does_what_a_sorted_list_does(
        operations in prop::collection::vec(operation(), OPERATIONS),
    ) {
        let mut subject = Subject::new();
        for operation in &operations {
            subject.apply(operation);
            subject.check_earliest(false);
            subject.check_slot();
        }
        // Driven by `earliest` alone, as the clock drives it, all the rest expire in their own tick.
        let mut looks = 0;
        while subject.armed.iter().any(Option::is_some) && subject.wheel.earliest() < LAST - TICK {
            subject.apply(&Operation::AdvanceToEarliest);
            looks += 1;
            assert!(looks <= 2 * TIMERS * 10, "the clock is interrupted again and again");
        }
    }

    /// A timer for a time of day is due at the same time whether it was set before the system time was changed or after.
    #[test]
    fn a_time_of_day_is_the_same_before_and_after_a_change(
        first in magnitude(60), changes in prop::collection::vec((magnitude(40), any::<bool>()), 1..8),
        after in 0..1_u64 << 40,
    ) {
        let mut subject = Subject::new();
        // Both further from the ends than all changes together.
        let first = first + (1 << 44);
        let system = first + (1 << 44) + after;
        let due = subject.wheel.interrupt_time_of(system, first);
        prop_assert_eq!(due, system - first);
        subject.arm(0, due, 0, true);
        for (delta, back) in changes {
            subject.wheel.move_absolute(if back { delta.wrapping_neg() } else { delta });
            prop_assert_eq!(subject.timers[0].due(), subject.wheel.interrupt_time_of(system, first));
        }
    }

    /// Without cancels, `earliest` is exact: no interrupt comes for nothing.
    #[test]
    fn without_cancels_the_clock_interrupts_for_expiry_alone(
        due in prop::collection::vec(magnitude(63), 1..TIMERS),
    ) {
        let mut subject = Subject::new();
        for (timer, &due) in due.iter().enumerate() {
            subject.arm(timer, due, 0, false);
            subject.check_earliest(true);
        }
        while subject.wheel.earliest() != u64::MAX {
            let before = subject.armed.iter().flatten().count();
            subject.apply(&Operation::AdvanceToEarliest);
            prop_assert!(subject.armed.iter().flatten().count() < before, "an interrupt for nothing");
            subject.check_earliest(true);
        }
    }

    /// A periodic timer goes in again from within its expiry: it expires in each look that a multiple of its period has come
    /// before, once, and stays on that grid; from its first expiry on also when the system time changes, absolute as it was.
    #[test]
    fn a_periodic_timer_keeps_its_grid(
        absolute in any::<bool>(), first in magnitude(30), period in 10_000..10_000_000_u64,
        steps in prop::collection::vec(magnitude(27), 1..40),
    ) {
        let mut subject = Subject::new();
        subject.arm(0, first, 0, absolute);
        let (mut now, mut due) = (0_u64, first.max(1));
        let mut has_expired = false;
        for step in steps {
            now += step;
            let mut expiries = 0;
            subject.wheel.advance(now, |wheel, timer| {
                expiries += 1;
                // SAFETY: it is linked nowhere now, and lives on.
                unsafe { wheel.arm_again(timer, period) };
                true
            });
            let at = now / TICK * TICK;
            prop_assert_eq!(expiries, u64::from(due <= at), "due at {}, at {}", due, now);
            if due <= at {
                due += ((at - due) / period + 1) * period;
            }
            has_expired |= expiries != 0;
            if has_expired {
                subject.wheel.move_absolute(if step % 2 == 0 { step } else { step.wrapping_neg() });
            }
            prop_assert_eq!(subject.timers[0].due(), due);
        }
    }
}
