//! How often each operation was done, and how long it took: a histogram by powers of two of time stamps.

use core::sync::atomic::{AtomicU64, Ordering};

use kernel::ke::clock;

const BUCKETS: usize = 48;

/// Of one kind of operation.
pub(super) struct Tally {
    /// For the table.
    pub(super) name: &'static str,
    count: AtomicU64,
    longest: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Tally {
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            name,
            count: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// One that took so many ticks of the TSC.
    pub(super) fn add(&self, ticks: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.longest.fetch_max(ticks, Ordering::Relaxed);
        let bucket = (64 - ticks.leading_zeros() as usize).min(BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Nanoseconds below which `percent` of them stayed, up to a factor of two.
    fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count.load(Ordering::Relaxed);
            if seen >= wanted {
                return nanoseconds((1 << bucket) - 1);
            }
        }
        nanoseconds(self.longest.load(Ordering::Relaxed))
    }

    /// A line of the table, which the harness reads (ci/src/guest.rs).
    pub(super) fn print(&self, microseconds: u64) {
        let (name, count) = (self.name, self.count());
        let rate = count * 1_000_000 / microseconds.max(1);
        let [half, most, nearly_all] = [50, 90, 99].map(|percent| self.percentile(percent));
        let longest = nanoseconds(self.longest.load(Ordering::Relaxed));
        kernel::info!(
            "stress: {name} {count} ops {rate}/s p50 {half} p90 {most} p99 {nearly_all} max {longest} ns"
        );
    }
}

fn nanoseconds(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(clock::tsc_hz().max(1))) as u64
}
