//! What a processor does when it has nothing to do: its idle thread.
//!
//! For a moment it watches a word of its own (`sync::watch`): a thread that is signalled and answers at once, on another processor, finds this one
//! awake, and neither interrupts it nor has it give the clock away and take it back. Then it halts.
//!
//! An idle processor takes no clock interrupt but for its timers, and gives the shared clock to one that is busy. The interrupt
//! that ends the halt makes it busy again before its handler runs (`arch::trap`, step 1). Before it halts it has looked for a thread that waits
//! for another processor, after it had said that it is idle (`sync::idle_set`).
//!
//! IRQL: PASSIVE, so that every vector ends the halt; a HLT at DISPATCH would sleep through 0x2F.

use arch::service::NothingInService;
use sync::irql::{Dispatch, Irql, Passive};

use super::prcb::Prcb;
use super::{prcb, sched, thread, tick};

/// Halts between interrupts, for ever: in the context that the processor booted in.
pub(crate) fn run(at: &mut Irql<Passive>) -> ! {
    let Some(here) = prcb::get(arch::pcr::number()) else {
        unreachable!("a processor that is not registered")
    };
    // The idle thread never leaves it.
    let here = here.prcb();
    loop {
        if thread::is_anything_gone() {
            thread::collect_gone(at);
        }
        if look_for_work(at) || sched::watch(here, at) || !stop_for_a_halt(here) {
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

/// Looks at all queues. True: something was found, and has run if it was for this processor.
fn look_for_work(at: &mut Irql<Passive>) -> bool {
    let mut at = at.raise::<Dispatch>();
    let (here, at) = Prcb::here(&mut at);
    let found = sched::go_idle_look(here, at);
    if found {
        // SAFETY: the idle thread, raised from PASSIVE: no handler is half-way here.
        sched::look(unsafe { NothingInService::assume() }, at);
    }
    found
}

/// True: nobody has given this processor anything since its look, and IF=0. What is given to it from here on interrupts it, and the
/// interrupt ends the halt.
fn stop_for_a_halt(here: &Prcb) -> bool {
    // SAFETY: set again below, or by the caller's halt.
    unsafe { arch::cpu::cli() };
    let idle = sched::may_halt(here);
    if !idle {
        // SAFETY: as it was.
        unsafe { arch::cpu::sti() };
    }
    idle
}
