//! The interrupt path: from the instruction behind which an interrupt arrives to its handler, and from there back.
//!
//! The interrupt is a self-IPI: it arrives right behind the WRMSR that sends it. What sending costs is measured with
//! interrupts off, where nothing arrives, and subtracted, so that entry and exit are the stub's and the handler's
//! instructions alone. No work is pending: the fast way out.

use core::sync::atomic::AtomicU32;

use arch::{apic, cpu};
use kernel::ke::prcb;
use sync::irql::{Irql, Passive};

use crate::measure::{START, STOP, between, count, raw, read_counter, stop};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("interrupts::self_ipi_empty_handler", self_ipi).at_most(80),
    passive("interrupts::entry_to_handler", entry).at_most(40),
    passive("interrupts::handler_to_resumed_code", exit).at_most(40),
];

/// A device vector whose handler ends it and does nothing else.
const EMPTY: u8 = 0x58;
/// A device vector whose handler reads the counter first and last.
const TIMED: u8 = 0x59;

/// Read as the timed handler's first instruction, and as its last before it returns.
static ENTERED: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

#[inline(always)]
fn entered() {
    read_counter!(ENTERED);
}

#[inline(always)]
fn left() {
    read_counter!(LEFT);
}

pub(crate) fn prepare(at: &mut Irql<Passive>) {
    at.check();
    // SAFETY: both are correct at any level on any stack, and end their interrupts; the vectors are the bench's own.
    unsafe {
        arch::trap::set_handler(EMPTY, |_, service| service.end());
        arch::trap::set_handler(TIMED, |_, service| {
            entered();
            let retired = service.end();
            left();
            retired
        });
    }
}

#[inline(never)]
fn self_ipi(at: &mut Irql<Passive>) -> u32 {
    at.check();
    // SAFETY: the vector has its handler.
    count(|| unsafe { apic::send_self(EMPTY) })
}

/// Sends the timed interrupt between two readings.
#[inline(never)]
fn send() {
    // SAFETY: the vector has its handler.
    let _ = count(|| unsafe { apic::send_self(TIMED) });
}

#[inline(never)]
fn entry(at: &mut Irql<Passive>) -> u32 {
    at.check();
    // SAFETY: IF is set again at once; the interrupt that is then pending arrives there.
    let sending = unsafe {
        cpu::cli();
        send();
        let sending = raw(&START, &STOP);
        cpu::sti();
        sending
    };
    send();
    raw(&START, &ENTERED).wrapping_sub(sending)
}

/// The way out of the timed handler, here.
#[inline(never)]
pub(crate) fn exit(at: &mut Irql<Passive>) -> u32 {
    at.check();
    send();
    between(&LEFT, &STOP)
}

/// From the timed handler's end on processor `target`, which is halted, until this one goes on: PAUSE ends this one's turn,
/// and the other's ends when it halts again.
#[inline(never)]
pub(crate) fn exit_there(target: u32) -> u32 {
    let target = prcb::get(target).map_or(0, |target| target.prcb().apic_id());
    // SAFETY: the vector has its handler.
    unsafe { apic::send(target, TIMED) };
    cpu::spin_hint();
    stop();
    between(&LEFT, &STOP)
}
