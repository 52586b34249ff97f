//! A driver's lock gets one of the ladder's ranks.
use sync::SpinLock;
use sync::irql::PrcbLock;

pub enum Mine {}

#[cfg(refused)]
pub static LOCK: SpinLock<u32, Mine> = SpinLock::new(0);
#[cfg(not(refused))]
pub static LOCK: SpinLock<u32, PrcbLock> = SpinLock::new(0);
