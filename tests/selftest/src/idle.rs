//! How an idle processor halts.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::trap::TrapFrame;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ke::{sched, thread, trap};
use sync::irql::{Irql, Passive};

use crate::interrupts::test_vector;
use crate::probe::set_breakpoint;
use crate::runner::{Result, Test, check};
use crate::user_stub::RF;

pub(crate) const TESTS: &[Test] = &[("idle::an_interrupt_right_before_the_halt_ends_it", before_halt)];

const MILLISECOND: u64 = 10_000;
const ENOUGH: u32 = 1_000;

static HITS: AtomicU32 = AtomicU32::new(0);

/// The debug exception before the halt ends the delay of STI, so the interrupt that it sends comes before the halt, too.
fn interrupts_itself(frame: &mut TrapFrame) -> bool {
    if frame.vector != 1 || frame.rip != arch::cpu::halt_address() {
        return false;
    }
    frame.rflags |= RF;
    if HITS.fetch_add(1, Ordering::Relaxed) < ENOUGH {
        // SAFETY: the vector has its handler.
        unsafe { arch::apic::send_self(test_vector(15)) };
    }
    true
}

/// A processor that goes round its idle loop for each of them is there often while this waits; one that halts behind them is there once
/// or twice for each wait.
fn before_halt(at: &mut Irql<Passive>) -> Result {
    const WAITS: u64 = 20;
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _ = sched::set_affinity(&me, 1 << arch::cpu::number(), at);
    HITS.store(0, Ordering::Relaxed);
    // SAFETY: a vector of the tests' own, whose handler is correct anywhere; the hook knows the breakpoint of this processor, which this
    //         thread doesn't leave, and resumes it with RF set.
    unsafe {
        arch::trap::set_handler(test_vector(15), |_, service| service.end());
        trap::set_hook(Some(interrupts_itself));
        set_breakpoint(arch::cpu::halt_address());
    }
    let mut waits = 0;
    while waits < WAITS && HITS.load(Ordering::Relaxed) < ENOUGH {
        let _ = delay(Due::In(50 * MILLISECOND), at);
        waits += 1;
    }
    // SAFETY: as above, and none deals with nothing.
    unsafe {
        set_breakpoint(0);
        trap::set_hook(None);
    }
    let _ = sched::set_affinity(&me, before, at);
    let hits = HITS.load(Ordering::Relaxed);
    check(hits >= ENOUGH, "it halts behind an interrupt", hits.into(), waits)
}
