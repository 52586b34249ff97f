//! CR8 is written behind a token's back only where somebody argues it.
pub fn f() {
    #[cfg(refused)]
    arch::irql::set(0);
    #[cfg(not(refused))]
    // SAFETY: compiled, never run.
    unsafe {
        arch::irql::set(0)
    };
}
