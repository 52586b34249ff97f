//! A lock held at a device level can't be taken above all devices.
use sync::InterruptLock;
use sync::irql::{Clock, Dispatch, Irql};

pub fn f(lock: &InterruptLock<u32>, clock: &mut Irql<Clock>, dispatch: &mut Irql<Dispatch>) {
    #[cfg(refused)]
    drop(lock.lock(clock));
    clock.check();
    drop(lock.lock(dispatch));
}
