//! The outer raise can't end first: its drop would lower under the inner one.
use sync::irql::{Clock, Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) {
    let mut dispatch = at.raise::<Dispatch>();
    let clock = dispatch.raise::<Clock>();
    #[cfg(refused)]
    drop(dispatch);
    drop(clock);
}
