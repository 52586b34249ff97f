//! A threaded DPC runs at PASSIVE and may be preempted; a routine that relies on DISPATCH isn't one.
#![no_std]
use kernel::ke::dpc::Dpc;
use sync::irql::{Dispatch, Irql, Passive};

fn routine<L: kernel::ke::dpc::DpcLevel>(_: &'static Dpc<L>, _: &mut Irql<L>, _: [usize; 2]) {}

#[cfg(refused)]
pub static DPC: Dpc<Passive> = Dpc::new(routine::<Dispatch>);
#[cfg(not(refused))]
pub static DPC: (Dpc<Passive>, Dpc<Dispatch>) = (Dpc::new(routine::<Passive>), Dpc::new(routine::<Dispatch>));
