//! A page fault at DISPATCH can't wait for the page.
use sync::Paged;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(paged: &Paged<u32>, at: &mut Irql<Passive>) -> u32 {
    #[cfg(refused)]
    let at = &mut at.raise::<Dispatch>();
    *paged.get(at)
}
