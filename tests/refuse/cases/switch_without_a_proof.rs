//! A switch with an interrupt in service would leave the processor deaf to it: it asks for the proof that none is.
#![no_std]
use arch::service::NothingInService;
use arch::switch::{Context, swap_context};

pub fn f(from: &mut Context, to: &Context, nothing: NothingInService) {
    // SAFETY: compiled, never run.
    unsafe {
        #[cfg(refused)]
        swap_context(from, to);
        #[cfg(not(refused))]
        swap_context(from, to, nothing);
    }
}
