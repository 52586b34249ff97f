//! The register switch between threads, each of which is a thread of the host: what is handed over is the processor.

use core::panic::AssertUnwindSafe;
use std::panic;
use std::sync::{Condvar, Mutex, PoisonError};

use super::pcr::{self, Pcr};
use super::{inject, irql};
use crate::level::DISPATCH;
use crate::service::NothingInService;

enum Gate {
    Closed,
    /// It has this processor, and may go on.
    Open(&'static Pcr),
    /// Its machine is taken apart.
    Over,
}

/// A suspended context: where its thread of the host waits for a processor.
pub struct Context {
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// Unwinds a thread of the host whose machine is taken apart.
pub struct TakenApart;

impl Context {
    /// One that has no processor.
    pub const fn empty() -> Self {
        Self { gate: Mutex::new(Gate::Closed), changed: Condvar::new() }
    }

    fn set(&self, gate: Gate) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate;
        self.changed.notify_one();
    }

    /// It will never run again.
    pub fn end(&self) {
        self.set(Gate::Over);
    }

    /// Returns with a processor.
    fn wait(&self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *gate {
                Gate::Open(here) => {
                    *gate = Gate::Closed;
                    pcr::enter(here);
                    return;
                }
                Gate::Closed => gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner),
                Gate::Over => break,
            }
        }
        drop(gate);
        panic::resume_unwind(Box::new(TakenApart));
    }

    /// This thread of the host is the context, which was switched to for the first time when this calls `start`: at DISPATCH, as on
    /// the machine. Returns when its machine is taken apart; other panics go on.
    pub fn run(&self, start: impl FnOnce()) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            self.wait();
            irql::write(DISPATCH);
            start();
        }));
        pcr::leave();
        match outcome {
            Err(payload) if !payload.is::<TakenApart>() => panic::resume_unwind(payload),
            _ => {}
        }
    }
}

/// Gives this processor to `to`, and returns when somebody gives one to `from`.
///
/// # Safety
/// As on the machine. They are pointers, as others reach `from` while this waits.
pub unsafe fn swap_context(from: *mut Context, to: *const Context, _nothing: NothingInService) {
    inject::point();
    assert_eq!(irql::peek(), DISPATCH, "a switch at another level");
    let here = pcr::leave().expect("a switch on no processor");
    assert!(here.is_enabled(), "a switch with interrupts off");
    // SAFETY: both stay, says the caller, and are shared alone.
    unsafe {
        (*to).set(Gate::Open(here));
        (*from).wait();
    }
    inject::point();
}
