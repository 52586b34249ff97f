//! Interrupt spin lock: data that an ISR shares with code below it, held at the interrupt's synchronize IRQL.
//!
//! That level is a device's and known at run time only, so this lock has no rank and its guard yields `Irql<Device>`, whose
//! type says "at least 3". Taking it at a level above its own would lower, and is a bugcheck in every build.
//!
//! The interrupt's dispatcher takes it before it calls the ISR (so from `Irql<Device>`), `KeSynchronizeExecution` from
//! wherever the driver is. That the same type allows one interrupt lock under another can't be ruled out here: levels known
//! at run time have no static order. The checked build's lock-order validator watches these locks like those of drivers.
//!
//! Invariants: I1 `value` is accessed only between a successful acquire of `word` and its release.
//!             I2 every holder is at `level` or above, so the ISR cannot interrupt a holder on its own processor.
//! Ordering:   word.rs.
//! Tests:      tests/models/tests/interrupt_lock.rs (I1); tests/props/tests/injection.rs (I2); the unit tests below.

use crate::guard;
use crate::irql::{AtOrBelow, Device, DeviceLevel, Irql, Raised};
use crate::lock_order::{Identity, Watched};
use crate::prim::{MutPtr, UnsafeCell, const_unless_loom};
use crate::word::{Held, Word};

/// A spin lock held at a device level, around a `T`.
#[doc(alias = "KeAcquireInterruptSpinLock")]
pub struct InterruptLock<T> {
    word: Word,
    identity: Identity,
    /// The synchronize IRQL.
    level: DeviceLevel,
    value: UnsafeCell<T>,
}

// SAFETY: one processor at a time reaches `value`, and always by `&mut` (I1).
unsafe impl<T: Send> Sync for InterruptLock<T> {}
// SAFETY: owning the lock is owning the T.
unsafe impl<T: Send> Send for InterruptLock<T> {}

impl<T> InterruptLock<T> {
    const_unless_loom! {
        /// A free lock, to be held at `level`: the highest of the interrupts that share the data.
        pub const fn new(level: DeviceLevel, value: T) -> Self {
            Self { word: Word::new(), identity: Identity::new(), level, value: UnsafeCell::new(value) }
        }
    }

    /// The synchronize IRQL.
    pub fn level(&self) -> DeviceLevel {
        self.level
    }

    /// Raises to the synchronize IRQL and spins until the lock is ours.
    ///
    /// # Bugchecks
    /// IRQL_NOT_GREATER_OR_EQUAL above the synchronize IRQL. Checked build: SPIN_LOCK_ALREADY_OWNED when this processor holds
    /// it, DRIVER_VERIFIER_DETECTED_VIOLATION when another order of this and a held lock has been seen.
    #[inline]
    #[track_caller]
    pub fn lock<'a, L: AtOrBelow<Device>>(&'a self, at: &'a mut Irql<L>) -> InterruptGuard<'a, T> {
        let raised = at.raise_device(self.level);
        let watched = Watched::acquire(self.identity.address());
        let held = Held::acquire(&self.word);
        InterruptGuard { value: self.value.get_mut(), held, watched, raised }
    }

    /// Is it held by anybody? Stale at once.
    pub fn is_locked(&self) -> bool {
        self.word.is_held()
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// Held; derefs to the data. Fields in the order of their drop, which is relied on: access, word, the validator's note, level.
#[must_use = "dropping it at once releases the lock"]
pub struct InterruptGuard<'a, T> {
    value: MutPtr<T>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Held<'a>,
    #[expect(dead_code, reason = "held for its drop")]
    watched: Watched,
    raised: Raised<'a, Device>,
}

guard::exclusive!([T] InterruptGuard<'_, T>, T, Device);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::at_passive;

    fn level(cr8: u8) -> DeviceLevel {
        DeviceLevel::new(cr8).unwrap()
    }

    #[test]
    fn held_at_its_level_from_below_and_from_the_isr() {
        let lock = InterruptLock::new(level(7), 1);
        at_passive(|at| {
            let mut guard = lock.lock(at);
            *guard += 1;
            assert_eq!((guard.parts().1.level(), arch::irql::current()), (7, 7));
            drop(guard);
            let mut isr = at.raise_device(level(5));
            assert_eq!(*lock.lock(&mut isr), 2);
            assert_eq!(arch::irql::current(), 5);
        });
    }

    #[test]
    fn taking_it_above_its_level_is_a_bugcheck() {
        let lock = InterruptLock::new(level(4), ());
        let stop = arch::stop::catch(|| at_passive(|at| drop(lock.lock(&mut at.raise_device(level(5))))));
        let stop = stop.expect("a bugcheck");
        assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0x09, 5, 4));
        assert!(!lock.is_locked());
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn two_interrupt_locks_in_both_orders_are_a_bugcheck() {
        let (a, b) = (InterruptLock::new(level(5), ()), InterruptLock::new(level(5), ()));
        let nested = |outer: &InterruptLock<()>, inner: &InterruptLock<()>| {
            arch::stop::catch(|| at_passive(|at| drop(inner.lock(outer.lock(at).parts().1))))
        };
        assert_eq!(nested(&a, &b), None);
        assert_eq!(nested(&b, &a).map(|stop| stop.code), Some(0xC4));
    }
}
