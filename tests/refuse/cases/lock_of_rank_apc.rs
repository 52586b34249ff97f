//! The holder of a spin lock doesn't wait: at APC it could, while others spin.
use sync::SpinLock;
#[cfg(refused)]
use sync::irql::Apc;
#[cfg(not(refused))]
use sync::irql::DpcQueueLock;

#[cfg(refused)]
pub static LOCK: SpinLock<u32, Apc> = SpinLock::new(0);
#[cfg(not(refused))]
pub static LOCK: SpinLock<u32, DpcQueueLock> = SpinLock::new(0);
