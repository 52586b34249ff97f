//! Runs a function at PASSIVE on every processor at once.
//!
//! Protocol: `JOB` is stored (Release) before `ROUND` moves; a processor that sees a new round runs the job and counts itself
//! in `DONE` (Release), which the starter waits for (Acquire) before it returns, so one job runs at a time.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use kernel::ke::{idle, ipi, prcb};
use sync::irql::{Irql, Passive};

/// What is run; the number is the processor's.
pub(crate) type Job = fn(&mut Irql<Passive>, u32);

static JOB: AtomicUsize = AtomicUsize::new(0);
static ROUND: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

/// Runs `job` on all processors, this one included, and returns when all have finished.
pub(crate) fn run(at: &mut Irql<Passive>, job: Job) {
    DONE.store(0, Ordering::Relaxed);
    JOB.store(job as usize, Ordering::Release);
    ROUND.fetch_add(1, Ordering::Release);
    // Ends the others' halts.
    ipi::call(ipi::online(), &|_| {}, at);
    job(at, arch::cpu::number());
    while DONE.load(Ordering::Acquire) != prcb::count() - 1 {
        arch::cpu::spin_hint();
    }
}

/// What the other processors do.
pub(crate) fn serve(at: &mut Irql<Passive>) -> ! {
    let mut seen = 0;
    loop {
        idle::until(at, || ROUND.load(Ordering::Acquire) != seen);
        seen = seen.wrapping_add(1);
        // SAFETY: `run` stored a `Job` before it moved the round.
        let job = unsafe { core::mem::transmute::<usize, Job>(JOB.load(Ordering::Acquire)) };
        job(at, arch::cpu::number());
        DONE.fetch_add(1, Ordering::Release);
    }
}
