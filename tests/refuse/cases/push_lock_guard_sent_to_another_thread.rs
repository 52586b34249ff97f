//! A push lock's guard lowers the processor that it raised.
use sync::PushLock;
use sync::event::hosted::ThreadEvent;
use sync::irql::{Irql, Passive};

pub fn f(lock: &PushLock<u32, ThreadEvent>, at: &mut Irql<Passive>) {
    let mut guard = lock.exclusive(at);
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
