//! Alerts, suspension and freezing, ending another thread: what ends which wait, and who still runs.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::ke::apc::{self, ProcessorMode, alert};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::thread::{self, MAXIMUM_SUSPEND_COUNT, Options, Thread};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, Alertable, delay, delay_alertable};
use kernel::ke::{clock, prcb, sched};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::apcs::{is, until_it_waits};
use crate::everywhere;
use crate::runner::{Result, Test, check, equal};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("alerts::end_alertable_waits_of_their_mode", alerts),
    ("alerts::race_signals_and_timeouts", alert_races),
    ("alerts::user_apcs_end_alertable_waits_of_the_user", user_apcs),
    ("suspension::stops_a_thread_until_it_is_resumed_as_often", suspends),
    ("suspension::waits_for_the_end_of_a_region", suspends_late),
    ("suspension::storm", suspend_storm),
    ("termination::ends_a_thread_wherever_it_is", terminates),
    ("termination::waits_for_regions_and_mutants", terminates_late),
    ("termination::races", terminate_races),
];

const MILLISECOND: u64 = 10_000;
const KERNEL: Alertable = Alertable::Yes(ProcessorMode::Kernel);
const USER: Alertable = Alertable::Yes(ProcessorMode::User);

static NEVER: Event = Event::new(EventKind::Notification, false);
static GO: Event = Event::new(EventKind::Synchronization, false);
static FOUND: AtomicU64 = AtomicU64::new(0);

fn short() -> Option<Due> {
    Some(Due::In(MILLISECOND))
}

fn alerts(at: &mut Irql<Passive>) -> Result {
    let me = thread::current(at).reference();
    // Alerted before: the next alertable wait ends at once, one that isn't doesn't.
    check(!alert::alert(&me, ProcessorMode::Kernel, at), "alerted before", 0, 0)?;
    check(alert::alert(&me, ProcessorMode::Kernel, at), "not alerted", 0, 0)?;
    is(wait::for_single(&NEVER, short(), at), NtStatus::TIMEOUT, "not alertable")?;
    is(wait::for_single_alertable(&NEVER, KERNEL, None, at), NtStatus::ALERTED, "alertable")?;
    is(wait::for_single_alertable(&NEVER, KERNEL, short(), at), NtStatus::TIMEOUT, "alerted once")?;
    // Of user mode: only a wait of user mode; and that by either.
    alert::alert(&me, ProcessorMode::User, at);
    is(wait::for_single_alertable(&NEVER, KERNEL, short(), at), NtStatus::TIMEOUT, "of the kernel")?;
    is(delay_alertable(Due::In(100 * MILLISECOND), USER, at), NtStatus::ALERTED, "of the user")?;
    alert::alert(&me, ProcessorMode::Kernel, at);
    is(wait::for_any_alertable(&[&NEVER, &GO], None, None, USER, at), NtStatus::ALERTED, "by the kernel")?;
    alert::alert(&me, ProcessorMode::Kernel, at);
    is(wait::for_all_alertable(&[&NEVER, &GO], None, None, KERNEL, at), NtStatus::ALERTED, "for all")?;
    alert::alert(&me, ProcessorMode::User, at);
    check(alert::test_alert(ProcessorMode::User, at), "tested", 0, 0)?;
    check(!alert::test_alert(ProcessorMode::User, at), "tested twice", 0, 0)?;
    // A signalled object is taken all the same.
    GO.set(0, at);
    alert::alert(&me, ProcessorMode::Kernel, at);
    is(wait::for_single_alertable(&GO, KERNEL, None, at), NtStatus::SUCCESS, "signalled")?;
    check(alert::test_alert(ProcessorMode::Kernel, at), "the alert stays", 0, 0)?;
    // In the middle of waits of each kind.
    fn waits(at: &mut Irql<Passive>, kind: usize) {
        let long = Some(Due::In(100_000_000));
        let status = match kind {
            0 => wait::for_single_alertable(&NEVER, KERNEL, None, at),
            1 => wait::for_single_alertable(&NEVER, USER, long, at),
            2 => wait::for_any_alertable(&[&NEVER, &GO], None, long, KERNEL, at),
            3 => wait::for_all_alertable(&[&NEVER, &GO], None, None, KERNEL, at),
            _ => delay_alertable(Due::In(100_000_000), KERNEL, at),
        };
        FOUND.store(status.0.into(), Ordering::Relaxed);
    }
    for kind in 0..5 {
        FOUND.store(0, Ordering::Relaxed);
        let it = spawn(&Options::default(), waits, kind, at)?;
        until_it_waits(&it, at)?;
        if kind != 1 {
            alert::alert(&it, ProcessorMode::User, at);
            let _ = delay(Due::In(2 * MILLISECOND), at);
            equal(FOUND.load(Ordering::Relaxed), 0, "ended by an alert of the user")?;
        }
        alert::alert(&it, ProcessorMode::Kernel, at);
        join(&it, at)?;
        equal(FOUND.load(Ordering::Relaxed), NtStatus::ALERTED.0.into(), "the status")?;
    }
    check(!GO.is_signalled(), "a signal appeared", 0, 0)
}

/// Each signal is taken, or stays; each alert ends one wait, or stays.
fn alert_races(at: &mut Irql<Passive>) -> Result {
    use kernel::ke::semaphore::Semaphore;
    static TOKENS: Semaphore = Semaphore::new(0, i32::MAX);
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    static SET: AtomicU32 = AtomicU32::new(0);
    static ALERTED: AtomicU32 = AtomicU32::new(0);
    static ALERTS: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    static TARGET: AtomicU64 = AtomicU64::new(0);
    for counter in [&TAKEN, &SET, &ALERTED, &ALERTS] {
        counter.store(0, Ordering::Relaxed);
    }
    STOP.store(false, Ordering::Relaxed);
    let it = spawn(
        &Options::default(),
        |at, _| {
            let mut round = 0;
            while !STOP.load(Ordering::Acquire) {
                round += 1;
                let due = (round % 3 == 0).then_some(Due::In(round % 7 * 100));
                match wait::for_single_alertable(&TOKENS, KERNEL, due, at) {
                    NtStatus::SUCCESS => TAKEN.fetch_add(1, Ordering::Relaxed),
                    NtStatus::ALERTED => ALERTED.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
            }
            // What is left.
            while wait::poll(&TOKENS, at) == NtStatus::SUCCESS {
                TAKEN.fetch_add(1, Ordering::Relaxed);
            }
            ALERTED.fetch_add(alert::test_alert(ProcessorMode::Kernel, at).into(), Ordering::Relaxed);
        },
        0,
        at,
    )?;
    TARGET.store(core::ptr::from_ref::<Thread>(&it).expose_provenance() as u64, Ordering::Release);
    everywhere::run(at, |at, number| {
        let address = TARGET.load(Ordering::Acquire) as usize;
        // SAFETY: the starter holds a reference until all have finished.
        let it = unsafe { &*core::ptr::with_exposed_provenance::<Thread>(address) };
        for round in 0..600 / prcb::count() {
            if (round + number) % 2 == 0 {
                if !alert::alert(it, ProcessorMode::Kernel, at) {
                    ALERTS.fetch_add(1, Ordering::Relaxed);
                }
            } else if TOKENS.release(1, 1, at).is_ok() {
                SET.fetch_add(1, Ordering::Relaxed);
            }
            if round % 32 == 31 {
                let _ = delay(Due::In(200), at);
            }
        }
    });
    STOP.store(true, Ordering::Release);
    if TOKENS.release(0, 1, at).is_ok() {
        SET.fetch_add(1, Ordering::Relaxed);
    }
    join(&it, at)?;
    equal(
        TAKEN.load(Ordering::Relaxed).into(),
        SET.load(Ordering::Relaxed).into(),
        "signals taken, and given",
    )?;
    equal(
        ALERTED.load(Ordering::Relaxed).into(),
        ALERTS.load(Ordering::Relaxed).into(),
        "alerts felt, and given",
    )
}

fn user_apcs(at: &mut Irql<Passive>) -> Result {
    use core::ffi::c_void;
    use core::ptr::{self, NonNull};
    use kernel::ke::apc::{KApc, NormalRoutine};
    unsafe extern "win64" fn never(
        _: *mut KApc,
        _: *mut Option<NormalRoutine>,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
    ) {
    }
    static IT: KApc = KApc::new(ProcessorMode::User, never, None, None, ptr::null_mut());
    for alertable in [Alertable::No, KERNEL, USER] {
        FOUND.store(0, Ordering::Relaxed);
        let waiter = spawn(
            &Options::default(),
            match alertable {
                Alertable::No => {
                    |at, _| FOUND.store(wait::for_single(&GO, None, at).0.into(), Ordering::Relaxed)
                }
                KERNEL => |at, _| {
                    let status = wait::for_single_alertable(&GO, KERNEL, None, at);
                    FOUND.store(status.0.into(), Ordering::Relaxed);
                },
                Alertable::Yes(_) => |at, _| {
                    // It stays pending: the next such wait ends as well.
                    for shift in [0, 16] {
                        let status = wait::for_single_alertable(&NEVER, USER, None, at);
                        FOUND.fetch_add(u64::from(status.0) << shift, Ordering::Relaxed);
                    }
                },
            },
            0,
            at,
        )?;
        until_it_waits(&waiter, at)?;
        // SAFETY: a static, taken out again, or run down without a routine.
        let queued = unsafe { apc::insert(NonNull::from(&IT), &waiter, [ptr::null_mut(); 2], 0, at) };
        check(queued, "queued", 0, 0)?;
        let wanted = if alertable == USER { 0xC0_00C0 } else { 0 };
        if alertable != USER {
            until_it_waits(&waiter, at)?;
            GO.set(0, at);
        }
        join(&waiter, at)?;
        equal(FOUND.load(Ordering::Relaxed), wanted, "the status")?;
        check(!IT.is_queued(), "still queued", 0, 0)?;
    }
    Ok(())
}

static ROUNDS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn works(at: &mut Irql<Passive>, kind: usize) {
    while !STOP.load(Ordering::Relaxed) {
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        match kind {
            0 => core::hint::spin_loop(),
            1 => {
                sched::yield_now(at);
            }
            _ => {
                let _ = delay(Due::In(1_000), at);
            }
        }
    }
}

/// Does the thread get on?
fn gets_on(at: &mut Irql<Passive>) -> bool {
    let before = ROUNDS.load(Ordering::Relaxed);
    let limit = clock::interrupt_time_precise() + 50_000_000;
    while ROUNDS.load(Ordering::Relaxed) == before && clock::interrupt_time_precise() < limit {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    ROUNDS.load(Ordering::Relaxed) != before
}

/// It doesn't, once it waits.
fn stands_still(it: &Thread, at: &mut Irql<Passive>) -> Result {
    // One that works may wait for a moment, too.
    let limit = clock::interrupt_time_precise() + 50_000_000;
    loop {
        until_it_waits(it, at)?;
        let before = ROUNDS.load(Ordering::Relaxed);
        let _ = delay(Due::In(5 * MILLISECOND), at);
        if ROUNDS.load(Ordering::Relaxed) == before {
            return Ok(());
        }
        check(clock::interrupt_time_precise() < limit, "it runs on", before, 0)?;
    }
}

fn suspends(at: &mut Irql<Passive>) -> Result {
    for kind in 0..3 {
        STOP.store(false, Ordering::Relaxed);
        let it = spawn(&Options::default(), works, kind, at)?;
        check(gets_on(at), "it never begins", kind as u64, 0)?;
        check(it.resume(at) == 0, "resumed, not being suspended", 0, 0)?;
        check(it.suspend(at) == Ok(0) && it.suspend(at) == Ok(1), "suspended twice", 0, 0)?;
        stands_still(&it, at)?;
        check(it.resume(at) == 2 && it.suspend_count() == 1, "resumed once", 0, 0)?;
        stands_still(&it, at)?;
        check(it.freeze(at) == Ok(0) && it.resume(at) == 1, "frozen, and resumed", 0, 0)?;
        stands_still(&it, at)?;
        check(it.thaw(at) == 1, "thawed", 0, 0)?;
        check(gets_on(at), "it doesn't go on", kind as u64, 0)?;
        for count in 0..MAXIMUM_SUSPEND_COUNT {
            check(it.suspend(at) == Ok(count), "suspended often", count.into(), 0)?;
        }
        check(it.suspend(at) == Err(NtStatus::SUSPEND_COUNT_EXCEEDED), "too often", 0, 0)?;
        check(it.force_resume(at) == MAXIMUM_SUSPEND_COUNT, "by force", 0, 0)?;
        check(gets_on(at), "it doesn't go on", kind as u64, 1)?;
        STOP.store(true, Ordering::Relaxed);
        join(&it, at)?;
        check(it.suspend(at) == Err(NtStatus::THREAD_IS_TERMINATING), "one that has ended", 0, 0)?;
    }
    Ok(())
}

fn suspends_late(at: &mut Irql<Passive>) -> Result {
    FOUND.store(0, Ordering::Relaxed);
    let it = spawn(
        &Options::default(),
        |at, _| {
            {
                let mut critical = apc::enter_critical(at);
                let _ = wait::for_single(&GO, None, &mut critical);
                FOUND.store(1, Ordering::Relaxed);
            }
            FOUND.store(2, Ordering::Relaxed);
        },
        0,
        at,
    )?;
    until_it_waits(&it, at)?;
    check(it.suspend(at) == Ok(0), "suspended", 0, 0)?;
    GO.set(0, at);
    let limit = clock::interrupt_time_precise() + 50_000_000;
    while FOUND.load(Ordering::Relaxed) != 1 {
        check(
            clock::interrupt_time_precise() < limit,
            "its wait doesn't end",
            FOUND.load(Ordering::Relaxed),
            0,
        )?;
        let _ = delay(Due::In(MILLISECOND), at);
    }
    until_it_waits(&it, at)?;
    let _ = delay(Due::In(3 * MILLISECOND), at);
    equal(FOUND.load(Ordering::Relaxed), 1, "behind the region")?;
    it.resume(at);
    join(&it, at)?;
    equal(FOUND.load(Ordering::Relaxed), 2, "at its end")
}

/// All suspend and resume the same thread; as often each, so it runs in the end.
fn suspend_storm(at: &mut Irql<Passive>) -> Result {
    static TARGET: AtomicU64 = AtomicU64::new(0);
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    for kind in 0..3 {
        STOP.store(false, Ordering::Relaxed);
        REFUSED.store(0, Ordering::Relaxed);
        let it = spawn(&Options::default(), works, kind, at)?;
        TARGET.store(core::ptr::from_ref::<Thread>(&it).expose_provenance() as u64, Ordering::Release);
        everywhere::run(at, |at, number| {
            let address = TARGET.load(Ordering::Acquire) as usize;
            // SAFETY: the starter holds a reference until all have finished.
            let it = unsafe { &*core::ptr::with_exposed_provenance::<Thread>(address) };
            for round in 0..200 / prcb::count() {
                REFUSED.fetch_add(it.suspend(at).is_err().into(), Ordering::Relaxed);
                if (round + number) % 4 == 0 {
                    let _ = delay(Due::In(200), at);
                }
                REFUSED.fetch_add((it.resume(at) == 0).into(), Ordering::Relaxed);
            }
        });
        equal(REFUSED.load(Ordering::Relaxed).into(), 0, "refused")?;
        equal(it.suspend_count().into(), 0, "suspended at the end")?;
        check(gets_on(at), "it doesn't go on", kind as u64, 0)?;
        STOP.store(true, Ordering::Relaxed);
        join(&it, at)?;
    }
    Ok(())
}

/// # Safety of its uses
/// The threads that these tests end have nothing on their stacks that others use.
fn terminate(it: &Thread, at: &mut Irql<Passive>) -> core::result::Result<(), NtStatus> {
    // SAFETY: as above.
    unsafe { it.terminate(NtStatus::CANCELLED, at) }
}

fn terminates(at: &mut Irql<Passive>) -> Result {
    // SAFETY: a static.
    static HELD: Mutant = unsafe { Mutant::new() };
    fn stays(at: &mut Irql<Passive>, kind: usize) {
        match kind {
            0 => loop {
                core::hint::spin_loop();
            },
            1 => loop {
                sched::yield_now(at);
            },
            2 => {
                let _ = wait::for_single(&NEVER, None, at);
            }
            3 => {
                let _ = wait::for_any(&[&NEVER, &HELD], None, Some(Due::In(10_000_000_000)), at);
            }
            _ => {
                let _ = delay(Due::In(10_000_000_000), at);
            }
        }
    }
    is(wait::for_single(&HELD, None, at), NtStatus::SUCCESS, "the mutant")?;
    for kind in 0..6 {
        let it = spawn(&Options::default(), stays, kind, at)?;
        if kind >= 2 {
            until_it_waits(&it, at)?;
        }
        if kind == 5 {
            check(it.suspend(at) == Ok(0), "suspended", 0, 0)?;
        }
        check(terminate(&it, at).is_ok(), "asked to end", kind as u64, 0)?;
        join(&it, at)?;
        is(it.exit_status(), NtStatus::CANCELLED, "its status")?;
        check(terminate(&it, at) == Err(NtStatus::THREAD_IS_TERMINATING), "twice", kind as u64, 0)?;
    }
    check(HELD.release(0, at).is_ok(), "released", 0, 0)?;
    check(!NEVER.is_signalled(), "never", 0, 0)
}

fn terminates_late(at: &mut Irql<Passive>) -> Result {
    // SAFETY: a static.
    static HELD: Mutant = unsafe { Mutant::new() };
    for kind in 0..2 {
        FOUND.store(0, Ordering::Relaxed);
        let it = spawn(
            &Options::default(),
            |at, kind| {
                if kind == 0 {
                    let mut critical = apc::enter_critical(at);
                    let _ = wait::for_single(&GO, None, &mut critical);
                    FOUND.store(1, Ordering::Relaxed);
                } else {
                    let _ = wait::for_single(&HELD, None, at);
                    let _ = wait::for_single(&GO, None, at);
                    FOUND.store(1, Ordering::Relaxed);
                    let _ = HELD.release(0, at);
                }
                FOUND.store(2, Ordering::Relaxed);
            },
            kind,
            at,
        )?;
        until_it_waits(&it, at)?;
        check(terminate(&it, at).is_ok(), "asked to end", 0, 0)?;
        let _ = delay(Due::In(2 * MILLISECOND), at);
        check(!it.is_terminated(), "ended too early", 0, 0)?;
        GO.set(0, at);
        join(&it, at)?;
        equal(FOUND.load(Ordering::Relaxed), 1, "it ran on to the end of what kept it")?;
        is(it.exit_status(), NtStatus::CANCELLED, "its status")?;
    }
    is(wait::for_single(&HELD, Some(Due::In(0)), at), NtStatus::SUCCESS, "the mutant is free")?;
    check(HELD.release(0, at).is_ok(), "released", 0, 0)
}

/// All processors want to end the same thread, which ends by itself, too, or suspend it meanwhile.
fn terminate_races(at: &mut Irql<Passive>) -> Result {
    static TARGET: AtomicU64 = AtomicU64::new(0);
    static WON: AtomicU32 = AtomicU32::new(0);
    fn ends(at: &mut Irql<Passive>, round: usize) {
        for _ in 0..round % 7 {
            let _ = delay(Due::In(100), at);
        }
    }
    let mut ended = [0_u32; 2];
    for round in 0..40 {
        WON.store(0, Ordering::Relaxed);
        let it = spawn(&Options::default(), ends, round, at)?;
        TARGET.store(core::ptr::from_ref::<Thread>(&it).expose_provenance() as u64, Ordering::Release);
        everywhere::run(at, |at, number| {
            let address = TARGET.load(Ordering::Acquire) as usize;
            // SAFETY: the starter holds a reference until all have finished.
            let it = unsafe { &*core::ptr::with_exposed_provenance::<Thread>(address) };
            if number % 2 == 1 {
                let _ = it.suspend(at);
            }
            if terminate(it, at).is_ok() {
                WON.fetch_add(1, Ordering::Relaxed);
            }
            if number % 2 == 1 {
                it.resume(at);
            }
        });
        join(&it, at)?;
        let won = WON.load(Ordering::Relaxed);
        check(won <= 1, "ended twice", won.into(), 0)?;
        let status = it.exit_status();
        check(
            status == NtStatus::SUCCESS || (status == NtStatus::CANCELLED && won == 1),
            "its status",
            status.0.into(),
            0,
        )?;
        ended[usize::from(status == NtStatus::CANCELLED)] += 1;
    }
    check(ended[1] > 0, "none was ended by another", ended[0].into(), 0)
}
