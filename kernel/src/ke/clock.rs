//! How time is read: so far the TSC, scaled.
//!
//! Ordering: the rate is written once by the boot processor before others run; Relaxed loads see zero or it.

use core::sync::atomic::{AtomicU64, Ordering};

static START: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
static APIC_HZ: AtomicU64 = AtomicU64::new(0);
/// Microseconds per tick, times 2³².
static MICROSECONDS: AtomicU64 = AtomicU64::new(0);

/// Time starts now.
pub(crate) fn start() {
    START.store(arch::cpu::timestamp(), Ordering::Relaxed);
}

/// The rates are known.
pub(crate) fn set_rates(rates: arch::clock::Rates) {
    TSC_HZ.store(rates.tsc_hz, Ordering::Relaxed);
    APIC_HZ.store(rates.apic_hz, Ordering::Relaxed);
    let scaled = (1_000_000_u128 << 32) / u128::from(rates.tsc_hz);
    MICROSECONDS.store(scaled as u64, Ordering::Relaxed);
}

/// TSC ticks per second, zero before calibration.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// APIC timer ticks per second, zero before calibration.
pub fn apic_hz() -> u64 {
    APIC_HZ.load(Ordering::Relaxed)
}

/// `ticks` of the TSC in microseconds, zero before calibration.
pub fn microseconds(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(MICROSECONDS.load(Ordering::Relaxed))) >> 32) as u64
}

/// Microseconds since the image started, zero before calibration.
pub fn since_start() -> u64 {
    microseconds(arch::cpu::timestamp().wrapping_sub(START.load(Ordering::Relaxed)))
}

/// Spins for at least `microseconds`. Any level.
#[doc(alias = "KeStallExecutionProcessor")]
pub fn stall(microseconds: u64) {
    let start = arch::cpu::timestamp();
    let ticks = (u128::from(microseconds) * u128::from(tsc_hz())).div_ceil(1_000_000) as u64;
    while arch::cpu::timestamp().wrapping_sub(start) < ticks {
        arch::cpu::spin_hint();
    }
}
