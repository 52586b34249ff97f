//! Data in paged memory: touched only through a borrow of a token at which a page fault can be resolved.
//!
//! A fault at or above DISPATCH cannot wait for the page, so it is a bugcheck. The reference that [`Paged::get`] returns borrows
//! the token, too: while it lives, the level can't be raised, nor a spin lock be taken.
//!
//! Tests:      the unit tests below (the check); tests/refuse (what does not compile).

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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::{Apc, Passive};

    #[test]
    fn the_data_is_there_at_passive_and_apc() {
        let mut paged = Paged::new(1);
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                *paged.get_mut(at) += 1;
                let at = at.raise::<Apc>();
                assert_eq!(*paged.get::<Apc>(&at), 2);
            });
        }
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn the_verifier_finds_a_touch_at_dispatch() {
        let mut paged = Paged::new(());
        let touch = |paged: &mut Paged<()>, mutably| {
            arch::stop::catch(|| {
                // SAFETY: as above; the level is raised behind the token's back, which is what is tested.
                unsafe {
                    Irql::<Passive>::with(|at| {
                        arch::irql::set(2);
                        if mutably {
                            paged.get_mut(at);
                        } else {
                            paged.get(at);
                        }
                    });
                }
            })
        };
        for mutably in [false, true] {
            let stop = touch(&mut paged, mutably).expect("a bugcheck");
            assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0xC8, 2, 0));
        }
    }
}
