//! Waiting for the last use sleeps; a use may end in a DPC.
use sync::event::hosted::ThreadEvent;
use sync::irql::{Dispatch, Irql, Passive};
use sync::rundown::Rundown;

pub fn f(rundown: &Rundown<ThreadEvent>, dpc: &mut Irql<Dispatch>, thread: &mut Irql<Passive>) {
    drop(rundown.protect(dpc));
    #[cfg(refused)]
    rundown.wait(dpc);
    #[cfg(not(refused))]
    rundown.wait(thread);
}
