//! A raise goes up.
use sync::irql::{Clock, Dispatch, High, Irql};

pub fn f(at: &mut Irql<Clock>) {
    #[cfg(refused)]
    drop(at.raise::<Dispatch>());
    drop(at.raise::<High>());
}
