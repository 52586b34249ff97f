//! What a switch asks for can't be had at DISPATCH.
use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> NothingInService {
    #[cfg(refused)]
    let mut at = at.raise::<Dispatch>();
    #[cfg(not(refused))]
    drop(at.raise::<Dispatch>());
    at.nothing_in_service()
}
