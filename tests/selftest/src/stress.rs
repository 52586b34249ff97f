//! The mixed phase: threads on all processors do everything at once, chosen by the seed, with invariants checked all the time.
//!
//! `stress_ms=N` on the command line: so long after the suites. `stress_rounds=N`: only this, each thread so many operations, so that what
//! is done is a function of the seed; with `torment=N`, under clock interrupts after at most N instructions each (`ke::torment`).

mod tally;
mod torments;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::boot::command_line::CommandLine;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use kernel::ke::{aim, clock, dpc, late, prcb, thread, torment};
use kernel::mm::layout;
use kernel::mm::{inject, paged, pool};
use sync::irql::{Irql, Passive};

use crate::random::{self, Random};
use crate::runner::{Result, check, equal, left_clean, left_no_memory};
use torments::{EVENTS, TIMERS, TORMENTS, WORKERS, Worker};

/// Threads on each processor.
const EACH: u32 = 3;
/// One allocation in so many is refused.
const REFUSED: u64 = 40;
/// One interrupt in so many, of those between processors, is late on its way.
const LATE: u32 = 8;
/// Between two lines that tell how far it is, in 100 ns.
const REPORT: u64 = 50_000_000;

/// When to end, in interrupt time; operations that each thread does at most.
static UNTIL: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// What the command line asks for.
pub(crate) struct Plan<'a> {
    until: u64,
    rounds: u64,
    torment: u32,
    aims: Aims<'a>,
}

/// Instructions to stop at: how far each is from the one before it, the first from the image's beginning, in base 36, with commas.
struct Aims<'a>(&'a str);

impl Aims<'_> {
    fn places(&self) -> impl Iterator<Item = u64> {
        let distances = self.0.split(',').map_while(|text| u64::from_str_radix(text, 36).ok());
        distances.scan(layout::IMAGE, |place, distance| {
            *place += distance;
            Some(*place)
        })
    }
}

impl<'a> Plan<'a> {
    /// Nothing asked: nothing.
    pub(crate) fn of(line: &CommandLine<'a>) -> Option<Self> {
        let number = |name| line.number(name).and_then(core::result::Result::ok);
        let torment = number("torment").unwrap_or(0) as u32;
        let aims = Aims(line.value("aim").unwrap_or_default());
        match (number("stress_rounds"), number("stress_ms")) {
            (Some(rounds), _) => Some(Self { until: u64::MAX, rounds, torment, aims }),
            (None, Some(0) | None) => None,
            (None, Some(ms)) => Some(Self { until: ms * 10_000, rounds: u64::MAX, torment, aims }),
        }
    }

    /// Without the suites?
    pub(crate) fn is_alone(&self) -> bool {
        self.rounds != u64::MAX
    }
}

/// The whole phase. What breaks is a panic.
pub(crate) fn run(plan: &Plan<'_>, at: &mut Irql<Passive>) -> Result {
    pool::mark(at);
    paged::mark(at);
    let begun = clock::interrupt_time_precise();
    let count = (prcb::count() * EACH).min(WORKERS as u32);
    UNTIL.store(begun.saturating_add(plan.until), Ordering::Relaxed);
    ROUNDS.store(plan.rounds, Ordering::Relaxed);
    LEFT.store(count, Ordering::Relaxed);
    if plan.torment != 0 {
        torment::begin(random::seed(), plan.torment);
        // SAFETY: the harness leaves out what may not be aimed at.
        unsafe { aim::begin(random::seed(), plan.aims.places()) };
    }
    // Explored seeds: every other. A late interrupt brings new orders, and keeps the target from the hurry that others need.
    if !plan.is_alone() || random::seed().is_multiple_of(2) {
        late::begin(random::seed(), LATE);
    }
    let mut threads = [const { None }; WORKERS];
    let mut refused = 0;
    for (number, slot) in (0..count as usize).zip(&mut threads) {
        let options = thread::Options { name: thread::Name::new("stress"), ..Default::default() };
        *slot = thread::spawn(&options, work, number, at).ok();
        if slot.is_none() {
            LEFT.fetch_sub(1, Ordering::Relaxed);
            refused += 1;
        }
    }
    // From here on, allocations are refused now and then: whoever wants one says so or does without.
    inject::fail_one_in(REFUSED, random::seed());
    let mut next = begun + REPORT;
    while LEFT.load(Ordering::Relaxed) != 0 {
        let _ = delay(Due::In(100_000), at);
        let now = clock::interrupt_time_precise();
        if now >= next {
            next = now + REPORT;
            let done: u64 = TORMENTS.iter().map(|(_, tally, _)| tally.count()).sum();
            kernel::info!("stress: {} s, {done} operations", (now - begun) / 10_000_000);
        }
    }
    for thread in threads.iter().flatten() {
        let _ = wait::for_single(thread, None, at);
    }
    aim::end();
    torment::end();
    let late = crate::late::no_more(at)?;
    let refusals = inject::stop();
    drop(threads);
    dpc::flush(at);
    torments::balance(at);
    let micro = (clock::interrupt_time_precise() - begun) / 10;
    if !plan.is_alone() {
        report(micro);
    }
    let done: u64 = TORMENTS.iter().map(|(_, tally, _)| tally.count()).sum();
    kernel::info!(
        "stress: {done} operations by {count} threads in {micro} us, {refusals} allocations refused, {late} interrupts late, {} stops \
         where aimed at, all balanced",
        aim::hits()
    );
    equal(refused, 0, "threads that could not be made")?;
    check(done != 0, "nothing was done", 0, 0)?;
    left_clean()?;
    left_no_memory(at)
}

fn work(at: &mut Irql<Passive>, number: usize) {
    let sum: u32 = TORMENTS.iter().map(|(weight, ..)| weight).sum();
    let mut worker = Worker {
        random: Random::new(1000 + number as u64),
        number,
        timer: &TIMERS[number],
        done: &EVENTS[number],
    };
    for _ in 0..ROUNDS.load(Ordering::Relaxed) {
        let start = clock::performance_counter();
        if clock::interrupt_time_precise() >= UNTIL.load(Ordering::Relaxed) {
            break;
        }
        let mut chosen = worker.random.below(sum);
        let found = TORMENTS.iter().find(|(weight, ..)| {
            let here = chosen < *weight;
            chosen = chosen.saturating_sub(*weight);
            here
        });
        let Some((_, tally, torment)) = found else { continue };
        torment(&mut worker, at);
        let end = clock::performance_counter();
        // The thread may be on another processor by now.
        assert!(end >= start, "time ran backwards: {start} to {end}");
        tally.add(end - start);
        at.check();
        assert!(arch::cpu::interrupts_enabled(), "{} left with interrupts off", tally.name);
    }
    LEFT.fetch_sub(1, Ordering::Relaxed);
}

/// The table: operations, then interrupts by vector and processor.
fn report(microseconds: u64) {
    for (_, tally, _) in &TORMENTS {
        tally.print(microseconds);
    }
    for vector in 31..=255 {
        if prcb::all().any(|processor| processor.prcb().interrupt_count(vector) != 0) {
            kernel::info!("stress: vector {vector:#04x}{}", Taken(vector));
        }
    }
}

/// How often each processor took a vector.
struct Taken(u8);

impl core::fmt::Display for Taken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        prcb::all().try_for_each(|processor| write!(f, " {}", processor.prcb().interrupt_count(self.0)))
    }
}
