//! Touching what must not be touched, and living to tell.
//!
//! A probe notes where it wants to go on; the exception hook notes what came and sends it there. One processor, one probe at a
//! time.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::trap::TrapFrame;
use kernel::ke::trap;

/// An exception as the handler saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) vector: u8,
    pub(crate) error: u64,
    pub(crate) address: u64,
    pub(crate) irql: u64,
}

pub(crate) static RESUME: AtomicU64 = AtomicU64::new(0);
pub(crate) static RESUME_RSP: AtomicU64 = AtomicU64::new(0);
static HIT: AtomicBool = AtomicBool::new(false);
static SEEN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn hook(frame: &mut TrapFrame) -> bool {
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume == 0 {
        return false;
    }
    for (slot, value) in SEEN.iter().zip([frame.vector & 0xFF, frame.error, frame.cr2, frame.irql]) {
        slot.store(value, Ordering::Relaxed);
    }
    HIT.store(true, Ordering::Relaxed);
    frame.rip = resume;
    frame.rsp = RESUME_RSP.load(Ordering::Relaxed);
    frame.rflags &= !(1 << 8);
    true
}

/// Runs one instruction sequence that may fault and go on behind it. `$text` finds `$value` in RDI.
macro_rules! attempt {
    ($text:literal, $value:expr) => {{
        $crate::probe::begin();
        // SAFETY: the hook sends a fault in the sequence to label 2 with this stack pointer; all registers that a called
        //         function may change are declared changed.
        unsafe {
            core::arch::asm!(
                "lea rax, [rip + 2f]",
                "mov [{resume}], rax",
                "mov [{stack}], rsp",
                $text,
                "2:",
                resume = sym $crate::probe::RESUME,
                stack = sym $crate::probe::RESUME_RSP,
                in("rdi") $value,
                clobber_abi("sysv64"),
            );
        }
        $crate::probe::end()
    }};
}
pub(crate) use attempt;

/// Execution breakpoint 0 of this processor; zero: none.
///
/// # Safety
/// Exceptions are taken by a hook that resumes #DB with RF set.
pub(crate) unsafe fn set_breakpoint(address: u64) {
    // SAFETY: the caller's.
    unsafe { arch::breakpoint::arm([address, 0, 0, 0]) };
}

pub(crate) fn begin() {
    HIT.store(false, Ordering::Relaxed);
    // SAFETY: the hook deals with the one exception that a probe waits for, and sends it to the place that the probe noted.
    unsafe { trap::set_hook(Some(hook)) };
}

pub(crate) fn end() -> Option<Seen> {
    // SAFETY: none deals with nothing.
    unsafe { trap::set_hook(None) };
    RESUME.store(0, Ordering::Relaxed);
    HIT.load(Ordering::Relaxed).then(|| Seen {
        vector: SEEN[0].load(Ordering::Relaxed) as u8,
        error: SEEN[1].load(Ordering::Relaxed),
        address: SEEN[2].load(Ordering::Relaxed),
        irql: SEEN[3].load(Ordering::Relaxed),
    })
}

/// Reads a byte.
pub(crate) fn read(address: u64) -> Option<Seen> {
    attempt!("mov al, [rdi]", address)
}

/// Writes back the byte that a read would give: harmless where it succeeds.
pub(crate) fn write(address: u64) -> Option<Seen> {
    attempt!("lock or byte ptr [rdi], 0", address)
}

/// Stores zero. Apart from `write`: an emulator that runs one processor splits the locked access, and its load faults first.
pub(crate) fn store(address: u64) -> Option<Seen> {
    attempt!("mov byte ptr [rdi], 0", address)
}

/// Calls the address.
pub(crate) fn execute(address: u64) -> Option<Seen> {
    attempt!("call rdi", address)
}

/// Enters `vector`'s stub with a frame built as the processor would, on this stack; the hook sends it back.
pub(crate) fn built_frame(vector: u8, has_error: bool) -> Option<Seen> {
    begin();
    // SAFETY: the frame returns to label 2 with the stack pointer saved there; the word above it is this processor's PCR, as
    //         on an IST stack.
    unsafe {
        asm!(
            "lea rax, [rip + 2f]",
            "mov [{resume}], rax",
            "mov [{stack}], rsp",
            "mov rdx, rsp",
            "and rsp, -16",
            "sub rsp, 16",
            "mov [rsp], r8",
            "push 0x18",
            "push rdx",
            "pushfq",
            "push 0x10",
            "push rax",
            "test r9d, r9d",
            "jz 3f",
            "push 0x55",
            "3:",
            "jmp r10",
            "2:",
            resume = sym RESUME,
            stack = sym RESUME_RSP,
            in("r8") core::ptr::from_ref(arch::pcr::here()) as u64,
            in("r9") u64::from(has_error),
            in("r10") arch::trap::stub(vector),
            clobber_abi("sysv64"),
        );
    }
    end()
}
