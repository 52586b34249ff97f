//! A lock hands its data from processor to processor.
use sync::SpinLock;
use sync::irql::PrcbLock;

fn share<T: Sync>(_: &T) {}

pub fn f(local: &SpinLock<*mut u8, PrcbLock>, shared: &SpinLock<usize, PrcbLock>) {
    #[cfg(refused)]
    share(local);
    share(shared);
}
