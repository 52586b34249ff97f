//! IRQL and `KSPIN_LOCK` for drivers: by number and address, without tokens.
//!
//! What the typed interface refuses to compile is checked here at run time, in every build: a raise that would lower is
//! IRQL_NOT_GREATER_OR_EQUAL, a lower that would raise IRQL_NOT_LESS_OR_EQUAL, both with the current and the wanted level as
//! their first parameters and the call site as the third. In the checked build a lock knows its owner (word.rs) and the order
//! of acquires is watched (lock_order.rs).
//!
//! Called by:  the export table that foreign drivers bind to, and nothing else.
//! Not as NT:  `Result`-free and without the lock's address in 0x09 / 0x0A: the parameters are the levels.
//! Tests:      the unit tests below; tests/props/tests/lock_order.rs.

use core::panic::Location;

use crate::irql::{Dispatch, Fixed, stop};
use crate::lock_order;
use crate::prim::const_unless_loom;
use crate::word::Word;

/// NT's `KSPIN_LOCK`: 8 bytes, 0 is free.
#[repr(transparent)]
#[doc(alias = "KSPIN_LOCK")]
pub struct KSpinLock(Word);

crate::nt_layout! { [] KSpinLock = "KSPIN_LOCK" {} }

#[cfg(not(loom))]
const _: () = assert!(size_of::<KSpinLock>() == 8 && align_of::<KSpinLock>() == 8, "drivers allocate it");

impl KSpinLock {
    const_unless_loom! {
        /// A free lock.
        pub const fn new() -> Self {
            Self(Word::new())
        }
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}

impl Default for KSpinLock {
    fn default() -> Self {
        Self::new()
    }
}

#[cold]
#[track_caller]
fn wrong_level(code: u32, current: u8, wanted: u8) -> ! {
    arch::fatal_at(code, [current.into(), wanted.into(), Location::caller().into(), 0_u64.into()]);
}

/// Raises to `wanted`, at least the current level; returns that.
///
/// # Safety
/// Foreign code runs, whose level the caller answers for: no token of this processor is used until it is restored.
#[track_caller]
#[doc(alias = "KfRaiseIrql")]
#[doc(alias = "KeRaiseIrql")]
pub unsafe fn raise_irql(wanted: u8) -> u8 {
    let current = arch::irql::current();
    if wanted < current || wanted > 15 {
        wrong_level(stop::IRQL_NOT_GREATER_OR_EQUAL, current, wanted);
    }
    // SAFETY: the caller's; at most 15 by the check.
    unsafe { arch::irql::set(wanted) };
    current
}

/// Lowers to `wanted`, at most the current level.
///
/// # Safety
/// As [`raise_irql`]; `wanted` is what a raise returned.
#[track_caller]
#[doc(alias = "KeLowerIrql")]
pub unsafe fn lower_irql(wanted: u8) {
    let current = arch::irql::current();
    if wanted > current {
        wrong_level(stop::IRQL_NOT_LESS_OR_EQUAL, current, wanted);
    }
    // SAFETY: the caller's; not above the current level, so at most 15.
    unsafe { arch::irql::set(wanted) };
}

/// Makes the memory a free lock. In the checked build, forgets what was known about a lock that was there before.
///
/// # Safety
/// `lock` is valid for writes and aligned, and no lock that is in use.
#[doc(alias = "KeInitializeSpinLock")]
pub unsafe fn initialize(lock: *mut KSpinLock) {
    // SAFETY: the caller's.
    unsafe { lock.write(KSpinLock::new()) };
    #[cfg(all(feature = "verifier", not(loom)))]
    lock_order::forget(lock.addr()..lock.addr() + 1);
}

/// Raises to DISPATCH and acquires; returns the level to give to [`release`].
///
/// # Safety
/// As [`raise_irql`]; the level is restored by [`release`], or by [`lower_irql`] after [`release_from_dpc_level`].
#[track_caller]
#[doc(alias = "KeAcquireSpinLock")]
#[doc(alias = "KeAcquireSpinLockRaiseToDpc")]
pub unsafe fn acquire(lock: &KSpinLock) -> u8 {
    // SAFETY: the caller's.
    let old = unsafe { raise_irql(Dispatch::CR8) };
    // SAFETY: at DISPATCH now.
    unsafe { acquire_at_dpc_level(lock) };
    old
}

/// Acquires without changing the level.
///
/// # Safety
/// This processor is at DISPATCH or above, and stays there until the release.
#[track_caller]
#[doc(alias = "KeAcquireSpinLockAtDpcLevel")]
pub unsafe fn acquire_at_dpc_level(lock: &KSpinLock) {
    at_dispatch_or_above();
    lock_order::acquiring(lock.address());
    lock.0.acquire();
}

/// Acquires if the lock is free, without changing the level; never spins.
///
/// # Safety
/// As [`acquire_at_dpc_level`].
#[track_caller]
#[doc(alias = "KeTryToAcquireSpinLockAtDpcLevel")]
pub unsafe fn try_acquire_at_dpc_level(lock: &KSpinLock) -> bool {
    at_dispatch_or_above();
    let acquired = lock.0.try_acquire();
    if acquired {
        lock_order::acquired_by_try(lock.address());
    }
    acquired
}

/// Releases without changing the level. Locks may be released in any order.
///
/// # Safety
/// The caller holds the lock, and uses nothing that it protects any more.
#[track_caller]
#[doc(alias = "KeReleaseSpinLockFromDpcLevel")]
pub unsafe fn release_from_dpc_level(lock: &KSpinLock) {
    at_dispatch_or_above();
    // SAFETY: the caller's.
    unsafe { lock.0.release() };
    lock_order::released(lock.address());
}

/// Releases, and lowers to `old`.
///
/// # Safety
/// As [`release_from_dpc_level`]; `old` is what the [`acquire`] returned.
#[track_caller]
#[doc(alias = "KeReleaseSpinLock")]
pub unsafe fn release(lock: &KSpinLock, old: u8) {
    // SAFETY: the caller's.
    unsafe { release_from_dpc_level(lock) };
    // SAFETY: the caller's.
    unsafe { lower_irql(old) };
}

/// Is the lock free? Stale at once.
#[doc(alias = "KeTestSpinLock")]
pub fn is_free(lock: &KSpinLock) -> bool {
    !lock.0.is_held()
}

/// Checked build: IRQL_UNEXPECTED_VALUE below DISPATCH, where the holder could be switched away from.
#[inline(always)]
#[track_caller]
fn at_dispatch_or_above() {
    #[cfg(feature = "verifier")]
    {
        let current = arch::irql::current();
        if current < Dispatch::CR8 {
            wrong_level(stop::IRQL_UNEXPECTED_VALUE, current, Dispatch::CR8);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use arch::stop::catch;

    /// A lock of which the validator knows nothing yet, wherever another test's was.
    fn new_lock() -> Box<KSpinLock> {
        let mut lock = Box::new(KSpinLock::new());
        // SAFETY: ours alone.
        unsafe { initialize(&raw mut *lock) };
        lock
    }

    /// # Safety of the levels in these tests: the thread has no token, and nothing else relies on its level.
    fn bugcheck(f: impl FnOnce()) -> (u32, u64, u64) {
        let stop = catch(f).expect("a bugcheck");
        (stop.code, stop.parameters[0], stop.parameters[1])
    }

    #[test]
    fn acquire_raises_and_release_lowers_to_what_it_is_told() {
        let (first, second) = (new_lock(), new_lock());
        // SAFETY: as above; each lock is held when it is released.
        unsafe {
            let old = raise_irql(1);
            let outer = acquire(&first);
            let inner = acquire(&second);
            assert_eq!((old, outer, inner, arch::irql::current()), (0, 1, 2, 2));
            assert!(!is_free(&first) && !is_free(&second));
            // Not in reverse order.
            release_from_dpc_level(&first);
            release(&second, inner);
            assert!(is_free(&first) && is_free(&second));
            lower_irql(outer);
            assert_eq!(arch::irql::current(), 1);
            lower_irql(old);
        }
    }

    #[test]
    fn try_does_not_spin() {
        let lock = new_lock();
        // SAFETY: as above.
        unsafe {
            let old = raise_irql(2);
            assert!(try_acquire_at_dpc_level(&lock));
            std::thread::scope(|s| {
                s.spawn(|| {
                    arch::irql::set(2);
                    assert!(!try_acquire_at_dpc_level(&lock));
                });
            });
            release_from_dpc_level(&lock);
            lower_irql(old);
        }
        assert!(is_free(&lock));
    }

    #[test]
    fn wrong_directions_are_bugchecks_with_both_levels() {
        // SAFETY: as above; `catch` restores the level.
        unsafe {
            assert_eq!(bugcheck(|| lower_irql(2)), (0x0A, 0, 2));
            let old = raise_irql(5);
            assert_eq!(bugcheck(|| _ = raise_irql(2)), (0x09, 5, 2));
            assert_eq!(bugcheck(|| _ = acquire(&new_lock())), (0x09, 5, 2));
            assert_eq!(bugcheck(|| _ = raise_irql(16)), (0x09, 5, 16));
            lower_irql(old);
        }
    }

    #[test]
    fn initialize_makes_any_memory_a_free_lock() {
        let mut lock = new_lock();
        // SAFETY: nobody else knows the lock; as above.
        unsafe {
            let old = acquire(&lock);
            initialize(&raw mut *lock);
            assert!(is_free(&lock));
            lower_irql(old);
        }
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn the_checked_build_finds_recursion_foreign_release_and_low_levels() {
        let lock = new_lock();
        // SAFETY: as above.
        unsafe {
            assert_eq!(bugcheck(|| acquire_at_dpc_level(&lock)).0, 0xC8);
            let old = acquire(&lock);
            assert_eq!(bugcheck(|| acquire_at_dpc_level(&lock)).0, 0x0F);
            release_from_dpc_level(&lock);
            assert_eq!(bugcheck(|| release_from_dpc_level(&lock)).0, 0x10);
            lower_irql(old);
        }
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn two_locks_in_both_orders_are_reported_with_both_call_sites() {
        let (a, b) = (new_lock(), new_lock());
        let nested = |outer: &KSpinLock, inner: &KSpinLock| {
            // SAFETY: as above; each is held when it is released.
            unsafe {
                let old = acquire(outer);
                let stop = catch(|| {
                    acquire_at_dpc_level(inner);
                    release_from_dpc_level(inner);
                });
                release(outer, old);
                stop
            }
        };
        assert_eq!(nested(&a, &b), None);
        let stop = nested(&b, &a).expect("a bugcheck");
        assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0xC4, 0x1001, a.address() as u64));
        // Both were acquired at the same line of this test. One line may have several `Location`s; under Miri it does.
        assert!(cfg!(miri) || stop.parameters[2] == stop.parameters[3]);
    }
}
