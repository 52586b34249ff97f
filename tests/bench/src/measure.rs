//! Reading the instruction counter, and what reading it costs.
//!
//! A row's operation stands between two readings, inlined, as it would stand in the kernel: no call is around it that a
//! compiler could set up with more or with less. A reading is RDTSC and one store of its low half into a fixed place, as one
//! piece of assembly. The first one declares every register changed that it may, so that no part of the operation is prepared
//! in front of it; both are ordered with everything that touches memory or CR8.
//!
//! The difference of two readings counts what was executed between them and, of the readings themselves, a constant: it is
//! measured at the start of each boot with nothing between, and `calibrate` shows with code of known length that subtracting
//! it is exact. 32 bits are enough: no row lasts 2³² instructions.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::vector::CLOCK;
use kernel::ke::prcb::{self, Processor};

/// The reading that an operation begins with.
pub(crate) static START: AtomicU32 = AtomicU32::new(0);
/// The reading that it ends with.
pub(crate) static STOP: AtomicU32 = AtomicU32::new(0);
/// The difference of two readings in a row.
static COST: AtomicU32 = AtomicU32::new(0);

/// Reads the counter into `$place`, a static `AtomicU32`.
macro_rules! read_counter {
    ($place:path $(, $changed:tt)*) => {
        // SAFETY: RDTSC is there (CR4.TSD is clear), the store goes to a static that is an atomic and used by one processor at
        //         a time. Not `nomem`: what is measured must stay on its side.
        unsafe {
            core::arch::asm!("rdtsc", "mov dword ptr [{place}], eax", place = sym $place,
                out("eax") _, out("edx") _, $(out($changed) _,)* options(nostack, preserves_flags));
        }
    };
}
pub(crate) use read_counter;

/// The measured operation begins.
#[inline(always)]
pub(crate) fn start() {
    read_counter!(START, "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
}

/// It has ended.
#[inline(always)]
pub(crate) fn stop() {
    read_counter!(STOP);
}

/// What was executed from one reading to another, on whatever processors, and of the readings what is between.
#[inline(always)]
pub(crate) fn raw(first: &AtomicU32, last: &AtomicU32) -> u32 {
    last.load(Ordering::Relaxed).wrapping_sub(first.load(Ordering::Relaxed))
}

/// What was executed between two readings.
#[inline(always)]
pub(crate) fn between(first: &AtomicU32, last: &AtomicU32) -> u32 {
    raw(first, last).wrapping_sub(COST.load(Ordering::Relaxed))
}

/// What `operation` executes.
#[inline(always)]
pub(crate) fn count(operation: impl FnOnce()) -> u32 {
    start();
    operation();
    stop();
    between(&START, &STOP)
}

static FAILED: AtomicBool = AtomicBool::new(false);

/// The operation has failed, so its sample is none: for the branch that it has for that anyway.
#[cold]
#[inline(never)]
pub(crate) fn failed() {
    FAILED.store(true, Ordering::Relaxed);
}

/// Has one failed since this was asked last?
pub(crate) fn has_failed() -> bool {
    FAILED.swap(false, Ordering::Relaxed)
}

/// Clock interrupts that these processors have taken so far.
pub(crate) fn clocks<'p>(processors: impl Iterator<Item = &'p Processor>) -> u32 {
    processors.fold(0, |sum, one| sum.wrapping_add(one.prcb().interrupt_count(CLOCK)))
}

/// What `once` returns in a time in which no processor takes a clock interrupt: that belongs to no operation.
pub(crate) fn undisturbed(mut once: impl FnMut() -> u32) -> u32 {
    loop {
        let before = clocks(prcb::all());
        let taken = once();
        if clocks(prcb::all()) == before {
            return taken;
        }
    }
}

/// Measures what measuring costs.
pub(crate) fn learn_cost() {
    // The first readings may meet something that happens once, and where the counter counts time, any may.
    let mut readings = [0; 63];
    for reading in &mut readings {
        start();
        stop();
        *reading = raw(&START, &STOP);
    }
    readings.sort_unstable();
    COST.store(readings[readings.len() / 2], Ordering::Relaxed);
}

/// Uses a value without an instruction, so that what computes it is not optimised away.
#[inline(always)]
pub(crate) fn consume(value: u64) {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {} */", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// A pointer, null or not, of which the compiler knows nothing any more. No instruction either.
#[inline(always)]
pub(crate) fn opaque<P: Copy>(mut pointer: P) -> P {
    const { assert!(size_of::<P>() == size_of::<usize>()) };
    let place = (&raw mut pointer).cast::<*mut ()>();
    // SAFETY: a pointer's size and, with nothing executed, its value.
    unsafe {
        let mut value = place.read();
        core::arch::asm!("/* {} */", inout(reg) value, options(readonly, nostack, preserves_flags));
        place.write(value);
    }
    pointer
}
