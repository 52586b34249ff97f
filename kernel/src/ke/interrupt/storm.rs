//! When unclaimed interrupts are a storm: a leaky bucket for each vector.
//!
//! An unclaimed delivery adds 1, a claimed one takes [`LEAK`] away. [`LIMIT`] in the bucket is a storm: 1000 in a row, or about
//! 89 % unclaimed for long enough, so that a line is recognised on which a healthy device works beside a stuck one. A pause of
//! [`GAP_MICROSECONDS`] between two unclaimed ones empties the bucket: noise at a few interrupts a second is none.
//!
//! The claimed path is one load while the bucket is empty. Several processors may be in here for one vector; counts are then
//! approximate, but the step to `LIMIT` is one addition's, so one processor sees it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Unclaimed interrupts that make a storm.
pub const LIMIT: u32 = 1000;
/// What a claimed one makes up for.
pub const LEAK: u32 = 8;
/// After so long without an unclaimed one, counting starts anew.
pub const GAP_MICROSECONDS: u64 = 100_000;

/// See the module.
pub struct Bucket {
    level: AtomicU32,
    /// When the last unclaimed one came, in microseconds since start.
    last: AtomicU64,
}

impl Bucket {
    /// Empty.
    pub const fn new() -> Self {
        Self { level: AtomicU32::new(0), last: AtomicU64::new(0) }
    }

    /// An interrupt was claimed.
    #[inline]
    pub fn claimed(&self) {
        let level = self.level.load(Ordering::Relaxed);
        if level != 0 {
            self.level.store(level.saturating_sub(LEAK), Ordering::Relaxed);
        }
    }

    /// An interrupt at `now` was not claimed. True when this one makes it a storm: once, until emptied.
    #[cold]
    pub fn unclaimed(&self, now: u64) -> bool {
        let last = self.last.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) > GAP_MICROSECONDS {
            self.level.store(0, Ordering::Relaxed);
        }
        self.level.fetch_add(1, Ordering::Relaxed) + 1 == LIMIT
    }

    /// Starts anew.
    pub fn empty(&self) {
        self.level.store(0, Ordering::Relaxed);
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Storms recognised in `count` interrupts, `period` apart, of which `is_claimed` says which are.
    fn storms(count: u64, period: u64, is_claimed: impl Fn(u64) -> bool) -> usize {
        let bucket = Bucket::new();
        let storms = |n: &u64| {
            if is_claimed(*n) {
                bucket.claimed();
                return false;
            }
            bucket.unclaimed(n * period)
        };
        (0..count).filter(storms).count()
    }

    #[test]
    fn a_thousand_in_a_row_are_one_storm() {
        assert_eq!(storms(999, 10, |_| false), 0);
        assert_eq!(storms(100_000, 10, |_| false), 1);
    }

    #[test]
    fn one_healthy_device_does_not_hide_a_stuck_one() {
        assert_eq!(storms(100_000, 10, |n| n.is_multiple_of(20)), 1);
    }

    #[test]
    fn a_shared_line_at_work_is_no_storm() {
        // Each interrupt of a device that is first heard by others' ISRs is claimed in the end; a few come too late.
        assert_eq!(storms(100_000, 10, |n| !n.is_multiple_of(4)), 0);
    }

    #[test]
    fn noise_is_no_storm() {
        assert_eq!(storms(100_000, GAP_MICROSECONDS + 1, |_| false), 0);
    }

    #[test]
    fn emptied_it_counts_anew() {
        let bucket = Bucket::new();
        assert_eq!((0..LIMIT).filter(|_| bucket.unclaimed(5)).count(), 1);
        bucket.empty();
        assert_eq!((0..LIMIT).filter(|_| bucket.unclaimed(5)).count(), 1);
    }
}
