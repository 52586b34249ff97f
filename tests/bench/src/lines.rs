//! Pairs of threads that signal each other, one pair bound to each processor, a block of the pool and a timer between, until the harness has seen enough: it follows their
//! instructions, and looks whether a cache line that one processor writes is touched by another (`ci lines`).
//!
//! With the word `lines` on the command line, in place of the rows. The pairs' own objects lie in lines of their own. No DPC is among them: its
//! request is an interrupt, and a log without one tells that no clock interrupt is in it.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::exit::Outcome;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::ke::thread::{self, Name, Options, Routine};
use kernel::ke::timer::{self, Due, Timer, TimerKind};
use kernel::ke::wait;
use kernel::mm::pool::{self, Tag};
use sync::irql::{Irql, Passive};

const SECOND: u64 = 10_000_000;

/// A processor's.
#[repr(align(128))]
struct Pair {
    there: Event,
    back: Event,
    trips: AtomicU32,
    timer: Timer,
    /// Due before the other, which so never changes what the clock is armed for.
    earlier: Timer,
}

static PAIRS: [Pair; MAX_PROCESSORS] = [const {
    Pair {
        there: Event::new(EventKind::Synchronization, false),
        back: Event::new(EventKind::Synchronization, false),
        trips: AtomicU32::new(0),
        timer: Timer::new(TimerKind::Notification),
        earlier: Timer::new(TimerKind::Notification),
    }
}; MAX_PROCESSORS];

pub(crate) fn run(at: &mut Irql<Passive>) -> Outcome {
    for number in 0..prcb::count() {
        for (name, routine) in [("first", first as Routine), ("second", second)] {
            let options = Options {
                name: Name::new(name),
                affinity: Some(1 << number),
                ideal: Some(number),
                ..Options::default()
            };
            if thread::spawn(&options, routine, number as usize, at).is_err() {
                return Outcome::Failed;
            }
        }
    }
    while PAIRS[..prcb::count() as usize].iter().any(|pair| pair.trips.load(Ordering::Relaxed) < 100) {
        let _ = wait::delay(Due::In(SECOND / 1000), at);
    }
    kernel::info!("lines: the pairs run");
    // The harness ends this.
    let _ = wait::delay(Due::In(3600 * SECOND), at);
    Outcome::Failed
}

fn first(at: &mut Irql<Passive>, number: usize) {
    let pair = &PAIRS[number];
    pair.earlier.set(Due::In(3600 * SECOND), timer::Options::default(), None, at);
    loop {
        pair.there.set(0, at);
        let _ = wait::for_single(&pair.back, None, at);
        pair.timer.set(Due::In(2 * 3600 * SECOND), timer::Options::default(), None, at);
        pair.timer.cancel(at);
        // Without a block the trips end, and the harness says so.
        let Ok(block) = pool::allocate(Tag::new(b"Bnch"), 64, at) else { return };
        // SAFETY: just allocated, with this tag.
        unsafe { pool::free(block.cast(), Tag::new(b"Bnch"), at) };
        pair.trips.fetch_add(1, Ordering::Relaxed);
        // Another processor's turn.
        arch::cpu::spin_hint();
    }
}

fn second(at: &mut Irql<Passive>, number: usize) {
    let pair = &PAIRS[number];
    loop {
        let _ = wait::for_single(&pair.there, None, at);
        pair.back.set(0, at);
    }
}
