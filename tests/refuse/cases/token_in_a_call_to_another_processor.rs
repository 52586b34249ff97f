//! The function runs on other processors with a token of its own; the caller's stays here.
use sync::ipi::{Processors, call};
use sync::irql::{Ipi, Irql, Passive};

pub fn f<P: Processors>(processors: &P, outer: &Irql<Passive>, at: &mut Irql<Passive>) {
    #[cfg(refused)]
    call(processors, 1, &|_: &mut Irql<Ipi>| outer.check(), at);
    outer.check();
    #[cfg(not(refused))]
    call(processors, 1, &|here: &mut Irql<Ipi>| here.check(), at);
}
