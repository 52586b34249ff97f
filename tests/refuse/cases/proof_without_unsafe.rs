//! So is "nothing is in service here".
use arch::service::NothingInService;
use sync::irql::{Irql, Passive};

pub fn f(at: &mut Irql<Passive>) -> NothingInService {
    at.check();
    #[cfg(refused)]
    return NothingInService::assume();
    #[cfg(not(refused))]
    return at.nothing_in_service();
}
