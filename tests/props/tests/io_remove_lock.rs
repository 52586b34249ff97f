//! Remove locks, one step after the other, against a count: who gets one, and when a removal ends.

use kernel::io::remove_lock::KRemoveLock;
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

#[test]
fn a_removal_ends_with_the_last_release_and_nobody_comes_behind() {
    // SAFETY: a test's thread is a processor of its own at PASSIVE, and has no other token.
    unsafe {
        Irql::<Passive>::with(|at| {
            for users in 0..5 {
                let lock = KRemoveLock::new();
                (0..users).for_each(|_| assert_eq!(lock.acquire(at), Ok(())));
                (0..users).for_each(|_| lock.release(at));
                assert!(!lock.is_removed());
                // The remover's own is the last.
                assert_eq!(lock.acquire(at), Ok(()));
                lock.release_and_wait(at);
                assert!(lock.is_removed());
                for _ in 0..3 {
                    assert_eq!(lock.acquire(at), Err(NtStatus::DELETE_PENDING));
                }
            }
        });
    }
}
