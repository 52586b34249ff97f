//! What a driver keeps of a packet is its queue's, which marks it pending; the packet of a call stays in that call.
#![no_std]
use kernel::io::irp::Irp;
use kernel::io::irp::Pended;

pub struct Kept {
    pub pended: Option<Pended>,
    pub called: Option<Irp<'static>>,
}

#[cfg(refused)]
pub fn f<'c>(kept: &mut Kept, irp: Irp<'c>) {
    kept.called = Some(irp);
}

#[cfg(not(refused))]
pub fn f(kept: &mut Kept, irp: Pended) {
    kept.pended = Some(irp);
}
