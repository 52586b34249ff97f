//! A fast mutex's waiters sleep, which a holder of a spin lock must not.
use sync::event::hosted::ThreadEvent;
use sync::irql::{Irql, Passive, PrcbLock};
use sync::{FastMutex, SpinLock};

pub fn f(mutex: &FastMutex<u32, ThreadEvent>, lock: &SpinLock<u32, PrcbLock>, at: &mut Irql<Passive>) {
    #[cfg(refused)]
    {
        let mut outer = lock.lock(at);
        *mutex.lock(outer.token()) += 1;
    }
    #[cfg(not(refused))]
    {
        let mut outer = mutex.lock(at);
        *lock.lock(outer.parts().1) += 1;
    }
}
