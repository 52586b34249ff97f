//! Withdrawing inside the ISR would wait for itself.
use sync::disconnect::Slot;
use sync::irql::{Device, Irql, Passive};

pub fn f(slot: &Slot<u32>, isr: &mut Irql<Device>, thread: &mut Irql<Passive>) {
    #[cfg(refused)]
    slot.withdraw(isr);
    isr.check();
    slot.withdraw(thread);
}
