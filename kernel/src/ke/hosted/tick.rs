//! The clock of a virtual processor: whether it is armed for the end of a quantum. When that is over is the test's to say.

use core::sync::atomic::{AtomicBool, Ordering};

use sync::irql::Irql;
use sync::irql::Level;

use super::prcb::{self, Prcb};

/// In a PRCB.
pub(in crate::ke) struct PerProcessor {
    quantum: AtomicBool,
}

impl PerProcessor {
    pub(super) const fn new() -> Self {
        Self { quantum: AtomicBool::new(false) }
    }

    pub(in crate::ke) fn has_quantum(&self) -> bool {
        self.quantum.load(Ordering::Relaxed)
    }
}

/// The running thread's quantum will be over.
pub(in crate::ke) fn arm_quantum(here: &Prcb, ticks: i64) {
    assert_ne!(ticks, i64::MAX, "the quantum of the idle thread, which has no end");
    here.tick.quantum.store(true, Ordering::Relaxed);
}

/// The clock's interrupt, where it is armed: what the shipped one does at a quantum's end, whatever the thread has left.
pub(super) fn interrupt<L: Level>(here: &Prcb, at: &Irql<L>) {
    at.check();
    if here.tick.quantum.swap(false, Ordering::Relaxed) {
        // SAFETY: threads live for ever here.
        let running = unsafe { &*here.pcr().running().cast::<super::thread::Thread>() };
        running.sched.set_quantum(0);
        here.sched.ask_quantum_look();
        // SAFETY: a handler.
        unsafe { arch::pcr::request_dispatch_at_exit() };
    }
}

/// The processor halts, with the clock off.
///
/// # Safety
/// As the shipped one.
pub(in crate::ke) unsafe fn go_idle() {
    if let Some(here) = prcb::get(arch::pcr::number()) {
        here.prcb().tick.quantum.store(false, Ordering::Relaxed);
    }
}

/// Nothing follows from the end of a halt.
///
/// # Safety
/// As the shipped one.
pub(in crate::ke) unsafe fn wake() {}
