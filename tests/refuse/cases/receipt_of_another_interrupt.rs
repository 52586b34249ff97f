//! One interrupt's receipt is not another's.
use arch::service::{InService, Retired};

pub fn f<'a, 'b>(mine: InService<'a>, other: InService<'b>) -> (Retired<'a>, Retired<'b>) {
    #[cfg(refused)]
    return (other.end(), mine.end());
    #[cfg(not(refused))]
    return (mine.end(), other.end());
}
