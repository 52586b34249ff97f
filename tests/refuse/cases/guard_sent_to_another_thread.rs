//! A guard lowers the processor that it raised.
use sync::SpinLock;
use sync::irql::{Irql, Passive, PrcbLock};

pub fn f(lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    let mut guard = lock.lock(at);
    std::thread::scope(|s| {
        #[cfg(refused)]
        s.spawn(move || drop(guard));
        #[cfg(not(refused))]
        {
            let value: &mut u32 = &mut guard;
            s.spawn(move || *value += 1);
        }
    });
}
