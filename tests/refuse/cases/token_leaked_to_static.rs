//! A token ends with the code that it was given to.
use sync::irql::{Irql, Passive};

pub fn f() -> u8 {
    // SAFETY: compiled, never run.
    unsafe {
        #[cfg(refused)]
        let level = Irql::<Passive>::with(|at| at).level();
        #[cfg(not(refused))]
        let level = Irql::<Passive>::with(|at| at.level());
        level
    }
}
