//! How fast the TSC and the APIC timer count, measured against the PIT; the date from the CMOS clock.
//!
//! Called by:  the boot processor, once. TCG and real machines run all TSCs from one clock; the self-test checks that they agree.
//! Sources:    8254 data sheet, mode 0; SDM vol. 3, "Time-Stamp Counter"; PC port 0x61.

use ::x86_64::instructions::port::Port;

use super::{apic, cpu};

/// Ticks of the PIT per second.
const PIT_HZ: u64 = 1_193_182;
/// A measurement's length: about 10 ms. Two are taken and must agree.
const SAMPLE_TICKS: u16 = 11_932;
/// Measurements before calibration fails; any two in a row may agree. So many for a host with several times its load in work: of 60
/// boots there, two found no two of 16.
const ATTEMPTS: usize = 100;
const TOLERANCE_PPM: u64 = 2_000;
/// Readings of which the one with the tightest bracket counts: the others were interrupted by a hypervisor or its host.
const READINGS: usize = 16;
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

    /// Starts counting down from 65,535 in mode 0: OUT goes high at the end, 55 ms later.
    ///
    /// # Safety
    /// Nobody else uses channel 2.
    unsafe fn start(&mut self) {
        // SAFETY: as the caller promised; the count starts with the write of the high byte.
        unsafe {
            let gate = self.gate.read();
            self.gate.write(gate & !Self::SPEAKER | Self::GATE);
            self.control.write(0b1011_0000);
            self.channel2.write(0xFF);
            self.channel2.write(0xFF);
        }
    }

    /// The count has run out.
    fn done(&mut self) -> bool {
        // SAFETY: a status read.
        unsafe { self.gate.read() & Self::OUT != 0 }
    }

    /// Ticks since the start, latched.
    fn elapsed(&mut self) -> u16 {
        // SAFETY: the latch command for channel 2, then its two bytes, low first.
        let (low, high) = unsafe {
            self.control.write(0b1000_0000);
            (self.channel2.read(), self.channel2.read())
        };
        0xFFFF - u16::from_le_bytes([low, high])
    }
}

/// All three clocks at one moment.
#[derive(Clone, Copy)]
struct Moment {
    pit: u16,
    tsc: u64,
    apic: u32,
}

impl Moment {
    /// Reads the PIT and the APIC timer between two readings of the TSC, several times; the tightest counts.
    fn take(pit: &mut Pit, with_apic: bool) -> Self {
        let mut best = (u64::MAX, Self { pit: 0, tsc: 0, apic: 0 });
        for _ in 0..READINGS {
            let before = cpu::timestamp();
            let ticks = pit.elapsed();
            let apic = if with_apic { apic::timer::remaining() } else { 0 };
            let width = cpu::timestamp().wrapping_sub(before);
            if width < best.0 {
                best = (width, Self { pit: ticks, tsc: before + width / 2, apic });
            }
        }
        best.1
    }
}

/// Measures both rates.
///
/// # Safety
/// The boot processor with interrupts off, x2APIC on, nobody else using the PIT or this processor's timer.
pub unsafe fn calibrate() -> Result<Rates, Uncalibrated> {
    let defined = cpu::apic_hz_by_definition();
    let mut last: Option<(u64, u64)> = None;
    for _ in 0..ATTEMPTS {
        // SAFETY: as the caller promised.
        let Some((tsc_hz, apic_hz)) = (unsafe { measure(defined) })? else { continue };
        if let Some((tsc_before, apic_before)) = last.replace((tsc_hz, apic_hz)) {
            let spread = ppm(tsc_hz, tsc_before).max(ppm(apic_hz, apic_before));
            if spread <= TOLERANCE_PPM {
                let measured = (tsc_hz + tsc_before) / 2;
                let exact = cpu::tsc_hz_from_cpuid().filter(|&exact| ppm(exact, measured) < 10_000);
                let apic_hz = (apic_hz + apic_before) / 2;
                return Ok(Rates { tsc_hz: exact.unwrap_or(measured), apic_hz, spread_ppm: spread });
            }
        }
    }
    Err(Uncalibrated::Unsteady)
}

fn ppm(a: u64, b: u64) -> u64 {
    a.abs_diff(b) * 1_000_000 / a.max(b).max(1)
}

/// Both rates in hertz by one count, the APIC timer's only if `apic_hz` doesn't give it; nothing if this processor stood still for so long that the count ran out.
unsafe fn measure(apic_hz: Option<u64>) -> Result<Option<(u64, u64)>, Uncalibrated> {
    let mut pit = Pit::new();
    // SAFETY: as `calibrate`'s caller promised.
    unsafe {
        apic::timer::start_masked(u32::MAX);
        pit.start();
    }
    let begin = cpu::timestamp();
    let first = Moment::take(&mut pit, apic_hz.is_none());
    while pit.elapsed().wrapping_sub(first.pit) < SAMPLE_TICKS && !pit.done() {
        if cpu::timestamp().wrapping_sub(begin) > STUCK_TICKS {
            return Err(Uncalibrated::NoPit);
        }
    }
    let last = Moment::take(&mut pit, apic_hz.is_none());
    let ran_out = pit.done();
    // SAFETY: as above; stops the count.
    unsafe { apic::timer::start_masked(0) };
    if ran_out || last.pit <= first.pit {
        return Ok(None);
    }
    let ticks = u64::from(last.pit - first.pit);
    let hertz = |count: u64| count * PIT_HZ / ticks;
    let apic_hz = apic_hz.unwrap_or_else(|| hertz(u64::from(first.apic - last.apic)));
    Ok(Some((hertz(last.tsc - first.tsc), apic_hz)))
}
