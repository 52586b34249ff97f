//! Exceptions: which are resolved, and which bugcheck each of the others is. The self-tests set a hook that sees them first.
//!
//! IRQL:    that of the code that raised it, IF=0. A page fault that can be resolved is so at APC, with interrupts on.
//! Sources: WDK, "Bug Check Code Reference"; SDM vol. 3, "Exception and Interrupt Reference".

use core::sync::atomic::{AtomicUsize, Ordering};

use arch::level::PASSIVE;
use arch::trap::TrapFrame;
use sync::irql::{Apc, Clock, Device, Dispatch, Irql, Passive, Synch};

use super::bugcheck::{self, StopCode};
use super::thread::Thread;
use crate::mm::fault::{Code, Decision, Fault};
use crate::mm::resolve::{self, Resolution};
use crate::mm::{executable, layout, stacks};

#[cfg(feature = "verifier")]
const DEBUG: u8 = 1;
const PAGE_FAULT: u8 = 14;

/// Gets every exception first; returns whether it dealt with it by changing the frame.
pub type Hook = fn(&mut TrapFrame) -> bool;

static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Installs a hook for exceptions that a self-test provokes. Checked build: the release image has no such door.
///
/// # Safety
/// The hook says of those exceptions only that it dealt with them which the self-test provokes, and sends their code where it may go on.
#[cfg(feature = "verifier")]
pub unsafe fn set_hook(hook: Option<Hook>) {
    HOOK.store(hook.map_or(0, |hook| hook as usize), Ordering::Release);
}

fn hook() -> Option<Hook> {
    let address = HOOK.load(Ordering::Acquire);
    // SAFETY: only `set_hook` stores here, and only a `Hook`.
    (address != 0).then(|| unsafe { core::mem::transmute::<usize, Hook>(address) })
}

/// The up-call for exceptions.
pub(crate) fn exception(frame: &mut TrapFrame) {
    if let Some(hook) = hook()
        && hook(frame)
    {
        return;
    }
    #[cfg(feature = "verifier")]
    if frame.vector as u8 == DEBUG && super::aim::struck(frame) {
        return;
    }
    if frame.vector as u8 == PAGE_FAULT && is_resolved(frame) {
        return;
    }
    let (code, parameters) = classify(frame);
    bugcheck::with_frame(code, parameters, frame)
}

/// NTSTATUS of an exception, as parameter 1 of KMODE_EXCEPTION_NOT_HANDLED.
fn status(vector: u8) -> Option<u64> {
    Some(match vector {
        0 => 0xFFFF_FFFF_C000_0094,       // STATUS_INTEGER_DIVIDE_BY_ZERO
        1 => 0xFFFF_FFFF_8000_0004,       // STATUS_SINGLE_STEP
        3 => 0xFFFF_FFFF_8000_0003,       // STATUS_BREAKPOINT
        4 => 0xFFFF_FFFF_C000_0095,       // STATUS_INTEGER_OVERFLOW
        6 => 0xFFFF_FFFF_C000_001D,       // STATUS_ILLEGAL_INSTRUCTION
        13 => 0xFFFF_FFFF_C000_0005,      // STATUS_ACCESS_VIOLATION
        17 => 0xFFFF_FFFF_8000_0002,      // STATUS_DATATYPE_MISALIGNMENT
        16 | 19 => 0xFFFF_FFFF_C000_0090, // STATUS_FLOAT_INVALID_OPERATION
        _ => return None,
    })
}

/// Stop code and parameters of an exception that nobody handles.
fn classify(frame: &TrapFrame) -> (StopCode, [u64; 4]) {
    let vector = frame.vector as u8;
    match vector {
        8 => (StopCode::UnexpectedKernelModeTrap, [8, frame.rsp, frame.cr2, frame.rip]),
        PAGE_FAULT => page_fault_code(frame),
        18 => (StopCode::MachineCheckException, [0, frame.rip, 0, 0]),
        _ => match status(vector) {
            Some(status) => {
                (StopCode::KmodeExceptionNotHandled, [status, frame.rip, frame.error, u64::from(vector)])
            }
            None => {
                (StopCode::UnexpectedKernelModeTrap, [u64::from(vector), frame.error, frame.rip, frame.rsp])
            }
        },
    }
}

/// The page fault that `frame` is.
fn fault_of(frame: &TrapFrame) -> Fault {
    const IF: u64 = 1 << 9;
    let code = if arch::user::landing(frame.rip).is_some() {
        Code::UserCopy
    } else if layout::is_text(frame.rip) {
        Code::Kernel
    } else {
        Code::Driver
    };
    Fault {
        address: frame.cr2,
        error: frame.error,
        irql: frame.irql as u8,
        interruptible: frame.rflags & IF != 0,
        rip: frame.rip,
        code,
    }
}

/// #PF: whether the frame can go on, at its instruction or at the landing of a copy.
fn is_resolved(frame: &mut TrapFrame) -> bool {
    let fault = fault_of(frame);
    let decision = fault.decide();
    if matches!(decision, Decision::Fatal(_)) {
        return false;
    }
    // SAFETY: of this very exception, unchanged; what it is about was taken from CR2 and the frame above.
    let resolution = unsafe {
        arch::trap::interruptibly(frame, || match decision {
            Decision::Toggle => toggle(&fault),
            _ => at_apc(fault.irql, |at| resolve::resolve(decision, &fault, at)),
        })
    };
    match resolution {
        Resolution::Resolved => true,
        Resolution::Refused(status) if fault.code == Code::UserCopy => {
            frame.rip = arch::user::landing(fault.rip).unwrap_or(fault.rip);
            frame.rax = status.0.into();
            true
        }
        Resolution::Refused(_) | Resolution::Fatal => false,
    }
}

/// A change between writing and running, at the level of the interrupted code.
fn toggle(fault: &Fault) -> Resolution {
    let (address, kind) = (fault.address, fault.kind());
    // SAFETY: 1. CR8 is the interrupted level. 2. the interrupted code, which may have a token of a rank above, uses it again when this
    //         has returned; what is done here takes no lock but those of inter-processor calls, which are held at HIGH.
    unsafe {
        match fault.irql {
            0 => Irql::<Passive>::with(|at| executable::toggle(address, kind, at)),
            1 => Irql::<Apc>::with(|at| executable::toggle(address, kind, at)),
            2 => Irql::<Dispatch>::with(|at| executable::toggle(address, kind, at)),
            3..=11 => Irql::<Device>::with(|at| executable::toggle(address, kind, at)),
            12 => Irql::<Synch>::with(|at| executable::toggle(address, kind, at)),
            13 => Irql::<Clock>::with(|at| executable::toggle(address, kind, at)),
            _ => Resolution::Fatal,
        }
    }
}

/// Runs `work` at APC, above code that faulted at `interrupted`, which is not above it.
fn at_apc<R>(interrupted: u8, work: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
    // SAFETY: 1. CR8 is the interrupted level, which is below DISPATCH, or nothing would be resolved. 2. the interrupted code uses
    //         its own token again when this has returned.
    unsafe {
        if interrupted == PASSIVE {
            Irql::<Passive>::with(|at| work(&mut at.raise::<Apc>()))
        } else {
            Irql::<Apc>::with(work)
        }
    }
}

/// #PF that nothing resolves: what it means is `mm`'s to say.
fn page_fault_code(frame: &TrapFrame) -> (StopCode, [u64; 4]) {
    let fault = fault_of(frame);
    let meaning = fault.meaning();
    crate::error!("page fault at {:#x}: {}", fault.address, meaning.why);
    (meaning.code, meaning.parameters)
}

/// If this exception is the running thread's stack that ran over.
pub(super) fn overflown_thread(frame: &TrapFrame) -> Option<&'static Thread> {
    let running = arch::pcr::current_thread().cast::<Thread>();
    // SAFETY: the running thread, or null before there is one; it stays, as nothing runs any more.
    let thread = unsafe { running.as_ref() }?;
    [frame.cr2, frame.rsp].into_iter().any(|address| thread.stack_guards(address)).then_some(thread)
}

/// If this exception is a stack that ran over: the processor and the stack.
pub(super) fn overflown_stack(frame: &TrapFrame) -> Option<(u32, stacks::Kind)> {
    let processors = super::prcb::count();
    [frame.cr2, frame.rsp].into_iter().filter_map(|address| stacks::owner(address, processors)).find_map(
        |owner| match owner {
            (processor, kind, true) => Some((processor, kind)),
            _ => None,
        },
    )
}
