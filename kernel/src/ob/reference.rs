//! References to objects.
//!
//! Owns:       [`ObRef`], [`create`]. Not: what happens at the last one's end (delete.rs).
//! IRQL:       made, cloned and dropped up to DISPATCH.
//! Invariants: I1 an `ObRef` is one reference, counted in the object's header: cloning counts one more, dropping one less. It is neither
//!                copied nor can it be made of anything else by safe code. So none is given back twice, and the object is there as
//!                long as any lives. `core::mem::forget` leaks one, as it does everything.
//!             I2 the body of an `ObRef<T>` with `T: Body` is a T, written before the reference was made.
//! Tests:      tests/models/tests/references.rs (the count), tests/models/tests/pile.rs; tests/props/tests/ob_references.rs;
//!             selftest `ob::*`.
//! Sources:    WDK, `ObReferenceObject`, `ObDereferenceObject`, `ObReferenceObjectByPointer`, "Life Cycle of an Object".

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use sync::irql::{Below, Irql, PoolAccess};

use super::delete;
use super::header::{self, Header};
use super::types::{Body, Type};
use crate::rtl::NtStatus;

/// The body of an object of any type: what pointers to objects lead to where the type isn't known.
pub struct Object(());

/// A reference to an object whose body is a `T`, or, with [`Object`], anything.
#[repr(transparent)]
pub struct ObRef<T = Object> {
    body: NonNull<T>,
}

// SAFETY: a body is `Send` and `Sync`, whatever its type (`Body`), and the count is atomic. The last reference may be dropped by any thread.
unsafe impl<T> Send for ObRef<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for ObRef<T> {}

/// A new object with `body` for its body, without a name, handles or anybody else who knows of it.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; `body` was dropped then.
#[doc(alias = "ObCreateObject")]
#[track_caller]
pub fn create<T: Body, L: Below<PoolAccess>>(body: T, at: &mut Irql<L>) -> Result<ObRef<T>, NtStatus> {
    create_with_extra(body, 0, at)
}

/// [`create`], with `extra` bytes of zeroes behind the body, aligned to 16: a driver's extension.
///
/// # Errors
/// As [`create`].
#[track_caller]
pub fn create_with_extra<T: Body, L: Below<PoolAccess>>(
    body: T,
    extra: u32,
    at: &mut Irql<L>,
) -> Result<ObRef<T>, NtStatus> {
    let place = header::allocate::<T, L>(T::object_type().any(), extra, at);
    let place = place.map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    // SAFETY: fresh memory for it.
    unsafe { place.write(body) };
    // I1, I2: the one reference that `allocate` counted.
    Ok(ObRef { body: place })
}

impl<T> ObRef<T> {
    /// The pointer that stands for this reference from now on, until [`from_raw`](Self::from_raw).
    #[must_use = "the reference is the pointer's now"]
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).body
    }

    /// The reference that `body` stands for.
    ///
    /// # Safety
    /// It came from [`into_raw`](Self::into_raw) of a reference of this type, and isn't taken for another one.
    #[inline(always)]
    pub const unsafe fn from_raw(body: NonNull<T>) -> Self {
        Self { body }
    }

    /// One more reference to an object that somebody has one to.
    ///
    /// # Safety
    /// `body` leads to an object of such a body, and somebody keeps a reference until this returns.
    #[doc(alias = "ObReferenceObject")]
    pub unsafe fn of_raw(body: NonNull<T>) -> Self {
        // SAFETY: the caller's.
        unsafe { Header::of(body).as_ref() }.references.acquire();
        Self { body }
    }

    /// Where the body is: what drivers know an object by.
    #[inline(always)]
    pub fn as_ptr(&self) -> NonNull<T> {
        self.body
    }

    /// The object's type.
    #[inline(always)]
    pub fn object_type(&self) -> &'static Type {
        self.header().type_
    }

    /// Is it the same object?
    #[inline(always)]
    pub fn is<U>(&self, other: &ObRef<U>) -> bool {
        ptr::addr_eq(self.body.as_ptr(), other.body.as_ptr())
    }

    /// How many references there are; stale at once. A handle has several (sync::handles).
    pub fn references(&self) -> u32 {
        self.header().references.count()
    }

    /// How many handles there are, in all tables; stale at once.
    pub fn handles(&self) -> u32 {
        self.header().handles.load(Ordering::Relaxed)
    }

    /// Gives it back without ending the object here and now, if it is the last: for who holds what the delete procedure may want.
    #[doc(alias = "ObDereferenceObjectDeferDelete")]
    pub fn release_deferred(self) {
        let this = ManuallyDrop::new(self);
        if this.header().references.release() {
            // SAFETY: it was the last.
            unsafe { delete::later(Header::of(this.body)) };
        }
    }

    #[inline(always)]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: I1: the object is there.
        unsafe { Header::of(self.body).as_ref() }
    }
}

impl<T: Body> ObRef<T> {
    /// The same reference, to whatever it is.
    #[inline(always)]
    pub fn upcast(self) -> ObRef {
        ObRef { body: self.into_raw().cast() }
    }

    /// The bytes behind the body. Whose they are is the maker's to say.
    pub fn extra(&self) -> NonNull<[u8]> {
        // SAFETY: I1, I2.
        unsafe { Header::extra(self.body) }
    }
}

impl ObRef {
    /// The same reference, to a `T`.
    ///
    /// # Errors
    /// Itself, where it isn't one: STATUS_OBJECT_TYPE_MISMATCH.
    #[inline]
    pub fn downcast<T: Body>(self) -> Result<ObRef<T>, Self> {
        if self.is_a::<T>() {
            // I2: types.rs, I1.
            Ok(ObRef { body: self.into_raw().cast() })
        } else {
            Err(self)
        }
    }

    /// Is it a `T`?
    #[inline(always)]
    pub fn is_a<T: Body>(&self) -> bool {
        self.object_type().is(T::object_type().any())
    }

    /// Its body, if it is a `T`.
    #[inline]
    pub fn get<T: Body>(&self) -> Option<&T> {
        // SAFETY: types.rs, I1; and this reference keeps it.
        self.is_a::<T>().then(|| unsafe { self.body.cast().as_ref() })
    }
}

impl<T: Body> Deref for ObRef<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: I1, I2.
        unsafe { self.body.as_ref() }
    }
}

impl<T> Clone for ObRef<T> {
    #[inline]
    fn clone(&self) -> Self {
        self.header().references.acquire();
        Self { body: self.body }
    }
}

impl<T> Drop for ObRef<T> {
    #[doc(alias = "ObDereferenceObject")]
    #[inline]
    fn drop(&mut self) {
        if self.header().references.release() {
            // SAFETY: it was the last.
            unsafe { delete::last(Header::of(self.body)) };
        }
    }
}

impl<T> fmt::Debug for ObRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:p}", self.object_type().name(), self.body)
    }
}
