//! The way into an interrupt and out of it on a virtual processor: the steps of `x86_64::trap` without the registers.
//!
//! An interrupt is taken at a point ([`inject`](super::inject)) at which IF is set and the level is below its own. What the exit does is
//! decided by [`request`](crate::request), and done in the order of `x86_64::trap`: the work of DISPATCH in a loop, which may switch
//! threads and come back on another processor; else its vector, where the level keeps it out.

use std::sync::OnceLock;

use super::irql;
use super::pcr::{self, Pcr};
use crate::level::DISPATCH;
use crate::request::REQUEST_DISPATCH;

/// What a machine for tests supplies, as `crate::upcalls` on the machine.
pub struct Upcalls {
    /// The processor is at a point: interrupts may arrive, another processor may run. False: it is none, so none is taken.
    pub point: fn(&'static Pcr) -> bool,
    /// The handler of a level other than APC's and DISPATCH's.
    pub handler: fn(u8),
    /// CR8=DISPATCH, IF=1: DPCs. True: there is work for `dispatch`.
    pub retire: fn() -> bool,
    /// The same: may switch threads.
    pub dispatch: fn(),
    /// It halts. Returns when an interrupt has arrived.
    pub halt: fn(&'static Pcr),
}

static UPCALLS: OnceLock<&'static Upcalls> = OnceLock::new();

/// Once, before any processor runs.
pub fn register(upcalls: &'static Upcalls) {
    let _ = UPCALLS.set(upcalls);
}

pub(super) fn upcalls() -> &'static Upcalls {
    UPCALLS.get().expect("a machine for virtual processors")
}

/// A point of a virtual processor; nothing for other threads of the host.
pub(super) fn point() {
    if let Some(here) = pcr::installed()
        && (upcalls().point)(here)
    {
        take();
    }
}

/// Takes what has arrived and is let in.
pub(super) fn take() {
    // Behind each, this may be another processor.
    while let Some(here) = pcr::installed() {
        let interrupted = irql::peek();
        if !here.is_enabled() {
            return;
        }
        let Some(level) = here.take_above(interrupted) else { return };
        deliver(here, level, interrupted);
    }
}

fn deliver(here: &'static Pcr, level: u8, interrupted: u8) {
    irql::write(level);
    here.nest(1);
    if level <= DISPATCH {
        here.request_arrived(level);
    } else {
        (upcalls().handler)(level);
    }
    assert_eq!(irql::peek(), level, "the handler returned at another level than it was entered at");
    here.enable(false);
    if here.nest(-1) == 0 {
        exit(interrupted);
    }
    irql::write(interrupted);
    if let Some(here) = pcr::installed() {
        here.enable(true);
    }
}

/// Of the outermost handler, IF=0.
fn exit(interrupted: u8) {
    while let Some(here) = pcr::installed() {
        if interrupted >= DISPATCH || here.software() & REQUEST_DISPATCH == 0 {
            here.send_at_exit(interrupted);
            return;
        }
        here.clear(REQUEST_DISPATCH);
        irql::write(DISPATCH);
        here.enable(true);
        if (upcalls().retire)() {
            (upcalls().dispatch)();
        }
        if let Some(now) = pcr::installed() {
            now.enable(false);
        }
    }
}
