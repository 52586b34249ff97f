//! A handler is a function of its vector alone, so that the stub calls it directly; its data is in statics or the PRCB.
#![no_std]
#[cfg(not(refused))]
static COUNT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

pub fn f(count: &mut u32) {
    // SAFETY: compiled, never run.
    unsafe {
        #[cfg(refused)]
        kernel::ke::vectors::install(kernel::ke::vectors::CLOCK, |_, service| {
            *count += 1;
            service.end()
        });
        #[cfg(not(refused))]
        kernel::ke::vectors::install(kernel::ke::vectors::CLOCK, |_, service| {
            COUNT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            service.end()
        });
    }
    *count += 1;
}
