//! An NMI may have interrupted whoever holds the queue's lock.
#![no_std]
use kernel::ke::dpc::Dpc;
use sync::irql::{High, Irql, Nmi};

pub fn f(dpc: &'static Dpc, nmi: &mut Irql<Nmi>, high: &mut Irql<High>) {
    #[cfg(refused)]
    dpc.queue([0, 0], nmi);
    nmi.check();
    dpc.queue([0, 0], high);
}
