//! Timers have a lock of the DISPATCH section: an ISR has its DPC set them.
#![no_std]
use kernel::ke::dpc::Dpc;
use kernel::ke::timer::Timer;
use sync::irql::{Device, Dispatch, Irql};

pub fn f(timer: &'static Timer, dpc: &'static Dpc, isr: &mut Irql<Device>, routine: &mut Irql<Dispatch>) {
    #[cfg(refused)]
    timer.cancel(isr);
    dpc.queue([0, 0], isr);
    timer.cancel(routine);
}
