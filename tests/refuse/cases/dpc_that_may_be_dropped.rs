//! A queued DPC is linked into a processor's queue: only one that lives for ever can be queued by safe code.
#![no_std]
use kernel::ke::dpc::Dpc;
use sync::irql::{Dispatch, Irql};

fn routine(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {}

#[cfg(not(refused))]
static DPC: Dpc = Dpc::new(routine);

pub fn f(at: &mut Irql<Dispatch>) -> bool {
    #[cfg(refused)]
    let dpc = &Dpc::new(routine);
    #[cfg(not(refused))]
    let dpc = &DPC;
    let queued = dpc.queue([0, 0], at);
    queued && dpc.is_queued()
}
