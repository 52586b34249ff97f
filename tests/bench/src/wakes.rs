//! Waking a thread on another, idle processor; before the others are parked.
//!
//! As for IPI calls, counts are sums over both processors: under the instruction counter they run in turn, and the TSC counts what
//! either executes. This one gives way by PAUSE or by its wait; then the other runs until it stamps, or halts.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::{self, Name, Options};
use kernel::ke::{prcb, wait};
use sync::irql::{Irql, Passive};

use crate::measure::{START, STOP, between, count, start, stop};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("wakes::set_event_to_idle_processor", set_there).at_most(500),
    passive("wakes::event_round_trip", round_trip).idling().at_most(1000),
];

static STAMPED: Event = Event::new(EventKind::Synchronization, false);
static ANSWERED: Event = Event::new(EventKind::Synchronization, false);
static BACK: Event = Event::new(EventKind::Synchronization, false);
static STAMPS: AtomicU32 = AtomicU32::new(0);

fn prepare(at: &mut Irql<Passive>) {
    let number = prcb::count() - 1;
    let options = Options {
        name: Name::new("woken"),
        affinity: Some(1 << number),
        ideal: Some(number),
        ..Options::default()
    };
    // They live as long as the image. Without them the rows don't end, and the harness says so.
    drop(thread::spawn(&options, stamps, 0, at));
    drop(thread::spawn(&options, answers, 0, at));
    settle();
}

/// Long enough for the others to halt: each PAUSE is a turn of theirs.
fn settle() {
    for _ in 0..200 {
        arch::cpu::spin_hint();
    }
}

fn stamps(at: &mut Irql<Passive>, _: usize) {
    loop {
        let _ = wait::for_single(&STAMPED, None, at);
        stop();
        STAMPS.fetch_add(1, Ordering::Release);
    }
}

fn answers(at: &mut Irql<Passive>, _: usize) {
    loop {
        let _ = wait::for_single(&ANSWERED, None, at);
        BACK.set(0, at);
    }
}

/// From the set here to the return of the wait there.
#[inline(never)]
fn set_there(at: &mut Irql<Passive>) -> u32 {
    let before = STAMPS.load(Ordering::Relaxed);
    start();
    STAMPED.set(0, at);
    while STAMPS.load(Ordering::Acquire) == before {
        arch::cpu::spin_hint();
    }
    settle();
    between(&START, &STOP)
}

/// This processor is idle as well while it waits: it watches for the answer. The other one halted long ago when it begins.
#[inline(never)]
fn round_trip(at: &mut Irql<Passive>) -> u32 {
    let taken = count(|| {
        ANSWERED.set(0, at);
        let _ = wait::for_single(&BACK, None, at);
    });
    settle();
    taken
}
