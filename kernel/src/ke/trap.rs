//! Exceptions: which bugcheck each one is. None is recovered from yet but by a hook that the self-tests set.
//!
//! IRQL:    that of the code that raised it, IF=0.
//! Sources: WDK, "Bug Check Code Reference"; SDM vol. 3, "Exception and Interrupt Reference".

use core::sync::atomic::{AtomicUsize, Ordering};

use arch::trap::TrapFrame;

use super::bugcheck::{self, StopCode};
use crate::mm::stacks;

/// Error-code bits of #PF.
mod page_fault {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const EXECUTE: u64 = 1 << 4;
}

/// Gets every exception first; returns whether it dealt with it by changing the frame.
pub type Hook = fn(&mut TrapFrame) -> bool;

static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Installs a hook for exceptions that a self-test provokes. Checked build: the release image has no such door.
#[cfg(feature = "verifier")]
pub fn set_hook(hook: Option<Hook>) {
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
        14 => page_fault_code(frame),
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

/// #PF: there is no paged memory yet, so each is an error. By IRQL first, then by what was tried.
fn page_fault_code(frame: &TrapFrame) -> (StopCode, [u64; 4]) {
    use arch::level::DISPATCH;
    let (address, error) = (frame.cr2, frame.error);
    // As NT reports it: 0 read, 1 write, 8 execute.
    let kind = if error & page_fault::EXECUTE != 0 { 8 } else { (error & page_fault::WRITE) >> 1 };
    let present = error & page_fault::PRESENT != 0;
    if present && error & page_fault::EXECUTE != 0 {
        (StopCode::AttemptedExecuteOfNoexecuteMemory, [address, error, frame.rip, 0])
    } else if present && error & page_fault::WRITE != 0 {
        (StopCode::AttemptedWriteToReadonlyMemory, [address, error, frame.rip, 0])
    } else if frame.irql as u8 >= DISPATCH {
        (StopCode::IrqlNotLessOrEqual, [address, frame.irql, kind, frame.rip])
    } else {
        (StopCode::PageFaultInNonpagedArea, [address, kind, frame.rip, 0])
    }
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
