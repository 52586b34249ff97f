//! The interrupt path, in the one order in which it is correct, and the exception entries.
//!
//! For a maskable vector v that hit code at level `old`:
//!  1. gate (IF=0); the stub saves the volatile registers, `swapgs` if from ring 3, notes CR8 = `old`, sets CR8 = v >> 4. If the
//!     processor was idle, up-call `wake`
//!  2. IF=1; the handler runs and returns `Retired`: the EOI is done
//!  3. IF=0; fast way out if nothing is requested, or if this handler interrupted another (whose exit looks instead)
//!  4. requested and `old` < DISPATCH: CR8=2, IF=1, up-call `retire` on the DPC stack and, if that asks for it, `dispatch` on the
//!     interrupted one, IF=0; look again. `old` >= DISPATCH: self-IPI 0x2F, which waits in IRR until CR8 falls
//!  5. the same for kernel APCs at `old` = PASSIVE, with CR8=1 and 0x1F
//!  6. CR8 = `old`; restore; `iretq`
//!
//! Stacks:     maskable interrupts run on the interrupted kernel stack, ring 3's on its thread's. The DPC stack is empty when step 4
//!             begins: what interrupts its work finds DISPATCH and doesn't get there. One level takes [`InterruptFrame`] (144
//!             bytes) plus its handler's frames; at most one handler for each level 1–15 can be under way, so the worst case is
//!             twelve nested handlers for IRQL 3–14 and one at 15: 6 KiB of a stack's 32 in the checked build, as the self-test
//!             `stack_use::nested_handlers_*` measures it. #DF, NMI, #MC and #DB have IST stacks.
//! GS:         from ring 3 told by CS for maskable interrupts and ordinary exceptions. IST vectors can hit between a ring-3
//!             entry and its `swapgs`, so they compare GS base with the PCR address stored at the top of their own stack
//!             (`tables`, I2): not with its sign, which user code with FSGSBASE may choose.
//!             A fault of the `iretq` to ring 3 comes from ring 0 with the user's GS: told by its address.
//! Time:       the way back to ring 3 notes the time stamp, the entry from there adds what has passed to the running thread's ticks in
//!             ring 3. Between the two it stays on one processor. What comes by an IST vector stays in sight of that: its time in
//!             between counts as ring 3's.
//! Flags:      DF and AC are cleared for every handler: a copy that runs backwards may be interrupted, and what interrupts a copy to
//!             or from the user (`user`) has no right to the user's memory, nor may ring 3 give it.
//! Frames:     `crate::frame`.
//! Invariants: I1 a handler in `HANDLERS` is entered with CR8 = v >> 4, IF=1, its frame's address in RDI.
//!             I2 on every way out CR8 and IF are what the frame was entered with.
//!             I3 Rust code runs with GS base = this processor's PCR; ring 3 with what it had.
//! Sources:    SDM vol. 3, "Task and Processor Priorities", "Exception- and Interrupt-Handler Procedures".

use core::arch::{global_asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::pcr::{
    self, GS_COUNTS, GS_DEPTH, GS_DPC_STACK, GS_SOFTWARE, GS_THREAD, GS_USER_SINCE, THREAD_USER_CYCLES,
};
use super::user::clac;
use super::{cpu, irql};
pub use crate::frame::{InterruptFrame, Link, TrapFrame, unwind};
use crate::frame::{from_rbp, from_vector};
use crate::request::{REQUEST_APC, REQUEST_DISPATCH};
use crate::service::{InService, Retired};
use crate::trace::{Kind, event};
use crate::upcalls::{self, Upcalls};
use crate::{level, vector};

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

unsafe extern "C" {
    safe static kirql_interrupt_entry_end: u8;
    safe static kirql_exception_entry_end: u8;
    safe static kirql_return_to_user_end: u8;
}

/// Where the code lies that runs between the processor's part and Rust's, but for that of the IST vectors: for self-tests, which
/// interrupt it everywhere.
pub fn entry_code() -> [Range<u64>; 3] {
    let range = |entry: unsafe extern "sysv64" fn(), end: &'static u8| {
        entry as usize as u64..core::ptr::from_ref(end) as u64
    };
    [
        range(interrupt_entry, &kirql_interrupt_entry_end),
        range(exception_entry, &kirql_exception_entry_end),
        range(return_to_user, &kirql_return_to_user_end),
    ]
}

/// The address of `vector`'s stub: for the IDT, and for self-tests that build a frame by hand.
pub fn stub(vector: u8) -> u64 {
    core::ptr::from_ref(&kirql_trap_stubs[usize::from(vector)]) as u64
}

/// The volatile registers behind a saved RBP, as both frames have them.
macro_rules! push_volatile {
    () => {
        "push rbp
         mov rbp, rsp
         push rax
         push rcx
         push rdx
         push rsi
         push rdi
         push r8
         push r9
         push r10
         push r11"
    };
}

macro_rules! pop_volatile {
    () => {
        "pop r11
         pop r10
         pop r9
         pop r8
         pop rdi
         pop rsi
         pop rdx
         pop rcx
         pop rax
         pop rbp"
    };
}

/// The rest of a [`TrapFrame`]. Changes RAX.
macro_rules! push_rest {
    () => {
        "push rbx
         push r12
         push r13
         push r14
         push r15
         mov rax, cr2
         push rax
         mov rax, cr8
         push rax"
    };
}

macro_rules! pop_rest {
    () => {
        "pop rax
         mov cr8, rax
         pop rax
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbx"
    };
}

/// Ring 3 was left: what has passed since the way there is the running thread's. IF=0, the kernel's GS. Changes RAX, RDX and flags.
macro_rules! charge_user_time {
    () => {
        "rdtsc
         shl rdx, 32
         or rax, rdx
         sub rax, gs:[{user_since}]
         mov rdx, gs:[{thread}]
         add [rdx + {user_cycles}], rax"
    };
}

/// Steps 1–4 and 6. On entry, from RSP up: vector, then the processor's five words; IF=0.
#[unsafe(naked)]
unsafe extern "sysv64" fn interrupt_entry() {
    naked_asm!(
        "test byte ptr [rsp + {cs}], 3", // the frame has no RBP yet
        "jnz 5f",
        "2:",
        push_volatile!(),
        "cld",
        clac!(),
        "mov rax, cr8",
        "movzx ecx, byte ptr [rbp + {vector}]",
        "push rax", // alignment
        "push rax", // the interrupted level
        "mov eax, ecx",
        "shr eax, 4",
        "mov cr8, rax",
        "inc dword ptr gs:[{depth}]",
        "inc dword ptr gs:[{counts} + rcx * 4]",
        "test byte ptr gs:[{software}], {idle}",
        "jnz 7f",
        "8:",
        ".if {traced}",
        "mov rdi, rsp",
        "call {began}",
        "movzx ecx, byte ptr [rbp + {vector}]",
        ".endif",
        "mov rdi, rsp",
        "sti",
        "call qword ptr [{handlers} + rcx * 8]",
        "cli",
        "dec dword ptr gs:[{depth}]",
        "jnz 3f", // the interrupted handler's exit looks for requests
        "test byte ptr gs:[{software}], {requests}",
        "jnz 4f",
        "3:",
        ".if {traced}",
        "mov rdi, rsp",
        "call {ends}",
        ".endif",
        "pop rax",
        "mov cr8, rax",
        "pop rax",
        pop_volatile!(),
        "test byte ptr [rsp + {cs}], 3",
        "jnz 6f",
        "add rsp, {to_rip}",
        "iretq",
        "4:",
        "cmp byte ptr [rsp], {dispatch_level}", // the interrupted level
        "jae 23f",
        "22:",
        "test byte ptr gs:[{software}], {request_dispatch}",
        "jz 23f",
        "and dword ptr gs:[{software}], {all_but_dispatch}",
        "mov eax, {dispatch_level}",
        "mov cr8, rax",
        "sti",
        "mov rax, [{upcalls}]",
        "mov rsp, gs:[{dpc_stack}]",
        "call [rax + {retire}]",
        "lea rsp, [rbp - {from_rbp}]",
        "test al, al",
        "jnz 25f",
        "24:",
        "cli",
        "test byte ptr gs:[{software}], {requests}", // of the processor that the thread is on now
        "jnz 22b",
        "jmp 3b",
        "23:",
        "mov rdi, [rsp]",
        "call {exit}",
        "test al, al",
        "jnz 24b",
        "jmp 3b",
        "25:",
        "mov rax, [{upcalls}]",
        "call [rax + {dispatch}]",
        "jmp 24b",
        "5:",
        "swapgs",
        "push rax",
        "push rdx",
        charge_user_time!(),
        "pop rdx",
        "pop rax",
        "jmp 2b",
        "6:",
        "add rsp, {to_rip}",
        "jmp {return_to_user}",
        "7:",
        "mov rdi, rsp",
        "call {woken}",
        "movzx ecx, byte ptr [rbp + {vector}]",
        "jmp 8b",
        ".globl kirql_interrupt_entry_end",
        "kirql_interrupt_entry_end:",
        vector = const from_rbp::VECTOR,
        cs = const from_vector::CS,
        to_rip = const from_vector::RIP,
        idle = const pcr::IDLE,
        woken = sym woken,
        traced = const cfg!(feature = "trace") as u8,
        began = sym began,
        ends = sym ends,
        depth = const GS_DEPTH,
        counts = const GS_COUNTS,
        software = const GS_SOFTWARE,
        requests = const REQUESTS,
        request_dispatch = const REQUEST_DISPATCH,
        all_but_dispatch = const !REQUEST_DISPATCH as i32,
        dispatch_level = const level::DISPATCH,
        upcalls = sym upcalls::TABLE,
        retire = const offset_of!(Upcalls, retire),
        dpc_stack = const GS_DPC_STACK,
        from_rbp = const from_rbp::INTERRUPT,
        handlers = sym HANDLERS,
        exit = sym interrupt_exit,
        dispatch = const offset_of!(Upcalls, dispatch),
        return_to_user = sym return_to_user,
        user_since = const GS_USER_SINCE,
        thread = const GS_THREAD,
        user_cycles = const THREAD_USER_CYCLES,
    )
}

/// The way back to ring 3 of all but the IST vectors. On entry, from RSP up: the processor's five words; IF=0, so that nothing
/// maskable comes in between.
///
/// # Safety
/// That; the five words are of ring 3, and what runs is the thread that GS names, on the stack that ring 3's interrupts begin on. It is
/// jumped to.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn return_to_user() {
    naked_asm!(
        "push rax",
        "push rdx",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov gs:[{user_since}], rax",
        "pop rdx",
        "pop rax",
        "swapgs",
        ".globl kirql_iretq_to_user",
        "kirql_iretq_to_user:",
        "iretq",
        ".globl kirql_return_to_user_end",
        "kirql_return_to_user_end:",
        user_since = const GS_USER_SINCE,
    )
}

/// Exceptions on the current stack. On entry, from RSP up: vector, error code, the processor's five words; IF=0.
///
/// The `iretq` to ring 3 faults if what it is to load is no ring-3 context. Such a frame is then made to say that
/// [`return_to_user`] was about to begin, which is true of its stack and, once swapped, of GS.
#[unsafe(naked)]
unsafe extern "sysv64" fn exception_entry() {
    naked_asm!(
        push_volatile!(),
        push_rest!(),
        "cld",
        clac!(),
        "test byte ptr [rbp + {cs}], 3",
        "jnz 4f",
        "lea rax, [rip + kirql_iretq_to_user]",
        "cmp rax, [rbp + {rip}]",
        "je 5f",
        "2:",
        "mov rdi, rsp",
        "call {handle}",
        pop_rest!(),
        pop_volatile!(),
        "test byte ptr [rsp + {cs_at_exit}], 3", // of the frame as the handler left it
        "jnz 6f",
        "add rsp, {to_rip}",
        "iretq",
        "4:",
        "swapgs",
        charge_user_time!(),
        "jmp 2b",
        "5:",
        "swapgs",
        "lea rax, [rip + {return_to_user}]",
        "mov [rbp + {rip}], rax",
        "jmp 2b",
        "6:",
        "add rsp, {to_rip}",
        "jmp {return_to_user}",
        ".globl kirql_exception_entry_end",
        "kirql_exception_entry_end:",
        cs = const from_rbp::TRAP_CS,
        rip = const from_rbp::TRAP_RIP,
        cs_at_exit = const from_vector::TRAP_CS,
        to_rip = const from_vector::TRAP_RIP,
        return_to_user = sym return_to_user,
        handle = sym exception,
        user_since = const GS_USER_SINCE,
        thread = const GS_THREAD,
        user_cycles = const THREAD_USER_CYCLES,
    )
}

/// #DB, NMI, #DF, #MC on their IST stacks: GS may be the user's whatever CS says. EBX remembers whether it was.
#[unsafe(naked)]
unsafe extern "sysv64" fn paranoid_entry() {
    naked_asm!(
        push_volatile!(),
        push_rest!(),
        "cld",
        clac!(),
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
        pop_rest!(),
        pop_volatile!(),
        "add rsp, {to_rip}",
        "iretq",
        gs_base = const IA32_GS_BASE,
        ist_pcr = const from_rbp::IST_PCR,
        to_rip = const from_vector::TRAP_RIP,
        handle = sym exception,
    )
}

/// Recorded between steps 1 and 2. IF=0, the interrupt's level.
extern "sysv64" fn began(frame: &InterruptFrame) {
    #[cfg(feature = "trace")]
    super::ring::interrupted(frame.rip);
    event(Kind::Interrupt, (frame.vector & 0xFF) as u16, frame.rip, frame.irql);
}

/// Recorded before step 6. IF=0, the level of whatever came last.
extern "sysv64" fn ends(frame: &InterruptFrame) {
    event(Kind::InterruptExit, (frame.vector & 0xFF) as u16, frame.rip, frame.irql);
}

/// The rest of step 1 on a processor that was idle. IF=0, the interrupt's level.
extern "sysv64" fn woken(frame: &mut InterruptFrame) {
    pcr::end_idle();
    // Right before the halt: nobody would end that.
    if frame.rip == cpu::halt_address() {
        frame.rip += 1;
    }
    if let Some(up) = upcalls::table() {
        // SAFETY: IF=0.
        unsafe { (up.wake)() };
    }
}

/// The rest of step 4, and step 5: something is requested and no other handler is under way here, and it is not DISPATCH work
/// that can be done at once. IF=0 on entry and exit. True: look again.
extern "sysv64" fn interrupt_exit(interrupted: u64) -> bool {
    if !pcr::send_at_exit(interrupted as u8) {
        return false;
    }
    let Some(up) = upcalls::table() else { return false };
    pcr::clear_software::<REQUEST_APC>();
    // SAFETY: on the way out of an interrupt that hit code at PASSIVE: the frame's own CR8 is restored by step 6, and IF is set
    //         for the work's duration as step 5 asks. The rest of the way out needs IF=0.
    unsafe {
        irql::set(level::APC);
        cpu::sti();
        (up.apc)();
        cpu::cli();
    }
    true
}

/// All exceptions: NMIs apart, for which being nested is fatal, since the second overwrote the first one's frame.
extern "sysv64" fn exception(frame: &mut TrapFrame) {
    const NMI: u64 = 2;
    event(Kind::Exception, (frame.vector & 0xFF) as u16, frame.rip, frame.cr2);
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

/// Runs `work` with interrupts on if they were when `frame` was made, and off again behind it, for the way out.
///
/// An exception's handler has IF=0 until it calls this: what is in CR2 is safe in the frame by then.
///
/// # Safety
/// By the handler of the exception that made `frame`, which has left it as it was; nothing relies on IF=0 any more.
pub unsafe fn interruptibly<R>(frame: &TrapFrame, work: impl FnOnce() -> R) -> R {
    const IF: u64 = 1 << 9;
    if frame.rflags & IF == 0 {
        return work();
    }
    // SAFETY: the interrupted code could be interrupted, at the level that CR8 still has.
    unsafe { cpu::sti() };
    let result = work();
    // SAFETY: IF is the frame's to restore; the way out wants it off.
    unsafe { cpu::cli() };
    result
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

/// The address of what `vector`'s stub calls: for reports.
pub fn handler(vector: u8) -> u64 {
    HANDLERS[usize::from(vector)].load(Ordering::Relaxed) as u64
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
            pcr::dispatch_arrived();
            service.end()
        });
        set_handler(vector::APC, |_, service| {
            pcr::apc_arrived();
            service.end()
        });
        // SAFETY of `without_eoi`: a spurious interrupt sets no in-service bit.
        set_handler(vector::SPURIOUS, |_, service| {
            core::mem::forget(service);
            Retired::without_eoi()
        });
    }
}
