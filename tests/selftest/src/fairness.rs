//! What the scheduler promises in numbers: equal threads get equal shares, and a real-time thread that a DPC wakes runs soon, whatever else there
//! is to do. Under the instruction counter alone: elsewhere the host decides when a processor runs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::ke::dpc::Dpc;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::ke::sched;
use kernel::ke::thread::{Name, Options, ThreadRef};
use kernel::ke::timer::{Due, Timer, TimerKind};
use kernel::ke::wait::{self, delay};
use kernel::mm::pool::{Owned, Tag};
use sync::SpinLock;
use sync::irql::{Dispatch, Irql, Passive, ThreadLock};

use crate::everywhere;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check};
use crate::threads::{join, spawn};
use crate::trace;

pub(crate) const TESTS: &[Test] = &[
    ("fair::equal_threads_get_equal_shares", shares),
    ("fair::real_time_threads_run_soon_after_a_dpc_wakes_them", latency),
];

const MILLISECOND: u64 = 10_000;
/// Threads for each processor.
const EACH: usize = 2;

static STOP: AtomicU32 = AtomicU32::new(0);

fn need_the_counter(at: &mut Irql<Passive>) -> Result {
    if trace::counts_instructions(at) { Ok(()) } else { Err(Verdict::Skip("needs the instruction counter")) }
}

/// Two threads for each processor, none of them bound to one: half a second later all have had a processor for as long, within 5 %. By the
/// time stamp counter, which goes on while QEMU emulates another processor: how many instructions one makes meanwhile is QEMU's.
fn shares(at: &mut Irql<Passive>) -> Result {
    need_the_counter(at)?;
    STOP.store(0, Ordering::Relaxed);
    fn works(_: &mut Irql<Passive>, _: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {}
    }
    let count = EACH * prcb::count() as usize;
    let mut threads: [Option<ThreadRef>; EACH * MAX_PROCESSORS] = [const { None }; EACH * MAX_PROCESSORS];
    for slot in &mut threads[..count] {
        *slot = Some(spawn(&Options { name: Name::new("equal"), ..Options::default() }, works, 0, at)?);
    }
    let _ = delay(Due::In(500 * MILLISECOND), at);
    STOP.store(1, Ordering::Relaxed);
    for thread in threads.iter().flatten() {
        join(thread, at)?;
    }
    let cycles = || threads.iter().flatten().map(|it| it.cycles());
    let (least, most) = (cycles().min().unwrap_or(0), cycles().max().unwrap_or(0));
    kernel::info!("fair: {count} threads had a processor for {least} to {most} ns");
    check(least > 200_000_000, "less than half of a processor each", least, most)?;
    check(most - least <= most / 20, "unequal shares", least, most)
}

/// Buckets of the histogram: a sample of n bits is in the nth.
const BITS: usize = 24;
static HISTOGRAM: [AtomicU32; BITS] = [const { AtomicU32::new(0) }; BITS];
static LONGEST: AtomicU64 = AtomicU64::new(0);

/// A processor's real-time thread, and who wakes it.
struct Alarm {
    event: Event,
    timer: Timer,
    dpc: Dpc,
    /// The time stamp right before the event was set.
    at: AtomicU64,
    random: AtomicU64,
}

static ALARMS: [Alarm; MAX_PROCESSORS] = [const {
    Alarm {
        event: Event::new(EventKind::Synchronization, false),
        timer: Timer::new(TimerKind::Notification),
        dpc: Dpc::new(rings),
        at: AtomicU64::new(0),
        random: AtomicU64::new(1),
    }
}; MAX_PROCESSORS];

/// A DPC that has other things to do, for each processor.
static BUSY: [(Timer, Dpc); MAX_PROCESSORS] =
    [const { (Timer::new(TimerKind::Notification), Dpc::new(is_busy)) }; MAX_PROCESSORS];

fn rings(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    let alarm = &ALARMS[arch::cpu::number() as usize];
    alarm.at.store(arch::cpu::timestamp(), Ordering::Relaxed);
    alarm.event.set(0, at);
    if STOP.load(Ordering::Relaxed) == 0 {
        sets(alarm, at);
    }
}

/// The alarm rings again in 0.1 to 1.6 ms.
fn sets(alarm: &'static Alarm, at: &mut Irql<Dispatch>) {
    let random = alarm.random.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    alarm.random.store(random, Ordering::Relaxed);
    alarm.timer.set(Due::In(1_000 + (random >> 50)), Default::default(), Some(&alarm.dpc), at);
}

fn is_busy(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    spend(500);
    if STOP.load(Ordering::Relaxed) == 0 {
        let (timer, dpc) = &BUSY[arch::cpu::number() as usize];
        timer.set(Due::In(1_700), Default::default(), Some(dpc), at);
    }
}

/// Without a pause, at each of which QEMU would look for other processors' work.
fn spend(rounds: u32) {
    for round in 0..rounds {
        core::hint::black_box(round);
    }
}

fn is_woken(at: &mut Irql<Passive>, number: usize) {
    let alarm = &ALARMS[number];
    loop {
        let _ = wait::for_single(&alarm.event, None, at);
        if STOP.load(Ordering::Relaxed) != 0 {
            return;
        }
        let late = arch::cpu::timestamp() - alarm.at.load(Ordering::Relaxed);
        let bits = (u64::BITS - late.leading_zeros()) as usize;
        HISTOGRAM[bits.min(BITS - 1)].fetch_add(1, Ordering::Relaxed);
        LONGEST.fetch_max(late, Ordering::Relaxed);
    }
}

/// Whatever holds a processor: locks, DISPATCH, signals, switches, memory.
fn is_in_the_way(at: &mut Irql<Passive>, number: usize) {
    static LOCK: SpinLock<u64, ThreadLock> = SpinLock::new(0);
    static EVENT: Event = Event::new(EventKind::Synchronization, false);
    let mut random = Random::new(number as u64);
    while STOP.load(Ordering::Relaxed) == 0 {
        match random.below(6) {
            0 => {
                let mut guard = LOCK.lock(at);
                *guard += 1;
                spend(100);
            }
            1 => {
                let _raised = at.raise::<Dispatch>();
                spend(1000);
            }
            2 => {
                EVENT.set(0, at);
                let _ = wait::poll(&EVENT, at);
            }
            3 => {
                sched::yield_now(at);
            }
            4 => drop(Owned::try_new(Tag::new(b"Fair"), number, at)),
            _ => spend(2000),
        }
    }
}

/// Instructions from the DPC's set to the thread's next one, at most, on one processor. What is between is the rest of the DPC, one
/// other DPC (2500), timers' expiry and an interrupt: in the checked build 4300 of them.
const MOST: u64 = 6_000;

fn latency(at: &mut Irql<Passive>) -> Result {
    need_the_counter(at)?;
    STOP.store(0, Ordering::Relaxed);
    LONGEST.store(0, Ordering::Relaxed);
    HISTOGRAM.iter().for_each(|it| it.store(0, Ordering::Relaxed));
    let count = prcb::count() as usize;
    let mut threads: [Option<ThreadRef>; (EACH + 1) * MAX_PROCESSORS] =
        [const { None }; (EACH + 1) * MAX_PROCESSORS];
    for number in 0..count {
        let options = |name, priority| Options {
            name: Name::new(name),
            priority,
            affinity: Some(1 << number),
            ideal: Some(number as u32),
        };
        threads[number] = Some(spawn(&options("real time", 24), is_woken, number, at)?);
        for n in 0..EACH {
            threads[count + EACH * number + n] =
                Some(spawn(&options("in the way", 8), is_in_the_way, number, at)?);
        }
    }
    everywhere::run(at, |at, number| {
        let number = number as usize;
        let (timer, dpc) = &BUSY[number];
        let mut raised = at.raise::<Dispatch>();
        timer.set(Due::In(1_000), Default::default(), Some(dpc), &mut raised);
        sets(&ALARMS[number], &mut raised);
    });
    let _ = delay(Due::In(60 * MILLISECOND), at);
    STOP.store(1, Ordering::Relaxed);
    // The last alarm may have rung before.
    let _ = delay(Due::In(5 * MILLISECOND), at);
    for alarm in &ALARMS[..count] {
        alarm.event.set(0, at);
    }
    for thread in threads.iter().flatten() {
        join(thread, at)?;
    }
    let mut samples = 0;
    for (bits, number) in HISTOGRAM.iter().enumerate() {
        let number = number.load(Ordering::Relaxed);
        samples += number;
        if number != 0 {
            kernel::info!("fair: {number:5} times below {} instructions", 1_u64 << bits);
        }
    }
    let longest = LONGEST.load(Ordering::Relaxed);
    kernel::info!("fair: {samples} wakes, the longest {longest} instructions of {count} processors");
    check(samples as usize > 30 * count, "too few wakes", samples.into(), 0)?;
    // The counter counts what all processors do, in turns that QEMU chooses.
    check(count > 1 || longest <= MOST, "a real-time thread ran late", longest, MOST)
}
