//! An ISR may have interrupted the holder of any lock of the dispatch section.
use sync::SpinLock;
use sync::irql::{Device, DpcQueueLock, Irql, PrcbLock};

pub fn f(prcb: &SpinLock<u32, PrcbLock>, dpcs: &SpinLock<u32, DpcQueueLock>, at: &mut Irql<Device>) {
    #[cfg(refused)]
    drop(prcb.lock(at));
    drop(dpcs.lock(at));
}
