//! Gates, queues with a limit on how many of their threads run, a signal and a wait in one.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::gate::Gate;
use kernel::ke::prcb;
use kernel::ke::queue::{End, Queue, QueueEntry};
use kernel::ke::thread::{Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, Alertable, delay, signal_and_wait};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::apcs::{is, until_it_waits};
use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("gates::let_one_through_a_signal", gates),
    ("queues::keep_the_order_and_hand_on", queue_order),
    ("queues::the_last_that_waits_goes_first", queue_lifo),
    ("queues::only_so_many_run_unless_they_wait", queue_limit),
    ("queues::count_who_is_suspended_or_ended_in_a_wait", queue_apcs),
    ("queues::storm_loses_and_doubles_nothing", queue_storm),
    ("waits::signal_and_wait_lets_nobody_in_between", signal_first),
];

const MILLISECOND: u64 = 10_000;

fn gates(at: &mut Irql<Passive>) -> Result {
    static GATE: Gate = Gate::new();
    static THROUGH: AtomicU32 = AtomicU32::new(0);
    THROUGH.store(0, Ordering::Relaxed);
    GATE.signal(0, at);
    GATE.signal(0, at);
    GATE.wait(at);
    let mut threads = [const { None }; 3];
    for slot in &mut threads {
        let it = spawn(
            &Options::default(),
            |at, _| {
                GATE.wait(at);
                THROUGH.fetch_add(1, Ordering::Relaxed);
            },
            0,
            at,
        )?;
        until_it_waits(&it, at)?;
        *slot = Some(it);
    }
    equal(THROUGH.load(Ordering::Relaxed).into(), 0, "two signals are one")?;
    for (it, count) in threads.iter().flatten().zip(1..) {
        GATE.signal(1, at);
        join(it, at)?;
        equal(THROUGH.load(Ordering::Relaxed).into(), count, "through, in the order of their waits")?;
    }
    Ok(())
}

fn now() -> Option<Due> {
    Some(Due::In(0))
}

fn index_of(entries: &'static [QueueEntry], found: &'static QueueEntry) -> u64 {
    entries.iter().position(|entry| core::ptr::eq(entry, found)).map_or(u64::MAX, |index| index as u64)
}

fn take(queue: &'static Queue, at: &mut Irql<Passive>) -> core::result::Result<&'static QueueEntry, Verdict> {
    queue.remove(now(), Alertable::No, at).map_err(|status| Verdict::Fail("no entry", status.0.into(), 0))
}

/// In a thread of its own, which then belongs to no queue any more.
fn in_a_thread(routine: fn(&mut Irql<Passive>) -> Result, at: &mut Irql<Passive>) -> Result {
    static FAILED: AtomicU64 = AtomicU64::new(0);
    FAILED.store(0, Ordering::Relaxed);
    let it = spawn(
        &Options::default(),
        |at, routine| {
            // SAFETY: what was passed below.
            let routine = unsafe { core::mem::transmute::<usize, fn(&mut Irql<Passive>) -> Result>(routine) };
            if let Err(Verdict::Fail(what, a, b)) = routine(at) {
                kernel::info!("in the thread: {what} ({a:#x}, {b:#x})");
                FAILED.store(1, Ordering::Relaxed);
            }
        },
        routine as usize,
        at,
    )?;
    join(&it, at)?;
    equal(FAILED.load(Ordering::Relaxed), 0, "failed in its thread")
}

fn queue_order(at: &mut Irql<Passive>) -> Result {
    static QUEUE: Queue = Queue::new(1);
    static ENTRIES: [QueueEntry; 3] = [const { QueueEntry::new() }; 3];
    in_a_thread(
        |at| {
            let found = QUEUE.remove(now(), Alertable::No, at).err();
            check(found == Some(NtStatus::TIMEOUT), "of an empty one", 0, 0)?;
            check(QUEUE.insert(&ENTRIES[1], End::Tail, at) == Some(0), "the first", 0, 0)?;
            check(QUEUE.insert(&ENTRIES[2], End::Tail, at) == Some(1), "the second", 0, 0)?;
            check(QUEUE.insert(&ENTRIES[0], End::Head, at) == Some(2), "to the head", 0, 0)?;
            check(QUEUE.insert(&ENTRIES[0], End::Head, at).is_none(), "twice", 0, 0)?;
            for wanted in 0..3 {
                equal(index_of(&ENTRIES, take(&QUEUE, at)?), wanted, "the order")?;
            }
            equal(QUEUE.running().into(), 1, "this thread runs")?;
            check(QUEUE.insert(&ENTRIES[0], End::Tail, at) == Some(0), "again", 0, 0)
        },
        at,
    )?;
    equal(QUEUE.running().into(), 0, "its thread has ended")?;
    let mut left = 0;
    QUEUE.run_down(|_| left += 1, at);
    check(left == 1 && QUEUE.is_empty(), "run down", left, 0)
}

/// An APC makes a thread run that waits for its queue: it is counted meanwhile, and once.
fn queue_apcs(at: &mut Irql<Passive>) -> Result {
    static QUEUE: Queue = Queue::new(1);
    static ENTRIES: [QueueEntry; 2] = [const { QueueEntry::new() }; 2];
    TAKEN.store(0, Ordering::Relaxed);
    for (entry, taken) in ENTRIES.iter().zip(1..) {
        let it = spawn(
            &Options::default(),
            |at, _| {
                while QUEUE.remove(None, Alertable::No, at).is_ok() {
                    TAKEN.fetch_add(1, Ordering::Relaxed);
                }
            },
            0,
            at,
        )?;
        until_it_waits(&it, at)?;
        check(it.suspend(at) == Ok(0), "suspended in its wait", 0, 0)?;
        let _ = delay(Due::In(5 * MILLISECOND), at);
        check(QUEUE.running() <= 1, "counted more than once", QUEUE.running().into(), 0)?;
        check(QUEUE.insert(entry, End::Tail, at) == Some(0), "for who is suspended", 0, 0)?;
        check(it.resume(at) == 1, "resumed", 0, 0)?;
        let limit = kernel::ke::clock::interrupt_time_precise() + 50_000_000;
        while TAKEN.load(Ordering::Relaxed) < taken {
            check(kernel::ke::clock::interrupt_time_precise() < limit, "it is never taken", taken, 0)?;
            let _ = delay(Due::In(MILLISECOND), at);
        }
        until_it_waits(&it, at)?;
        equal(QUEUE.running().into(), 0, "it waits")?;
        // The next one takes what comes, though this one ends in its wait.
        // SAFETY: it has nothing that its end would leave behind.
        let ended = unsafe { it.terminate(NtStatus::CANCELLED, at) };
        check(ended.is_ok(), "told to end", 0, 0)?;
        join(&it, at)?;
        equal(QUEUE.running().into(), 0, "it has ended in its wait")?;
    }
    Ok(())
}

static TAKEN: AtomicU64 = AtomicU64::new(0);

fn queue_lifo(at: &mut Irql<Passive>) -> Result {
    static QUEUE: Queue = Queue::new(3);
    static ENTRIES: [QueueEntry; 3] = [const { QueueEntry::new() }; 3];
    TAKEN.store(0, Ordering::Relaxed);
    let mut threads = [const { None }; 3];
    for (index, slot) in threads.iter_mut().enumerate() {
        let it = spawn(
            &Options::default(),
            |at, index| {
                if QUEUE.remove(None, Alertable::No, at).is_ok() {
                    TAKEN.store(TAKEN.load(Ordering::Relaxed) << 4 | index as u64, Ordering::Relaxed);
                }
            },
            index + 1,
            at,
        )?;
        until_it_waits(&it, at)?;
        *slot = Some(it);
    }
    for (entry, it) in ENTRIES.iter().zip(threads.iter().flatten().rev()) {
        check(QUEUE.insert(entry, End::Tail, at) == Some(0), "handed on", 0, 0)?;
        join(it, at)?;
    }
    equal(TAKEN.load(Ordering::Relaxed), 0x321, "the order")
}

/// Four threads, of which two may run: each that waits lets another one in.
fn queue_limit(at: &mut Irql<Passive>) -> Result {
    static QUEUE: Queue = Queue::new(2);
    static ENTRIES: [QueueEntry; 4] = [const { QueueEntry::new() }; 4];
    static INSIDE: AtomicU32 = AtomicU32::new(0);
    static GO: Event = Event::new(EventKind::Notification, false);
    static SPIN: AtomicBool = AtomicBool::new(true);
    INSIDE.store(0, Ordering::Relaxed);
    SPIN.store(true, Ordering::Relaxed);
    GO.reset(at);
    let mut threads: [Option<ThreadRef>; 4] = [const { None }; 4];
    for slot in &mut threads {
        let it = spawn(
            &Options::default(),
            |at, _| {
                if QUEUE.remove(None, Alertable::No, at).is_err() {
                    return;
                }
                INSIDE.fetch_add(1, Ordering::Relaxed);
                // Counted as running, whatever the scheduler does with it.
                while SPIN.load(Ordering::Relaxed) {
                    kernel::ke::sched::yield_now(at);
                }
                let _ = wait::for_single(&GO, None, at);
            },
            0,
            at,
        )?;
        until_it_waits(&it, at)?;
        *slot = Some(it);
    }
    for entry in &ENTRIES {
        QUEUE.insert(entry, End::Tail, at);
    }
    // Two get in, and for a while no other does.
    let limit = kernel::ke::clock::interrupt_time_precise() + 50_000_000;
    while INSIDE.load(Ordering::Relaxed) < 2 && kernel::ke::clock::interrupt_time_precise() < limit {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    let _ = delay(Due::In(20 * MILLISECOND), at);
    equal(INSIDE.load(Ordering::Relaxed).into(), 2, "threads with an entry")?;
    check(
        QUEUE.len() == 2 && QUEUE.running() == 2,
        "entries left",
        QUEUE.len().into(),
        QUEUE.running().into(),
    )?;
    // Those two wait: the others get in.
    SPIN.store(false, Ordering::Relaxed);
    let limit = kernel::ke::clock::interrupt_time_precise() + 50_000_000;
    while INSIDE.load(Ordering::Relaxed) != 4 {
        check(
            kernel::ke::clock::interrupt_time_precise() < limit,
            "the others don't get in",
            QUEUE.len().into(),
            0,
        )?;
        let _ = delay(Due::In(MILLISECOND), at);
    }
    for it in threads.iter().flatten() {
        until_it_waits(it, at)?;
    }
    equal(QUEUE.running().into(), 0, "running, while all wait")?;
    GO.set(0, at);
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    check(QUEUE.is_empty() && QUEUE.running() == 0, "at the end", QUEUE.len().into(), QUEUE.running().into())
}

const WORKERS: usize = 4;
const WORK: usize = 64;

/// All processors queue; workers with timeouts take, wait meanwhile, and queue again.
fn queue_storm(at: &mut Irql<Passive>) -> Result {
    static QUEUE: Queue = Queue::new(0);
    static ENTRIES: [QueueEntry; WORK] = [const { QueueEntry::new() }; WORK];
    static DONE: AtomicU32 = AtomicU32::new(0);
    static QUEUED: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    for counter in [&DONE, &QUEUED] {
        counter.store(0, Ordering::Relaxed);
    }
    STOP.store(false, Ordering::Relaxed);
    fn worker(at: &mut Irql<Passive>, number: usize) {
        let mut round = number as u64;
        loop {
            round += 1;
            match QUEUE.remove(Some(Due::In(round % 5 * 400)), Alertable::No, at) {
                Ok(_) => {
                    DONE.fetch_add(1, Ordering::Relaxed);
                    if round.is_multiple_of(3) {
                        let _ = delay(Due::In(200), at);
                    }
                }
                Err(_) if STOP.load(Ordering::Acquire) && QUEUE.is_empty() => return,
                Err(_) => {}
            }
        }
    }
    let mut threads = [const { None }; WORKERS];
    for (number, slot) in threads.iter_mut().enumerate() {
        *slot = Some(spawn(&Options::default(), worker, number, at)?);
    }
    everywhere::run(at, |at, number| {
        for round in 0..800 / prcb::count() {
            let index = (round * 7 + number * 13) as usize % WORK;
            let end = if round % 2 == 0 { End::Head } else { End::Tail };
            if QUEUE.insert(&ENTRIES[index], end, at).is_some() {
                QUEUED.fetch_add(1, Ordering::Relaxed);
            }
            if round % 16 == 15 {
                let _ = delay(Due::In(300), at);
            }
        }
    });
    STOP.store(true, Ordering::Release);
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    equal(
        DONE.load(Ordering::Relaxed).into(),
        QUEUED.load(Ordering::Relaxed).into(),
        "entries done, and queued",
    )?;
    check(QUEUE.is_empty() && QUEUE.running() == 0, "at the end", QUEUE.len().into(), QUEUE.running().into())
}

/// The one that is woken is above and would run between the two: it runs when the signaller waits.
fn signal_first(at: &mut Irql<Passive>) -> Result {
    static GO: Event = Event::new(EventKind::Synchronization, false);
    static BACK: Event = Event::new(EventKind::Synchronization, false);
    static SEEN: AtomicU32 = AtomicU32::new(0);
    SEEN.store(0, Ordering::Relaxed);
    let number = arch::cpu::number();
    let options =
        Options { priority: 12, affinity: Some(1 << number), ideal: Some(number), ..Options::default() };
    let me = kernel::ke::thread::current(at).reference();
    let it = spawn(
        &options,
        |at, me| {
            // SAFETY: the test's thread, which waits for this one.
            let me = unsafe { &*core::ptr::with_exposed_provenance::<kernel::ke::thread::Thread>(me) };
            for _ in 0..3 {
                let _ = wait::for_single(&GO, None, at);
                // It waits already, or never will: it runs on this processor, below this thread.
                let waits = matches!(me.scheduling().place(), kernel::ke::sched::Place::Waiting(_));
                SEEN.fetch_add(u32::from(waits), Ordering::Relaxed);
                BACK.set(0, at);
            }
        },
        core::ptr::from_ref::<kernel::ke::thread::Thread>(&me).expose_provenance(),
        at,
    )?;
    for due in [None, Some(Due::In(100_000_000)), None] {
        let status = signal_and_wait(&GO, 0, &BACK, due, Alertable::No, at);
        is(status, NtStatus::SUCCESS, "the wait")?;
    }
    join(&it, at)?;
    equal(SEEN.load(Ordering::Relaxed).into(), 3, "the signaller waited first")?;
    // What is signalled already is taken at once, and the woken one runs all the same.
    let status = signal_and_wait(&GO, 0, &BACK, Some(Due::In(MILLISECOND)), Alertable::No, at);
    is(status, NtStatus::TIMEOUT, "nobody answers")?;
    is(signal_and_wait(&BACK, 0, &GO, None, Alertable::No, at), NtStatus::SUCCESS, "signalled before")?;
    is(wait::poll(&BACK, at), NtStatus::SUCCESS, "its own signal")
}
