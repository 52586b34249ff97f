//! The checked build's limit for a stay at or above DISPATCH. In a program of its own, as limit and clock are everybody's; by a clock
//! that the test moves, so that no host is too slow for it.

use std::sync::atomic::{AtomicU64, Ordering};

use arch::stop::{Stop, catch};
use sync::irql::{Apc, Dispatch, High, Irql, Passive, set_dispatch_limit, set_stay_clock};

const PER_MILLISECOND: u64 = 1_000;

/// Never 0: that is a stay that isn't timed.
static NOW: AtomicU64 = AtomicU64::new(1);

fn pass(milliseconds: u64) {
    NOW.fetch_add(milliseconds * PER_MILLISECOND, Ordering::Relaxed);
}

fn at_passive(f: impl for<'a> FnOnce(&'a mut Irql<Passive>)) -> Option<Stop> {
    // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
    catch(|| unsafe { Irql::with(f) })
}

/// One stay at DISPATCH, a part of it at HIGH.
fn stay(milliseconds: u64) -> Option<Stop> {
    at_passive(|at| {
        let mut raised = at.raise::<Dispatch>();
        pass(milliseconds / 2);
        let high = raised.raise::<High>();
        pass(milliseconds - milliseconds / 2);
        drop(high);
    })
}

#[test]
fn the_verifier_finds_a_long_stay() {
    set_stay_clock(|| NOW.load(Ordering::Relaxed));
    assert_eq!(stay(1_000_000), None, "no limit yet");
    set_dispatch_limit(3_000, PER_MILLISECOND);
    assert_eq!(stay(3_000), None);
    let stop = stay(3_001).expect("a bugcheck");
    assert_eq!((stop.code, stop.parameters[..3].to_vec()), (0x133, vec![1, 3_001, 3_000]));
    // SAFETY: the stopped code left the level as it was then; nothing of it goes on.
    unsafe { arch::irql::set(0) };
    let below = at_passive(|at| {
        let mut raised = at.raise::<Apc>();
        pass(10_000);
        (0..10).for_each(|_| {
            drop(raised.raise::<Dispatch>());
            pass(1_000);
        });
    });
    assert_eq!(below, None, "APC is below DISPATCH, and each stay counts for itself");
    set_dispatch_limit(0, 1);
    assert_eq!(stay(1_000_000), None, "no limit any more");
}
