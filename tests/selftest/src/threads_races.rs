//! The scheduler where two things happen at once: what is standby is overtaken by a change, a thread is preempted beside an idle
//! processor, woken on its way off its stack, sent away while it yields; and a processor that is left by who was about to look.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::thread::{self, Name, Options};
use kernel::ke::timer::{self, Due, Timer, TimerKind};
use kernel::ke::wait::{self, Alertable, delay, signal_and_wait};
use kernel::ke::{clock, prcb, sched};
use kernel::rtl::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};

use crate::held;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};
use crate::threads::{here, join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("threads::impossible_processors_are_refused", refused),
    ("threads::raised_above_its_standby_thread_it_runs_on", overtaken),
    ("threads::preempted_thread_goes_to_who_runs_lower", moved),
    ("threads::one_tick_spreads_what_is_queued", spread),
    ("threads::woken_on_its_way_off_the_stack_it_runs_at_once", woken_early),
    ("threads::sent_away_while_they_take_turns", sent_away),
    ("threads::woken_by_who_then_waits_they_take_turns", woken_by_who_waits),
    ("threads::who_ends_leaves_nothing_to_look_at", halts_behind_an_end),
];

fn refused(at: &mut Irql<Passive>) -> Result {
    let nothing: thread::Routine = |_, _| {};
    for ideal in [prcb::count(), 64, u32::MAX] {
        let found = thread::spawn(&Options { ideal: Some(ideal), ..Options::default() }, nothing, 0, at);
        check(
            found.err() == Some(NtStatus::INVALID_PARAMETER),
            "a processor that isn't there",
            ideal.into(),
            0,
        )?;
    }
    let found = thread::spawn(&Options { affinity: Some(0), ..Options::default() }, nothing, 0, at);
    check(found.err() == Some(NtStatus::INVALID_PARAMETER), "no processor", 0, 0)
}

/// A thread is standby, and what runs is raised above it before the switch: it must not be preempted by it any more.
fn overtaken(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Synchronization, false);
    static RAN: AtomicU32 = AtomicU32::new(0);
    RAN.store(0, Ordering::Relaxed);
    let it = spawn(
        &here("standby", 10),
        |at, _| {
            let _ = wait::for_single(&GO, None, at);
            RAN.store(1, Ordering::Relaxed);
        },
        0,
        at,
    )?;
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let raised_to = {
        let mut raised = at.raise::<Dispatch>();
        let pinned = sched::set_affinity(&me, 1 << number, &mut raised);
        GO.set(0, &mut raised);
        let raised_to = sched::set_base_priority(&me, 12, &mut raised);
        pinned.and(raised_to)
    };
    // What was asked for at DISPATCH has been done.
    let ran = RAN.load(Ordering::Relaxed);
    let _ = sched::set_base_priority(&me, 8, at);
    let after = RAN.load(Ordering::Relaxed);
    let _ = sched::set_affinity(&me, before, at);
    join(&it, at)?;
    if let Err(status) = raised_to {
        return Err(Verdict::Fail("a change is refused", status.0.into(), 0));
    }
    equal(ran.into(), 0, "a lower thread ran")?;
    equal(after.into(), 1, "it runs as soon as it is above")
}

/// A preempted thread that waits behind a higher one is moved to a processor that begins to run something lower, within a clock
/// period: its processor's tick goes on.
fn moved(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static STAGE: AtomicU32 = AtomicU32::new(0);
    static OUTCOME: AtomicU64 = AtomicU64::new(0);
    const LIMIT: u64 = 2_000_000;
    STAGE.store(0, Ordering::Relaxed);
    OUTCOME.store(0, Ordering::Relaxed);
    fn until(stage: u32, limit: u64) -> bool {
        let end = clock::interrupt_time_precise() + limit;
        while STAGE.load(Ordering::Relaxed) < stage {
            if clock::interrupt_time_precise() > end {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let other = if number == 0 { 1 } else { 0 };
    // Here and there only; there, something runs that is above this thread, and falls below it later.
    let _ = sched::set_affinity(&me, 1 << number | 1 << other, at);
    let options =
        Options { name: Name::new("there"), priority: 10, affinity: Some(1 << other), ideal: Some(other) };
    let there = spawn(
        &options,
        |at, _| {
            STAGE.store(1, Ordering::Relaxed);
            until(2, 100_000_000);
            let me = thread::current(at).reference();
            let _ = sched::set_base_priority(&me, 4, at);
            until(3, LIMIT);
        },
        0,
        at,
    )?;
    check(until(1, 100_000_000), "the thread there doesn't run", 0, 0)?;
    let above =
        Options { name: Name::new("above"), priority: 12, affinity: Some(1 << number), ideal: Some(number) };
    let above = spawn(
        &above,
        |_, _| {
            STAGE.store(2, Ordering::Relaxed);
            OUTCOME.store(1 + u64::from(until(3, LIMIT)), Ordering::Relaxed);
        },
        0,
        at,
    )?;
    // Preempted by it, so this comes when it has ended, or there.
    STAGE.store(3, Ordering::Relaxed);
    let _ = sched::set_affinity(&me, before, at);
    join(&above, at)?;
    join(&there, at)?;
    equal(OUTCOME.load(Ordering::Relaxed), 2, "the preempted thread ran beside what preempted it, plus one")
}

/// Of a race, as many as come within a second, and no more than these.
const ROUNDS: u32 = 3_000;
const SECOND: u64 = 10_000_000;

/// A thread waits, and another processor ends the wait about when it leaves its stack, to a lower thread that never waits: it
/// runs again at once, not when something else brings its processor to look.
fn woken_early(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static ABOUT_TO_WAIT: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicU32 = AtomicU32::new(0);
    static GO: Event = Event::new(EventKind::Synchronization, false);
    for word in [&ABOUT_TO_WAIT, &STOP] {
        word.store(0, Ordering::Relaxed);
    }
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let other = if number == 0 { 1 } else { 0 };
    let _ = sched::set_affinity(&me, 1 << number, at);
    let on = |name, priority| Options {
        name: Name::new(name),
        priority,
        affinity: Some(1 << other),
        ideal: Some(other),
    };
    let waits = spawn(
        &on("waits", 12),
        |at, _| {
            for round in 1..=ROUNDS {
                ABOUT_TO_WAIT.store(round, Ordering::Release);
                let _ = wait::for_single(&GO, None, at);
                if STOP.load(Ordering::Relaxed) != 0 {
                    break;
                }
            }
        },
        0,
        at,
    )?;
    let spins = spawn(
        &on("spins", 4),
        |_, _| {
            while STOP.load(Ordering::Relaxed) == 0 {
                core::hint::spin_loop();
            }
        },
        0,
        at,
    )?;
    let mut stuck = 0;
    let end = clock::interrupt_time_precise() + SECOND;
    for round in 1..=ROUNDS {
        let begun = clock::interrupt_time_precise();
        while ABOUT_TO_WAIT.load(Ordering::Acquire) < round && stuck == 0 {
            if clock::interrupt_time_precise() - begun > 50_000_000 {
                stuck = round;
            }
            core::hint::spin_loop();
        }
        // From before the wait is committed to behind the switch.
        for _ in 0..round % 97 {
            core::hint::spin_loop();
        }
        GO.set(0, at);
        if stuck != 0 || begun > end {
            break;
        }
    }
    STOP.store(1, Ordering::Relaxed);
    while !waits.is_terminated() {
        GO.set(0, at);
        let _ = wait::delay(Due::In(10_000), at);
    }
    join(&spins, at)?;
    let _ = sched::set_affinity(&me, before, at);
    equal(stuck.into(), 0, "the round in which a woken thread didn't run")
}

/// Threads that yield and preempt each other are sent from processor to processor: none is ever run where it may not (the checked
/// build looks at each switch), and none is lost.
fn sent_away(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static STOP: AtomicU32 = AtomicU32::new(0);
    static TURNS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
    STOP.store(0, Ordering::Relaxed);
    for turns in &TURNS {
        turns.store(0, Ordering::Relaxed);
    }
    fn yields(at: &mut Irql<Passive>, index: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {
            sched::yield_now(at);
            TURNS[index].fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut threads = [const { None }; 4];
    for (index, slot) in threads.iter_mut().enumerate() {
        *slot = Some(spawn(
            &Options { name: Name::new("yields"), priority: 7, ..Options::default() },
            yields,
            index,
            at,
        )?);
    }
    let count = prcb::count();
    let mut outcome = Ok(());
    let end = clock::interrupt_time_precise() + SECOND;
    for round in 0..2_000_u32 {
        if clock::interrupt_time_precise() > end {
            break;
        }
        let index = round as usize % threads.len();
        let Some(it) = &threads[index] else { continue };
        if let Err(status) = sched::set_affinity(it, 1 << ((round / 3 + round % 3) % count), at) {
            outcome = Err(Verdict::Fail("the affinity is refused", status.0.into(), round.into()));
        }
        if round % 5 == 0 {
            let _ = sched::set_base_priority(it, 5 + (round / 5 % 4) as u8, at);
        }
    }
    // Equals, and anywhere: so that none waits for a higher one.
    for it in threads.iter().flatten() {
        let changed =
            sched::set_affinity(it, u64::MAX, at).and(sched::set_base_priority(it, 7, at).map(u64::from));
        if let Err(status) = changed {
            outcome = Err(Verdict::Fail("a change is refused", status.0.into(), 0));
        }
    }
    let seen = TURNS.each_ref().map(|turns| turns.load(Ordering::Relaxed));
    let limit = clock::interrupt_time_precise() + 100_000_000;
    let all =
        |seen: &[u32; 4]| TURNS.iter().zip(seen).all(|(turns, &seen)| turns.load(Ordering::Relaxed) != seen);
    while !all(&seen) && clock::interrupt_time_precise() < limit {
        let _ = wait::delay(Due::In(10_000), at);
    }
    let lost = !all(&seen);
    STOP.store(1, Ordering::Relaxed);
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    outcome?;
    check(!lost, "a thread doesn't run any more", 0, 0)
}

/// Two equals are woken by a thread that waits at once, without a look of its own: the second has its turn though the first never waits.
fn woken_by_who_waits(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Notification, false);
    static DONE: Event = Event::new(EventKind::Synchronization, false);
    static FIRST: AtomicU32 = AtomicU32::new(0);
    static SHARED: AtomicU32 = AtomicU32::new(0);
    GO.reset(at);
    for word in [&FIRST, &SHARED] {
        word.store(0, Ordering::Relaxed);
    }
    fn runs(at: &mut Irql<Passive>, _: usize) {
        let _ = wait::for_single(&GO, None, at);
        if FIRST.swap(1, Ordering::Relaxed) != 0 {
            SHARED.store(1, Ordering::Relaxed);
        } else {
            let end = clock::interrupt_time_precise() + SECOND;
            while SHARED.load(Ordering::Relaxed) == 0 && clock::interrupt_time_precise() < end {
                core::hint::spin_loop();
            }
            FIRST.store(2 + SHARED.load(Ordering::Relaxed), Ordering::Relaxed);
            DONE.set(0, at);
        }
    }
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let _ = sched::set_affinity(&me, 1 << arch::cpu::number(), at);
    // Equals of this one, so that neither is standby.
    let priority = me.scheduling().base();
    let threads = ["a", "b"].map(|name| spawn(&here(name, priority), runs, 0, at));
    if threads.iter().any(|it| it.is_err()) {
        SHARED.store(1, Ordering::Relaxed);
        GO.set(0, at);
        let _ = sched::set_affinity(&me, before, at);
        threads.iter().flatten().try_for_each(|it| join(it, at))?;
    }
    let [first, second] = threads;
    let threads = [first?, second?];
    // Both wait, pages are zeroed, so that no tick is armed. What follows has no timeout, which would be a look of its own.
    let _ = delay(Due::In(SECOND / 10), at);
    let status = signal_and_wait(&GO, 0, &DONE, None, Alertable::No, at);
    let _ = sched::set_affinity(&me, before, at);
    for it in &threads {
        join(it, at)?;
    }
    equal(status.0.into(), 0, "the first doesn't end")?;
    equal(FIRST.load(Ordering::Relaxed).into(), 3, "the second ran beside the first, plus two")
}

/// Several threads wait here behind a higher one as other processors begin to run something lower: one tick sends all of them there, so
/// that who runs here sees either none gone or all.
fn spread(at: &mut Irql<Passive>) -> Result {
    need_processors(3)?;
    // A thread of the system's may run on one of them just then.
    let mut left = 0;
    for _ in 0..4 {
        left = left_by_a_tick(at)?;
        if left == 0 {
            break;
        }
    }
    equal(left, 0, "threads that the tick has left behind")
}

/// How many are still there when the first has gone.
fn left_by_a_tick(at: &mut Irql<Passive>) -> core::result::Result<u64, Verdict> {
    const MOST: usize = 3;
    static RUN: AtomicU32 = AtomicU32::new(0);
    static GO: AtomicU32 = AtomicU32::new(0);
    static END: AtomicU32 = AtomicU32::new(0);
    for flag in [&RUN, &GO, &END] {
        flag.store(0, Ordering::Relaxed);
    }
    /// At once, until they may go.
    fn above(_: &mut Irql<Passive>, _: usize) {
        RUN.fetch_add(1, Ordering::Relaxed);
        while GO.load(Ordering::Relaxed) == 0 {
            core::hint::spin_loop();
        }
    }
    fn until_the_end(_: &mut Irql<Passive>, _: usize) {
        while END.load(Ordering::Relaxed) == 0 {
            core::hint::spin_loop();
        }
    }
    let me = thread::current(at).reference();
    let (before, base) = (me.scheduling().affinity(), me.scheduling().base());
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let others = || (0..prcb::count()).filter(move |&other| other != number).take(MOST);
    let count = others().count();
    let all = others().fold(1 << number, |all, other| all | 1_u64 << other);
    let _ = sched::set_affinity(&me, 1 << number, at);
    let _ = sched::set_base_priority(&me, 12, at);
    let mut threads = [const { None }; 3 * MOST];
    let mut start = |slot: usize, priority, ideal, affinity, routine, at: &mut Irql<Passive>| {
        let options =
            Options { name: Name::new("spread"), priority, affinity: Some(affinity), ideal: Some(ideal) };
        threads[slot] = Some(spawn(&options, routine, 0, at)?);
        Ok(())
    };
    let mut started: Result = Ok(());
    for (slot, other) in others().enumerate() {
        started = started
            .and_then(|()| start(slot, 20, other, 1 << other, above, at))
            .and_then(|()| start(MOST + slot, 2, other, 1 << other, until_the_end, at));
    }
    while started.is_ok() && (RUN.load(Ordering::Relaxed) as usize) < count {
        let _ = delay(Due::In(10_000), at);
    }
    for slot in 0..count {
        started = started.and_then(|()| start(2 * MOST + slot, 8, number, all, until_the_end, at));
    }
    // At DISPATCH, so that no look comes in between.
    let queued = |at: &mut Irql<Passive>| {
        let _raised = at.raise::<Dispatch>();
        let places = threads[2 * MOST..].iter().flatten().map(|it| it.scheduling().place());
        places.filter(|&place| place == sched::Place::Ready(number)).count()
    };
    let (mut first, mut then) = (0, 0);
    if started.is_ok() {
        first = queued(at);
        {
            // No tick in between: those that go have all gone before the next.
            let _raised = at.raise::<Dispatch>();
            GO.store(1, Ordering::Relaxed);
            let low = |other| prcb::get(other).is_some_and(|it| it.prcb().scheduling().level() == 3);
            while !others().all(low) {
                core::hint::spin_loop();
            }
        }
        let end = clock::interrupt_time_precise() + 10 * SECOND;
        then = first;
        while then == first && clock::interrupt_time_precise() < end {
            then = queued(at);
        }
    }
    GO.store(1, Ordering::Relaxed);
    END.store(1, Ordering::Relaxed);
    let _ = sched::set_base_priority(&me, base, at);
    let joined = threads.iter().flatten().try_for_each(|it| join(it, at));
    let _ = sched::set_affinity(&me, before, at);
    started.and(joined)?;
    equal(first as u64, count as u64, "threads that wait behind a higher one")?;
    Ok(then as u64)
}

/// A thread ends, and what it holds goes to an equal, which is queued and runs next: the look that would have been for both is not left to
/// the processor, which could not halt.
fn halts_behind_an_end(at: &mut Irql<Passive>) -> Result {
    const IDLE: u64 = SECOND / 5;
    static END: Timer = Timer::new(TimerKind::Notification);
    // SAFETY: a static.
    static HELD: Mutant = unsafe { Mutant::new() };
    static TAKEN: Event = Event::new(EventKind::Synchronization, false);
    fn ends(at: &mut Irql<Passive>, _: usize) {
        let _ = wait::for_single(&HELD, None, at);
        TAKEN.set(0, at);
        // It outlasts its quantum, so that no tick is armed at its end.
        clock::stall(40_000);
    }
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let _ = sched::set_affinity(&me, 1 << number, at);
    let taken = || {
        let here = prcb::get(number).map(|it| it.prcb().interrupt_count(arch::vector::CLOCK));
        u64::from(here.unwrap_or_default())
    };
    let mut most = 0;
    // Anything else that is queued here, as the thread that zeroes pages, arms a tick, which hides it.
    for _ in 0..4 {
        let _ = delay(Due::In(SECOND / 20), at);
        // Before the thread: to set a timer is a look of its own.
        END.set(Due::In(IDLE), timer::Options::default(), None, at);
        let it = spawn(&here("ends", me.scheduling().base()), ends, 0, at)?;
        let _ = wait::for_single(&TAKEN, None, at);
        let status = wait::for_single(&HELD, None, at);
        let first = taken();
        let released = HELD.release(0, at);
        check(released.is_ok(), "what was left behind isn't its own", status.0.into(), 0)?;
        join(&it, at)?;
        let _ = wait::for_single(&END, None, at);
        most = most.max(taken() - first);
    }
    let _ = sched::set_affinity(&me, before, at);
    // Its own end, what a lazy DPC or a quantum left armed; an update of the time each 15 ms would be ten.
    check(most < 6, "clock interrupts of an idle processor", most, IDLE)
}
