//! Runs a function at PASSIVE on every processor at once: each but the first has a thread of its own for that, which runs nowhere else.
//!
//! Protocol: `JOB` is stored before the threads' events are set; the last thread that has finished sets `DONE`, which the starter waits
//! for before it returns. So one job runs at a time.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::ke::{sched, thread, wait};
use sync::irql::{Irql, Passive};

/// What is run; the number is the processor's.
pub(crate) type Job = fn(&mut Irql<Passive>, u32);

static JOB: AtomicUsize = AtomicUsize::new(0);
static WANTED: [Event; MAX_PROCESSORS] =
    [const { Event::new(EventKind::Synchronization, false) }; MAX_PROCESSORS];
static LEFT: AtomicU32 = AtomicU32::new(0);
static DONE: Event = Event::new(EventKind::Synchronization, false);

/// Keeps the caller, the tests' own thread, on the first processor, and makes the others' threads.
pub(crate) fn prepare(at: &mut Irql<Passive>) -> Result<(), kernel::rtl::NtStatus> {
    let me = thread::current(at).reference();
    sched::set_affinity(&me, 1, at)?;
    for number in 1..prcb::count() {
        let options = thread::Options {
            name: thread::Name::new("everywhere"),
            affinity: Some(1 << number),
            ideal: Some(number),
            ..Default::default()
        };
        drop(thread::spawn(&options, serve, number as usize, at)?);
    }
    Ok(())
}

/// Runs `job` on all processors, this one included, and returns when all have finished.
pub(crate) fn run(at: &mut Irql<Passive>, job: Job) {
    start(at, job);
    job(at, arch::cpu::number());
    finish(at);
}

/// Has the others begin with `job`; [`finish`] waits for them.
pub(crate) fn start(at: &mut Irql<Passive>, job: Job) {
    let others = prcb::count() - 1;
    LEFT.store(others, Ordering::Relaxed);
    JOB.store(job as usize, Ordering::Release);
    for wanted in &WANTED[1..=others as usize] {
        wanted.set(0, at);
    }
}

/// Returns when the others have finished what was started.
pub(crate) fn finish(at: &mut Irql<Passive>) {
    if prcb::count() > 1 {
        let _ = wait::for_single(&DONE, None, at);
    }
}

fn serve(at: &mut Irql<Passive>, number: usize) {
    loop {
        let _ = wait::for_single(&WANTED[number], None, at);
        // SAFETY: `start` stored a `Job` before it set the event.
        let job = unsafe { core::mem::transmute::<usize, Job>(JOB.load(Ordering::Acquire)) };
        job(at, arch::cpu::number());
        if LEFT.fetch_sub(1, Ordering::AcqRel) == 1 {
            DONE.set(0, at);
        }
    }
}
