//! A connected object is touched by other processors until its disconnect: it is static, or a connection owns it.
#![no_std]
use kernel::ke::interrupt::{Claim, Connection, Interrupt, OwnInterrupt, Request, ServiceRoutine};
use kernel::mm::pool::Owned;
use sync::InterruptLock;
use sync::irql::{Irql, Passive};

pub fn f(
    lock: &'static InterruptLock<u32>,
    isr: ServiceRoutine<u32>,
    object: Owned<OwnInterrupt<u32>>,
    request: &Request,
    at: &mut Irql<Passive>,
) {
    #[cfg(refused)]
    let _ = Interrupt::new(lock, isr).connect(request, at);
    #[cfg(not(refused))]
    if let Ok(connection) = Connection::new(object, request, at) {
        drop(connection.disconnect(at));
    }
}
