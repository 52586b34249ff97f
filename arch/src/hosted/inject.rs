//! Virtual interrupts at chosen points: what loom, which knows no interrupts, cannot show.
//!
//! Every call of the arch interface, and every atomic operation of `sync` on the host, is a *point*. [`run_at`] runs a
//! scenario with one interrupt that arrives at the n-th point; [`every_point`] does so for n = 0, 1, 2, … until the scenario
//! ends before it. [`every_pair`] does it with two interrupts at every two points, those of either handler included.
//! The virtual processor masks as CR8 does: an interrupt whose level is not above the current one stays
//! pending and is delivered at the first point after the level fell below it, exactly once; the highest first. The handler runs
//! at its own level on the interrupted stack, must return at that level, and is interrupted by higher ones only.
//!
//! Invariants: I1 `ARMED` points to a live injection exactly while its run is on this thread's stack.
//!             I2 an interrupt's state moves Waiting(n) → … → Waiting(0) → Pending → Running → Delivered, never back.

use core::cell::Cell;
use core::ptr;

use super::{irql, trap};

/// What became of the interrupt of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The scenario was over before it came to the point.
    NotReached,
    /// It arrived and was masked until the end.
    StillPending,
    /// The handler ran once, having interrupted code at this level.
    Delivered {
        /// CR8 of the interrupted code.
        interrupted: u8,
    },
}

#[derive(Clone, Copy)]
enum State {
    /// This many points to go before it arrives.
    Waiting(u32),
    Pending,
    Running,
    Delivered(u8),
}

struct Source<'a> {
    state: Cell<State>,
    level: u8,
    handler: &'a dyn Fn(),
}

struct Injection<'a> {
    sources: &'a [Source<'a>],
}

std::thread_local! {
    static ARMED: Cell<*const Injection<'static>> = const { Cell::new(ptr::null()) };
}

std::thread_local! {
    static SPUN: Cell<fn()> = const { Cell::new(std::thread::yield_now) };
}

/// From now on this thread calls `f` where it spins for others, in place of giving way: for tests that say who goes on.
pub fn on_spin(f: fn()) {
    SPUN.set(f);
}

/// This thread spins for others.
#[cfg(not(loom))]
pub(super) fn spun() {
    SPUN.get()();
}

/// A point at which a virtual interrupt may arrive. Costs one thread-local load when none is armed. Nothing in a model,
/// where interleaving is loom's business.
#[inline]
pub fn point() {
    if cfg!(loom) {
        return;
    }
    // A thread that is being torn down runs destructors after its thread-locals are gone: none is armed then.
    let armed = ARMED.try_with(Cell::get).unwrap_or(ptr::null());
    // SAFETY: I1: not null means that the `Injection` is on this thread's own stack, below this frame.
    if let Some(injection) = unsafe { armed.as_ref() } {
        injection.step();
    }
    trap::point();
}

impl<'a> Source<'a> {
    fn new(point: u32, level: u8, handler: &'a dyn Fn()) -> Self {
        Self { state: Cell::new(State::Waiting(point)), level, handler }
    }

    fn count(&self) {
        match self.state.get() {
            State::Waiting(0) => self.state.set(State::Pending),
            State::Waiting(n) => self.state.set(State::Waiting(n - 1)),
            State::Pending | State::Running | State::Delivered(_) => {}
        }
    }

    fn deliver(&self, interrupted: u8) {
        self.state.set(State::Running);
        irql::write(self.level);
        (self.handler)();
        assert_eq!(irql::peek(), self.level, "the handler returned at another level than it was entered at");
        irql::write(interrupted);
        self.state.set(State::Delivered(interrupted));
    }

    fn outcome(&self) -> Outcome {
        match self.state.get() {
            State::Waiting(_) => Outcome::NotReached,
            State::Pending => Outcome::StillPending,
            State::Running => unreachable!("the handler returned, or its panic came past here"),
            State::Delivered(interrupted) => Outcome::Delivered { interrupted },
        }
    }
}

impl Injection<'_> {
    fn step(&self) {
        self.sources.iter().for_each(Source::count);
        // More than one may be pending, and a handler's end may unmask another.
        loop {
            let interrupted = irql::peek();
            let deliverable = |source: &&Source<'_>| {
                matches!(source.state.get(), State::Pending) && source.level > interrupted
            };
            let Some(next) = self.sources.iter().filter(deliverable).max_by_key(|source| source.level) else {
                return;
            };
            next.deliver(interrupted);
        }
    }
}

/// Disarms even when the scenario panics (I1).
struct Disarm;

impl Drop for Disarm {
    fn drop(&mut self) {
        ARMED.set(ptr::null());
    }
}

/// Runs `scenario` under these interrupts.
fn run(sources: &[Source<'_>], scenario: impl FnOnce()) {
    let injection = Injection { sources };
    assert!(ARMED.get().is_null(), "injections do not nest");
    let before = irql::peek();
    ARMED.set(ptr::from_ref(&injection).cast());
    let disarm = Disarm;
    scenario();
    drop(disarm);
    assert_eq!(irql::peek(), before, "the scenario ended at another level than it began at");
}

/// Runs `scenario` with an interrupt at `level` that arrives at its point number `point`.
///
/// # Panics
/// When the scenario or the handler ends at another level than it began at, or injections are nested.
pub fn run_at(point: u32, level: u8, handler: &dyn Fn(), scenario: impl FnOnce()) -> Outcome {
    let source = [Source::new(point, level, handler)];
    run(&source, scenario);
    source[0].outcome()
}

/// The same with two interrupts, each with its point and level. Points of the handlers count for both.
///
/// # Panics
/// As [`run_at`].
pub fn run_pair(
    points: [u32; 2],
    levels: [u8; 2],
    handlers: [&dyn Fn(); 2],
    scenario: impl FnOnce(),
) -> [Outcome; 2] {
    let sources = [0, 1].map(|n| Source::new(points[n], levels[n], handlers[n]));
    run(&sources, scenario);
    sources.each_ref().map(Source::outcome)
}

/// Runs `scenario` again and again, each time on a `fresh` subject, with the interrupt one point later, until the scenario
/// ends before it; `check` judges each run, the last (without interrupt) included. Returns the number of points.
pub fn every_point<S>(
    level: u8,
    fresh: impl Fn() -> S,
    scenario: impl Fn(&S),
    handler: impl Fn(&S),
    check: impl Fn(&S, Outcome),
) -> u32 {
    for point in 0.. {
        let subject = fresh();
        let outcome = run_at(point, level, &|| handler(&subject), || scenario(&subject));
        check(&subject, outcome);
        if outcome == Outcome::NotReached {
            return point;
        }
    }
    unreachable!("a scenario has fewer than 2^32 points")
}

/// As [`every_point`], with two interrupts that arrive at every two points. Returns the number of runs.
pub fn every_pair<S>(
    levels: [u8; 2],
    fresh: impl Fn() -> S,
    scenario: impl Fn(&S),
    handlers: [&dyn Fn(&S); 2],
    check: impl Fn(&S, [Outcome; 2]),
) -> u32 {
    let mut runs = 0;
    for first in 0.. {
        for second in 0.. {
            let subject = fresh();
            let outcomes = run_pair(
                [first, second],
                levels,
                [&|| handlers[0](&subject), &|| handlers[1](&subject)],
                || scenario(&subject),
            );
            check(&subject, outcomes);
            runs += 1;
            match outcomes {
                // Neither comes any more: there are no further points.
                [Outcome::NotReached, Outcome::NotReached] => return runs,
                [_, Outcome::NotReached] => break,
                _ => {}
            }
        }
    }
    unreachable!("a scenario has fewer than 2^32 points")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn raise_and_lower() {
        // SAFETY: nothing on this thread relies on the level.
        unsafe { irql::set(5) };
        // SAFETY: as above.
        unsafe { irql::set(0) };
    }

    #[test]
    fn an_interrupt_above_the_level_is_delivered_where_it_arrives() {
        let points = every_point(
            7,
            || Cell::new(0),
            |_| raise_and_lower(),
            |n| n.set(n.get() + 1),
            |n, outcome| {
                assert_eq!(n.get(), u32::from(outcome != Outcome::NotReached));
            },
        );
        assert_eq!(points, 4);
        assert_eq!(run_at(1, 7, &|| (), raise_and_lower), Outcome::Delivered { interrupted: 5 });
    }

    #[test]
    fn a_masked_interrupt_waits_for_the_level_to_fall_below_it() {
        for (point, level) in [(1, 5), (1, 3), (2, 5)] {
            assert_eq!(run_at(point, level, &|| (), raise_and_lower), Outcome::Delivered { interrupted: 0 });
        }
        let stays_up = || {
            irql::current();
        };
        // SAFETY: nothing on this thread relies on the level.
        unsafe { irql::set(9) };
        assert_eq!(run_at(0, 9, &|| panic!("masked"), stays_up), Outcome::StillPending);
        // SAFETY: as above.
        unsafe { irql::set(0) };
    }

    #[test]
    fn the_higher_of_two_hits_the_handler_of_the_lower_and_not_the_other_way_round() {
        let inside = Cell::new([false; 2]);
        let nested = Cell::new([0; 2]);
        let handler = |n: usize| {
            let mut now = inside.get();
            now[n] = true;
            inside.set(now);
            point();
            if now == [true; 2] {
                let mut count = nested.get();
                count[n] += 1;
                nested.set(count);
            }
            now[n] = false;
            inside.set(now);
        };
        let runs = every_pair(
            [5, 7],
            || (),
            |()| raise_and_lower(),
            [&|()| handler(0), &|()| handler(1)],
            |(), outcomes| {
                assert!(!outcomes.contains(&Outcome::StillPending));
                let by = |n: usize| match outcomes[n] {
                    Outcome::Delivered { interrupted } => Some(interrupted),
                    _ => None,
                };
                // 5 is masked by 5 and by 7; 7 hits PASSIVE, the raised code or the handler.
                assert!(matches!(by(0), None | Some(0)) && matches!(by(1), None | Some(0 | 5)));
            },
        );
        assert!(runs > 20, "{runs}");
        assert!(nested.get()[0] == 0 && nested.get()[1] > 0, "{:?}", nested.get());
    }

    #[test]
    #[should_panic(expected = "the handler returned at another level")]
    fn a_handler_that_leaks_its_level_is_found() {
        // SAFETY: nothing relies on the level; the leak is the point.
        run_at(0, 7, &|| unsafe { irql::set(9) }, raise_and_lower);
    }
}
