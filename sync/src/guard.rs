//! What every guard of a lock gives: the data, by reference or together with the token.
//!
//! One place for the argument that the guards have in common. A guard is a struct with the fields, in the order of their drop,
//!
//! ```text
//! value:  MutPtr<T> or ConstPtr<T>    the access to the data; ends first
//! (its own)                           what holds the lock; its drop releases
//! raised: Raised<'_, L>               the level; lowered last
//! ```
//!
//! Where the release needs the level's token, the last two are one struct, whose own drop releases and whose field lowers.
//!
//! Invariants: I1 such a struct is made only by an acquire of its lock that succeeded, and is not `Clone`: as long as it exists, its
//!                holder is the one that may use the value (`exclusive`), or one of those that may read it (`shared`).
//!             I2 a value can't be used longer than the guard is borrowed.
//! Used by:    spin.rs, queued.rs, rwspin.rs, interrupt_lock.rs, push_lock/guard.rs, fast_mutex.rs. Each says in its invariants what an
//!             acquire gives.

/// Access beside others: `shared!(['a, T, R: Rank] SharedGuard<'a, T, R>, T, R)`: generics, the guard, its data, its level, and
/// where its `Raised` is, if not in `raised`.
macro_rules! shared {
    ([$($generics:tt)*] $guard:ty, $data:ty, $level:ty) => {
        $crate::guard::shared!([$($generics)*] $guard, $data, $level, raised);
    };
    ([$($generics:tt)*] $guard:ty, $data:ty, $level:ty, $($raised:ident).+) => {
        impl<$($generics)*> $guard {
            /// The data and the token at once, for nesting another lock under this one.
            #[inline(always)]
            #[cfg_attr(feature = "verifier", track_caller)]
            pub fn parts(&mut self) -> (&$data, &mut $crate::irql::Irql<$level>) {
                self.$($raised).+.check();
                // SAFETY: nobody writes (I1), as long as the guard is borrowed (I2).
                (unsafe { self.value.deref() }, &mut self.$($raised).+)
            }
        }

        impl<$($generics)*> core::ops::Deref for $guard {
            type Target = $data;

            #[inline(always)]
            fn deref(&self) -> &$data {
                // SAFETY: as in `parts`.
                unsafe { self.value.deref() }
            }
        }
    };
}

/// Access alone; the same arguments.
macro_rules! exclusive {
    ([$($generics:tt)*] $guard:ty, $data:ty, $level:ty) => {
        $crate::guard::exclusive!([$($generics)*] $guard, $data, $level, raised);
    };
    ([$($generics:tt)*] $guard:ty, $data:ty, $level:ty, $($raised:ident).+) => {
        impl<$($generics)*> $guard {
            /// The data and the token at once: with either alone, nesting another lock under this one could not be written.
            #[inline(always)]
            #[cfg_attr(feature = "verifier", track_caller)]
            pub fn parts(&mut self) -> (&mut $data, &mut $crate::irql::Irql<$level>) {
                self.$($raised).+.check();
                // SAFETY: nobody else reads or writes (I1), as long as the guard is borrowed, uniquely (I2).
                (unsafe { self.value.deref() }, &mut self.$($raised).+)
            }
        }

        impl<$($generics)*> core::ops::Deref for $guard {
            type Target = $data;

            #[inline(always)]
            fn deref(&self) -> &$data {
                // SAFETY: nobody else writes (I1), and `&self` shares the one access that the guard allows (I2).
                unsafe { self.value.deref() }
            }
        }

        impl<$($generics)*> core::ops::DerefMut for $guard {
            #[inline(always)]
            fn deref_mut(&mut self) -> &mut $data {
                // SAFETY: as in `parts`.
                unsafe { self.value.deref() }
            }
        }
    };
}

pub(crate) use {exclusive, shared};
