//! What stands in front of an object's body, and the memory of both.
//!
//! ```text
//! block of pool ─► Header │ body, which is what pointers to objects lead to │ what its maker asked for more
//! ```
//!
//! Owns:       [`Header`], [`allocate`], [`free`]. Not: when (reference.rs, delete.rs).
//! Invariants: I1 a pointer to a body that came from `allocate` has a header right in front of it, until `free`. It may reach all of the
//!                block.
//! Not as NT:  the layout, which nobody outside reads; and nothing optional stands in front of it.

use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sync::irql::{Below, Irql, PoolAccess};
use sync::pile;
use sync::references::References;

use super::directory::Place;
use super::machine::{self, PushLock};
use super::types::Type;
use crate::mm::Exhausted;

/// See the module.
#[repr(C, align(16))]
#[doc(alias = "OBJECT_HEADER")]
pub(super) struct Header {
    /// Of pointers, handles and the name.
    pub(super) references: References,
    /// Bytes behind the body, as its maker asked.
    extra: u32,
    /// Has it a name that stays? Changes under the lock of the directory that it is in, but for `make_temporary`, which looks there afterwards.
    is_permanent: AtomicBool,
    /// Handles, in all tables. Each has references of its own.
    pub(super) handles: AtomicU32,
    pub(super) type_: &'static Type,
    /// On the pile of what is to be deleted, once no reference is left.
    pub(super) doomed: pile::Entry,
    /// Where its name is; none: it has none (directory.rs, N1).
    pub(super) place: PushLock<Option<Place>>,
}

/// Bytes in front of a body.
const SIZE: usize = size_of::<Header>();
/// Of a body, and of what is behind it: the pool's.
const ALIGNMENT: usize = 16;
const _: () = assert!(SIZE.is_multiple_of(ALIGNMENT));

/// Where what follows a `T` begins, from the T's start.
const fn extra_offset<T>() -> usize {
    const { assert!(align_of::<T>() <= ALIGNMENT, "the pool's blocks are aligned to 16 bytes") };
    size_of::<T>().next_multiple_of(ALIGNMENT)
}

/// Memory for an object of type `type_` with a `T` for its body and `extra` bytes of zeroes behind it; one reference, the caller's. The
/// body is not written yet.
#[track_caller]
pub(super) fn allocate<T, L: Below<PoolAccess>>(
    type_: &'static Type,
    extra: u32,
    at: &mut Irql<L>,
) -> Result<NonNull<T>, Exhausted> {
    let bytes = SIZE + extra_offset::<T>() + extra as usize;
    let block = machine::allocate(type_.tag(), bytes, at)?;
    let header = Header {
        references: References::new(),
        extra,
        is_permanent: AtomicBool::new(false),
        handles: AtomicU32::new(0),
        type_,
        doomed: pile::Entry::new(),
        place: PushLock::new(None),
    };
    // SAFETY: a fresh block of that many bytes, aligned to 16.
    unsafe {
        block.cast::<Header>().write(header);
        block.byte_add(SIZE + extra_offset::<T>()).write_bytes(0, extra as usize);
        Ok(block.byte_add(SIZE).cast())
    }
}

impl Header {
    /// The header of an object.
    ///
    /// # Safety
    /// `body` leads to an object's body (I1).
    #[inline(always)]
    pub(super) unsafe fn of<T>(body: NonNull<T>) -> NonNull<Self> {
        // SAFETY: the caller's.
        unsafe { body.byte_sub(SIZE).cast() }
    }

    /// The body behind it.
    ///
    /// # Safety
    /// `header` is an object's, and may reach all of the block (I1).
    #[inline(always)]
    pub(super) unsafe fn body(header: NonNull<Self>) -> NonNull<()> {
        // SAFETY: the caller's.
        unsafe { header.byte_add(SIZE).cast() }
    }

    /// The header that has `entry` for its place on the pile.
    ///
    /// # Safety
    /// It is one's, and may reach all of the block.
    pub(super) unsafe fn of_doomed(entry: NonNull<pile::Entry>) -> NonNull<Self> {
        // SAFETY: the caller's.
        unsafe { entry.byte_sub(offset_of!(Header, doomed)).cast() }
    }

    /// That place, by a pointer that may reach all of the block.
    ///
    /// # Safety
    /// As [`body`](Self::body).
    pub(super) unsafe fn doomed(header: NonNull<Self>) -> NonNull<pile::Entry> {
        // SAFETY: the caller's.
        unsafe { header.byte_add(offset_of!(Header, doomed)).cast() }
    }

    pub(super) fn is_permanent(&self) -> bool {
        self.is_permanent.load(Ordering::Relaxed)
    }

    pub(super) fn set_permanent(&self, is_permanent: bool) {
        self.is_permanent.store(is_permanent, Ordering::Relaxed);
    }

    /// What is behind a body that is a `T`.
    ///
    /// # Safety
    /// `body` leads to an object's body, which is a `T`.
    pub(super) unsafe fn extra<T>(body: NonNull<T>) -> NonNull<[u8]> {
        // SAFETY: the caller's: a block that `allocate` got, which is at least that long.
        unsafe {
            let extra = Self::of(body).as_ref().extra as usize;
            NonNull::slice_from_raw_parts(body.byte_add(extra_offset::<T>()).cast(), extra)
        }
    }
}

/// Gives an object's memory back.
///
/// # Safety
/// Nobody has a reference, and the body is gone.
pub(super) unsafe fn free<L: Below<PoolAccess>>(header: NonNull<Header>, at: &mut Irql<L>) {
    // SAFETY: the caller's: the block that `allocate` got, with its type's tag.
    unsafe {
        let tag = header.as_ref().type_.tag();
        machine::free(header.cast(), tag, at);
    }
}
