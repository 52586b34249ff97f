//! Threads: begin, end, are joined; priority, affinity and quantum decide who runs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::{self, Name, Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, Alertable, delay};
use kernel::ke::{clock, prcb, sched};
use kernel::rtl::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};

use crate::apcs::until_it_waits;
use crate::held;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("threads::runs_and_is_joined", runs),
    ("threads::exit_status_is_told", exits),
    ("threads::many_short_ones_leave_nothing", many),
    ("threads::higher_priority_runs_at_once", preempts),
    ("threads::equal_threads_take_turns", shares),
    ("threads::yield_lets_an_equal_run", yields),
    ("threads::who_joins_takes_its_turn_behind_its_equals", joins_in_turn),
    ("threads::affinity_is_kept_and_changed_at_once", affinity),
    ("threads::idle_processors_take_what_is_ready", spreads),
    ("threads::starved_thread_is_relieved", starves),
    ("threads::interrupt_flag_is_the_threads_own", interrupt_flag),
];

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A thread on this processor.
pub(crate) fn here(name: &str, priority: u8) -> Options {
    let number = arch::cpu::number();
    Options { name: Name::new(name), priority, affinity: Some(1 << number), ideal: Some(number) }
}

pub(crate) fn spawn(
    options: &Options,
    routine: thread::Routine,
    argument: usize,
    at: &mut Irql<Passive>,
) -> core::result::Result<ThreadRef, Verdict> {
    thread::spawn(options, routine, argument, at)
        .inspect(held::note)
        .map_err(|status| Verdict::Fail("a thread can't be made", status.0.into(), 0))
}

/// Ten seconds are for ever.
pub(crate) fn join(thread: &ThreadRef, at: &mut Irql<Passive>) -> Result {
    let status = wait::for_single(thread, Some(Due::In(100_000_000)), at);
    equal(status.0.into(), 0, "a thread doesn't end")
}

fn runs(at: &mut Irql<Passive>) -> Result {
    COUNT.store(0, Ordering::Relaxed);
    fn routine(at: &mut Irql<Passive>, argument: usize) {
        at.check();
        let me = thread::current(at);
        let named = me.name().as_str() == "a name" && me.number() != 0;
        COUNT.store(argument as u64 + u64::from(named), Ordering::Relaxed);
    }
    let options = Options { name: Name::new("a name"), ..Options::default() };
    let it = spawn(&options, routine, 41, at)?;
    join(&it, at)?;
    check(it.is_terminated(), "joined, and not over", 0, 0)?;
    equal(COUNT.load(Ordering::Relaxed), 42, "what it stored")?;
    check(it.cycles() > 0, "it ran for no time", 0, 0)
}

fn exits(at: &mut Irql<Passive>) -> Result {
    let it = spawn(&Options::default(), |at, _| thread::exit(NtStatus::CANCELLED, at), 0, at)?;
    join(&it, at)?;
    equal(it.exit_status().0.into(), NtStatus::CANCELLED.0.into(), "its exit status")
}

/// Made, run and joined; some by references that go before the thread does.
fn many(at: &mut Irql<Passive>) -> Result {
    COUNT.store(0, Ordering::Relaxed);
    const EACH: u64 = 2_000;
    for number in 0..EACH {
        let it = spawn(
            &Options::default(),
            |_, _| {
                COUNT.fetch_add(1, Ordering::Relaxed);
            },
            0,
            at,
        )?;
        if number % 4 != 0 {
            join(&it, at)?;
        }
    }
    let limit = clock::interrupt_time_precise() + 100_000_000;
    while COUNT.load(Ordering::Relaxed) < EACH && clock::interrupt_time_precise() < limit {
        let _ = delay(Due::In(10_000), at);
    }
    equal(COUNT.load(Ordering::Relaxed), EACH, "threads that ran")
}

/// Who waits for a thread's end becomes ready behind its equals, and before what is below it.
fn joins_in_turn(at: &mut Irql<Passive>) -> Result {
    static RAN: AtomicU64 = AtomicU64::new(0);
    RAN.store(0, Ordering::Relaxed);
    static GO: Event = Event::new(EventKind::Notification, false);
    GO.reset(at);
    fn notes(at: &mut Irql<Passive>, argument: usize) {
        let _ = wait::for_single(&GO, None, at);
        RAN.fetch_or(1 << argument, Ordering::Relaxed);
    }
    // The test's own priority, and one below.
    let me = thread::current(at).reference();
    let mine = me.scheduling().base();
    let _placed = held::Placed::here(at);
    sched::set_affinity(&me, 1 << arch::cpu::number(), at)
        .map_err(|status| Verdict::Fail("it can't be bound", status.0.into(), 0))?;
    let first = spawn(&here("first", mine), notes, 0, at)?;
    let second = spawn(&here("second", mine), notes, 1, at)?;
    let below = spawn(&here("below", mine - 1), notes, 2, at)?;
    [&first, &second, &below].into_iter().try_for_each(|it| until_it_waits(it, at))?;
    // They become ready and this one waits in one step, so that none runs before, whenever the quantum ends.
    let status = wait::signal_and_wait(&GO, 0, &*first, Some(Due::In(100_000_000)), Alertable::No, at);
    let ran = RAN.load(Ordering::Relaxed);
    join(&first, at).and(join(&second, at)).and(join(&below, at))?;
    check(status == NtStatus::SUCCESS, "the wait", status.0.into(), 0)?;
    equal(ran, 0b011, "who ran before who joined the first of them")
}

fn preempts(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Synchronization, false);
    COUNT.store(0, Ordering::Relaxed);
    fn waits(at: &mut Irql<Passive>, _: usize) {
        let _ = wait::for_single(&GO, None, at);
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    let it = spawn(&here("high", 12), waits, 0, at)?;
    // It ran at once, up to its wait.
    check(!GO.set(0, at), "nobody waited", 0, 0)?;
    equal(COUNT.load(Ordering::Relaxed), 1, "it runs before the set returns")?;
    join(&it, at)?;
    // A lower one doesn't until this thread waits.
    let low = spawn(&here("low", 4), waits, 0, at)?;
    GO.set(0, at);
    equal(COUNT.load(Ordering::Relaxed), 1, "a lower one ran")?;
    // From DISPATCH, as soon as the level falls.
    let high = spawn(
        &here("high", 12),
        |at, _| {
            let _ = wait::for_single(&GO, None, at);
            COUNT.fetch_add(10, Ordering::Relaxed);
        },
        0,
        at,
    )?;
    {
        let mut raised = at.raise::<Dispatch>();
        // The event is still set for the low one; whoever comes first takes it.
        GO.set(0, &mut raised);
        let before = COUNT.load(Ordering::Relaxed);
        check(before == 1 || before == 11, "something ran at DISPATCH", before, 0)?;
    }
    GO.set(0, at);
    join(&high, at)?;
    join(&low, at)?;
    equal(COUNT.load(Ordering::Relaxed), 12, "all ran")
}

/// Three that never wait get as much of this processor each, within a few quanta. Tried until the host leaves it in peace: what it takes
/// away from a processor, it takes from the thread that runs.
fn shares(at: &mut Irql<Passive>) -> Result {
    let mut shared = Ok(());
    for _ in 0..10 {
        shared = try_shares(at);
        if shared.is_ok() {
            break;
        }
    }
    shared
}

fn try_shares(at: &mut Irql<Passive>) -> Result {
    static STOP: AtomicU32 = AtomicU32::new(0);
    STOP.store(0, Ordering::Relaxed);
    fn spins(_: &mut Irql<Passive>, _: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {
            core::hint::spin_loop();
        }
    }
    let threads = [
        spawn(&here("a", 8), spins, 0, at)?,
        spawn(&here("b", 8), spins, 0, at)?,
        spawn(&here("c", 8), spins, 0, at)?,
    ];
    let _ = delay(Due::In(5_000_000), at);
    STOP.store(1, Ordering::Relaxed);
    for it in &threads {
        join(it, at)?;
    }
    let cycles = threads.each_ref().map(|it| it.cycles());
    let (least, most) = (cycles.into_iter().min().unwrap_or(0), cycles.into_iter().max().unwrap_or(0));
    check(least > 0 && most - least <= most / 4, "unequal shares", least, most)
}

fn yields(at: &mut Irql<Passive>) -> Result {
    COUNT.store(0, Ordering::Relaxed);
    check(!sched::yield_now(at), "somebody else is ready here", 0, 0)?;
    let it = spawn(
        &here("equal", 8),
        |_, _| {
            COUNT.fetch_add(1, Ordering::Relaxed);
        },
        0,
        at,
    )?;
    while sched::yield_now(at) {}
    equal(COUNT.load(Ordering::Relaxed), 1, "it ran")?;
    join(&it, at)
}

/// A thread that is sent from processor to processor while it runs is where it was sent when the call returns, or on its way.
fn affinity(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static STOP: AtomicU32 = AtomicU32::new(0);
    static SEEN: AtomicU64 = AtomicU64::new(0);
    STOP.store(0, Ordering::Relaxed);
    fn looks(at: &mut Irql<Passive>, _: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {
            let raised = at.raise::<Dispatch>();
            SEEN.store(1 << arch::cpu::number(), Ordering::Relaxed);
            drop(raised);
        }
    }
    let it = spawn(
        &Options { priority: 10, affinity: Some(2), ideal: Some(1), ..Options::default() },
        looks,
        0,
        at,
    )?;
    for round in 0..200_u32 {
        let to = 1 << (1 + round % (prcb::count() - 1).max(1));
        let to = if prcb::count() == 2 && round % 2 == 1 { 2 } else { to };
        if let Err(status) = sched::set_affinity(&it, to, at) {
            return Err(Verdict::Fail("the affinity is refused", status.0.into(), to));
        }
        let limit = clock::interrupt_time_precise() + 50_000_000;
        SEEN.store(0, Ordering::Relaxed);
        while SEEN.load(Ordering::Relaxed) != to {
            check(
                clock::interrupt_time_precise() < limit,
                "it never got there",
                to,
                SEEN.load(Ordering::Relaxed),
            )?;
            arch::cpu::spin_hint();
        }
        // Nowhere else from then on.
        for _ in 0..100 {
            equal(SEEN.load(Ordering::Relaxed), to, "seen elsewhere")?;
        }
    }
    STOP.store(1, Ordering::Relaxed);
    join(&it, at)
}

/// As many threads as there are other processors, all made here: each gets a processor, though each would rather run on this one.
fn spreads(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static WHERE: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicU32 = AtomicU32::new(0);
    WHERE.store(0, Ordering::Relaxed);
    STOP.store(0, Ordering::Relaxed);
    fn stays(_: &mut Irql<Passive>, _: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {
            WHERE.fetch_or(1 << arch::cpu::number(), Ordering::Relaxed);
            arch::cpu::spin_hint();
        }
    }
    let mut threads = [const { None }; prcb::MAX_PROCESSORS];
    let count = prcb::count() as usize;
    let mut made = Ok(());
    for slot in &mut threads[1..count] {
        match spawn(&Options { ideal: Some(0), ..Options::default() }, stays, 0, at) {
            Ok(it) => *slot = Some(it),
            Err(verdict) => made = Err(verdict),
        }
    }
    let limit = clock::interrupt_time_precise() + 50_000_000;
    let all = (1_u64 << count) - 1;
    while made.is_ok() && WHERE.load(Ordering::Relaxed) | 1 != all && clock::interrupt_time_precise() < limit
    {
        arch::cpu::spin_hint();
    }
    let found = WHERE.load(Ordering::Relaxed) | 1;
    STOP.store(1, Ordering::Relaxed);
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    made?;
    equal(found, all, "processors that ran one")
}

/// A thread below one that never waits runs after about four seconds.
fn starves(at: &mut Irql<Passive>) -> Result {
    static STOP: AtomicU32 = AtomicU32::new(0);
    static RAN: AtomicU32 = AtomicU32::new(0);
    STOP.store(0, Ordering::Relaxed);
    RAN.store(0, Ordering::Relaxed);
    let begun = clock::interrupt_time_precise();
    let hog = spawn(
        &here("hog", 7),
        |_, _| {
            while STOP.load(Ordering::Relaxed) == 0 {
                core::hint::spin_loop();
            }
        },
        0,
        at,
    )?;
    let starved = spawn(&here("starved", 6), |_, _| RAN.store(1, Ordering::Relaxed), 0, at);
    if starved.is_err() {
        STOP.store(1, Ordering::Relaxed);
        join(&hog, at)?;
    }
    let starved = starved?;
    let mut after = 0;
    for _ in 0..100 {
        let _ = delay(Due::In(1_000_000), at);
        if RAN.load(Ordering::Relaxed) != 0 {
            after = clock::interrupt_time_precise() - begun;
            break;
        }
    }
    STOP.store(1, Ordering::Relaxed);
    join(&hog, at)?;
    join(&starved, at)?;
    check((35_000_000..90_000_000).contains(&after), "relieved after, in 100 ns", after, 0)
}

/// Code that waits with interrupts off finds them off afterwards, and nobody else does meanwhile.
fn interrupt_flag(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Synchronization, false);
    static OTHERS: AtomicU32 = AtomicU32::new(0);
    OTHERS.store(0, Ordering::Relaxed);
    let it = spawn(
        &here("other", 8),
        |at, _| {
            OTHERS.store(1 + u32::from(arch::cpu::interrupts_enabled()), Ordering::Relaxed);
            GO.set(0, at);
        },
        0,
        at,
    )?;
    // SAFETY: given back below.
    unsafe { arch::cpu::cli() };
    let _ = wait::for_single(&GO, None, at);
    let found = arch::cpu::interrupts_enabled();
    // SAFETY: as it was.
    unsafe { arch::cpu::sti() };
    join(&it, at)?;
    check(!found, "the wait turned interrupts on", 0, 0)?;
    equal(OTHERS.load(Ordering::Relaxed).into(), 2, "the other thread's interrupt flag, plus one")
}
