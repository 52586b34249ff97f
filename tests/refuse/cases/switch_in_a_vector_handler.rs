//! A handler is not the place to switch: nothing at its level yields the proof. It asks for DISPATCH instead.
#![no_std]
use arch::service::{InService, Retired};
use arch::switch::{Context, swap_context};
use sync::irql::{Clock, Irql};

pub fn f<'f>(from: &mut Context, to: &Context, at: &mut Irql<Clock>, service: InService<'f>) -> Retired<'f> {
    // SAFETY: compiled, never run.
    unsafe {
        #[cfg(refused)]
        swap_context(from, to, at.nothing_in_service());
        #[cfg(not(refused))]
        arch::pcr::request_dispatch();
    }
    service.end()
}
