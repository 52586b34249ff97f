//! Data in paged memory: touched only through a borrow of a token at which a page fault can be resolved.
//!
//! A fault at or above DISPATCH cannot wait for the page, so it is a bugcheck. The reference that [`Paged::get`] returns borrows
//! the token, too: while it lives, the level can't be raised, nor a spin lock be taken.

use crate::irql::{Irql, MayBlock};

/// A `T` that may be paged out.
pub struct Paged<T>(T);

impl<T> Paged<T> {
    /// Wraps what is, or will be, in paged memory.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The data, for as long as the level stays at or below APC.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn get<'a, L: MayBlock>(&'a self, at: &'a Irql<L>) -> &'a T {
        at.check();
        &self.0
    }

    /// The data, exclusively.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn get_mut<'a, L: MayBlock>(&'a mut self, at: &'a Irql<L>) -> &'a mut T {
        at.check();
        &mut self.0
    }
}
