//! "This one needs no EOI" is a claim.
use arch::service::{InService, Retired};

pub fn f<'f>(service: InService<'f>) -> Retired<'f> {
    #[cfg(refused)]
    return (service, Retired::without_eoi()).1;
    #[cfg(not(refused))]
    service.end()
}
