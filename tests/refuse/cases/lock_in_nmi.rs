//! An NMI may have interrupted the holder of any lock.
use sync::SpinLock;
use sync::irql::{High, Irql, LogLock, Nmi};

pub fn f(log: &SpinLock<u32, LogLock>, nmi: &mut Irql<Nmi>, high: &mut Irql<High>) {
    #[cfg(refused)]
    drop(log.lock(nmi));
    nmi.check();
    drop(log.lock(high));
}
