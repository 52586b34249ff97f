//! Counts of a counter against 100 ns, in either direction: what the clock is read and programmed by.
//!
//! A division would cost more than everything else that reading the time does, so a rate is kept as a fraction whose product with a
//! count has the result in its upper half.
//!
//! Sources: SDM vol. 3, "APIC Timer", "TSC-Deadline Mode".

/// 100 ns per second.
pub const SECOND: u64 = 10_000_000;
const DAY: u64 = 86_400 * SECOND;
/// A day of 100 ns times this fits 64 bits; with [`Programmed::counts`]' factor it makes 2⁶⁴.
const SCALE: u32 = 24;
const _: () = assert!(DAY < 1 << (64 - SCALE));

/// Of the product.
#[inline(always)]
pub fn high_half(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// 100 ns per count of a counter of `hz`, times 2⁶⁴: what [`high_half`] takes. Fits: none is as slow as 10 MHz.
pub fn units_per_count(hz: u64) -> u64 {
    ((u128::from(SECOND) << 64) / u128::from(hz)) as u64
}

/// How a timer that counts `hz` is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programmed {
    /// Counts per 100 ns, times 2⁴⁰.
    pub counts: u64,
    /// It is programmed for no longer than this, in 100 ns: as long as it can count, at most a day.
    pub longest: u64,
}

impl Programmed {
    /// One that takes the counter's value, of 64 bits: the TSC's deadline.
    pub fn deadline(hz: u64) -> Self {
        Self { counts: Self::scaled(hz), longest: DAY }
    }

    /// One that takes a count, of 32 bits: the APIC's own.
    pub fn one_shot(hz: u64) -> Self {
        // `counts_for` adds one.
        let most = u64::from(u32::MAX - 1);
        Self {
            counts: Self::scaled(hz),
            longest: (u128::from(most) * u128::from(SECOND) / u128::from(hz)).min(DAY.into()) as u64,
        }
    }

    fn scaled(hz: u64) -> u64 {
        ((u128::from(hz) << (64 - SCALE)) / u128::from(SECOND)) as u64
    }

    /// Counts until `after` (100 ns) is over, or sooner if the counter is too short: an interrupt that finds nothing due programs
    /// the rest.
    #[inline(always)]
    pub fn counts_for(self, after: u64) -> u64 {
        high_half(after.min(self.longest) << SCALE, self.counts) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's APIC, whose rate is a definition, slow and fast TSCs, and odd ones.
    const RATES: [u64; 7] =
        [10_000_001, 24_000_000, 1_000_000_000, 1_193_181_666, 2_596_084_000, 3_999_999_937, 9_900_000_000];

    /// Times of all magnitudes, and the ends.
    fn times(longest: u64) -> impl Iterator<Item = u64> {
        let magnitudes =
            (0..64).flat_map(|bits| [1_u64 << bits, (1 << bits) - 1, 0x9E37_79B9_7F4A_7C15 >> bits]);
        magnitudes.chain([0, longest, longest + 1, u64::MAX])
    }

    #[test]
    fn a_timer_is_programmed_to_the_count() {
        for hz in RATES {
            for (mode, most) in
                [(Programmed::deadline(hz), u64::MAX), (Programmed::one_shot(hz), u32::MAX.into())]
            {
                for after in times(mode.longest) {
                    let counts = mode.counts_for(after);
                    let exact = u128::from(after.min(mode.longest)) * u128::from(hz) / u128::from(SECOND);
                    assert!(
                        u128::from(counts).abs_diff(exact) <= 1,
                        "{after} at {hz} Hz: {counts} for {exact}"
                    );
                    assert!(counts > 0 && counts <= most, "{after} at {hz} Hz: {counts}");
                }
            }
        }
    }

    #[test]
    fn the_longest_is_nearly_what_the_counter_holds_and_at_most_a_day() {
        for hz in RATES {
            assert_eq!(Programmed::deadline(hz).longest, DAY);
            let longest = Programmed::one_shot(hz).longest;
            let unit_more = u128::from(longest + 1) * u128::from(hz) / u128::from(SECOND);
            assert!(unit_more >= u128::from(u32::MAX) - 2 - u128::from(hz / SECOND) && longest <= DAY);
        }
    }

    #[test]
    fn time_runs_at_its_rate_and_never_back() {
        for hz in RATES {
            let scale = units_per_count(hz);
            let mut last = 0;
            // Ten years in steps of no round number.
            let ten_years = 315_360_000_u64.saturating_mul(hz).min(u64::MAX / 2);
            for step in 0..1000 {
                let count = ten_years / 1000 * step + step * 977;
                let exact = u128::from(count) * u128::from(SECOND) / u128::from(hz);
                let units = high_half(count, scale);
                assert!(
                    u128::from(units) <= exact && exact - u128::from(units) <= 1 + u128::from(count >> 63),
                    "{count}"
                );
                assert!(units >= last && high_half(count + 1, scale) >= units);
                last = units;
            }
        }
    }
}
