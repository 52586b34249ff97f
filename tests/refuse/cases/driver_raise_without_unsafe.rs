//! Nor can the raw raise be reached by accident.
pub fn f() {
    #[cfg(refused)]
    sync::raw::raise_irql(2);
    // SAFETY: compiled, never run.
    #[cfg(not(refused))]
    unsafe {
        let old = sync::raw::raise_irql(2);
        sync::raw::lower_irql(old);
    }
}
