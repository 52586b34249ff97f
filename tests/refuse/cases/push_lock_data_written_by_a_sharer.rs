//! A sharer reads.
use sync::PushLock;
use sync::event::hosted::ThreadEvent;
use sync::irql::{Irql, Passive};

pub fn f(lock: &PushLock<u32, ThreadEvent>, at: &mut Irql<Passive>) -> u32 {
    let guard = lock.shared(at);
    #[cfg(refused)]
    {
        *guard += 1;
    }
    *guard
}
