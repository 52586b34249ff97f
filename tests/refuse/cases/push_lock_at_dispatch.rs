//! A push lock's waiters sleep.
use sync::PushLock;
use sync::event::hosted::ThreadEvent;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(lock: &PushLock<u32, ThreadEvent>, at: &mut Irql<Passive>) {
    #[cfg(refused)]
    let mut at = at.raise::<Dispatch>();
    #[cfg(refused)]
    let at = &mut at;
    let mut guard = lock.exclusive(at);
    *guard += 1;
}
