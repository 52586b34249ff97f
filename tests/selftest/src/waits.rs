//! Dispatcher objects and waits: who is woken, in which order, with which status; races of signals, timeouts and waits for all.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::semaphore::Semaphore;
use kernel::ke::thread::{Options, ThreadRef};
use kernel::ke::timer::{Due, Timer, TimerKind};
use kernel::ke::wait::block::WaitBlock;
use kernel::ke::wait::{self, Waitable, chain, delay};
use kernel::ke::{clock, prcb};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::apcs::until_it_waits;
use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("waits::events_of_both_kinds", events),
    ("waits::semaphore_counts_and_keeps_its_limit", semaphore),
    ("waits::mutant_is_owned_recursive_and_abandoned", mutant),
    ("waits::timers_release_waiters", timers),
    ("waits::timeouts_are_never_early", timeouts),
    ("waits::any_returns_the_lowest_index", any),
    ("waits::all_takes_all_or_nothing", all),
    ("waits::pulse_wakes_only_current_waiters", pulse),
    ("waits::a_notification_event_wakes_all_that_wait", set_wakes_all),
    ("waits::woken_in_the_order_of_their_waits", order),
    ("waits::ping_pong_between_processors_loses_nothing", ping_pong),
    ("waits::signals_race_timeouts", races),
    ("waits::philosophers_eat_by_wait_all", dining),
];

const MILLISECOND: u64 = 10_000;

fn is(found: NtStatus, wanted: NtStatus, what: &'static str) -> Result {
    equal(found.0.into(), wanted.0.into(), what)
}

fn events(at: &mut Irql<Passive>) -> Result {
    let sync = Event::new(EventKind::Synchronization, true);
    is(wait::for_single(&sync, None, at), NtStatus::SUCCESS, "a signalled one")?;
    check(!sync.is_signalled(), "a wait resets it", 0, 0)?;
    is(wait::poll(&sync, at), NtStatus::TIMEOUT, "not signalled any more")?;
    check(!sync.set(0, at) && sync.set(0, at), "set tells the old state", 0, 0)?;
    check(sync.reset(at) && !sync.reset(at), "reset tells the old state", 0, 0)?;
    let notification = Event::new(EventKind::Notification, true);
    is(wait::for_single(&notification, None, at), NtStatus::SUCCESS, "a signalled one")?;
    is(wait::poll(&notification, at), NtStatus::SUCCESS, "it stays signalled")
}

fn semaphore(at: &mut Irql<Passive>) -> Result {
    let it = Semaphore::new(2, 3);
    is(wait::for_single(&it, None, at), NtStatus::SUCCESS, "the first")?;
    is(wait::for_single(&it, None, at), NtStatus::SUCCESS, "the second")?;
    is(wait::poll(&it, at), NtStatus::TIMEOUT, "the third")?;
    check(it.release(0, 4, at) == Err(NtStatus::SEMAPHORE_LIMIT_EXCEEDED), "over its limit", 0, 0)?;
    check(it.release(0, 0, at).is_err() && it.release(0, -1, at).is_err(), "by nothing, or less", 0, 0)?;
    equal(it.count() as u64, 0, "a failed release changes nothing")?;
    check(it.release(0, 3, at) == Ok(0) && it.count() == 3, "release", it.count() as u64, 3)
}

/// What the test of mutants is about: as it was behind it, also where it ends early.
// SAFETY: a static.
static IT: Mutant = unsafe { Mutant::new() };

fn mutant(at: &mut Irql<Passive>) -> Result {
    let result = owned_and_abandoned(at);
    if result.is_err() {
        // Where a thread could not be made, it is this one's, or nobody's.
        let _ = wait::poll(&IT, at);
        while IT.release(0, at).is_ok() {}
    }
    result
}

fn owned_and_abandoned(at: &mut Irql<Passive>) -> Result {
    check(IT.release(0, at) == Err(NtStatus::MUTANT_NOT_OWNED), "released by nobody", 0, 0)?;
    for depth in 0..3_i32 {
        is(wait::for_single(&IT, None, at), NtStatus::SUCCESS, "by its owner, again")?;
        check(IT.state() == -depth, "its state", IT.state() as u64, depth as u64)?;
    }
    let other = spawn(
        &Options::default(),
        |at, _| {
            let found = wait::poll(&IT, at);
            let released = IT.release(0, at);
            if found != NtStatus::TIMEOUT || released != Err(NtStatus::MUTANT_NOT_OWNED) {
                kernel::ke::thread::exit(NtStatus::UNSUCCESSFUL, at);
            }
        },
        0,
        at,
    )?;
    join(&other, at)?;
    is(other.exit_status(), NtStatus::SUCCESS, "another thread can't have it")?;
    for _ in 0..3 {
        check(IT.release(0, at).is_ok(), "released by its owner", 0, 0)?;
    }
    check(IT.state() == 1, "free again", IT.state() as u64, 1)?;
    // Abandoned: whoever takes it next is told, once.
    let dies = spawn(
        &Options::default(),
        |at, _| {
            let _ = wait::for_single(&IT, None, at);
        },
        0,
        at,
    )?;
    join(&dies, at)?;
    is(wait::for_single(&IT, None, at), NtStatus::ABANDONED_WAIT_0, "abandoned")?;
    check(IT.release(0, at).is_ok(), "released", 0, 0)?;
    is(wait::for_single(&IT, None, at), NtStatus::SUCCESS, "told once")?;
    check(IT.release(0, at).is_ok(), "released", 0, 0)
}

fn timers(at: &mut Irql<Passive>) -> Result {
    static NOTIFICATION: Timer = Timer::new(TimerKind::Notification);
    static SYNCHRONIZATION: Timer = Timer::new(TimerKind::Synchronization);
    for (timer, stays) in [(&NOTIFICATION, true), (&SYNCHRONIZATION, false)] {
        let due = clock::interrupt_time_precise() + 3 * MILLISECOND;
        timer.set(Due::In(3 * MILLISECOND), Default::default(), None, at);
        is(wait::for_single(timer, None, at), NtStatus::SUCCESS, "it expires")?;
        let now = clock::interrupt_time_precise();
        check(now >= due, "early", now, due)?;
        check(timer.is_signalled() == stays, "its state afterwards", stays.into(), 0)?;
    }
    Ok(())
}

fn timeouts(at: &mut Irql<Passive>) -> Result {
    let never = Event::new(EventKind::Synchronization, false);
    for milliseconds in [0, 1, 2, 5, 20] {
        let due = clock::interrupt_time_precise() + milliseconds * MILLISECOND;
        let found = wait::for_single(&never, Some(Due::In(milliseconds * MILLISECOND)), at);
        let now = clock::interrupt_time_precise();
        is(found, NtStatus::TIMEOUT, "timed out")?;
        check(now >= due, "early", now, due)?;
        let due = now + milliseconds * MILLISECOND;
        is(delay(Due::In(milliseconds * MILLISECOND), at), NtStatus::SUCCESS, "delayed")?;
        check(clock::interrupt_time_precise() >= due, "early", clock::interrupt_time_precise(), due)?;
    }
    // Absolute: by the system time; one that is past doesn't wait.
    let due = clock::system_time_precise() + 3 * MILLISECOND;
    is(wait::for_single(&never, Some(Due::At(due)), at), NtStatus::TIMEOUT, "absolute")?;
    check(clock::system_time_precise() >= due, "early", clock::system_time_precise(), due)?;
    is(wait::for_single(&never, Some(Due::At(1)), at), NtStatus::TIMEOUT, "in 1601")
}

fn any(at: &mut Irql<Passive>) -> Result {
    let events = [const { Event::new(EventKind::Synchronization, false) }; 5];
    let objects: [&dyn Waitable; 5] = [&events[0], &events[1], &events[2], &events[3], &events[4]];
    let mut blocks = [const { WaitBlock::new() }; 5];
    events[3].set(0, at);
    events[1].set(0, at);
    for wanted in [1, 3] {
        let found = wait::for_any(&objects, Some(&mut blocks), None, at);
        equal(found.0.into(), wanted, "the lowest of those signalled")?;
    }
    let found = wait::for_any(&objects, Some(&mut blocks), Some(Due::In(MILLISECOND)), at);
    is(found, NtStatus::TIMEOUT, "none")?;
    let found = wait::for_any(&objects[..3], None, Some(Due::In(MILLISECOND)), at);
    is(found, NtStatus::TIMEOUT, "none, with the thread's own blocks")?;
    // By somebody else while it waits.
    static LATER: Event = Event::new(EventKind::Synchronization, false);
    let it = spawn(
        &Options::default(),
        |at, _| {
            let _ = delay(Due::In(2 * MILLISECOND), at);
            LATER.set(0, at);
        },
        0,
        at,
    )?;
    let objects: [&dyn Waitable; 3] = [&events[0], &events[1], &LATER];
    let found = wait::for_any(&objects, None, Some(Due::In(1_000 * MILLISECOND)), at);
    equal(found.0.into(), 2, "the one that was set")?;
    join(&it, at)
}

fn all(at: &mut Irql<Passive>) -> Result {
    static A: Event = Event::new(EventKind::Synchronization, false);
    static B: Semaphore = Semaphore::new(0, 10);
    // SAFETY: a static.
    static C: Mutant = unsafe { Mutant::new() };
    let objects: [&dyn Waitable; 3] = [&A, &B, &C];
    A.set(0, at);
    let found = wait::for_all(&objects, None, Some(Due::In(2 * MILLISECOND)), at);
    is(found, NtStatus::TIMEOUT, "one of three")?;
    check(A.is_signalled() && B.count() == 0 && C.state() == 1, "a timeout took something", 0, 0)?;
    let it = spawn(
        &Options::default(),
        |at, _| {
            let _ = delay(Due::In(2 * MILLISECOND), at);
            let _ = B.release(0, 2, at);
        },
        0,
        at,
    )?;
    is(wait::for_all(&objects, None, None, at), NtStatus::SUCCESS, "all of them")?;
    check(!A.is_signalled() && B.count() == 1 && C.state() == 0, "what it took", B.count() as u64, 0)?;
    check(C.release(0, at).is_ok(), "it owns the mutant", 0, 0)?;
    join(&it, at)?;
    let twice: [&dyn Waitable; 2] = [&A, &A];
    is(wait::for_all(&twice, None, None, at), NtStatus::INVALID_PARAMETER, "one object twice")?;
    check(wait::poll(&B, at) == NtStatus::SUCCESS, "the rest of the semaphore", 0, 0)
}

static GO: Event = Event::new(EventKind::Notification, false);
static WOKEN: AtomicU32 = AtomicU32::new(0);

/// Fills `threads` as far as they can be made; those that were are the caller's to end.
fn spawn_each(
    threads: &mut [Option<ThreadRef>],
    at: &mut Irql<Passive>,
    mut spawn: impl FnMut(usize, &mut Irql<Passive>) -> core::result::Result<ThreadRef, Verdict>,
) -> Result {
    for (index, slot) in threads.iter_mut().enumerate() {
        *slot = Some(spawn(index, at)?);
    }
    Ok(())
}

/// Three threads that wait for `GO`; none where one could not be made.
fn three_that_wait(at: &mut Irql<Passive>) -> core::result::Result<[Option<ThreadRef>; 3], Verdict> {
    fn waits(at: &mut Irql<Passive>, _: usize) {
        let _ = wait::for_single(&GO, None, at);
        WOKEN.fetch_add(1, Ordering::Relaxed);
    }
    WOKEN.store(0, Ordering::Relaxed);
    let mut threads = [const { None }; 3];
    let options = Options { priority: 12, ..Options::default() };
    if let Err(refused) = spawn_each(&mut threads, at, |_, at| spawn(&options, waits, 0, at)) {
        GO.set(0, at);
        threads.iter().flatten().try_for_each(|it| join(it, at))?;
        GO.reset(at);
        return Err(refused);
    }
    for it in threads.iter().flatten() {
        until_it_waits(it, at)?;
    }
    equal(WOKEN.load(Ordering::Relaxed).into(), 0, "woken too early")?;
    Ok(threads)
}

fn all_three_are_woken(threads: &[Option<ThreadRef>; 3], at: &mut Irql<Passive>) -> Result {
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    equal(WOKEN.load(Ordering::Relaxed).into(), 3, "woken")
}

fn pulse(at: &mut Irql<Passive>) -> Result {
    check(!GO.pulse(0, at) && !GO.is_signalled(), "a pulse stays", 0, 0)?;
    let threads = three_that_wait(at)?;
    GO.pulse(0, at);
    all_three_are_woken(&threads, at)?;
    is(wait::poll(&GO, at), NtStatus::TIMEOUT, "for who comes later")
}

fn set_wakes_all(at: &mut Irql<Passive>) -> Result {
    let threads = three_that_wait(at)?;
    // Who is forgotten is found before the join gives up.
    chain::change_limit(500, at);
    GO.set(0, at);
    let result = all_three_are_woken(&threads, at);
    chain::change_limit(chain::DEFAULT_MILLISECONDS, at);
    result?;
    check(GO.reset(at), "it stayed signalled", 0, 0)
}

fn order(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Synchronization, false);
    static ORDER: AtomicU64 = AtomicU64::new(0);
    ORDER.store(0, Ordering::Relaxed);
    let number = arch::cpu::number();
    let options =
        Options { priority: 12, affinity: Some(1 << number), ideal: Some(number), ..Options::default() };
    let mut threads = [const { None }; 4];
    let made = spawn_each(&mut threads, at, |index, at| {
        // Above this thread and on its processor: it waits when this returns.
        let waits = |at: &mut Irql<Passive>, index: usize| {
            let _ = wait::for_single(&GO, None, at);
            let before = ORDER.load(Ordering::Relaxed);
            ORDER.store(before * 10 + index as u64, Ordering::Relaxed);
        };
        spawn(&options, waits, index + 1, at)
    });
    for it in threads.iter().flatten() {
        GO.set(0, at);
        join(it, at)?;
    }
    made?;
    equal(ORDER.load(Ordering::Relaxed), 1234, "the order")
}

const PAIRS: usize = prcb::MAX_PROCESSORS;
static PING: [Event; PAIRS] = [const { Event::new(EventKind::Synchronization, false) }; PAIRS];
static PONG: [Semaphore; PAIRS] = [const { Semaphore::new(0, 1) }; PAIRS];

/// Each processor's thread plays with one that may run anywhere. A lost signal ends it by its timeout.
fn ping_pong(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 2_000;
    static LOST: AtomicU32 = AtomicU32::new(0);
    LOST.store(0, Ordering::Relaxed);
    fn answers(at: &mut Irql<Passive>, number: usize) {
        for _ in 0..ROUNDS / prcb::count() {
            if wait::for_single(&PING[number], Some(Due::In(100_000_000)), at) != NtStatus::SUCCESS {
                LOST.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if PONG[number].release(1, 1, at).is_err() {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    everywhere::run(at, |at, number| {
        let number = number as usize;
        let Ok(other) = spawn(&Options::default(), answers, number, at) else {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        };
        for _ in 0..ROUNDS / prcb::count() {
            PING[number].set(1, at);
            if wait::for_single(&PONG[number], Some(Due::In(100_000_000)), at) != NtStatus::SUCCESS {
                LOST.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        if join(&other, at).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    });
    equal(LOST.load(Ordering::Relaxed).into(), 0, "signals lost")
}

/// Waits whose timeouts fall due about when they are signalled: each signal is taken by a wait, or stays.
fn races(at: &mut Irql<Passive>) -> Result {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static SET: AtomicU64 = AtomicU64::new(0);
    static TOKENS: Semaphore = Semaphore::new(0, i32::MAX);
    for counter in [&TAKEN, &SET] {
        counter.store(0, Ordering::Relaxed);
    }
    everywhere::run(at, |at, number| {
        for round in 0..400 / prcb::count() {
            if (round + number) % 2 == 0 {
                let due = Due::In(u64::from(round % 7) * 300);
                if wait::for_single(&TOKENS, Some(due), at) == NtStatus::SUCCESS {
                    TAKEN.fetch_add(1, Ordering::Relaxed);
                }
            } else if TOKENS.release(1, 1, at).is_ok() {
                SET.fetch_add(1, Ordering::Relaxed);
                let _ = delay(Due::In(u64::from(round % 5) * 200), at);
            }
        }
    });
    while wait::poll(&TOKENS, at) == NtStatus::SUCCESS {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
    equal(TAKEN.load(Ordering::Relaxed), SET.load(Ordering::Relaxed), "signals taken and given")
}

/// Each takes its two forks by one wait for all, as everybody else does.
fn dining(at: &mut Irql<Passive>) -> Result {
    const SEATS: usize = 5;
    const MEALS: u32 = 200;
    // SAFETY: statics.
    static FORKS: [Mutant; SEATS] = [const { unsafe { Mutant::new() } }; SEATS];
    static IN_USE: [AtomicU32; SEATS] = [const { AtomicU32::new(0) }; SEATS];
    static WRONG: AtomicU32 = AtomicU32::new(0);
    WRONG.store(0, Ordering::Relaxed);
    fn philosopher(at: &mut Irql<Passive>, seat: usize) {
        let (left, right) = (seat, (seat + 1) % SEATS);
        for _ in 0..MEALS {
            let forks: [&dyn Waitable; 2] = [&FORKS[left], &FORKS[right]];
            if wait::for_all(&forks, None, Some(Due::In(200_000_000)), at) != NtStatus::SUCCESS {
                WRONG.fetch_add(1, Ordering::Relaxed);
                return;
            }
            for fork in [left, right] {
                WRONG.fetch_add(IN_USE[fork].swap(1, Ordering::Acquire), Ordering::Relaxed);
            }
            kernel::ke::sched::yield_now(at);
            for fork in [left, right] {
                IN_USE[fork].store(0, Ordering::Release);
                if FORKS[fork].release(1, at).is_err() {
                    WRONG.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    let mut threads = [const { None }; SEATS];
    for (seat, slot) in threads.iter_mut().enumerate() {
        *slot = Some(spawn(&Options::default(), philosopher, seat, at)?);
    }
    for it in threads.iter().flatten() {
        let status = wait::for_single(it, Some(Due::In(600_000_000)), at);
        is(status, NtStatus::SUCCESS, "a philosopher starves")?;
    }
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "forks taken twice, or never")
}
