//! Timers: never early, never lost, on the processor that their DPC is for; cancel is exact.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::vector;
use kernel::ke::clock;
use kernel::ke::dpc::{self, Dpc};
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::ke::tick;
use kernel::ke::timer::{self, Due, Options, Timer, TimerKind};
use kernel::ke::wait::delay;
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::clock::settle;
use crate::everywhere;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("timers::expires_once_and_never_early", expires),
    ("timers::set_again_moves_and_says_so", set_again),
    ("timers::cancel_rules_the_dpc_out", cancel),
    ("timers::periodic_does_not_drift", periodic),
    ("timers::tolerance_is_kept", tolerance),
    ("timers::absolute_moves_with_the_system_time", absolute),
    ("timers::absolute_ones_set_while_the_time_is_set_back", absolute_races),
    ("timers::set_for_the_past_by_its_dpc_waits_for_another_look", set_by_its_dpc),
    ("timers::expires_on_the_processor_of_its_dpc", targets),
    ("timers::thousands_none_early_none_lost", thousands),
];

const MILLISECOND: u64 = 10_000;
const MINUTE: u64 = 60_000 * MILLISECOND;

static FIRED: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);
static PLACE: AtomicU32 = AtomicU32::new(0);

fn note(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    LAST.store(clock::interrupt_time_precise(), Ordering::Relaxed);
    PLACE.store(arch::cpu::number(), Ordering::Relaxed);
    FIRED.fetch_add(1, Ordering::Release);
}

static DPC: Dpc = Dpc::new(note);
static TIMER: Timer = Timer::new(TimerKind::Notification);

fn fired() -> u64 {
    FIRED.load(Ordering::Acquire).into()
}

/// Waits until [`FIRED`] is `count`; ten seconds are for ever.
fn wait(at: &mut Irql<Passive>, count: u64) -> Result {
    let limit = clock::interrupt_time_precise() + 10_000 * MILLISECOND;
    while fired() < count && clock::interrupt_time_precise() < limit {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    check(fired() >= count, "timers that never expired", fired(), count)
}

fn start() -> u64 {
    FIRED.store(0, Ordering::Relaxed);
    clock::interrupt_time_precise()
}

fn expires(at: &mut Irql<Passive>) -> Result {
    for after in [0, 1, 255, 256, 10 * MILLISECOND, 33 * MILLISECOND + 7] {
        let begun = start();
        check(!TIMER.set(Due::In(after), Options::default(), Some(&DPC), at), "was set before", after, 0)?;
        wait(at, 1)?;
        let late = LAST.load(Ordering::Relaxed).wrapping_sub(begun + after);
        check((late as i64) >= 0, "early by", late.wrapping_neg(), after)?;
        check(TIMER.is_signalled() && !TIMER.is_set(), "not signalled, or still set", after, 0)?;
        check(!TIMER.cancel(at), "cancel of an expired timer", after, 0)?;
        equal(fired(), 1, "expiries")?;
    }
    Ok(())
}

fn set_again(at: &mut Irql<Passive>) -> Result {
    start();
    check(!TIMER.set(Due::In(3_600_000 * MILLISECOND), Options::default(), Some(&DPC), at), "set", 0, 0)?;
    check(!TIMER.is_signalled() && TIMER.is_set(), "signalled, or not set", 0, 0)?;
    check(TIMER.set(Due::In(2 * MILLISECOND), Options::default(), Some(&DPC), at), "was not set", 0, 0)?;
    wait(at, 1)?;
    // Nothing of the first setting is left.
    check(!TIMER.cancel(at), "the first setting is still there", 0, 0)
}

fn cancel(at: &mut Irql<Passive>) -> Result {
    start();
    // Due so late that no host is slow enough for it to expire first.
    for after in [60_000 * MILLISECOND, 3_600_000 * MILLISECOND] {
        TIMER.set(Due::In(after), Options::default(), Some(&DPC), at);
        check(TIMER.cancel(at), "cancel of a timer that is set", after, 0)?;
        check(!TIMER.cancel(at), "a second cancel", after, 0)?;
    }
    // Due soon: a cancel that says true means no DPC, one that says false exactly one.
    let mut missed = 0;
    for round in 0..50 {
        TIMER.set(Due::In(round * 1_000), Options::default(), Some(&DPC), at);
        missed += u64::from(!TIMER.cancel(at));
    }
    clock::stall(10_000);
    equal(fired(), missed, "DPCs, of as many timers that a cancel came too late for")
}

fn periodic(at: &mut Irql<Passive>) -> Result {
    const PERIOD: u64 = 3;
    static DUE: AtomicU64 = AtomicU64::new(0);
    static EARLY: AtomicU32 = AtomicU32::new(0);
    fn count(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
        let nth = u64::from(FIRED.load(Ordering::Relaxed));
        let due = DUE.load(Ordering::Relaxed) + nth * PERIOD * MILLISECOND;
        EARLY.fetch_add(u32::from(clock::interrupt_time_precise() < due), Ordering::Relaxed);
        FIRED.fetch_add(1, Ordering::Release);
    }
    static COUNT: Dpc = Dpc::new(count);
    EARLY.store(0, Ordering::Relaxed);
    DUE.store(start() + PERIOD * MILLISECOND, Ordering::Relaxed);
    let options = Options { period_ms: PERIOD as u32, tolerance: 0 };
    TIMER.set(Due::In(PERIOD * MILLISECOND), options, Some(&COUNT), at);
    wait(at, 20)?;
    check(TIMER.cancel(at), "a periodic timer is set until it is cancelled", 0, 0)?;
    let count = fired();
    equal(EARLY.load(Ordering::Relaxed).into(), 0, "early expiries")?;
    // An expiry while the DPC is still queued is merged into it, so there can be fewer, never more.
    let elapsed = clock::interrupt_time_precise() - DUE.load(Ordering::Relaxed);
    check(count <= elapsed / (PERIOD * MILLISECOND) + 1, "too many expiries", count, elapsed)?;
    clock::stall(10_000);
    check(fired() <= count + 1, "expiries after the cancel", fired(), count)?;
    keeps_its_grid(at)
}

/// An expiry that this processor delays by most of a period doesn't move the next ones: they are due whole periods after the first.
fn keeps_its_grid(at: &mut Irql<Passive>) -> Result {
    const PERIOD: u64 = 20 * MILLISECOND;
    start();
    let (begun, options) = (clock::interrupt_time_precise(), Options { period_ms: 20, tolerance: 0 });
    TIMER.set(Due::In(PERIOD), options, Some(&DPC), at);
    // Or later, where the host kept this processor from reading it: on the grid all the same.
    let first = TIMER.due();
    {
        let _raised = at.raise::<Dispatch>();
        while clock::interrupt_time_precise() < begun + PERIOD * 7 / 4 {
            arch::cpu::spin_hint();
        }
    }
    wait(at, 2)?;
    let next = TIMER.due();
    TIMER.cancel(at);
    check(next >= first, "set again for an earlier time", next, first)?;
    equal((next - first) % PERIOD, 0, "off the grid, in 100 ns")
}

fn tolerance(at: &mut Irql<Passive>) -> Result {
    for tolerance in [0, 1, 5_000, 40 * MILLISECOND] {
        let begun = start();
        TIMER.set(Due::In(MILLISECOND), Options { period_ms: 0, tolerance }, Some(&DPC), at);
        wait(at, 1)?;
        check(LAST.load(Ordering::Relaxed) >= begun + MILLISECOND, "early", tolerance, 0)?;
    }
    late_by_its_tolerance_at_most(at)
}

/// Not when a host lets the clock interrupt, but what it is programmed for: no later than the due time, the tolerance, and what a timer may be
/// late by anyway. Each until the table has nothing sooner than the timer, which would show nothing.
fn late_by_its_tolerance_at_most(at: &mut Irql<Passive>) -> Result {
    const ANYWAY: u64 = 256;
    for tolerance in [0, 1, 255, 5_000, 40 * MILLISECOND, 300 * MILLISECOND] {
        let mut rounds = 0;
        let is_shown = |at: &mut Irql<Dispatch>| {
            TIMER.set(Due::In(500 * MILLISECOND), Options { period_ms: 0, tolerance }, None, at);
            let due = TIMER.due();
            let (table, clock) = tick::armed_for_timers(&mut at.raise::<High>());
            let in_time = clock::interrupt_time_precise() < due;
            TIMER.cancel(at);
            let latest = due + tolerance + ANYWAY;
            check(table <= latest, "the table is looked at too late", table, latest)?;
            // What has become due since was interrupted for.
            check(clock <= table || !in_time, "the clock interrupts too late", clock, table)?;
            Ok(table >= due && (table > due + ANYWAY || tolerance <= ANYWAY))
        };
        // At DISPATCH nothing expires.
        while !is_shown(&mut at.raise::<Dispatch>())? {
            rounds += 1;
            check(rounds < 200, "a timer that something sooner hides", tolerance, rounds)?;
            // Its end is a look, after which the table doesn't remember the cancelled timer.
            let _ = delay(Due::In(3 * MILLISECOND), at);
        }
    }
    Ok(())
}

fn absolute(at: &mut Irql<Passive>) -> Result {
    const HOUR: u64 = 3_600_000 * MILLISECOND;
    let begun = start();
    let system = clock::system_time_precise();
    TIMER.set(Due::At(system + HOUR), Options::default(), Some(&DPC), at);
    static RELATIVE: Timer = Timer::new(TimerKind::Notification);
    RELATIVE.set(Due::In(HOUR), Options::default(), None, at);
    // An hour passes at once for whoever waits for a time of day, and for nobody else.
    let old = timer::set_system_time(clock::system_time_precise() + HOUR, at);
    wait(at, 1)?;
    check(old >= system && clock::system_time_precise() >= system + HOUR, "the system time", old, system)?;
    check(clock::system_time() >= system + HOUR, "the shared system time", clock::system_time(), system)?;
    check(!RELATIVE.is_signalled() && RELATIVE.cancel(at), "a relative timer moved", 0, 0)?;
    check(LAST.load(Ordering::Relaxed) >= begun, "interrupt time went back", 0, 0)?;
    // And back: what was due is an hour away again. Where the host took this processor away until it was due, once more.
    for _ in 0..50 {
        start();
        let begun = clock::interrupt_time_precise();
        TIMER.set(
            Due::At(clock::system_time_precise() + 5 * MILLISECOND),
            Options::default(),
            Some(&DPC),
            at,
        );
        timer::set_system_time(clock::system_time_precise() - HOUR, at);
        let in_time = clock::interrupt_time_precise() - begun < 4 * MILLISECOND;
        clock::stall(20_000);
        if in_time {
            equal(fired(), 0, "expiries an hour early")?;
            return check(TIMER.cancel(at), "the timer is gone", 0, 0);
        }
        TIMER.cancel(at);
        timer::set_system_time(clock::system_time_precise() + HOUR, at);
    }
    Err(Verdict::Skip("needs a host that leaves a processor in peace for 4 ms"))
}

/// Timers of [`absolute_races`] and the time of day that each was set for; 0: it wasn't.
static OF_DAY: [[(Timer, AtomicU64); 4]; MAX_PROCESSORS] =
    [const { [const { (Timer::new(TimerKind::Notification), AtomicU64::new(0)) }; 4] }; MAX_PROCESSORS];
/// Odd while the system time is being set.
static SETTING: AtomicU32 = AtomicU32::new(0);
static AT_ANOTHER_TIME: AtomicU32 = AtomicU32::new(0);

/// Interrupt time to system time.
fn difference() -> u64 {
    clock::system_time_precise() - clock::interrupt_time_precise()
}

/// Cancels processor `number`'s timers and, if the system time was not set meanwhile, looks when they were due.
fn cancel_and_compare(at: &mut Irql<Passive>, number: u32) {
    for (timer, wanted) in &OF_DAY[number as usize] {
        let before = SETTING.load(Ordering::Acquire);
        let wanted = wanted.swap(0, Ordering::Relaxed);
        let was_set = timer.cancel(at);
        let due = timer.due() + difference();
        if SETTING.load(Ordering::Acquire) == before && before.is_multiple_of(2) && wanted != 0 {
            let right = was_set && due.abs_diff(wanted) < MINUTE;
            AT_ANOTHER_TIME.fetch_add((!right).into(), Ordering::Relaxed);
        }
    }
}

/// Everybody sets timers for ten minutes from the time that it reads, which is set back by hours meanwhile. None may expire, and
/// each is due at the time of day that it was set for, however often that has moved.
fn absolute_races(at: &mut Irql<Passive>) -> Result {
    const JUMP: u64 = 20 * MINUTE;
    const MOST: u64 = 5_000;
    static OVERLAPS: AtomicU32 = AtomicU32::new(0);
    static GOES_ON: AtomicU32 = AtomicU32::new(0);
    fn set_all(at: &mut Irql<Passive>, number: u32) {
        for (timer, wanted) in &OF_DAY[number as usize] {
            let due = clock::system_time_precise() + 10 * MINUTE;
            wanted.store(due, Ordering::Relaxed);
            let before = SETTING.load(Ordering::Acquire);
            timer.set(Due::At(due), Options::default(), Some(&DPC), at);
            let overlaps = before % 2 == 1 && SETTING.load(Ordering::Acquire) == before;
            OVERLAPS.fetch_add(overlaps.into(), Ordering::Relaxed);
        }
    }
    start();
    for counter in [&AT_ANOTHER_TIME, &OVERLAPS] {
        counter.store(0, Ordering::Relaxed);
    }
    let before = difference();
    timer::set_system_time(clock::system_time_precise() + (MOST + 1) * JUMP, at);
    GOES_ON.store(1, Ordering::Relaxed);
    everywhere::start(at, |at, number| {
        while GOES_ON.load(Ordering::Relaxed) != 0 {
            set_all(at, number);
            clock::stall(5);
            cancel_and_compare(at, number);
        }
    });
    let me = arch::cpu::number();
    let (begun, mut jumps) = (clock::since_start(), 0);
    // However few processors the host runs at once, some timers are to be set while the tables are being moved.
    let mut overlapped = 0;
    let enough = |overlapped| overlapped >= 100 || clock::since_start() - begun > 2_000_000;
    while jumps < 60 || jumps < MOST && prcb::count() > 1 && !enough(overlapped) {
        jumps += 1;
        set_all(at, me);
        let before = OVERLAPS.load(Ordering::Relaxed);
        SETTING.fetch_add(1, Ordering::AcqRel);
        timer::set_system_time(clock::system_time_precise() - JUMP, at);
        SETTING.fetch_add(1, Ordering::AcqRel);
        overlapped += u64::from(OVERLAPS.load(Ordering::Relaxed) != before);
        clock::stall(20);
        cancel_and_compare(at, me);
    }
    GOES_ON.store(0, Ordering::Relaxed);
    everywhere::finish(at);
    timer::set_system_time(clock::interrupt_time_precise() + before, at);
    kernel::info!("timers: set during {overlapped} of {jumps} changes of the time");
    equal(fired(), 0, "timers that expired minutes early")?;
    equal(
        AT_ANOTHER_TIME.load(Ordering::Relaxed).into(),
        0,
        "due at another time of day than they were set for",
    )
}

/// A DPC that sets its own timer for a time long over is called by another look, not for ever by the same one.
fn set_by_its_dpc(at: &mut Irql<Passive>) -> Result {
    const TIMES: u32 = 64;
    fn again(dpc: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
        if FIRED.fetch_add(1, Ordering::Release) + 1 < TIMES {
            TIMER.set(Due::At(1), Options::default(), Some(dpc), at);
        }
    }
    static AGAIN: Dpc = Dpc::new(again);
    let clocks = || {
        let here = prcb::get(arch::cpu::number());
        here.map_or(0, |here| here.prcb().interrupt_count(vector::CLOCK))
    };
    start();
    let before = clocks();
    TIMER.set(Due::At(1), Options::default(), Some(&AGAIN), at);
    wait(at, TIMES.into())?;
    // A look may also come with somebody's DPC.
    let taken = clocks() - before;
    check(taken >= TIMES / 2, "clock interrupts for as many expiries", taken.into(), TIMES.into())
}

fn targets(at: &mut Irql<Passive>) -> Result {
    // A processor that has work may take a clock interrupt anyway, and finds the timer by that.
    settle(at);
    for number in 0..prcb::count() {
        start();
        // First in another table: setting it again moves it.
        DPC.set_target(Some((number + 1) % prcb::count()));
        TIMER.set(Due::In(3_600_000 * MILLISECOND), Options::default(), Some(&DPC), at);
        DPC.set_target(Some(number));
        check(TIMER.set(Due::In(MILLISECOND), Options::default(), Some(&DPC), at), "not moved", 0, 0)?;
        // Its DPC wakes its own processor only, so this one must not halt. That one may look for other reasons, seconds apart.
        let begun = clock::since_start();
        while fired() == 0 {
            check(clock::since_start() - begun < 2_000_000, "a timer that never expired", number.into(), 0)?;
            arch::cpu::spin_hint();
        }
        equal(PLACE.load(Ordering::Relaxed).into(), number.into(), "expired on")?;
    }
    DPC.set_target(None);
    Ok(())
}

/// Timers of one processor in [`thousands`]: 10,000 over eight.
const EACH: usize = 1250;

/// A timer, its DPC, and what is expected of both.
struct Subject {
    timer: Timer,
    dpc: Dpc,
    due: AtomicU64,
    /// 100 ns; 0: it expires once. It is set periodic once, at most.
    period: AtomicU64,
    set: AtomicU32,
    /// DPCs that ran.
    expired: AtomicU32,
    cancelled: AtomicU32,
}

impl Subject {
    fn is_periodic(&self) -> bool {
        self.period.load(Ordering::Relaxed) != 0
    }

    /// Every setting has ended: only then may its owner change what the DPC reads.
    fn is_over(&self) -> bool {
        let ended = self.expired.load(Ordering::Acquire) + self.cancelled.load(Ordering::Relaxed);
        ended == self.set.load(Ordering::Relaxed)
    }

    /// Its owner, which finds that it is over, sets it anew: once in 16 times for good, with a period. So 600 to 1,800 become periodic,
    /// and expire 30,000 times a second together at most: a busy host that can't do as much would keep its processors in DPCs.
    fn start(&'static self, random: &mut Random, at: &mut Irql<Passive>) -> bool {
        self.dpc.set_target(Some(random.below(prcb::count())));
        let after = u64::from(random.below(40 * MILLISECOND as u32));
        let tolerance = if random.below(4) == 0 { MILLISECOND } else { 0 };
        let period_ms = if random.below(16) == 0 { 20 + random.below(100) } else { 0 };
        if period_ms != 0 {
            // From now on expiries count for this setting alone.
            self.expired.store(0, Ordering::Relaxed);
            self.cancelled.store(0, Ordering::Relaxed);
            self.set.store(0, Ordering::Relaxed);
        }
        self.period.store(u64::from(period_ms) * MILLISECOND, Ordering::Relaxed);
        self.due.store(clock::interrupt_time_precise() + after, Ordering::Release);
        self.set.fetch_add(1, Ordering::Relaxed);
        self.timer.set(Due::In(after), Options { period_ms, tolerance }, Some(&self.dpc), at)
    }

    /// A periodic one, after its cancel, everybody's DPCs flushed: how many periods have passed; and whether it expired for
    /// them, in a DPC each but for those that it missed or was queued for already, and no other DPC ran.
    fn periods(&self, cancelled_at: u64) -> (u64, bool) {
        let period = self.period.load(Ordering::Relaxed);
        // It was set a moment after `due` was written.
        let passed = (self.timer.due() - self.due.load(Ordering::Relaxed)) / period;
        let ran = u64::from(self.expired.load(Ordering::Relaxed));
        let none_lost = self.timer.due() + LATEST > cancelled_at && (ran > 0) == (passed > 0);
        (passed, none_lost && ran <= passed)
    }
}

/// What is later than this was lost: ten seconds.
const LATEST: u64 = 10_000 * MILLISECOND;

static SUBJECTS: [[Subject; EACH]; 8] = [const {
    [const {
        Subject {
            timer: Timer::new(TimerKind::Synchronization),
            dpc: Dpc::new(expired),
            due: AtomicU64::new(0),
            period: AtomicU64::new(0),
            set: AtomicU32::new(0),
            expired: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
        }
    }; EACH]
}; 8];

static EARLY: AtomicU32 = AtomicU32::new(0);
/// Expiries by lateness: bucket n is less than 2ⁿ microseconds.
static LATE: [AtomicU32; 24] = [const { AtomicU32::new(0) }; 24];

fn expired(dpc: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    let now = clock::interrupt_time_precise();
    let base = core::ptr::from_ref(&SUBJECTS) as usize;
    let index = (core::ptr::from_ref(dpc) as usize - base) / size_of::<Subject>();
    let subject = &SUBJECTS[index / EACH][index % EACH];
    let first = subject.due.load(Ordering::Acquire);
    let period = subject.period.load(Ordering::Relaxed);
    // The nth one of a periodic timer comes n periods later, or later still.
    let due = first + u64::from(subject.expired.load(Ordering::Relaxed)) * period;
    if now < if period == 0 { first } else { due } {
        EARLY.fetch_add(1, Ordering::Relaxed);
    } else if period == 0 || due == first {
        let microseconds = (now - first) / 10;
        let bucket = (u64::BITS - microseconds.leading_zeros()).min(LATE.len() as u32 - 1);
        LATE[bucket as usize].fetch_add(1, Ordering::Relaxed);
    }
    subject.expired.fetch_add(1, Ordering::Release);
}

static NOT_AS_TOLD: AtomicU32 = AtomicU32::new(0);
static SETTERS: AtomicU32 = AtomicU32::new(0);

/// Eight shares of timers, dealt out to as many processors as there are: those of processor `number`.
fn shares(number: u32) -> impl Iterator<Item = &'static Subject> {
    let setters = SETTERS.load(Ordering::Relaxed);
    SUBJECTS.iter().zip(0..).filter(move |&(_, share)| share % setters == number).flat_map(|(share, _)| share)
}

/// Each processor sets its timers at random times and cancels some; every setting must end in one expiry or one cancel, and every
/// period in an expiry.
fn thousands(at: &mut Irql<Passive>) -> Result {
    NOT_AS_TOLD.store(0, Ordering::Relaxed);
    EARLY.store(0, Ordering::Relaxed);
    SETTERS.store(prcb::count().min(8), Ordering::Relaxed);
    everywhere::run(at, |at, number| {
        if number >= SETTERS.load(Ordering::Relaxed) {
            return;
        }
        let mut random = Random::new(u64::from(number) + 300);
        for round in 0..3 {
            for subject in shares(number) {
                let wrong = if subject.is_periodic() {
                    false
                } else if subject.is_over() {
                    subject.start(&mut random, at)
                } else {
                    // Half of those that are still set are cancelled, the others are left.
                    if random.below(2) == 0 && subject.timer.cancel(at) {
                        subject.cancelled.fetch_add(1, Ordering::Relaxed);
                    }
                    false
                };
                NOT_AS_TOLD.fetch_add(wrong.into(), Ordering::Relaxed);
            }
            clock::stall(u64::from(random.below(5000)) * (round + 1));
        }
    });
    let once = || SUBJECTS.iter().flatten().filter(|subject| !subject.is_periodic());
    let begun = clock::since_start();
    while !once().all(Subject::is_over) && clock::since_start() - begun < 20_000_000 {
        arch::cpu::spin_hint();
    }
    // Some more periods.
    clock::stall(150_000);
    for subject in SUBJECTS.iter().flatten().filter(|subject| subject.is_periodic()) {
        let was_set = subject.timer.cancel(at);
        NOT_AS_TOLD.fetch_add((!was_set).into(), Ordering::Relaxed);
    }
    let cancelled_at = clock::interrupt_time_precise();
    dpc::flush(at);
    judge(cancelled_at)
}

fn judge(cancelled_at: u64) -> Result {
    let (mut set, mut expired, mut cancelled) = (0, 0, 0);
    let (mut periodic, mut periods, mut wrong) = (0, 0, 0_u64);
    for subject in SUBJECTS.iter().flatten() {
        let counter = |counter: &AtomicU32| u64::from(counter.load(Ordering::Relaxed));
        if subject.is_periodic() {
            let (passed, right) = subject.periods(cancelled_at);
            (periodic, periods, wrong) = (periodic + 1, periods + passed, wrong + u64::from(!right));
        } else {
            set += counter(&subject.set);
            expired += counter(&subject.expired);
            cancelled += counter(&subject.cancelled);
        }
        // For another run of this test.
        subject.period.store(0, Ordering::Relaxed);
        for counter in [&subject.set, &subject.expired, &subject.cancelled] {
            counter.store(0, Ordering::Relaxed);
        }
    }
    kernel::info!("timers: {set} set once, {expired} expired, {cancelled} cancelled");
    kernel::info!("timers: {periodic} periodic, {periods} periods; late by less than");
    for (bucket, count) in LATE.iter().enumerate() {
        let count = count.swap(0, Ordering::Relaxed);
        if count != 0 {
            kernel::info!("timers:   {:>8} us {count:>6}", 1_u64 << bucket);
        }
    }
    equal(EARLY.load(Ordering::Relaxed).into(), 0, "early expiries")?;
    equal(
        NOT_AS_TOLD.load(Ordering::Relaxed).into(),
        0,
        "sets of a set timer, cancels of a periodic one that wasn't",
    )?;
    check(set + periodic >= 10_000 && periodic > 100, "too few settings", set, periodic)?;
    equal(expired + cancelled, set, "settings that ended")?;
    check(wrong == 0 && periods > 0, "periodic timers that lost or invented a period", wrong, periods)
}
