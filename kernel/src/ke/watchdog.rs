//! The DPC watchdog: a DPC that runs too long, a processor that stays too long at or above DISPATCH.
//!
//! Owns:       the limits, and what of a processor's past it takes to judge its present. Not: when it looks (tick.rs).
//! IRQL:       any; [`Watch`] by its own processor with interrupts off or at CLOCK, so plain loads and stores do.
//! What it sees: a DPC under way, and the stay of the retire loop that it is in, are exact (dpc.rs notes each). Lowering CR8 leaves no
//!             trace, and stays that follow each other with next to no time for threads in between keep a processor as well as
//!             one that doesn't end. So there are samples, as on NT, whose limit is for a sequence: the first look that finds
//!             the processor at or above DISPATCH, in a DPC or not, has others taken every `SAMPLE`, and a time with nothing
//!             else in them counts as a stay. The first that finds it lower ends that. First looks are those at DPCs, those
//!             where the clock's owner updates the time, and of each other busy processor four a limit, by an interrupt that
//!             the owner sends.
//! What counts: time up to when a look was to come, and no more. A host that stops a virtual processor, firmware, or code with interrupts
//!             off makes looks late, and by that nothing older: a limit is for so many looks of this processor, as NT's is for so many
//!             ticks, whatever a clock on the wall says.
//! Invariants: I1 what a look finds raised, or in a DPC, has another look ahead (unless there is no limit). So no stay is left alone
//!             between its beginning, which sees that a look is ahead, and its first DPC.
//! Not as NT:  no tick counts for this: a busy processor without one is interrupted four times in two minutes.
//! Tests:      the unit tests below; crash `slow_dpc`, `endless_dpcs`, `endless_stays`, `stuck_raised`, `debugged_dpc`.
//! Sources:    WDK, "Bug Check 0x133: DPC_WATCHDOG_VIOLATION", KDPC_WATCHDOG_INFORMATION (DpcWatchdogLimit).

use core::sync::atomic::{AtomicU64, Ordering};

/// Never.
pub const NEVER: u64 = u64::MAX;

/// NT's limit for one stay at DISPATCH, in milliseconds.
const TOTAL_MILLISECONDS: u64 = 120_000;
/// NT's limit for one DPC.
const SINGLE_MILLISECONDS: u64 = 20_000;
/// 100 ns in a millisecond.
const MILLISECOND: u64 = 10_000;
/// As often as NT's clock ticks, in 100 ns.
const SAMPLE: u64 = 156_250;

/// Limits in 100 ns; [`NEVER`]: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one DPC.
    pub single: u64,
    /// For one stay.
    pub total: u64,
}

/// Written by the boot processor at start.
static SINGLE: AtomicU64 = AtomicU64::new(SINGLE_MILLISECONDS * MILLISECOND);
static TOTAL: AtomicU64 = AtomicU64::new(TOTAL_MILLISECONDS * MILLISECOND);

impl Limits {
    /// Those in force.
    #[inline(always)]
    pub fn get() -> Self {
        Self { single: SINGLE.load(Ordering::Relaxed), total: TOTAL.load(Ordering::Relaxed) }
    }

    /// Sets them, in milliseconds; zero: no limit; nothing: as it was.
    pub fn set(single: Option<u64>, total: Option<u64>) {
        for (limit, ms) in [(&SINGLE, single), (&TOTAL, total)] {
            match ms {
                Some(0) => limit.store(NEVER, Ordering::Relaxed),
                Some(ms) => limit.store(ms.saturating_mul(MILLISECOND), Ordering::Relaxed),
                None => {}
            }
        }
    }

    fn least(self) -> u64 {
        self.single.min(self.total)
    }

    /// The limit for one stay, in milliseconds; 0: none.
    pub fn total_milliseconds(self) -> u64 {
        if self.total == NEVER { 0 } else { self.total / MILLISECOND }
    }

    /// How long the clock's owner leaves another busy processor without a sample.
    pub fn round(self) -> u64 {
        if self.total == NEVER { NEVER } else { self.total / 4 }
    }
}

/// A DPC under way.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its routine and context.
    pub running: [u64; 2],
    /// It began after the last look.
    pub new_dpc: bool,
    /// So did the stay.
    pub new_stay: bool,
}

/// What a look finds.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// A DPC under way.
    pub dpc: Option<Seen>,
    /// DPCs were run since the last look.
    pub stay_ended: bool,
    /// The code that the look interrupted is at or above DISPATCH.
    pub raised: bool,
}

/// A limit is exceeded: bug check 0x133's parameters but for the last, who it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// 0: one DPC; 1: the stay.
    pub kind: u64,
    /// How long, in milliseconds.
    pub elapsed: u64,
    /// What is allowed.
    pub limit: u64,
}

/// One processor's. Its times leave out `late`.
pub struct Watch {
    /// When the next look is to come, or [`NEVER`]; by how much all looks together came later.
    due: AtomicU64,
    late: AtomicU64,
    /// Since when the DPC that was seen last is known, and since when the stay at DISPATCH is.
    dpc_since: AtomicU64,
    stay_since: AtomicU64,
    /// Looks in a row that saw nothing.
    quiet: AtomicU64,
    /// The first of the samples in a row that found the processor raised, in a DPC or not; or [`NEVER`].
    raised_since: AtomicU64,
}

fn get(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

fn set(value: &AtomicU64, to: u64) {
    value.store(to, Ordering::Relaxed);
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Nothing was seen yet.
    pub const fn new() -> Self {
        Self {
            due: AtomicU64::new(NEVER),
            late: AtomicU64::new(0),
            dpc_since: AtomicU64::new(0),
            stay_since: AtomicU64::new(0),
            quiet: AtomicU64::new(0),
            raised_since: AtomicU64::new(NEVER),
        }
    }

    /// A stay begins, with no look ahead. When to look first.
    pub fn begin(&self, limits: Limits, now: u64) -> u64 {
        let counted = now - get(&self.late);
        set(&self.quiet, 0);
        set(&self.dpc_since, counted);
        set(&self.stay_since, counted);
        let due = now.saturating_add(limits.least());
        set(&self.due, due);
        due
    }

    /// Looks: what it has not seen before it counts from now. When to look next.
    pub fn look(&self, sight: Sight, limits: Limits, now: u64) -> Result<u64, Violation> {
        let late = get(&self.late) + now.saturating_sub(get(&self.due));
        set(&self.late, late);
        let due = self.look_on_time(sight, limits, now - late)?.saturating_add(late);
        set(&self.due, due);
        Ok(due)
    }

    /// The same by the time that counts.
    fn look_on_time(&self, sight: Sight, limits: Limits, now: u64) -> Result<u64, Violation> {
        let Some(seen) = sight.dpc else {
            // A stay has a DPC under way from its first one to its end. So a DPC that the next look finds is of a stay that is no older than
            // this, though none may have ended in between.
            set(&self.stay_since, now);
            let sample = self.sample(sight.raised, limits, now)?;
            return Ok(self.see_nothing(sight.stay_ended || sight.raised, limits, now).min(sample));
        };
        set(&self.quiet, 0);
        if seen.new_dpc {
            set(&self.dpc_since, now);
        }
        if seen.new_stay {
            set(&self.stay_since, now);
        }
        let (dpc_since, stay_since) = (get(&self.dpc_since), get(&self.stay_since));
        within(0, dpc_since, limits.single, now)?;
        within(1, stay_since, limits.total, now)?;
        let _ = self.sample(true, limits, now)?;
        // Without a limit for the stay, too: a time that only ends with the limit would count whole, whoever had the processor in it.
        let sample = if limits.least() == NEVER { NEVER } else { now.saturating_add(SAMPLE) };
        Ok(dpc_since.saturating_add(limits.single).min(stay_since.saturating_add(limits.total)).min(sample))
    }

    /// No DPC is under way. If the processor is raised, one may be about to begin; another look tells. After two in a row that found
    /// neither that nor a stay that has ended, the next stay begins the watch anew.
    fn see_nothing(&self, something: bool, limits: Limits, now: u64) -> u64 {
        let quiet = if something { 0 } else { get(&self.quiet) + 1 };
        set(&self.quiet, quiet);
        if quiet < 2 { now.saturating_add(limits.least()) } else { NEVER }
    }

    /// Is the processor raised, and for how long has it been found so? When to take the next sample.
    fn sample(&self, raised: bool, limits: Limits, now: u64) -> Result<u64, Violation> {
        if !raised || limits.total == NEVER {
            set(&self.raised_since, NEVER);
            return Ok(NEVER);
        }
        if get(&self.raised_since) == NEVER {
            set(&self.raised_since, now);
        }
        within(1, get(&self.raised_since), limits.total, now)?;
        Ok(now + SAMPLE)
    }
}

fn within(kind: u64, since: u64, limit: u64, now: u64) -> Result<(), Violation> {
    let elapsed = now.saturating_sub(since);
    if elapsed < limit {
        return Ok(());
    }
    Err(Violation { kind, elapsed: elapsed / MILLISECOND, limit: limit / MILLISECOND })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { single: 1_000 * MILLISECOND, total: 5_000 * MILLISECOND };
    const NOTHING: Sight = Sight { dpc: None, stay_ended: false, raised: false };
    const RAISED: Sight = Sight { raised: true, ..NOTHING };

    fn dpc(new_dpc: bool, new_stay: bool) -> Sight {
        Sight { dpc: Some(Seen { running: [1, 2], new_dpc, new_stay }), stay_ended: false, raised: true }
    }

    /// Looks whenever it is to look, as long as `sight` is what it finds; when that is a violation.
    fn until_found(watch: &Watch, sight: Sight, mut now: u64) -> (u64, Violation) {
        for _ in 0..10_000 {
            match watch.look(sight, LIMITS, now) {
                Ok(next) => now = next,
                Err(violation) => return (now, violation),
            }
        }
        panic!("never found");
    }

    #[test]
    fn a_slow_dpc_is_found_at_its_limit() {
        let watch = Watch::new();
        let first = watch.begin(LIMITS, 7);
        assert_eq!(first, 7 + LIMITS.single);
        // One that began since gets its full time.
        let (found, violation) =
            until_found(&watch, dpc(false, false), watch.look(dpc(true, false), LIMITS, first).unwrap());
        assert_eq!(found, first + LIMITS.single);
        assert_eq!(violation, Violation { kind: 0, elapsed: 1_000, limit: 1_000 });
    }

    #[test]
    fn short_dpcs_without_an_end_are_found_as_a_stay() {
        let watch = Watch::new();
        let first = watch.begin(LIMITS, 0);
        let (found, violation) = until_found(&watch, dpc(true, false), first);
        assert_eq!((found, violation.kind, violation.elapsed), (LIMITS.total, 1, 5_000));
        // Stays that end are none, if a sample finds time between them.
        let mut now = watch.begin(LIMITS, 0);
        for look in 0..1_000 {
            let sight = if look % 300 == 299 { NOTHING } else { dpc(true, true) };
            now = watch.look(sight, LIMITS, now).unwrap();
        }
        assert!(now > 3 * LIMITS.total);
    }

    /// A thread that queues a DPC whenever it gets to run: each look finds a new stay, and no sample the thread.
    #[test]
    fn stays_with_no_time_between_them_are_found_as_one() {
        let watch = Watch::new();
        let first = watch.begin(LIMITS, 0);
        let (found, violation) = until_found(&watch, dpc(true, true), first);
        assert!((LIMITS.total..LIMITS.total + SAMPLE).contains(&(found - first)), "{found}");
        assert_eq!((violation.kind, violation.limit), (1, 5_000));
        // The same where some samples find it raised between two DPCs.
        let watch = Watch::new();
        let mut now = watch.begin(LIMITS, 0);
        let mut sights = [RAISED, dpc(true, true)].into_iter().cycle();
        while let Ok(next) = watch.look(sights.next().unwrap(), LIMITS, now) {
            now = next;
            assert!(now < 2 * LIMITS.total);
        }
    }

    /// A retire loop sees that a look is ahead and begins a DPC; in between comes that look, the second in a row that meets none.
    #[test]
    fn a_look_right_before_the_first_dpc_of_a_stay_has_another_ahead() {
        let single = Limits { total: NEVER, ..LIMITS };
        let total = Limits { single: NEVER, ..LIMITS };
        for limits in [LIMITS, single, total] {
            let watch = Watch::new();
            let mut now = watch.begin(limits, 0);
            now = watch.look(NOTHING, limits, now).unwrap();
            let next = watch.look(RAISED, limits, now).unwrap();
            assert!(next <= now + limits.least(), "{limits:?}: {next}");
        }
    }

    /// What a nudge right before the first DPC of a stay, and one right behind, find after minutes in which no other look met a DPC.
    #[test]
    fn a_stay_that_no_look_has_met_begins_behind_the_last_look() {
        let watch = Watch::new();
        let mut now = watch.begin(LIMITS, 0);
        let between = Sight { stay_ended: true, ..NOTHING };
        while now < 3 * LIMITS.total {
            now = watch.look(between, LIMITS, now).unwrap();
        }
        watch.look(Sight { raised: true, ..between }, LIMITS, now).unwrap();
        assert_eq!(watch.look(dpc(true, false), LIMITS, now + 1), Ok(now + 1 + SAMPLE));
        // And if it doesn't end, it is found.
        let (found, violation) = until_found(&watch, dpc(true, false), now + 1);
        assert_eq!((found, violation.kind), (now + LIMITS.total, 1));
    }

    #[test]
    fn a_raised_processor_is_found_by_samples_in_a_row() {
        let watch = Watch::new();
        let (found, violation) = until_found(&watch, RAISED, 100);
        assert!((LIMITS.total..LIMITS.total + SAMPLE).contains(&(found - 100)), "{found}");
        assert_eq!((violation.kind, violation.limit), (1, 5_000));
    }

    #[test]
    fn one_sample_that_finds_it_lower_ends_the_stay() {
        let watch = Watch::new();
        for now in (0..10 * LIMITS.total).step_by(SAMPLE as usize) {
            // Once in the time that is allowed.
            let lower = now % LIMITS.total > LIMITS.total - 2 * SAMPLE;
            let sight = if lower { NOTHING } else { RAISED };
            assert!(watch.look(sight, LIMITS, now).is_ok(), "at {now}");
        }
    }

    /// A host that stops the processor for longer than any limit, between any two looks; one that makes every look late.
    #[test]
    fn time_in_which_a_look_is_late_does_not_count() {
        let endless = Limits { total: NEVER, ..LIMITS };
        for (limits, sight, limit) in [
            (LIMITS, dpc(false, false), LIMITS.single),
            (endless, dpc(false, false), LIMITS.single),
            (LIMITS, dpc(true, true), LIMITS.total),
            (LIMITS, RAISED, LIMITS.total),
        ] {
            let looks = |late: &dyn Fn(u64) -> u64| {
                let watch = Watch::new();
                let mut now = watch.begin(limits, 0);
                now = watch.look(Sight { dpc: dpc(true, true).dpc, ..sight }, limits, now).unwrap();
                let mut looks = 0;
                loop {
                    match watch.look(sight, limits, now + late(looks)) {
                        Ok(next) => now = next,
                        Err(violation) => break (looks, violation),
                    }
                    looks += 1;
                }
            };
            let on_time = looks(&|_| 0);
            assert!(on_time.0 >= limit / SAMPLE - 1, "{on_time:?}");
            for stopped in [0, 1, on_time.0 / 2, on_time.0] {
                assert_eq!(looks(&|look| if look == stopped { 10 * limit } else { 0 }), on_time);
            }
            assert_eq!(looks(&|_| 30 * SAMPLE), on_time, "scaled by what it gets of the host");
        }
    }

    #[test]
    fn nothing_is_found_without_limits_and_nothing_looked_for_when_quiet() {
        let none = Limits { single: NEVER, total: NEVER };
        let watch = Watch::new();
        assert_eq!(watch.begin(none, 5), NEVER);
        assert_eq!(watch.look(dpc(false, false), none, NEVER - 1), Ok(NEVER));
        assert_eq!(watch.look(RAISED, none, NEVER - 1), Ok(NEVER));
        assert_eq!(none.round(), NEVER);
        let watch = Watch::new();
        assert!(watch.look(NOTHING, LIMITS, 1).unwrap() < NEVER);
        assert_eq!(watch.look(NOTHING, LIMITS, 2), Ok(NEVER));
        assert!(watch.look(Sight { stay_ended: true, ..NOTHING }, LIMITS, 3).unwrap() < NEVER);
    }
}
