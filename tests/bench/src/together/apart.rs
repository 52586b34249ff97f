//! What each processor does with its own things alone: timers, DPCs, and pairs of threads that signal each other.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::dpc::Dpc;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::{self, Options};
use kernel::ke::timer::{self, Due, Timer, TimerKind};
use kernel::ke::wait;
use sync::irql::{Dispatch, Irql, Passive};

use super::{MOST, ROUNDS, done, repeat};

/// In 100 ns.
const HOUR: u64 = 36_000_000_000;

static TIMERS: [Timer; MOST] = [const { Timer::new(TimerKind::Notification) }; MOST];
/// Due before the ones that are set and cancelled, so that those never change what a clock is armed for.
static EARLIER: [Timer; MOST] = [const { Timer::new(TimerKind::Notification) }; MOST];

static CHAINS: [Dpc; MOST] = [const { Dpc::new(chain) }; MOST];
/// A pair: the first thread waits for the start and signals the second so many times, which signals back.
static STARTS: [Event; MOST] = [const { Event::new(EventKind::Synchronization, false) }; MOST];
static THERE: [Event; MOST] = [const { Event::new(EventKind::Synchronization, false) }; MOST];
static BACK: [Event; MOST] = [const { Event::new(EventKind::Synchronization, false) }; MOST];
static TRIPS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

/// Makes what processor `number` needs. Without its threads the rows don't end, and the harness says so.
pub(super) fn prepare(number: u32, at: &mut Irql<Passive>) {
    let index = number as usize;
    CHAINS[index].set_target(Some(number));
    // Above the thread that measures and those that park.
    let options = Options {
        name: thread::Name::new("pair"),
        priority: 20,
        affinity: Some(1 << number),
        ideal: Some(number),
    };
    drop(thread::spawn(&options, first, index, at));
    drop(thread::spawn(&options, second, index, at));
    EARLIER[index].set(Due::In(HOUR), timer::Options::default(), None, at);
}

fn here() -> usize {
    arch::cpu::number() as usize
}

pub(super) fn timers(at: &mut Irql<Dispatch>) -> bool {
    let timer = &TIMERS[here()];
    repeat(ROUNDS, || {
        timer.set(Due::In(2 * HOUR), timer::Options::default(), None, at);
        timer.cancel(at);
    })
}

/// A DPC that queues itself again, so many times.
fn chain(dpc: &'static Dpc, at: &mut Irql<Dispatch>, [left, _]: [usize; 2]) {
    arch::cpu::spin_hint();
    if left == 0 {
        done();
    } else {
        dpc.queue([left - 1, 0], at);
    }
}

pub(super) fn dpcs(at: &mut Irql<Dispatch>) -> bool {
    CHAINS[here()].queue([ROUNDS as usize, 0], at);
    false
}

pub(super) fn no_dpcs(at: &mut Irql<Dispatch>) -> bool {
    CHAINS[here()].queue([0, 0], at);
    false
}

fn first(at: &mut Irql<Passive>, index: usize) {
    loop {
        let _ = wait::for_single(&STARTS[index], None, at);
        for _ in 0..TRIPS[index].load(Ordering::Relaxed) {
            THERE[index].set(0, at);
            let _ = wait::for_single(&BACK[index], None, at);
            arch::cpu::spin_hint();
        }
        done();
    }
}

fn second(at: &mut Irql<Passive>, index: usize) {
    loop {
        let _ = wait::for_single(&THERE[index], None, at);
        BACK[index].set(0, at);
    }
}

fn start(trips: u32, at: &mut Irql<Dispatch>) -> bool {
    TRIPS[here()].store(trips, Ordering::Relaxed);
    STARTS[here()].set(0, at);
    false
}

pub(super) fn pairs(at: &mut Irql<Dispatch>) -> bool {
    start(ROUNDS, at)
}

pub(super) fn no_pairs(at: &mut Irql<Dispatch>) -> bool {
    start(0, at)
}
