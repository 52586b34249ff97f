//! A token is about the processor that it was made on.
use sync::irql::{Irql, Passive};

pub fn f(at: &mut Irql<Passive>) {
    std::thread::scope(|s| {
        #[cfg(refused)]
        s.spawn(|| at.check());
        #[cfg(not(refused))]
        s.spawn(|| ());
        at.check();
    });
}
