//! A spin lock has one CR8 value; what an ISR shares is not protected by a guess.
use sync::SpinLock;
use sync::irql::{Device, DpcQueueLock};

#[cfg(refused)]
pub static LOCK: SpinLock<u32, Device> = SpinLock::new(0);
#[cfg(not(refused))]
pub static LOCK: SpinLock<u32, DpcQueueLock> = SpinLock::new(0);
