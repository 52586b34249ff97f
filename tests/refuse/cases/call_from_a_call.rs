//! What an inter-processor call runs cannot call in turn: it would overwrite the packet beside it.
use sync::ipi::{Processors, call};
use sync::irql::{Clock, Ipi, Irql};

pub fn f<P: Processors>(processors: &P, clock: &mut Irql<Clock>, ipi: &mut Irql<Ipi>) {
    #[cfg(refused)]
    call(processors, 1, &|_: &mut Irql<Ipi>| (), ipi);
    ipi.check();
    call(processors, 1, &|_: &mut Irql<Ipi>| (), clock);
}
