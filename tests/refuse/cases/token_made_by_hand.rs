//! Nobody owns a token, so nobody can make a second one.
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> u8 {
    at.check();
    #[cfg(refused)]
    let raised = Irql::<Dispatch>(Default::default());
    #[cfg(not(refused))]
    let raised = at.raise::<Dispatch>();
    raised.level()
}
