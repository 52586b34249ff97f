//! Only an EOI makes a receipt.
use arch::service::{InService, Retired};

pub fn f<'f>(service: InService<'f>) -> Retired<'f> {
    let retired = service.end();
    #[cfg(refused)]
    let retired = Retired(Default::default());
    retired
}
