//! What a processor does when it has nothing to do: its idle thread.
//!
//! An idle processor takes no clock interrupt but for its timers, and gives the shared clock to one that is busy. The interrupt
//! that ends the halt makes it busy again before its handler runs (`arch::trap`, step 1). Before it halts it has looked for a thread that waits
//! for another processor, after it had said that it is idle (`sync::idle_set`).
//!
//! IRQL: PASSIVE, so that every vector ends the halt; a HLT at DISPATCH would sleep through 0x2F.

use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql, Passive};

use super::prcb::Prcb;
use super::{sched, thread, tick};

/// Halts between interrupts, for ever: in the context that the processor booted in.
pub(crate) fn run(at: &mut Irql<Passive>) -> ! {
    loop {
        if thread::is_anything_gone() {
            thread::collect_gone(at);
        }
        if look_for_work(at) {
            continue;
        }
        // SAFETY: IF=0 since before the last look; an interrupt of either kind ends the halt, a maskable one the idle time, too.
        unsafe {
            tick::go_idle();
            arch::pcr::set_idle();
            arch::cpu::sti_hlt();
            arch::cpu::cli();
            if arch::pcr::end_idle() {
                tick::wake();
            }
            arch::cpu::sti();
        }
    }
}

/// Looks at all queues. True: something was found, and has run if it was for this processor. False: there was nothing, and with IF=0, as
/// it is left, nobody has given this processor anything since.
fn look_for_work(at: &mut Irql<Passive>) -> bool {
    let mut at = at.raise::<Dispatch>();
    let (here, at) = Prcb::here(&mut at);
    if sched::go_idle_look(here, at) {
        // SAFETY: the idle thread, raised from PASSIVE: no handler is half-way here.
        sched::look(unsafe { NothingInService::assume() }, at);
        return true;
    }
    // SAFETY: set again below, or by the caller's halt.
    unsafe { arch::cpu::cli() };
    // What is given to this processor from here on interrupts it, and the interrupt ends the halt.
    let idle = sched::may_halt(here);
    if !idle {
        // SAFETY: as it was.
        unsafe { arch::cpu::sti() };
    }
    !idle
}
