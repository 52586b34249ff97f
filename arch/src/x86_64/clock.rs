//! How fast the TSC and the APIC timer count, measured against the PIT; the date from the CMOS clock.
//!
//! Called by:  the boot processor, once. TCG and real machines run all TSCs from one clock; the self-test checks that they agree.
//! Sources:    8254 data sheet, mode 0; SDM vol. 3, "Time-Stamp Counter"; PC port 0x61.

use ::x86_64::instructions::port::Port;

use super::{apic, cpu};

/// Ticks of the PIT per second.
const PIT_HZ: u64 = 1_193_182;
/// A measurement's length: about 5 ms. Two are taken and must agree.
const SAMPLE_TICKS: u16 = 5966;
/// Measurements that may differ by more than [`TOLERANCE_PPM`] before calibration fails.
const ATTEMPTS: usize = 8;
const TOLERANCE_PPM: u64 = 2_000;
/// TSC ticks after which a PIT that doesn't count is given up: several seconds on any processor.
const STUCK_TICKS: u64 = 20_000_000_000;

/// Both rates in hertz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Time-stamp counter.
    pub tsc_hz: u64,
    /// APIC timer with divider 1.
    pub apic_hz: u64,
    /// The greatest deviation among the measurements used, in parts per million.
    pub spread_ppm: u64,
}

/// Why there are no rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncalibrated {
    /// PIT channel 2 doesn't count.
    NoPit,
    /// No two measurements agreed.
    Unsteady,
}

/// PIT channel 2, which port 0x61 gates and reads back without an interrupt.
struct Pit {
    control: Port<u8>,
    channel2: Port<u8>,
    gate: Port<u8>,
}

impl Pit {
    const GATE: u8 = 1;
    const SPEAKER: u8 = 2;
    const OUT: u8 = 1 << 5;

    fn new() -> Self {
        Self { control: Port::new(0x43), channel2: Port::new(0x42), gate: Port::new(0x61) }
    }

    /// Starts a count-down of `ticks` in mode 0: OUT goes high at its end.
    ///
    /// # Safety
    /// Nobody else uses channel 2.
    unsafe fn start(&mut self, ticks: u16) {
        // SAFETY: as the caller promised; the count starts with the write of the high byte.
        unsafe {
            let gate = self.gate.read();
            self.gate.write(gate & !Self::SPEAKER | Self::GATE);
            self.control.write(0b1011_0000);
            self.channel2.write(ticks as u8);
            self.channel2.write((ticks >> 8) as u8);
        }
    }

    fn done(&mut self) -> bool {
        // SAFETY: a status read.
        unsafe { self.gate.read() & Self::OUT != 0 }
    }
}

/// Measures both rates.
///
/// # Safety
/// The boot processor with interrupts off, x2APIC on, nobody else using the PIT or this processor's timer.
pub unsafe fn calibrate() -> Result<Rates, Uncalibrated> {
    let mut last: Option<(u64, u64)> = None;
    for _ in 0..ATTEMPTS {
        // SAFETY: as the caller promised.
        let (tsc, apic) = unsafe { sample() }?;
        if let Some((tsc_before, apic_before)) = last {
            let spread = ppm(tsc, tsc_before).max(ppm(apic, apic_before));
            if spread <= TOLERANCE_PPM {
                let hz = |a: u64, b: u64| (a + b) * PIT_HZ / (2 * u64::from(SAMPLE_TICKS));
                let measured = hz(tsc, tsc_before);
                return Ok(Rates {
                    tsc_hz: cpu::tsc_hz_from_cpuid().filter(|&exact| ppm(exact, measured) < 10_000).unwrap_or(measured),
                    apic_hz: hz(apic, apic_before),
                    spread_ppm: spread,
                });
            }
        }
        last = Some((tsc, apic));
    }
    Err(Uncalibrated::Unsteady)
}

fn ppm(a: u64, b: u64) -> u64 {
    a.abs_diff(b) * 1_000_000 / a.max(b).max(1)
}

/// TSC and APIC ticks during one PIT count.
unsafe fn sample() -> Result<(u64, u64), Uncalibrated> {
    let mut pit = Pit::new();
    // SAFETY: as `calibrate`'s caller promised.
    unsafe {
        pit.start(SAMPLE_TICKS);
        apic::timer::start_masked(u32::MAX);
    }
    let start = cpu::timestamp();
    while !pit.done() {
        if cpu::timestamp().wrapping_sub(start) > STUCK_TICKS {
            return Err(Uncalibrated::NoPit);
        }
    }
    let tsc = cpu::timestamp().wrapping_sub(start);
    let apic = u64::from(u32::MAX - apic::timer::remaining());
    // SAFETY: as above; stops the count.
    unsafe { apic::timer::start_masked(0) };
    Ok((tsc, apic))
}
