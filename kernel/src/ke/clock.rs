//! How time is read: the TSC, scaled.
//!
//! Two clocks: *interrupt time* runs from the image's start and is never set; *system time* is interrupt time plus an offset,
//! which setting the time changes. Both count 100 ns. The precise queries read the TSC, whose counters agree on all
//! processors (a self-test checks it), so they are monotonic across processors; the others read the shared page, at most
//! 15.6 ms old.
//!
//! IRQL:     any.
//! Ordering: a processor may read its TSC before loads that stand in front. So whoever got a time from another processor, or the lock
//!           under which that published one, could read an earlier one. All that is told as a time, here and in the shared page, and what
//!           timers are set by, is read behind an LFENCE. The other side needs none: a time can't be stored before it was read.
//!           What a processor compares with its own readings alone (quanta, the checked build's stays, the trace) has no fence.
//!           The rates are written once by the boot processor before others run; Relaxed loads see zero or them. The offset
//!           is one word, so no reader gets a torn time.
//! Tests:    selftest `clock::*`; step `codegen` (each query's LFENCE); mutant `time_read_without_a_fence`.
//! Sources:  WDK, `KeQueryInterruptTimePrecise`, `KeQuerySystemTimePrecise`, `KeQueryPerformanceCounter`, `KeQueryTickCount`;
//!           SDM vol. 2, "RDTSC".

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::apic::timer::Mode;

use super::rate::{self, Programmed, SECOND, high_half};
use super::shared_data;

static START: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
static APIC_HZ: AtomicU64 = AtomicU64::new(0);
/// 100 ns per TSC tick, times 2⁶⁴: so the high half of a product is the result.
static UNITS: AtomicU64 = AtomicU64::new(0);
/// How the timer that is programmed (the TSC's deadline, or the APIC's own) is: [`Programmed`].
static COUNTS: AtomicU64 = AtomicU64::new(0);
/// The timer takes a TSC value instead of a count.
static DEADLINE: AtomicBool = AtomicBool::new(false);
/// System time at interrupt time zero, before it was first changed.
static FIRST_OFFSET: AtomicU64 = AtomicU64::new(0);
/// System time at interrupt time zero.
static OFFSET: AtomicU64 = AtomicU64::new(0);

static LONGEST: AtomicU64 = AtomicU64::new(0);

/// 1970 in system time, whose zero is 1601.
const UNIX_EPOCH: u64 = crate::rtl::time::SECONDS_TO_1970 as u64 * SECOND;

/// Time starts now.
pub(crate) fn start() {
    START.store(arch::cpu::timestamp(), Ordering::Relaxed);
}

/// The rates are known, and so is the date if the loader read it.
pub(crate) fn set_rates(rates: arch::clock::Rates, has_deadline: bool, unix_seconds: Option<u64>) {
    TSC_HZ.store(rates.tsc_hz, Ordering::Relaxed);
    APIC_HZ.store(rates.apic_hz, Ordering::Relaxed);
    UNITS.store(rate::units_per_count(rates.tsc_hz), Ordering::Relaxed);
    let programmed =
        if has_deadline { Programmed::deadline(rates.tsc_hz) } else { Programmed::one_shot(rates.apic_hz) };
    COUNTS.store(programmed.counts, Ordering::Relaxed);
    LONGEST.store(programmed.longest, Ordering::Relaxed);
    DEADLINE.store(has_deadline, Ordering::Relaxed);
    let date = UNIX_EPOCH + unix_seconds.unwrap_or(0) * SECOND;
    // The loader read the date before `START`, by less than it counts.
    FIRST_OFFSET.store(date, Ordering::Relaxed);
    OFFSET.store(date, Ordering::Relaxed);
}

/// The time stamp at which time began.
#[cfg(feature = "verifier")]
pub(crate) fn start_stamp() -> u64 {
    START.load(Ordering::Relaxed)
}

/// TSC ticks per second, zero before calibration.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// APIC timer ticks per second, zero before calibration.
pub fn apic_hz() -> u64 {
    APIC_HZ.load(Ordering::Relaxed)
}

/// `ticks` of the TSC in 100 ns, zero before calibration.
#[inline(always)]
pub(super) fn units(ticks: u64) -> u64 {
    high_half(ticks, UNITS.load(Ordering::Relaxed))
}

/// `ticks` of the TSC in microseconds, zero before calibration.
pub fn microseconds(ticks: u64) -> u64 {
    units(ticks) / 10
}

/// Microseconds since the image started, zero before calibration.
pub fn since_start() -> u64 {
    interrupt_time_precise() / 10
}

/// 100 ns since the image started, now; zero before calibration.
#[doc(alias = "KeQueryInterruptTimePrecise")]
#[inline(always)]
pub fn interrupt_time_precise() -> u64 {
    units(arch::cpu::ordered_timestamp().wrapping_sub(START.load(Ordering::Relaxed)))
}

/// 100 ns since the image started, as the shared page has it.
#[doc(alias = "KeQueryInterruptTime")]
pub fn interrupt_time() -> u64 {
    shared_data::get().map_or(0, |page| page.interrupt_time.read())
}

/// 100 ns since 1601, now.
#[doc(alias = "KeQuerySystemTimePrecise")]
#[inline(always)]
pub fn system_time_precise() -> u64 {
    to_system_time(interrupt_time_precise())
}

/// 100 ns since 1601, as the shared page has it.
#[doc(alias = "KeQuerySystemTime")]
pub fn system_time() -> u64 {
    shared_data::get().map_or(0, |page| page.system_time.read())
}

/// Ticks of 15.625 ms since start, as the shared page has them.
#[doc(alias = "KeQueryTickCount")]
pub fn tick_count() -> u64 {
    shared_data::get().map_or(0, |page| page.tick_count.read())
}

/// How much of the interrupt time a tick of [`tick_count`] is, in 100 ns.
#[doc(alias = "KeQueryTimeIncrement")]
pub fn time_increment() -> u32 {
    shared_data::TICK as u32
}

/// What the performance counter counts up with: the TSC itself. Its rate is [`performance_frequency`].
#[doc(alias = "KeQueryPerformanceCounter")]
#[inline(always)]
pub fn performance_counter() -> u64 {
    arch::cpu::ordered_timestamp()
}

/// Counts per second of [`performance_counter`].
pub fn performance_frequency() -> u64 {
    tsc_hz()
}

/// The system time at interrupt time `interrupt`.
#[inline(always)]
pub(super) fn to_system_time(interrupt: u64) -> u64 {
    interrupt.wrapping_add(OFFSET.load(Ordering::Relaxed))
}

/// The system time at interrupt time zero, as it was before anybody changed it.
pub(super) fn first_offset() -> u64 {
    FIRST_OFFSET.load(Ordering::Relaxed)
}

/// Changes the system time by `delta` (100 ns, two's complement): by `shared_data`, under its lock.
pub(super) fn shift_system_time(delta: u64) {
    OFFSET.fetch_add(delta, Ordering::Relaxed);
}

/// Makes this processor's clock ready to be programmed.
///
/// # Safety
/// IF=0, after [`set_rates`], once on each processor before anything is programmed.
pub(super) unsafe fn prepare() {
    let mode = if DEADLINE.load(Ordering::Relaxed) { Mode::Deadline } else { Mode::OneShot };
    // SAFETY: the caller's; the vector's handler is in place before any processor takes interrupts.
    unsafe { arch::apic::timer::prepare(mode) };
}

/// Programs this processor's clock interrupt for `after` (100 ns) from now, or sooner if the counter is too short.
///
/// # Safety
/// After [`prepare`]. Nothing that programs it can interrupt: HIGH or IF=0. The caller accounts for the deadline (tick.rs, I1).
#[inline(always)]
pub(super) unsafe fn program(after: u64) {
    let programmed =
        Programmed { counts: COUNTS.load(Ordering::Relaxed), longest: LONGEST.load(Ordering::Relaxed) };
    let counts = programmed.counts_for(after);
    #[cfg(all(target_os = "none", feature = "verifier"))]
    let counts = super::torment::shortened(counts);
    // SAFETY: the caller's.
    unsafe {
        if DEADLINE.load(Ordering::Relaxed) {
            arch::apic::timer::arm_deadline(arch::cpu::timestamp().wrapping_add(counts));
        } else {
            // Fits (`Programmed::one_shot`).
            arch::apic::timer::arm_one_shot(counts as u32);
        }
    }
}

/// Takes the programmed clock interrupt back. One that is on its way still comes.
///
/// # Safety
/// As [`program`].
pub(super) unsafe fn disarm() {
    // SAFETY: the caller's; zero disarms either kind.
    unsafe {
        if DEADLINE.load(Ordering::Relaxed) {
            arch::apic::timer::arm_deadline(0);
        } else {
            arch::apic::timer::arm_one_shot(0);
        }
    }
}

/// Spins for at least `microseconds`.
#[doc(alias = "KeStallExecutionProcessor")]
pub fn stall(microseconds: u64) {
    let start = arch::cpu::ordered_timestamp();
    let ticks = (u128::from(microseconds) * u128::from(tsc_hz())).div_ceil(1_000_000) as u64;
    while arch::cpu::timestamp().wrapping_sub(start) < ticks {
        arch::cpu::spin_hint();
    }
}
