//! The raw routines check at run time only; they are the export table's, for drivers that have no types to show.
use sync::raw::{self, KSpinLock};

pub fn f(lock: &KSpinLock) {
    // SAFETY: compiled, never run.
    #[cfg(not(refused))]
    unsafe {
        let old = raw::acquire(lock);
        raw::release(lock, old);
    }
    #[cfg(refused)]
    raw::release(lock, raw::acquire(lock));
}
