//! The interrupt path, in the one order in which it is correct, and the exception entries.
//!
//! For a maskable vector v that hit code at level `old`:
//!  1. gate (IF=0); the stub saves the volatile registers, `swapgs` if from ring 3, notes CR8 = `old`, sets CR8 = v >> 4
//!  2. IF=1; the handler runs and returns `Retired`: the EOI is done
//!  3. IF=0; fast way out if nothing is requested, or if this handler interrupted another (whose exit looks instead)
//!  4. requested and `old` < DISPATCH: CR8=2, IF=1, up-call `dispatch`, IF=0; look again. `old` >= DISPATCH: self-IPI 0x2F,
//!     which waits in IRR until CR8 falls
//!  5. the same for kernel APCs at `old` = PASSIVE, with CR8=1 and 0x1F
//!  6. CR8 = `old`; restore; `iretq`
//!
//! Stacks:     maskable interrupts run on the interrupted kernel stack. One level takes [`InterruptFrame`] (144 bytes) plus its
//!             handler's frames; at most one handler for each level 1–15 can be under way, so the worst case is twelve nested
//!             handlers for IRQL 3–14 and one at 15. #DF, NMI, #MC and #DB have IST stacks.
//! GS:         from ring 3 told by CS for maskable interrupts and ordinary exceptions. IST vectors can hit between a ring-3
//!             entry and its `swapgs`, so they compare GS base with the PCR address stored at the top of their own stack
//!             (`tables`, I2): not with its sign, which user code with FSGSBASE may choose.
//! Frames:     RBP chains through every frame; where a return address would be stands the vector (a byte, sign-extended),
//!             by which a backtrace knows which frame layout follows.
//! Invariants: I1 a handler in `HANDLERS` is entered with CR8 = v >> 4, IF=1, its frame's address in RDI.
//!             I2 on every way out CR8 and IF are what the frame was entered with.
//! Sources:    SDM vol. 3, "Task and Processor Priorities", "Exception- and Interrupt-Handler Procedures".

use core::arch::{global_asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::pcr::{
    self, GS_COUNTS, GS_DEPTH, GS_SOFTWARE, REQUEST_APC, REQUEST_DISPATCH, SENT_APC, SENT_DISPATCH,
};
use super::{cpu, irql};
use crate::service::{InService, NothingInService, Retired};
use crate::{level, upcalls, vector};

/// What a maskable interrupt saves: the volatile registers, lowest address first.
#[derive(Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct InterruptFrame {
    /// CR8 of the interrupted code.
    pub irql: u64,
    _align: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub rbp: u64,
    /// Low byte: the vector.
    pub vector: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What an exception or NMI saves: every general register.
#[derive(Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct TrapFrame {
    /// CR8 of the code that raised it.
    pub irql: u64,
    /// CR2 at entry; means something for #PF.
    pub cr2: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub rbp: u64,
    /// Low byte: the vector.
    pub vector: u64,
    /// The processor's error code, or zero.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// The stack is aligned to 16 by the processor before it pushes; both frames must keep that for the call that follows.
const _: () = assert!(size_of::<InterruptFrame>().is_multiple_of(16));
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16));

/// From RBP inside a frame to the fields behind it; the walker of backtraces uses the same.
const FROM_RBP: usize = offset_of!(InterruptFrame, rbp);
const VECTOR: usize = offset_of!(InterruptFrame, vector) - FROM_RBP;
const TRAP_FROM_RBP: usize = offset_of!(TrapFrame, rbp);
/// The word at the initial RSP of an IST stack: the PCR's address.
const IST_PCR: usize = size_of::<TrapFrame>() - TRAP_FROM_RBP;
const IA32_GS_BASE: u32 = 0xC000_0101;

const REQUESTS: u32 = REQUEST_DISPATCH | REQUEST_APC;

/// What a vector calls: `extern "sysv64" fn(&mut InterruptFrame)`, with I1.
type Entry = unsafe extern "sysv64" fn(*mut InterruptFrame);

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

global_asm!(
    // 256 stubs of 16 bytes. Vectors 0-30 are exceptions and get an error code if the processor gave none; 31 is the APC
    // software interrupt. 8, 10-14, 17, 21, 29 and 30 come with an error code (SDM, table of exceptions and interrupts).
    ".type kirql_trap_stubs, @function",
    ".balign 16",
    "kirql_trap_stubs:",
    ".set kirql_v, 0",
    ".rept 256",
    ".balign 16, 0xCC",
    ".if kirql_v == 1 || kirql_v == 2 || kirql_v == 18",
    ".byte 0x6A, 0",
    ".byte 0x6A, kirql_v",
    "jmp {paranoid}",
    ".elseif kirql_v == 8",
    ".byte 0x6A, kirql_v",
    "jmp {paranoid}",
    ".elseif (kirql_v >= 10 && kirql_v <= 14) || kirql_v == 17 || kirql_v == 21 || kirql_v == 29 || kirql_v == 30",
    ".byte 0x6A, kirql_v",
    "jmp {exception}",
    ".elseif kirql_v < 31",
    ".byte 0x6A, 0",
    ".byte 0x6A, kirql_v",
    "jmp {exception}",
    ".else",
    ".byte 0x6A, kirql_v",
    "jmp {interrupt}",
    ".endif",
    ".set kirql_v, kirql_v + 1",
    ".endr",
    ".size kirql_trap_stubs, . - kirql_trap_stubs",
    paranoid = sym paranoid_entry,
    exception = sym exception_entry,
    interrupt = sym interrupt_entry,
);

unsafe extern "C" {
    /// The first stub; never called from Rust.
    safe static kirql_trap_stubs: [[u8; 16]; 256];
}

/// The address of `vector`'s stub: for the IDT, and for self-tests that build a frame by hand.
pub fn stub(vector: u8) -> u64 {
    core::ptr::from_ref(&kirql_trap_stubs[usize::from(vector)]) as u64
}

/// Steps 1–3 and 6. On entry, from RSP up: vector, then the processor's five words; IF=0.
#[unsafe(naked)]
unsafe extern "sysv64" fn interrupt_entry() {
    naked_asm!(
        "test byte ptr [rsp + 16], 3", // CS: the frame has no RBP yet
        "jnz 5f",
        "2:",
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "mov rax, cr8",
        "movzx ecx, byte ptr [rbp + {vector}]",
        "push rax", // alignment
        "push rax", // the interrupted level
        "mov eax, ecx",
        "shr eax, 4",
        "mov cr8, rax",
        "inc dword ptr gs:[{depth}]",
        "inc dword ptr gs:[{counts} + rcx * 4]",
        "mov rdi, rsp",
        "sti",
        "call qword ptr [{handlers} + rcx * 8]",
        "cli",
        "dec dword ptr gs:[{depth}]",
        "jnz 3f", // the interrupted handler's exit looks for requests
        "test byte ptr gs:[{software}], {requests}",
        "jnz 4f",
        "3:",
        "pop rax",
        "mov cr8, rax",
        "pop rax",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "test byte ptr [rsp + 16], 3",
        "jnz 6f",
        "add rsp, 8",
        "iretq",
        "4:",
        "mov rdi, [rsp]",
        "call {exit}",
        "jmp 3b",
        "5:",
        "swapgs",
        "cld",
        "jmp 2b",
        "6:",
        "add rsp, 8",
        "swapgs", // IF=0: nothing maskable comes between here and iretq
        "iretq",
        vector = const VECTOR,
        depth = const GS_DEPTH,
        counts = const GS_COUNTS,
        software = const GS_SOFTWARE,
        requests = const REQUESTS,
        handlers = sym HANDLERS,
        exit = sym interrupt_exit,
    )
}

/// Exceptions on the current stack. On entry, from RSP up: vector, error code, the processor's five words; IF=0.
#[unsafe(naked)]
unsafe extern "sysv64" fn exception_entry() {
    naked_asm!(
        "test byte ptr [rsp + 24], 3",
        "jz 2f",
        "swapgs",
        "2:",
        "cld",
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rax, cr2",
        "push rax",
        "mov rax, cr8",
        "push rax",
        "mov rdi, rsp",
        "call {handle}",
        "pop rax",
        "mov cr8, rax",
        "pop rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "test byte ptr [rsp + 24], 3",
        "jz 3f",
        "swapgs",
        "3:",
        "add rsp, 16",
        "iretq",
        handle = sym exception,
    )
}

/// #DB, NMI, #DF, #MC on their IST stacks: GS may be the user's whatever CS says. EBX remembers whether it was.
#[unsafe(naked)]
unsafe extern "sysv64" fn paranoid_entry() {
    naked_asm!(
        "cld",
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rax, cr2",
        "push rax",
        "mov rax, cr8",
        "push rax",
        "mov ecx, {gs_base}",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "xor ebx, ebx",
        "cmp rax, [rbp + {ist_pcr}]",
        "je 2f",
        "swapgs",
        "inc ebx",
        "2:",
        "mov rdi, rsp",
        "call {handle}",
        "test ebx, ebx",
        "jz 3f",
        "swapgs",
        "3:",
        "pop rax",
        "mov cr8, rax",
        "pop rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "add rsp, 16",
        "iretq",
        gs_base = const IA32_GS_BASE,
        ist_pcr = const IST_PCR,
        handle = sym exception,
    )
}

/// Steps 4 and 5: something is requested and no other handler is under way here. IF=0 on entry and exit.
extern "sysv64" fn interrupt_exit(interrupted: u64) {
    let interrupted = interrupted as u8;
    if interrupted >= level::DISPATCH {
        pcr::send_pending(REQUEST_DISPATCH, SENT_DISPATCH, vector::DISPATCH);
        pcr::send_pending(REQUEST_APC, SENT_APC, vector::APC);
        return;
    }
    let Some(up) = upcalls::table() else { return };
    loop {
        let requested = pcr::software();
        if requested & REQUEST_DISPATCH != 0 {
            pcr::clear_software(REQUEST_DISPATCH);
            // SAFETY: depth is zero and the interrupted level is below DISPATCH, so no handler is half-way here and every
            //         EOI was done: each handler returned its `Retired`.
            let nothing = unsafe { NothingInService::assume() };
            at_level(level::DISPATCH, || (up.dispatch)(nothing));
        } else if requested & REQUEST_APC != 0 {
            if interrupted == level::APC {
                pcr::send_pending(REQUEST_APC, SENT_APC, vector::APC);
                return;
            }
            pcr::clear_software(REQUEST_APC);
            at_level(level::APC, up.apc);
        } else {
            return;
        }
    }
}

/// Runs `work` at `level` with IF=1, and comes back with IF=0, perhaps on another processor.
fn at_level(level: u8, work: impl FnOnce()) {
    // SAFETY: on the way out of an interrupt: the frame's own CR8 is restored by step 6, and IF is set for the work's duration
    //         as the design's steps 4 and 5 ask.
    unsafe {
        irql::set(level);
        cpu::sti();
    }
    work();
    // SAFETY: the rest of the way out needs IF=0.
    unsafe { cpu::cli() };
}

/// All exceptions: NMIs apart, for which being nested is fatal, since the second overwrote the first one's frame.
extern "sysv64" fn exception(frame: &mut TrapFrame) {
    const NMI: u64 = 2;
    let Some(up) = upcalls::table() else { super::serial::last_words(frame.vector as u32) };
    if frame.vector != NMI {
        (up.exception)(frame);
        return;
    }
    let pcr = pcr::here();
    if pcr.nmi_active.swap(1, Ordering::Relaxed) != 0 {
        upcalls::fatal(upcalls::stop::NMI_HARDWARE_FAILURE, [u64::from(pcr::number()), frame.rip, 1, 0]);
    }
    pcr.nmi_count.fetch_add(1, Ordering::Relaxed);
    (up.nmi)(frame);
    pcr.nmi_active.store(0, Ordering::Relaxed);
}

/// Installs `handler` for `vector`. The closure captures nothing, so that the call is direct: one `call` from the stub.
///
/// # Safety
/// `handler` is correct at CR8 = `vector >> 4` with IF=1 on whatever stack was interrupted; `vector` is not an exception's.
/// If `vector` needs no EOI, `handler` doesn't call [`InService::end`].
pub unsafe fn set_handler<F>(vector: u8, _handler: F)
where
    F: for<'f> Fn(&'f mut InterruptFrame, InService<'f>) -> Retired<'f> + Copy + 'static,
{
    const { assert!(size_of::<F>() == 0, "an interrupt handler captures nothing") };
    unsafe extern "sysv64" fn entry<F>(frame: *mut InterruptFrame)
    where
        F: for<'f> Fn(&'f mut InterruptFrame, InService<'f>) -> Retired<'f> + Copy + 'static,
    {
        // SAFETY: F is zero-sized and `Copy`, and a value of it existed in `set_handler`: this reads no memory.
        let handler = unsafe { core::ptr::NonNull::<F>::dangling().read() };
        // SAFETY: 1. I1: the frame is on this stack until `entry` returns. 2. Called by the stub once for this delivery.
        let (frame, service) = unsafe { (&mut *frame, InService::delivered()) };
        let _: Retired<'_> = handler(frame, service);
    }
    let entry: Entry = entry::<F>;
    HANDLERS[usize::from(vector)].store(entry as usize, Ordering::Release);
}

/// Fills every vector from 31 up: `unexpected` first, then the two software interrupts, whose work is all on the way out.
///
/// # Safety
/// As [`set_handler`]; before interrupts are enabled anywhere.
pub unsafe fn init<F>(unexpected: F)
where
    F: for<'f> Fn(&'f mut InterruptFrame, InService<'f>) -> Retired<'f> + Copy + 'static,
{
    for vector in 31..=255 {
        // SAFETY: as the caller promised.
        unsafe { set_handler(vector, unexpected) };
    }
    // SAFETY: both only note that the vector was taken, and end it.
    unsafe {
        set_handler(vector::DISPATCH, |_, service| {
            pcr::clear_software(SENT_DISPATCH);
            service.end()
        });
        set_handler(vector::APC, |_, service| {
            pcr::clear_software(SENT_APC);
            service.end()
        });
        // SAFETY of `without_eoi`: a spurious interrupt sets no in-service bit.
        set_handler(vector::SPURIOUS, |_, service| {
            core::mem::forget(service);
            Retired::without_eoi()
        });
    }
}

/// One step of a backtrace: what stands behind a frame's saved RBP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A call: the return address, and the caller's RBP.
    Call(u64, u64),
    /// An interrupt or exception: the interrupted RIP, RSP and RBP.
    Trap(u64, u64, u64),
}

/// Decodes the frame at `rbp`, reading words through `read`, which refuses addresses that aren't mapped.
pub fn unwind(rbp: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Link> {
    if rbp == 0 || !rbp.is_multiple_of(8) {
        return None;
    }
    let word = |offset: usize| read(rbp.checked_add(offset as u64)?);
    let saved = word(0)?;
    let behind = word(8)?;
    let marker = behind as i64;
    if (0..31).contains(&marker) {
        let at = |offset: usize| word(offset - TRAP_FROM_RBP);
        Some(Link::Trap(at(offset_of!(TrapFrame, rip))?, at(offset_of!(TrapFrame, rsp))?, saved))
    } else if (-128..128).contains(&marker) {
        let at = |offset: usize| word(offset - FROM_RBP);
        Some(Link::Trap(at(offset_of!(InterruptFrame, rip))?, at(offset_of!(InterruptFrame, rsp))?, saved))
    } else {
        Some(Link::Call(behind, saved))
    }
}
