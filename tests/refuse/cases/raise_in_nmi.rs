//! Nothing is above an NMI, not even HIGH.
use sync::irql::{Clock, High, Irql, Nmi};

pub fn f(nmi: &mut Irql<Nmi>, clock: &mut Irql<Clock>) {
    #[cfg(refused)]
    drop(nmi.raise::<High>());
    nmi.check();
    drop(clock.raise::<High>());
}
