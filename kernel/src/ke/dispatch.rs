//! The work of DISPATCH level, in one place: timers that expired, DPCs (`retire`); threads that are to run instead (`run`).
//!
//! Called by:  the way out of an interrupt (`arch::trap`, step 4), and `inline` where a request is made below DISPATCH.
//! IRQL:       CR8=2, IF=1, nothing in service.
//! Stacks:     DPCs run on the processor's own DPC stack; threaded ones in the processor's DPC thread, a real-time thread that waits
//!             for an event of the PRCB.
//! Invariants: I1 the DPC stack is empty whenever this starts: nothing here nests, since what interrupts it finds DISPATCH and
//!                asks for 0x2F.

use core::ptr;
use core::sync::atomic::Ordering;

use arch::service::NothingInService;
use arch::switch::call_on_dpc_stack;
use arch::trace::{Kind, about};
use sync::deferred::Call;
use sync::irql::{Dispatch, Fixed, High, Irql, Passive};

use super::bugcheck::{RoutineKind, StopCode, bugcheck};
use super::prcb::{self, Prcb};
use super::sched::{self, PRIORITIES};
use super::thread;
use super::{dpc, ipi, timer, wait};
use crate::rtl::NtStatus;

/// The up-call `dispatch`, after [`retire`] asked for it: what is not done on the DPC stack.
///
/// # Safety
/// As that up-call: on the way out of an interrupt that hit code below DISPATCH, CR8 = 2, IF=1.
pub(crate) unsafe extern "sysv64" fn run() {
    // SAFETY: on the way out of an interrupt no handler is under way on this processor any more, and the interrupted level is below
    //         DISPATCH: every EOI was done, as each handler returned its `Retired`.
    let nothing = unsafe { NothingInService::assume() };
    // SAFETY: CR8 is 2, and IF=1 on the way out of an interrupt.
    unsafe { Irql::<Dispatch>::with(|at| sched::look_uninterrupted(nothing, at)) }
}

/// The same for a request that is made below DISPATCH: nothing would keep 0x2F out, so its work is done here.
///
/// # Safety
/// `raised` was raised from a token below DISPATCH, and IF=1, as the routines are to find it.
#[inline(always)]
pub(super) unsafe fn inline(raised: &mut Irql<High>) {
    raised.check();
    // SAFETY: 1. CR8 goes from 15 to 2 and back while `raised` is borrowed and unused; the code that raised it had a level
    //         below 2, so nothing relies on more. 2. That level also says that nothing is in service, and that the DPC stack is
    //         empty (I1).
    unsafe {
        arch::irql::set(Dispatch::CR8);
        if call_on_dpc_stack(retire) {
            Irql::<Dispatch>::with(|at| sched::look(NothingInService::assume(), at));
        }
        arch::irql::set(High::CR8);
    }
}

/// Asks another processor for a look.
pub(super) fn request_on(there: &Prcb) {
    ipi::post(there, ipi::Request::Dispatch);
}

/// The up-call `retire`: expires timers and runs queued DPCs until there are none. On the DPC stack, at DISPATCH. True: there is
/// work for [`run`].
///
/// # Safety
/// As that up-call, or as [`inline`]: CR8 = 2, IF=1, on the DPC stack, and no token is in use on this processor.
pub(crate) unsafe extern "sysv64" fn retire() -> bool {
    // SAFETY: CR8 is 2, on the way out of an interrupt or under `inline`'s unused token.
    unsafe {
        Irql::<Dispatch>::with(|at| {
            let (here, at) = Prcb::here(at);
            #[cfg(feature = "verifier")]
            check_in_service();
            here.tick.watch_dpcs();
            if here.timers.earliest() < here.tick.armed() {
                timer::look(here, at);
            }
            while let Some(call) = here.dpc.ordinary.take(at) {
                make_ordinary(here, &call);
            }
            here.dpc.end_stay();
            if here.dpc.threaded.is_pending() {
                wake_dpc_thread(here, at);
            }
            here.sched.wants_look()
        })
    }
}

/// Whatever the proof in types says: no interrupt awaits its EOI when the work of DISPATCH begins, and so none does at a switch.
#[cfg(feature = "verifier")]
fn check_in_service() {
    let bits = arch::apic::in_service();
    if let Some(vector) = (0..=255).rev().find(|&vector| bits != [0; 8] && arch::apic::bit(&bits, vector)) {
        bugcheck(StopCode::AttemptedSwitchFromDpc, [vector.into(), 0, 0, 1]);
    }
}

/// Calls an ordinary DPC's routine, in sight of the watchdog.
///
/// # Safety
/// As [`make`], at DISPATCH on the DPC stack of `here`'s processor.
#[inline(always)]
pub(super) unsafe fn make_ordinary(here: &Prcb, call: &Call) {
    here.dpc.begin(call);
    // SAFETY: the caller's.
    unsafe { make::<false>(call) };
    let found = arch::irql::current();
    if found != Dispatch::CR8 || !may_be_interrupted() {
        let [routine, context] = here.dpc.running();
        unexpected(found, Dispatch::CR8, dpc::culprit(routine, context), RoutineKind::Dpc);
    }
}

/// Calls a routine.
///
/// # Safety
/// `call` was taken off its queue just now; this is the level that its kind runs at.
#[inline(always)]
unsafe fn make<const THREADED: bool>(call: &Call) {
    let [first, second] = call.arguments;
    about(Kind::DpcRun, THREADED.into(), call.entry, call.routine as usize as u64);
    // SAFETY: what `dpc::insert`'s caller promised of the routine.
    unsafe { (call.routine)(call.entry, call.context, first, second) };
    about(Kind::DpcEnd, THREADED.into(), call.entry, 0);
}

/// IF, as far as the build asks.
#[inline(always)]
fn may_be_interrupted() -> bool {
    !cfg!(feature = "verifier") || arch::cpu::interrupts_enabled()
}

#[cold]
#[inline(never)]
fn unexpected(found: u8, level: u8, culprit: u64, kind: RoutineKind) -> ! {
    bugcheck(StopCode::IrqlUnexpectedValue, [found.into(), level.into(), culprit, kind as u64])
}

/// Threaded DPCs are queued: their thread is to run. It is not asked again for those that come while it is at it.
#[cold]
fn wake_dpc_thread(here: &Prcb, at: &mut Irql<Dispatch>) {
    here.dpc_wanted.set(0, at);
}

/// A thread for the threaded DPCs of each processor: above all others there.
pub(crate) fn start_dpc_threads(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    for processor in prcb::all() {
        let number = processor.prcb().number();
        let options = thread::Options {
            name: thread::Name::new("threaded DPCs"),
            priority: PRIORITIES - 1,
            affinity: Some(1 << number),
            ideal: Some(number),
        };
        // It never ends, so nobody needs the reference.
        drop(thread::spawn(&options, dpc_thread, number as usize, at)?);
    }
    Ok(())
}

/// Threaded DPCs at PASSIVE, whenever there are any.
fn dpc_thread(at: &mut Irql<Passive>, number: usize) {
    let Some(processor) = prcb::get(number as u32) else { return };
    let me = ptr::from_ref(&*thread::current(at)).cast_mut();
    processor.prcb().dpc_thread.store(me, Ordering::Relaxed);
    loop {
        run_threaded(at);
        let _ = wait::for_single(&processor.prcb().dpc_wanted, None, at);
    }
}

/// Whether this is code of a threaded DPC.
pub(super) fn is_in_threaded_dpc(at: &mut Irql<Passive>) -> bool {
    let me = ptr::from_ref(&*thread::current(at)).cast_mut();
    prcb::all().any(|processor| processor.prcb().dpc_thread.load(Ordering::Relaxed) == me)
}

fn run_threaded(at: &mut Irql<Passive>) {
    loop {
        let call = {
            let mut raised = at.raise::<Dispatch>();
            let (here, at) = Prcb::here(&mut raised);
            here.dpc.threaded.take(at)
        };
        match call {
            Some(call) => {
                // SAFETY: taken just now; PASSIVE.
                unsafe { make::<true>(&call) };
                let found = arch::irql::current();
                if found != Passive::CR8 || !may_be_interrupted() {
                    let culprit = dpc::culprit(call.routine as usize as u64, call.context.addr() as u64);
                    unexpected(found, Passive::CR8, culprit, RoutineKind::ThreadedDpc);
                }
            }
            None => return,
        }
    }
}
