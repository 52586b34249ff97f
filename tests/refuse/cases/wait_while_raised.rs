//! What a wait needs is lent out for as long as the raise lasts.
use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> NothingInService {
    let raised = at.raise::<Dispatch>();
    #[cfg(not(refused))]
    drop(raised);
    let nothing = at.nothing_in_service();
    #[cfg(refused)]
    drop(raised);
    nothing
}
