//! The one place that names core's or loom's atomics, cells and spin hint; everything else in this crate takes them from here.
//! `wide` is a word of 16 bytes.
//!
//! Three shapes:
//! - the image: core's own types;
//! - the host: core's, each operation being a point at which `arch::inject` may deliver a virtual interrupt (a lock-free
//!   protocol makes no call of arch between its steps, so its interrupts must arrive at its atomics);
//! - a model (`cfg(loom)`): loom's. Constructors are then not `const`; [`const_unless_loom`] writes both.

pub(crate) use core::sync::atomic::Ordering;

/// Writes a constructor that is `const` everywhere but in a model.
macro_rules! const_unless_loom {
    ($(#[$attr:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$attr])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$attr])* $vis fn $($rest)*
    };
}
pub(crate) use const_unless_loom;

#[cfg(loom)]
pub(crate) use loom::{
    cell::{ConstPtr, MutPtr, UnsafeCell},
    sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence},
};

#[cfg(not(loom))]
pub(crate) use cell::{ConstPtr, MutPtr, UnsafeCell};

#[cfg(target_os = "none")]
pub(crate) use core::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence,
};

#[cfg(all(not(target_os = "none"), not(loom)))]
pub(crate) use interruptible::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};

mod wide;
pub(crate) use wide::Wide;

/// Waiting for another processor: exponentially more pauses, up to 64. In the image crossbeam's; without std it never
/// yields, which is what a processor above PASSIVE needs. Elsewhere each step is one hint of the emulated processor, which
/// gives way to the other threads.
#[cfg(target_os = "none")]
pub(crate) use crossbeam_utils::Backoff;

#[cfg(not(target_os = "none"))]
pub(crate) struct Backoff;

#[cfg(not(target_os = "none"))]
impl Backoff {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn spin(&self) {
        arch::cpu::spin_hint();
    }
}

/// core's cell in loom's words, so that the code above reads the same in all three shapes.
#[cfg(not(loom))]
mod cell {
    pub(crate) struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);
    pub(crate) struct ConstPtr<T: ?Sized>(*const T);
    pub(crate) struct MutPtr<T: ?Sized>(*mut T);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }

    impl<T: ?Sized> UnsafeCell<T> {
        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }

        /// For a reading access that lasts longer than a closure: loom sees it end with the `ConstPtr`.
        #[inline(always)]
        pub(crate) fn get(&self) -> ConstPtr<T> {
            ConstPtr(self.0.get())
        }

        /// For a writing access that lasts longer than a closure.
        #[inline(always)]
        pub(crate) fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    impl<T: ?Sized> ConstPtr<T> {
        /// # Safety
        /// As for dereferencing a raw pointer: nobody writes while the reference lives.
        #[inline(always)]
        pub(crate) unsafe fn deref(&self) -> &T {
            // SAFETY: the caller's.
            unsafe { &*self.0 }
        }
    }

    impl<T: ?Sized> MutPtr<T> {
        /// # Safety
        /// As for dereferencing a raw pointer: nobody else reads or writes while the reference lives.
        #[inline(always)]
        #[expect(clippy::mut_from_ref, reason = "loom's signature; it is a raw pointer")]
        pub(crate) unsafe fn deref(&self) -> &mut T {
            // SAFETY: the caller's.
            unsafe { &mut *self.0 }
        }
    }
}

#[cfg(all(not(target_os = "none"), not(loom)))]
mod interruptible {
    use super::Ordering;
    use arch::inject::point;
    use core::sync::atomic;

    /// A fence, and a point.
    pub(crate) fn fence(order: Ordering) {
        point();
        atomic::fence(order);
    }

    macro_rules! operations {
        ($value:ty) => {
            pub(crate) fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            #[allow(dead_code, reason = "not every width uses every operation")]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.swap(value, order)
            }

            #[allow(dead_code, reason = "not every width uses every operation")]
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(current, new, success, failure)
            }
        };
    }

    macro_rules! integer {
        ($name:ident, $value:ty) => {
            /// core's atomic, each operation preceded by a point.
            #[repr(transparent)]
            pub(crate) struct $name(atomic::$name);

            #[allow(dead_code, reason = "not every width uses every operation")]
            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                operations!($value);

                pub(crate) fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                    point();
                    self.0.fetch_or(bits, order)
                }

                pub(crate) fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                    point();
                    self.0.fetch_and(bits, order)
                }

                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    point();
                    self.0.fetch_add(value, order)
                }

                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    point();
                    self.0.fetch_sub(value, order)
                }
            }
        };
    }

    integer!(AtomicU8, u8);
    integer!(AtomicU16, u16);
    integer!(AtomicU32, u32);
    integer!(AtomicU64, u64);
    integer!(AtomicUsize, usize);

    /// core's atomic pointer, each operation preceded by a point.
    #[repr(transparent)]
    pub(crate) struct AtomicPtr<T>(atomic::AtomicPtr<T>);

    impl<T> AtomicPtr<T> {
        pub(crate) const fn new(value: *mut T) -> Self {
            Self(atomic::AtomicPtr::new(value))
        }

        operations!(*mut T);
    }
}
