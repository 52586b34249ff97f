//! Connecting an interrupt object to a vector, and taking it off again so that it may be freed.
//!
//! The slot, which is part of the vector and never goes away, holds a pointer to the object and the number of processors that
//! are inside its ISR. The count can't be in the object: a processor that has read the pointer and not yet counted would
//! count in freed memory.
//!
//! | `object` | means | next |
//! |---|---|---|
//! | null | free | a pointer, by `publish` |
//! | a pointer | connected | `CLOSING`, by `withdraw` |
//! | `CLOSING` | disconnected, somebody may still be inside | null, by the same `withdraw` |
//!
//! ```text
//! ISR dispatch                          withdraw
//! object: none? leave, uncounted        object := CLOSING
//! running += 1                          .
//! fence                                 fence
//! object: none? running -= 1, leave     wait for running = 0   (Acquire)
//! run it; running -= 1   (Release)  ->  object := null; it may be freed
//! ```
//!
//! Invariants: I1 an ISR runs with a pointer => it is counted, and `withdraw` of that pointer has not returned.
//! Ordering:   the two middle steps are a store-buffering pair, so each side has a SeqCst fence between its write and its read:
//!             at least one of them sees the other. The uncounted first look keeps the wait finite: once CLOSING is visible,
//!             an interrupt that goes on firing adds nothing to the count.
//! IRQL:       `enter` in the interrupt; `publish` and `withdraw` at PASSIVE or APC. Withdrawing inside the object's own ISR
//!             would wait for itself: the token it needs doesn't exist there. What `enter` gives holds its token, so nobody
//!             waits or lowers inside.
//! Tests:      tests/models/tests/disconnect.rs (I1); tests/props/tests/injection.rs; the unit tests below.

use core::ops::Deref;
use core::ptr::{self, NonNull};

use crate::irql::{AtLeastDispatch, Irql, MayBlock};
use crate::prim::{AtomicPtr, AtomicU32, Backoff, Ordering, const_unless_loom, fence};

/// A place for one object that interrupts enter.
pub struct Slot<T> {
    object: AtomicPtr<T>,
    /// Processors between the second look and the end of the ISR.
    running: AtomicU32,
}

// SAFETY: the slot hands out `&T` on any processor, hence `T: Sync`; it owns no T.
unsafe impl<T: Sync> Sync for Slot<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for Slot<T> {}

fn closing<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

impl<T> Slot<T> {
    const_unless_loom! {
        /// A free one.
        pub const fn new() -> Self {
            Self { object: AtomicPtr::new(ptr::null_mut()), running: AtomicU32::new(0) }
        }
    }

    /// Connects `object`; false when the slot is taken, or was taken and its `withdraw` hasn't returned.
    ///
    /// # Safety
    /// `object` stays valid, and is accessed by shared reference only, until a `withdraw` has returned it.
    pub unsafe fn publish<L: MayBlock>(&self, object: NonNull<T>, at: &mut Irql<L>) -> bool {
        at.check();
        // Release: the object before its pointer.
        let free = ptr::null_mut();
        self.object.compare_exchange(free, object.as_ptr(), Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Enters the connected object, if there is one. While the returned value lives, the object does, and this processor stays at
    /// the level: a thread that kept it below DISPATCH could be switched away from, and its `withdraw` would wait for that.
    #[inline]
    pub fn enter<'a, L: AtLeastDispatch>(&'a self, at: &'a mut Irql<L>) -> Option<Running<'a, T, L>> {
        at.check();
        self.look(Ordering::Relaxed)?;
        self.running.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Counted first, looked second. Acquire: the pointer before the object.
        let counted = Leave(&self.running);
        let object = self.look(Ordering::Acquire)?;
        Some(Running { object, counted, at })
    }

    /// Is an object connected? Stale at once.
    pub fn is_connected(&self) -> bool {
        self.look(Ordering::Relaxed).is_some()
    }

    /// Disconnects the object and waits until no processor is inside its ISR. Then it is the caller's again. Nothing when
    /// none is connected.
    pub fn withdraw<L: MayBlock>(&self, at: &mut Irql<L>) -> Option<NonNull<T>> {
        at.check();
        let object = self.look(Ordering::Relaxed)?;
        let closing = closing();
        // Whoever moves it to CLOSING is the one that withdraws.
        self.object.compare_exchange(object.as_ptr(), closing, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        fence(Ordering::SeqCst);
        let backoff = Backoff::new();
        while self.running.load(Ordering::Acquire) != 0 {
            backoff.spin();
        }
        self.object.store(ptr::null_mut(), Ordering::Release);
        Some(object)
    }

    #[inline]
    fn look(&self, order: Ordering) -> Option<NonNull<T>> {
        let object = self.object.load(order);
        if object == closing() { None } else { NonNull::new(object) }
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Inside the ISR of a connected object; derefs to it. [`parts`](Self::parts) gives the token as well, for what is done inside.
/// Dropping it leaves.
#[must_use = "the object may be freed once this is dropped"]
pub struct Running<'a, T, L: AtLeastDispatch> {
    object: NonNull<T>,
    #[expect(dead_code, reason = "held for its drop")]
    counted: Leave<'a>,
    at: &'a mut Irql<L>,
}

impl<T, L: AtLeastDispatch> Running<'_, T, L> {
    /// The object and the token, both until this leaves.
    #[inline]
    pub fn parts(&mut self) -> (&T, &mut Irql<L>) {
        // SAFETY: as in `deref`.
        (unsafe { self.object.as_ref() }, self.at)
    }
}

impl<T, L: AtLeastDispatch> Deref for Running<'_, T, L> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: I1: we are counted, so the `withdraw` that ends `publish`'s promise hasn't returned.
        unsafe { self.object.as_ref() }
    }
}

/// Counted; uncounts when dropped.
struct Leave<'a>(&'a AtomicU32);

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::{Device, DeviceLevel, Passive};

    #[test]
    fn connect_enter_disconnect_and_again() {
        let slot = Slot::new();
        let (first, second) = (1, 2);
        let device = DeviceLevel::new(5).unwrap();
        // SAFETY: a test thread is a processor at PASSIVE, with one token; both objects outlive the slot's use of them.
        unsafe {
            Irql::<Passive>::with(|at| {
                assert!(slot.withdraw(at).is_none());
                assert!(slot.publish(NonNull::from(&first), at));
                assert!(!slot.publish(NonNull::from(&second), at));
                assert_eq!(slot.enter::<Device>(&mut at.raise_device(device)).as_deref(), Some(&1));
                assert_eq!(slot.withdraw(at), Some(NonNull::from(&first)));
                assert!(slot.enter::<Device>(&mut at.raise_device(device)).is_none());
                assert!(slot.publish(NonNull::from(&second), at));
                assert_eq!(slot.withdraw(at), Some(NonNull::from(&second)));
            });
        }
    }
}
