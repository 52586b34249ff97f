//! A reference to paged data ends before the level goes up; what is needed there is copied.
use sync::Paged;
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock};

pub fn f(paged: &Paged<u32>, lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let value = paged.get(at);
    #[cfg(not(refused))]
    let value = &value.clone();
    let mut guard = lock.lock(at);
    *guard = *value;
}
