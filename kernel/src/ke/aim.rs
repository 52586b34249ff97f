//! Preemption at chosen instructions, for tests: the checked build's.
//!
//! Interrupts that come by the clock fall where most time is spent, and a window of two instructions that few go through is hit by none
//! in thousands. So a run is given places to aim at. Each processor has a breakpoint at some of them, others after a while, and where it
//! comes to one it is stopped there for a while, so that all others go on, or gets a clock interrupt at that very instruction, at which
//! the thread loses its quantum, or both. With interrupts off, or at CLOCK and above, the interrupt comes as soon as it may.
//!
//! Called by:  trap.rs in #DB; torment.rs in clock interrupts; the self-tests begin and end it.
//! IRQL:       #DB comes at any, in the midst of whatever: here nothing is locked, and nothing called that could be aimed at.
//! Invariants: I1 places are instructions that neither #DB's way through here nor an NMI executes (who chooses them leaves those out): a
//!                second #DB would overwrite the frame of the first, and one in an NMI would let NMIs in before its end.
//!             I2 while a processor changes its breakpoints none is armed there, and where #DB comes in between, what is armed at the
//!                end is whole all the same: each change writes all.
//!             I3 random numbers are drawn as `torment` does (I1 there), so that a run is a function of the seed and the places.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::breakpoint;
use arch::trap::TrapFrame;

use super::prcb::MAX_PROCESSORS;
use super::{bugcheck, clock, torment};

/// At most so many places in a run.
pub const MOST: usize = 2048;

static PLACES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// How many of them there are. 0: off.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Drawn from for what to do.
static STATE: AtomicU64 = AtomicU64::new(0);
/// The place whose turn is next: each gets one as often as any other.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Processors that have been stopped, and lose their thread's quantum in the clock interrupt that they have sent themselves.
static STRUCK: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];
static HITS: AtomicU64 = AtomicU64::new(0);

/// A place has its turn for so many clock interrupts of its processor, unless it is hit before.
const TURN: u64 = 4;

/// From now on, processors are stopped at `places`, as they come to them. Those beyond [`MOST`] are left out. Any level.
///
/// # Safety
/// I1.
pub unsafe fn begin(seed: u64, places: impl Iterator<Item = u64>) {
    STATE.store(seed.wrapping_mul(0xA24B_AED4_963E_E407), Ordering::Relaxed);
    let mut count = 0;
    for (slot, place) in PLACES.iter().zip(places) {
        slot.store(place, Ordering::Relaxed);
        count += 1;
    }
    COUNT.store(count, Ordering::Release);
}

/// No more: what a processor has armed goes as it is hit, and nothing comes of it. Any level.
pub fn end() {
    COUNT.store(0, Ordering::Relaxed);
}

/// How often a processor was stopped. Any level.
pub fn hits() -> u64 {
    HITS.load(Ordering::Relaxed)
}

fn is_on() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// The next place; zero if there is none.
fn next_place() -> u64 {
    let Some(turn) = NEXT.fetch_add(1, Ordering::Relaxed).checked_rem(COUNT.load(Ordering::Acquire)) else {
        return 0;
    };
    PLACES[turn as usize].load(Ordering::Relaxed)
}

/// In a clock interrupt: whether this processor has sent it to itself as it was stopped; and other places get their turns.
pub(super) fn renew() -> bool {
    if !is_on() {
        return false;
    }
    let mut places = breakpoint::armed();
    let random = torment::draw(&STATE);
    for (number, place) in places.iter_mut().enumerate() {
        if *place == 0 || (random >> (8 * number)).is_multiple_of(TURN) {
            *place = next_place();
        }
    }
    // SAFETY: `struck` takes #DB at them, as I1 has it.
    unsafe { breakpoint::arm(places) };
    STRUCK[arch::pcr::number() as usize].swap(false, Ordering::Relaxed)
}

/// In #DB: whether it is a processor's that came to a place. It goes on there afterwards.
pub(super) fn struck(frame: &mut TrapFrame) -> bool {
    let mut places = breakpoint::armed();
    let Some(place) = places.iter_mut().find(|place| **place == frame.rip) else { return false };
    // And nothing that is called from here on is stopped at.
    breakpoint::disarm();
    frame.rflags |= breakpoint::RESUME;
    if bugcheck::is_under_way() || !is_on() {
        return true;
    }
    HITS.fetch_add(1, Ordering::Relaxed);
    *place = next_place();
    let random = torment::draw(&STATE);
    if random & 3 != 0 {
        // Mostly a few instructions of another processor's, now and then all of what it is about.
        let most = if random & 0x70 == 0 { 300 } else { 5 };
        clock::stall((random >> 32) % most);
    }
    if random & 3 != 3 {
        STRUCK[arch::pcr::number() as usize].store(true, Ordering::Relaxed);
        // SAFETY: the clock's, whose handler finds nothing due.
        unsafe { arch::apic::send_self(arch::vector::CLOCK) };
    }
    // SAFETY: as in `renew`. Nothing that is called from here on is aimed at.
    unsafe { breakpoint::arm(places) };
    true
}
