//! Delivery of kernel APCs to the running thread.

use arch::level;
use sync::attention::Signs;
use sync::irql::{Apc, Dispatch, Fixed, Irql, Level, Passive};

use super::super::bugcheck::{RoutineKind, StopCode, bugcheck};
use super::super::thread::{self, Thread};
use super::super::wait::CanWait;
use super::queue::{self, Call, Found};
use crate::rtl::NtStatus;
use core::sync::atomic::Ordering;

/// The up-call `apc`: PASSIVE code was interrupted, and APCs may be deliverable. CR8=1, IF=1.
pub(crate) fn deliver_at_exit() {
    // SAFETY: CR8 is 1, on the way out of an interrupt of code at PASSIVE, whose token isn't used meanwhile.
    unsafe { Irql::<Apc>::with(deliver) };
}

/// Delivers what can be, one after the other, until nothing can be. Above PASSIVE code of the running thread.
pub(super) fn deliver(at: &mut Irql<Apc>) {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    while me.attention.any(Signs::KERNEL) {
        let found = {
            let mut at = at.raise::<Dispatch>();
            queue::next(me, &mut at)
        };
        match found {
            Found::Nothing => return,
            Found::Call(call) => make(me, call, at),
            Found::Termination => end(me, at),
        }
    }
}

/// Calls the kernel routine at APC, then the normal routine, if there still is one, at PASSIVE.
fn make(me: &Thread, call: Call, at: &mut Irql<Apc>) {
    let Call { apc, kernel_routine, mut normal_routine, mut context, arguments: [mut first, mut second] } =
        call;
    let routine = kernel_routine as usize as u64;
    // SAFETY: `apc` is valid until its kernel routine is called, as whoever queued it promised.
    let culprit = unsafe { super::culprit(apc, normal_routine.map_or(routine, |it| it as usize as u64)) };
    let before = me.apc.disables();
    // SAFETY: what the caller of `insert` promised of the routine; APC.
    unsafe { kernel_routine(apc, &mut normal_routine, &mut context, &mut first, &mut second) };
    check(me, Apc::CR8, before, if call.normal_routine.is_some() { routine } else { culprit });
    let Some(normal) = normal_routine else { return };
    at.check();
    me.apc.normal_under_way.store(true, Ordering::Relaxed);
    // SAFETY: 1. the code that is delivered above is at PASSIVE, and `at` is borrowed and unused until the level is APC again. 2. what the
    //         caller of `insert` promised of the routine.
    unsafe {
        arch::irql::set(Passive::CR8);
        normal(context, first, second);
        check(me, Passive::CR8, before, culprit);
        arch::irql::set(Apc::CR8);
    }
    me.apc.normal_under_way.store(false, Ordering::Relaxed);
}

/// In every build: an APC's routine returns at the level that it was entered at, and in no region more or less.
fn check(me: &Thread, level: u8, disables: u32, culprit: u64) {
    let found = arch::irql::current();
    if found != level {
        bugcheck(
            StopCode::IrqlUnexpectedValue,
            [found.into(), level.into(), culprit, RoutineKind::Apc as u64],
        );
    }
    if me.apc.disables() != disables {
        bugcheck(
            StopCode::ApcIndexMismatch,
            [culprit, disables.into(), me.apc.disables().into(), RoutineKind::Apc as u64],
        );
    }
}

/// The running thread was asked to end, and nothing stands against it: what called this is never returned to.
fn end(me: &Thread, at: &mut Irql<Apc>) -> ! {
    at.check();
    let status = NtStatus(me.terminate_with.load(Ordering::Acquire));
    // SAFETY: the code that is delivered above is at PASSIVE, and neither it nor `at` is used again.
    unsafe {
        arch::irql::set(Passive::CR8);
        Irql::<Passive>::lend(|at| thread::exit(status, at))
    }
}

/// The switch goes to `thread`, for which something may be deliverable: its processor, this one, is to look when the level allows. At
/// DISPATCH, under the processor's lock.
#[inline(always)]
pub(in crate::ke) fn requests_delivery(thread: &Thread) -> bool {
    thread.attention.any(Signs::KERNEL)
}

/// What can be delivered to the running thread is, now if it is at PASSIVE with interrupts on, else as soon as it is.
#[cold]
#[inline(never)]
pub(super) fn deliver_or_request<L: CanWait>(at: &mut Irql<L>) {
    if L::HIGHEST == level::PASSIVE && arch::cpu::interrupts_enabled() {
        deliver(&mut at.raise::<Apc>());
    } else {
        let _raised = at.raise::<Dispatch>();
        // SAFETY: at DISPATCH.
        unsafe { arch::pcr::request_apc() };
    }
}

/// A wait was ended by an APC, or not begun: it is delivered before the wait goes on, with interrupts on whatever the thread has.
#[cold]
#[inline(never)]
pub(in crate::ke) fn deliver_before_a_wait<L: CanWait>(at: &mut Irql<L>) {
    debug_assert_eq!(L::HIGHEST, level::PASSIVE, "no other wait is open to kernel APCs");
    let enabled = arch::cpu::interrupts_enabled();
    // SAFETY: a thread that waits lets interrupts in while others run; it is given back below.
    unsafe {
        if !enabled {
            arch::cpu::sti();
        }
        deliver(&mut at.raise::<Apc>());
        if !enabled {
            arch::cpu::cli();
        }
    }
}

const _: () = assert!(<Apc as Level>::LOWEST == level::APC);
