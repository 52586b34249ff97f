//! Interrupts at the worst time, for tests: the checked build's.
//!
//! While it is on, each processor that isn't idle gets its clock interrupt after at most a given number of counts, a random one: under
//! QEMU's instruction counter a count is an instruction, so the seed decides between which two instructions it falls. Now and then it
//! ends the running thread's quantum, asks for a look at DISPATCH, or sends another processor an interrupt or an NMI for nothing. A thread
//! that was stopped where it was aimed at (aim.rs) goes on at another processor.
//!
//! Called by:  tick.rs and clock.rs at HIGH or with IF=0; the self-tests begin and end it.
//! Invariants: I1 random numbers are drawn by one atomic addition, so a run on one host thread is a function of the seed.
//!             I2 an interrupt that comes early finds nothing due and programs the rest, which tick.rs allows anyway.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::trace::{Kind, event};

use super::prcb::{self, MAX_PROCESSORS, Prcb};
use super::sched::Schedulable;
use super::{aim, freeze};

/// 0: off.
static SPAN: AtomicU32 = AtomicU32::new(0);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on, clock interrupts come after at most `span` counts.
pub fn begin(seed: u64, span: u32) {
    STATE.store(seed.wrapping_mul(0x9E6C_63D0_876A_68DE), Ordering::Relaxed);
    SPAN.store(span, Ordering::Relaxed);
}

/// Back to normal.
pub fn end() {
    SPAN.store(0, Ordering::Relaxed);
}

fn random() -> u64 {
    draw(&STATE)
}

/// The next random number of the sequence in `state`: I1; mixed as splitmix64 does.
pub(super) fn draw(state: &AtomicU64) -> u64 {
    let state = state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

/// What to program in place of `counts`.
#[inline]
pub(super) fn shortened(counts: u64) -> u64 {
    match SPAN.load(Ordering::Relaxed) {
        0 => counts,
        // Mostly short, sometimes long, so that everything between a few instructions and `span` is as likely by its magnitude.
        span => {
            let random = random();
            let most = (u64::from(span) >> (random >> 62)).max(1);
            counts.min(1 + (random & 0xFFFF_FFFF) % most)
        }
    }
}

/// Whether the clock is to be programmed though nothing is due.
#[inline]
pub(super) fn is_on() -> bool {
    SPAN.load(Ordering::Relaxed) != 0
}

/// In traces: this processor was stopped where it was aimed at. Behind what `strike` and `late` number.
const AIMED: u16 = 17;

/// In the clock interrupt of `here`, at HIGH.
pub(super) fn strike(here: &Prcb) {
    if aim::renew() {
        event(Kind::Inject, AIMED, 0, 0);
        AWAY[here.number() as usize].store(true, Ordering::Relaxed);
        here.sched.end_quantum();
        // SAFETY: a handler.
        unsafe { arch::pcr::request_dispatch_at_exit() };
        return;
    }
    let (what, random) = match random() {
        random if is_on() => (random as u16 & 15, random >> 16),
        _ => return,
    };
    match what {
        0..=5 => {
            event(Kind::Inject, what, 0, 0);
            here.sched.end_quantum();
            // SAFETY: a handler.
            unsafe { arch::pcr::request_dispatch_at_exit() };
        }
        // SAFETY: a handler.
        6..=8 => unsafe { arch::pcr::request_dispatch_at_exit() },
        9..=11 => {
            let Some(target) = prcb::get((random % u64::from(prcb::count())) as u32) else { return };
            event(Kind::Inject, what, target.prcb().number().into(), 0);
            if what == 9 {
                freeze::send_nmi(target);
            } else {
                let vector = if what == 10 { arch::vector::DISPATCH } else { arch::vector::IPI };
                // SAFETY: the kernel's own vectors, whose handlers look for what there is to do.
                unsafe { arch::apic::send(target.prcb().apic_id(), vector) };
            }
        }
        _ => {}
    }
}

/// Processors whose running thread is to go on at another one.
static AWAY: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];

/// In a look of `here`: whether the thread that runs there has been stopped where it was aimed at, and a processor that it may go on at.
#[inline]
pub(super) fn sends_away(here: &Prcb, running: &Schedulable) -> Option<u32> {
    let away = &AWAY[here.number() as usize];
    if !away.load(Ordering::Relaxed) {
        return None;
    }
    away.store(false, Ordering::Relaxed);
    // The idle thread may run on its own only.
    let others = running.affinity() & !(1 << here.number()) & ((1 << (prcb::count() - 1) << 1) - 1);
    let chosen = (random() % u64::from(others.count_ones().max(1))) as u32;
    (0..u64::BITS).filter(|number| others >> number & 1 != 0).nth(chosen as usize)
}
