//! While raised, the lower token is lent: nothing that needs the lower level can be called.
use sync::irql::{Dispatch, Irql, Passive};

fn at_passive(_: &mut Irql<Passive>) {}

pub fn f(at: &mut Irql<Passive>) {
    let raised = at.raise::<Dispatch>();
    #[cfg(refused)]
    at_passive(at);
    drop(raised);
    at_passive(at);
}
