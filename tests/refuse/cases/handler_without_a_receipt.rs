//! A handler returns the receipt of its EOI.
use arch::service::{InService, Retired};

pub fn f<'f>(interrupt: InService<'f>) -> Retired<'f> {
    #[cfg(refused)]
    drop(interrupt);
    #[cfg(not(refused))]
    return interrupt.end();
}
