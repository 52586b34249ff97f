//! Checked build: allocations that fail on purpose, so that what follows a failure is tried.
//!
//! Every allocation of pages, of a promise of some, of addresses for a mapping, or of pool asks here first and counts. One is then
//! refused: the n-th from now (`fail_at=n` on the command line counts from the image's main, `fail_boot_at=n` from the first of bring-up to the image's main), or
//! each by chance (`fail_one_in=n`, with `seed=`). What is refused looks as if memory had run out, and takes nothing.
//!
//! IRQL:  any. Without the feature `verifier`, nothing of this is compiled.
//! Tests: selftest with `inject` on the command line (tests/selftest/src/inject.rs); bring-up's by ci/src/refusals.rs; `make inject`.

use core::sync::atomic::{AtomicU64, Ordering};

/// Allocations until the one that fails; zero: none does.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// One in so many fails by chance; zero: none does.
static ONE_IN: AtomicU64 = AtomicU64::new(0);
/// The state of that chance.
static RANDOM: AtomicU64 = AtomicU64::new(0);
/// Allocations that were refused since the last setting.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The `n`-th allocation from now fails, on whatever processor; zero: none.
pub fn fail_nth(n: u64) {
    ONE_IN.store(0, Ordering::Relaxed);
    REFUSED.store(0, Ordering::Relaxed);
    LEFT.store(n, Ordering::SeqCst);
}

/// One in `n` allocations fails, as `seed` says; zero: none.
pub fn fail_one_in(n: u64, seed: u64) {
    REFUSED.store(0, Ordering::Relaxed);
    LEFT.store(0, Ordering::Relaxed);
    RANDOM.store(seed, Ordering::Relaxed);
    ONE_IN.store(n, Ordering::SeqCst);
}

/// Nothing fails from now on. Says how many allocations did.
pub fn stop() -> u64 {
    LEFT.store(0, Ordering::SeqCst);
    ONE_IN.store(0, Ordering::SeqCst);
    REFUSED.load(Ordering::SeqCst)
}

/// Allocations until the one that fails.
pub fn left() -> u64 {
    LEFT.load(Ordering::SeqCst)
}

/// Shall this allocation fail?
#[inline]
pub(super) fn fails() -> bool {
    if LEFT.load(Ordering::Relaxed) == 0 && ONE_IN.load(Ordering::Relaxed) == 0 {
        return false;
    }
    is_chosen()
}

#[cold]
fn is_chosen() -> bool {
    let one_in = ONE_IN.load(Ordering::Relaxed);
    let chosen = if one_in != 0 {
        let step = RANDOM.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (step ^ step >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 31).is_multiple_of(one_in)
    } else {
        // Whoever counts down to zero is the n-th.
        LEFT.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1)
    };
    if chosen {
        REFUSED.fetch_add(1, Ordering::Relaxed);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_fails_and_no_other() {
        let fails = |count: usize| (0..count).map(|_| fails()).collect::<Vec<_>>();
        fail_nth(3);
        assert_eq!(fails(5), [false, false, true, false, false]);
        assert_eq!(stop(), 1);
        fail_nth(1);
        assert_eq!(fails(2), [true, false]);
        fail_nth(10);
        assert_eq!(fails(2), [false, false]);
        assert_eq!(stop(), 0);
        fail_one_in(4, 7);
        let first = fails(1000);
        let refused = stop();
        fail_one_in(4, 7);
        assert_eq!(first, fails(1000), "the same seed, other failures");
        assert!((150..350).contains(&refused), "{refused} of 1000");
        assert_eq!(stop(), refused);
        assert!(!fails(100).contains(&true));
    }
}
