//! Where the other processors are while they aren't asked for anything: halted, at PASSIVE, interrupts on, in a loop of known
//! length.
//!
//! Under the instruction counter one host thread runs all processors in turn. The one that asks goes on until it waits (PAUSE
//! ends its turn), then a target that was woken runs until it halts again, then the first goes on. So the counter's
//! difference at the asker is the sum over all of them, and of what a target executes, only its way from `iretq` back into the
//! halt is not the operation's: [`length`] of it, two instructions. One processor's loop is longer: `calibrate` measures both
//! ways, and compares them with what is said here.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use kernel::ke::{ipi, prcb, sched, thread};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

/// A processor that parks in the short loop.
pub(crate) const SHORT: u32 = 1;
/// The one that parks in the long loop.
pub(crate) const LONG: u32 = 2;
/// `jmp` and `hlt`.
pub(crate) const SHORT_LENGTH: u32 = 2;
/// As many more are `nop`s.
const PADDING: u32 = 64;
pub(crate) const LONG_LENGTH: u32 = SHORT_LENGTH + PADDING;

/// Processors that are about to halt for the first time.
static PARKED: AtomicU64 = AtomicU64::new(0);

/// Keeps the caller on the first processor.
pub(crate) fn stay_on_the_first(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let me = thread::current(at).reference();
    sched::set_affinity(&me, 1, at).map(|_| ())
}

/// Parks a thread on each of the other processors.
pub(crate) fn prepare(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    for number in 1..prcb::count() {
        let options = thread::Options {
            name: thread::Name::new("parked"),
            affinity: Some(1 << number),
            ideal: Some(number),
            ..Default::default()
        };
        drop(thread::spawn(&options, park, 0, at)?);
    }
    Ok(())
}

fn park(at: &mut Irql<Passive>, _: usize) {
    at.check();
    let number = arch::cpu::number();
    PARKED.fetch_or(1 << number, Ordering::Release);
    // SAFETY: PASSIVE, IF=1: nothing is looked for before the halt, so no wakeup can be missed. The loops keep nothing in
    //         registers, and interrupts save what they use.
    unsafe {
        if number == LONG {
            asm!("2:", "hlt", ".rept {padding}", "nop", ".endr", "jmp 2b", padding = const PADDING,
                 options(noreturn))
        } else {
            asm!("2:", "hlt", "jmp 2b", options(noreturn))
        }
    }
}

/// Returns when all others are parked.
pub(crate) fn wait_for_all() {
    let others = ipi::online() & !(1 << arch::cpu::number());
    while PARKED.load(Ordering::Acquire) != others {
        arch::cpu::spin_hint();
    }
}

/// Instructions from the interrupts' ends to the halts, if each of `targets` but this processor is woken once.
pub(crate) fn length(targets: u64) -> u32 {
    let others = targets & !(1 << arch::cpu::number());
    let long = (others >> LONG & 1) as u32;
    long * LONG_LENGTH + (others.count_ones() - long) * SHORT_LENGTH
}
