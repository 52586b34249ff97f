//! Interrupts between processors that are late on their way (`ke::late`).

use core::sync::atomic::{AtomicU64, Ordering};

use kernel::ke::dpc::{self, Dpc};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::Options;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use kernel::ke::{ipi, late, prcb};
use sync::irql::{Dispatch, Irql, Passive};

use crate::random;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[("late::interrupts_that_come_late_do_their_work", all_arrive)];

/// Ends it, and waits until all that was handed over was sent on; how many interrupts that were since the last time.
pub(crate) fn no_more(at: &mut Irql<Passive>) -> core::result::Result<u64, Verdict> {
    static BEFORE: AtomicU64 = AtomicU64::new(0);
    late::end();
    let mut looks = 0;
    let (mut handed_over, mut sent_on) = late::counts();
    while sent_on != handed_over && looks < 1_000 {
        let _ = delay(Due::In(10_000), at);
        looks += 1;
        (handed_over, sent_on) = late::counts();
    }
    equal(sent_on, handed_over, "interrupts sent on, of those handed to a courier")?;
    Ok(sent_on - BEFORE.swap(sent_on, Ordering::Relaxed))
}

const ROUNDS: usize = 60;

static CALLS: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU64 = AtomicU64::new(0);
static PING: Event = Event::new(EventKind::Synchronization, false);
static PONG: Event = Event::new(EventKind::Synchronization, false);

fn count_run(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

fn answers(at: &mut Irql<Passive>, rounds: usize) {
    for _ in 0..rounds {
        let _ = wait::for_single(&PING, None, at);
        PONG.set(1, at);
    }
}

/// Calls, DPCs and wakes of each other processor, with every interrupt late that finds a courier. A call, a DPC or a wake that relied on
/// more than the order that the processor promises would be lost here, and hang.
fn all_arrive(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static DPC: Dpc = Dpc::new(count_run);
    CALLS.store(0, Ordering::Relaxed);
    RUNS.store(0, Ordering::Relaxed);
    let _ = no_more(at)?;
    late::begin(random::seed(), 1);
    let mut queued = 0;
    for number in 0..prcb::count() {
        let options = Options { affinity: Some(1 << number), ..Options::default() };
        let other = spawn(&options, answers, ROUNDS, at)?;
        DPC.set_target(Some(number));
        for _ in 0..ROUNDS {
            queued += u64::from(DPC.queue([0; 2], at));
            PING.set(1, at);
            let _ = wait::for_single(&PONG, None, at);
            let count = |_: &mut Irql<sync::irql::Ipi>| {
                CALLS.fetch_add(1, Ordering::Relaxed);
            };
            ipi::call(1 << number, &count, at);
        }
        ipi::call(ipi::online(), &|_| {}, at);
        dpc::flush(at);
        join(&other, at)?;
    }
    let came_late = no_more(at)?;
    equal(CALLS.load(Ordering::Relaxed), (ROUNDS as u64) * u64::from(prcb::count()), "calls")?;
    equal(RUNS.load(Ordering::Relaxed), queued, "DPCs that ran, of those queued")?;
    check(came_late >= ROUNDS as u64 / 2, "too few came late", came_late, ROUNDS as u64)
}
