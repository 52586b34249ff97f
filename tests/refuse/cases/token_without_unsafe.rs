//! A token out of nothing is a claim, and claims are `unsafe`.
use sync::irql::{Irql, Passive};

pub fn f() -> u8 {
    #[cfg(refused)]
    let level = Irql::<Passive>::with(|at| at.level());
    // SAFETY: compiled, never run.
    #[cfg(not(refused))]
    let level = unsafe { Irql::<Passive>::with(|at| at.level()) };
    level
}
