//! Paged pool is taken, touched and given back where a page can be waited for.
#![no_std]
use kernel::mm::paged::{self, PagedOwned};
use kernel::mm::pool::Tag;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(owned: &PagedOwned<u32>, at: &mut Irql<Passive>) -> u32 {
    #[cfg(refused)]
    let at = &mut at.raise::<Dispatch>();
    let _ = paged::allocate(Tag::new(b"Test"), 100, at);
    *owned.get(at)
}
