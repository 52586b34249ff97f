//! How much memory is left, as two conditions with hysteresis: what NT's LowMemoryCondition and HighMemoryCondition say. Pure.
//!
//! ```text
//!  available   0 ......... low ......... 2 low ......... 3 low .........
//!  Low         set below   ├─ as it was ─┤  clear from here on
//!  High                      clear below ├─ as it was ──┤  set from here on
//! ```
//!
//! Tests: the unit tests below; selftest `memory_pressure::*`.

/// Which of the conditions hold: not both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Little is left: who can give something back should.
    pub low: bool,
    /// There is plenty.
    pub high: bool,
}

/// The conditions, and where they change.
#[derive(Debug)]
pub struct Pressure {
    low_below: u32,
    conditions: Conditions,
}

impl Pressure {
    /// No memory, no condition.
    pub const fn new() -> Self {
        Self { low_below: 0, conditions: Conditions { low: false, high: false } }
    }

    /// The machine has `total` pages. Low is below a 128th of them, but at least 64 pages and at most 64 MiB.
    pub fn set_total(&mut self, total: u32) {
        self.low_below = (total / 128).clamp(64, 64 << 8);
    }

    /// `available` pages are left. Says whether a condition changed.
    #[inline]
    pub fn update(&mut self, available: u32) -> bool {
        let low = self.low_below;
        let Conditions { low: was_low, high: was_high } = self.conditions;
        let now = Conditions {
            low: available < if was_low { 2 * low } else { low },
            high: available >= if was_high { 2 * low } else { 3 * low } && low > 0,
        };
        self.conditions = now;
        (was_low, was_high) != (now.low, now.high)
    }

    /// Which hold.
    pub fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// Below so many pages is little.
    pub fn low_below(&self) -> u32 {
        self.low_below
    }
}

impl Default for Pressure {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pressure: &mut Pressure, available: u32) -> (bool, bool, bool) {
        let changed = pressure.update(available);
        (changed, pressure.conditions().low, pressure.conditions().high)
    }

    #[test]
    fn conditions_change_late_and_are_told_once() {
        let mut pressure = Pressure::new();
        pressure.set_total(128 * 100);
        for (available, expected) in [
            (1000, (true, false, true)),
            (200, (false, false, true)),
            (199, (true, false, false)),
            (299, (false, false, false)),
            (100, (false, false, false)),
            (99, (true, true, false)),
            (0, (false, true, false)),
            (199, (false, true, false)),
            (200, (true, false, false)),
            (300, (true, false, true)),
            (50, (true, true, false)),
            (5000, (true, false, true)),
        ] {
            assert_eq!(after(&mut pressure, available), expected, "{available}");
        }
    }

    #[test]
    fn thresholds_follow_the_machine() {
        let low_below = |total| {
            let mut pressure = Pressure::new();
            pressure.set_total(total);
            pressure.low_below()
        };
        // 512 MiB, 1 MiB, 1 TiB.
        assert_eq!([low_below(1 << 17), low_below(256), low_below(1 << 28)], [1024, 64, 16384]);
        assert_eq!(Pressure::new().conditions(), Conditions::default());
    }
}
