//! Object types: what all objects of a kind have in common.
//!
//! `ObjectType<T>` is a type whose objects have a `T` for their body; [`Type`] is any, behind an object's header. So the address of an
//! object's type says what its body is, and nothing else has to be compared.
//!
//! Invariants: I1 an object whose type is an `ObjectType<T>` has a `T` for its body: objects are made by
//!                [`create`](super::create) alone, which takes the type from the T.
//!             I2 no two types have the same address, since they are changed (`number`) and so are neither merged nor made anew for each use
//!                of a constant.
//! Not as NT:  a type is a static of the kernel, not memory that is allocated; it has an object in `\ObjectTypes` all the same.
//!             There is no pool kind: a count changes up to DISPATCH and lies in front of the body, so all objects are nonpaged. What is large
//!             and seldom used of a body can be paged pool that the body leads to.
//! Sources:    WDK, "Object Types", "Life Cycle of an Object".

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use sync::irql::{Apc, Irql, Passive};

use super::access::{AccessMask, GenericMapping};
use super::namespace::{Parsed, Request};
use super::reference::ObRef;
use crate::ke::object::Header;
use crate::mm::pool::Tag;
use crate::rtl::NtStatus;
use crate::se::Security;

/// What can be an object's body. Shared by all who have a reference, on any processor, at any level.
pub trait Body: Send + Sync + Sized + 'static {
    /// Its type: always the same.
    fn object_type() -> &'static ObjectType<Self>;

    /// The delete procedure: the last reference is gone. At PASSIVE, in some thread; then the value is dropped.
    ///
    /// That drop is at APC, so that objects which the body refers to, and whose last reference goes with it, end later and not within
    /// this one's end: no chain of objects is as deep as a stack.
    fn delete(&mut self, at: &mut Irql<Passive>) {
        let _ = at;
    }

    /// The close procedure: a handle to it was closed, and so many are left, in all tables.
    #[doc(alias = "CloseProcedure")]
    fn close(this: &ObRef<Self>, left: u32, at: &mut Irql<Passive>) {
        let _ = (this, left, at);
    }

    /// What a wait for it waits for; none: it is nothing that is waited for.
    fn dispatcher(&self) -> Option<&Header> {
        None
    }

    /// Where its security descriptor is, if objects of this type have one: who opens it in somebody's name is asked about there.
    #[doc(alias = "SecurityProcedure")]
    fn security(&self) -> Option<&Security> {
        None
    }

    /// Does it say itself where a path leads that goes through it? Then [`parse`](Self::parse) is called for every path that leads
    /// to it, unless that ends there and this very type is wanted.
    const PARSES: bool = false;

    /// The parse procedure: where the rest of a path leads.
    ///
    /// # Errors
    /// Its own; of a type that has none, STATUS_OBJECT_TYPE_MISMATCH.
    fn parse(this: &ObRef<Self>, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        let _ = (this, request, at);
        Err(NtStatus::OBJECT_TYPE_MISMATCH)
    }
}

/// A type, whatever its objects' bodies are.
pub struct Type {
    name: &'static str,
    tag: Tag,
    mapping: GenericMapping,
    valid_access: AccessMask,
    /// Ends a body of this type.
    pub(super) end: unsafe fn(NonNull<()>, &mut Irql<Passive>),
    /// Tells an object of this type.
    close: unsafe fn(&ObRef, u32, &mut Irql<Passive>),
    /// Finds what is waited for in a body of this type.
    dispatcher: unsafe fn(NonNull<()>) -> Option<NonNull<Header>>,
    /// An object's descriptor.
    security: for<'a> unsafe fn(&'a ObRef) -> Option<&'a Security>,
    parses: bool,
    /// Asks an object of this type.
    parse: unsafe fn(&ObRef, Request<'_>, &mut Irql<Passive>) -> Result<Parsed, NtStatus>,
    /// Its number among the types, from 1 on; 0: it has none yet. I2.
    number: AtomicU32,
}

/// A type whose objects' bodies are `T`s.
#[repr(transparent)]
pub struct ObjectType<T: Body> {
    any: Type,
    body: PhantomData<fn() -> T>,
}

impl<T: Body> ObjectType<T> {
    /// For a static. Objects are allocated with `tag`; `valid_access` are the rights that a handle can have.
    pub const fn new(
        name: &'static str,
        tag: Tag,
        mapping: GenericMapping,
        valid_access: AccessMask,
    ) -> Self {
        let any = Type {
            name,
            tag,
            mapping,
            valid_access,
            end: end::<T>,
            close: close::<T>,
            dispatcher: dispatcher::<T>,
            security: security::<T>,
            parses: T::PARSES,
            parse: parse::<T>,
            number: AtomicU32::new(0),
        };
        Self { any, body: PhantomData }
    }

    /// As any type.
    #[inline(always)]
    pub const fn any(&self) -> &Type {
        &self.any
    }
}

impl Type {
    /// As in `\ObjectTypes`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Of its objects' memory.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// What its generic rights are.
    pub fn mapping(&self) -> &GenericMapping {
        &self.mapping
    }

    /// The rights that a handle can have.
    pub fn valid_access(&self) -> AccessMask {
        self.valid_access
    }

    /// The rights that `wanted` asks for of an object of this type.
    ///
    /// # Errors
    /// STATUS_ACCESS_DENIED: the type has no such rights.
    pub fn grant(&self, wanted: AccessMask) -> Result<AccessMask, NtStatus> {
        let mut rights = wanted.mapped(&self.mapping);
        if rights.contains(AccessMask::MAXIMUM_ALLOWED) {
            rights = rights.without(AccessMask::MAXIMUM_ALLOWED).with(self.valid_access);
        }
        if self.valid_access.contains(rights) { Ok(rights) } else { Err(NtStatus::ACCESS_DENIED) }
    }

    /// Its number among the types, from 1 on, in the order in which they were asked for it: for reports, as NT's type index.
    pub fn number(&self) -> u32 {
        static LAST: AtomicU32 = AtomicU32::new(0);
        match self.number.load(Ordering::Relaxed) {
            0 => {
                let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                // Another one may have been first; its number stays, and this one is nobody's.
                let old = self.number.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
                old.err().unwrap_or(new)
            }
            number => number,
        }
    }

    /// Do its objects parse paths?
    pub fn parses(&self) -> bool {
        self.parses
    }

    /// Is it this very type?
    #[inline(always)]
    pub fn is(&self, other: &Type) -> bool {
        core::ptr::eq(self, other)
    }
}

/// Ends the body of an object that nobody refers to any more.
///
/// # Safety
/// `body` is a `T`, and nobody's but the caller's; it is gone afterwards.
unsafe fn end<T: Body>(body: NonNull<()>, at: &mut Irql<Passive>) {
    let body = body.cast::<T>().as_ptr();
    // SAFETY: the caller's.
    unsafe { (*body).delete(at) };
    let _at = at.raise::<Apc>();
    // SAFETY: the caller's.
    unsafe { body.drop_in_place() };
}

/// Tells `object` that a handle was closed.
///
/// # Safety
/// Its body is a `T`.
unsafe fn close<T: Body>(object: &ObRef, left: u32, at: &mut Irql<Passive>) {
    // SAFETY: `repr(transparent)` around the same pointer; the caller's.
    let this = unsafe { &*core::ptr::from_ref(object).cast::<ObRef<T>>() };
    T::close(this, left, at);
}

/// What is waited for in a body.
///
/// # Safety
/// `body` is a `T`, and stays as long as what is returned is used.
unsafe fn dispatcher<T: Body>(body: NonNull<()>) -> Option<NonNull<Header>> {
    // SAFETY: the caller's.
    unsafe { body.cast::<T>().as_ref() }.dispatcher().map(NonNull::from)
}

/// The descriptor of `object`.
///
/// # Safety
/// Its body is a `T`.
unsafe fn security<T: Body>(object: &ObRef) -> Option<&Security> {
    // SAFETY: the caller's; the reference keeps it.
    unsafe { object.as_ptr().cast::<T>().as_ref() }.security()
}

/// Asks `object` where a path leads.
///
/// # Safety
/// Its body is a `T`.
unsafe fn parse<T: Body>(
    object: &ObRef,
    request: Request<'_>,
    at: &mut Irql<Passive>,
) -> Result<Parsed, NtStatus> {
    // SAFETY: `repr(transparent)` around the same pointer; the caller's.
    let this = unsafe { &*core::ptr::from_ref(object).cast::<ObRef<T>>() };
    T::parse(this, request, at)
}

impl ObRef {
    /// A handle to it was closed.
    pub(super) fn closed(&self, left: u32, at: &mut Irql<Passive>) {
        // SAFETY: of its own type.
        unsafe { (self.object_type().close)(self, left, at) };
    }

    /// What a wait for it waits for, if it is anything that is waited for.
    pub fn dispatcher(&self) -> Option<&Header> {
        // SAFETY: of its own type; as long as this reference.
        unsafe { (self.object_type().dispatcher)(self.as_ptr().cast()).map(|header| header.as_ref()) }
    }

    /// Where its security descriptor is, if objects of its type have one.
    pub fn security(&self) -> Option<&Security> {
        // SAFETY: of its own type.
        unsafe { (self.object_type().security)(self) }
    }

    /// Where a path leads that goes through it.
    ///
    /// # Errors
    /// As [`Body::parse`].
    pub(super) fn parse(&self, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        // SAFETY: of its own type.
        unsafe { (self.object_type().parse)(self, request, at) }
    }
}
