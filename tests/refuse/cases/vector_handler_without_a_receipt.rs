//! What is installed for a vector returns the receipt of its EOI.
#![no_std]

pub fn f() {
    // SAFETY: compiled, never run.
    unsafe {
        kernel::ke::vectors::install(kernel::ke::vectors::CLOCK, |_, service| {
            #[cfg(refused)]
            let _ = service;
            #[cfg(not(refused))]
            service.end()
        });
    }
}
