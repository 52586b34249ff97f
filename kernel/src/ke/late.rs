//! Interrupts that are late on their way, for tests: the checked build's.
//!
//! While it is on, some of the interrupts that processors send each other go by a courier: another processor, which takes an NMI for it,
//! stays in it for a while, and sends the interrupt on. The sender goes on at once, with all that it stored visible, and may do whatever it
//! likes before its interrupt arrives; so may the target, and who shares a lock with either. NMIs carry them, as nothing holds one up for
//! ever: the courier may spin for what the sender holds.
//!
//! Called by:  ipi.rs for each interrupt sent, at any level; freeze.rs in each NMI; the self-tests begin and end it.
//! Invariants: I1 a slot is filled by a compare-exchange from 0 and emptied by a swap with 0: what was handed over is sent on once.
//!             I2 a slot is filled before its courier's NMI is sent, and each NMI empties its processor's: NMIs that merge arrive after the
//!                last of them was sent, so nothing stays in a slot.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::trace::{Kind, event};

use super::prcb::{self, MAX_PROCESSORS, State};
use super::{clock, freeze, torment};

/// What is under way: the destination in the upper half, [`LOGICAL`], the vector.
static SLOTS: [AtomicU64; MAX_PROCESSORS] = [const { AtomicU64::new(0) }; MAX_PROCESSORS];
/// The destination is logical ids of one cluster.
const LOGICAL: u64 = 1 << 8;

/// One of so many is late. 0: none.
static ONE_IN: AtomicU32 = AtomicU32::new(0);
/// Drawn from by one atomic addition, as `torment` does (I1 there).
static STATE: AtomicU64 = AtomicU64::new(0);

static HANDED_OVER: AtomicU64 = AtomicU64::new(0);
static SENT_ON: AtomicU64 = AtomicU64::new(0);

/// From now on, one interrupt in `one_in` comes late. Any level.
pub fn begin(seed: u64, one_in: u32) {
    STATE.store(seed.wrapping_mul(0xD6E8_FEB8_6659_FD93), Ordering::Relaxed);
    ONE_IN.store(one_in, Ordering::Relaxed);
}

/// All go the short way again; those under way arrive soon. Any level.
pub fn end() {
    ONE_IN.store(0, Ordering::Relaxed);
}

/// How many interrupts were handed to a courier since the start, and how many couriers sent on. Any level.
pub fn counts() -> (u64, u64) {
    (HANDED_OVER.load(Ordering::Relaxed), SENT_ON.load(Ordering::Relaxed))
}

/// Takes `vector` to the processor with APIC id `target`, if it is the turn of one to be late.
#[inline]
pub(super) fn take(target: u32, vector: u8) -> bool {
    ONE_IN.load(Ordering::Relaxed) != 0 && take_parcel(u64::from(target) << 32 | u64::from(vector))
}

/// As [`take`], to the logical ids that `targets` joins.
#[inline]
pub(super) fn take_logical(targets: u32, vector: u8) -> bool {
    ONE_IN.load(Ordering::Relaxed) != 0 && take_parcel(u64::from(targets) << 32 | LOGICAL | u64::from(vector))
}

/// Without a courier, as its slot is taken or the sender was drawn, it goes the short way.
fn take_parcel(parcel: u64) -> bool {
    let random = torment::draw(&STATE);
    if !(random as u32).is_multiple_of(ONE_IN.load(Ordering::Relaxed).max(1)) {
        return false;
    }
    let number = (random >> 32) as u32 % prcb::count();
    let Some(courier) = prcb::get(number) else { return false };
    if number == arch::pcr::number() || courier.prcb().state() != State::Online {
        return false;
    }
    // I1. Release, with the Acquire of `send_on`: what goes on from there comes after what the sender stored.
    let taken = SLOTS[number as usize].compare_exchange(0, parcel, Ordering::Release, Ordering::Relaxed);
    if taken.is_err() {
        return false;
    }
    HANDED_OVER.fetch_add(1, Ordering::Relaxed);
    event(Kind::Inject, LATE, number.into(), parcel);
    freeze::send_nmi(courier); // I2
    true
}

/// In traces: an interrupt was handed to a courier. Behind what `torment` numbers.
const LATE: u16 = 16;

/// In an NMI: sends on what this processor was handed.
pub(super) fn send_on() {
    let Some(slot) = SLOTS.get(arch::pcr::number() as usize) else { return };
    if slot.load(Ordering::Relaxed) == 0 {
        return;
    }
    // Acquire: with the Release of `take_parcel`.
    let parcel = slot.swap(0, Ordering::Acquire);
    let (to, vector) = ((parcel >> 32) as u32, parcel as u8);
    let random = torment::draw(&STATE);
    // Mostly a little, as a bus would be late; now and then as long as a host that runs another virtual processor.
    let most = if random & 15 == 0 { 1_000 } else { 20 };
    clock::stall((random >> 32) % most);
    // SAFETY: the sender's, whose promise it is: the kernel's own vectors, with handlers since before any processor was registered.
    unsafe {
        match parcel & LOGICAL {
            0 => arch::apic::send(to, vector),
            _ => arch::apic::send_logical(to, vector),
        }
    }
    SENT_ON.fetch_add(1, Ordering::Relaxed);
}
