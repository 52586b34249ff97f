//! A DPC that waits for all DPCs would wait for itself.
#![no_std]
use kernel::ke::dpc::{self, Dpc};
use sync::irql::{Dispatch, Irql, Passive};

fn routine(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    #[cfg(refused)]
    dpc::flush(at);
    at.check();
}

pub static DPC: Dpc = Dpc::new(routine);

pub fn f(at: &mut Irql<Passive>) {
    dpc::flush(at);
}
