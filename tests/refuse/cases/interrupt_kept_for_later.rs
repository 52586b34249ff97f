//! The right to end an interrupt can't be put aside for somebody else: it is the handler's, for one call.
use std::cell::Cell;

use arch::service::{InService, Retired};

pub fn f<'a, 'f>(
    kept: &Cell<Option<InService<'a>>>,
    earlier: Retired<'f>,
    service: InService<'f>,
) -> Retired<'f> {
    #[cfg(refused)]
    {
        kept.set(Some(service));
        return earlier;
    }
    #[cfg(not(refused))]
    {
        drop((kept.take(), earlier));
        return service.end();
    }
}
