//! Ring 3 by hand: pages in the user half, an `iretq` into the first, and a way back.
//!
//! There are no processes yet, so this is all of user mode: the code below, copied into a page that ring 3 may not write. It ends
//! in an invalid instruction; the exception hook notes what it left and goes on in the kernel. Everything on the way, from TSS and
//! gates to `swapgs` and `iretq`, is the kernel's own.
//!
//! Invariants: I1 a processor's `CPUS` entry is its own: written with IF=0 before it enters ring 3, and by its exceptions.

use core::arch::{global_asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::cpu::{rdmsr, wrmsr};
use arch::paging::PAGE;
use arch::tables::{KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA};
use arch::trap::TrapFrame;
use kernel::boot::facts;
use kernel::ke::prcb::MAX_PROCESSORS;
use kernel::ke::{prcb, trap};
use sync::irql::{Irql, Passive};

use crate::runner::Verdict;
use crate::user_pages::{self, As, UserPages};

/// The page that ring 3 executes; behind it the one that it writes, whose end is its stack's.
const CODE: u64 = user_pages::START;
const STACK: u64 = CODE + 2 * PAGE;
const IA32_GS_BASE: u32 = 0xC000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;
/// RFLAGS: reserved one, IF, DF, RF, AC.
pub(crate) const ONE: u64 = 1 << 1;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const AC: u64 = 1 << 18;

global_asm!(
    ".pushsection .rodata.kirql_user, \"a\"",
    "kirql_user_code:",
    // Each part begins at a multiple of 32, see `Part`. Ends, as all of them, in UD2.
    // Spin: RAX rounds.
    "2: dec rax",
    "jnz 2b",
    "ud2",
    ".balign 32, 0xF4",
    // Spin with the GS base of its own choice, RBX.
    "wrgsbase rbx",
    "2: dec rax",
    "jnz 2b",
    "ud2",
    ".balign 32, 0xF4",
    // An exception that is resumed behind, then one that is not.
    "ud2",
    "2: dec rax",
    "jnz 2b",
    "ud2",
    ".balign 32, 0xF4",
    // Halt.
    "hlt",
    ".balign 32, 0xF4",
    // Read what RBX points at.
    "mov al, [rbx]",
    "ud2",
    ".balign 32, 0xF4",
    // Write it.
    "mov [rbx], al",
    "ud2",
    ".balign 32, 0xF4",
    // Divide by zero.
    "xor edx, edx",
    "xor ecx, ecx",
    "div ecx",
    ".balign 32, 0xF4",
    // A gate that is not ring 3's.
    "int3",
    ".balign 32, 0xF4",
    // #DB by INT1, whose gate's level is not asked for, then by a single step.
    ".byte 0xF1",
    "pushfq",
    "or dword ptr [rsp], 0x100",
    "popfq",
    "nop",
    "pushfq",
    "and dword ptr [rsp], -0x101",
    "popfq",
    "ud2",
    ".balign 32, 0xF4",
    // Spin, R8 and R9 being the time stamps before and after. RDX is changed.
    "mov rcx, rax",
    "rdtsc",
    "shl rdx, 32",
    "lea r8, [rax + rdx]",
    "2: dec rcx",
    "jnz 2b",
    "rdtsc",
    "shl rdx, 32",
    "lea r9, [rax + rdx]",
    "ud2",
    ".balign 32, 0xF4",
    "kirql_user_code_end:",
    ".popsection",
);

unsafe extern "C" {
    safe static kirql_user_code: u8;
    safe static kirql_user_code_end: u8;
    safe static kirql_user_left: u8;
}

/// The parts of the code, in order.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Part {
    Spin,
    SpinWithOwnGs,
    ResumedThenSpin,
    Halt,
    Read,
    Write,
    Divide,
    Breakpoint,
    Debug,
    /// Of 64 bytes.
    Stamps,
}

impl Part {
    /// Where it begins in the user half.
    pub(crate) fn address(self) -> u64 {
        CODE + 32 * self as u64
    }
}

/// General registers in the order of a [`TrapFrame`]'s: R15 … R12, RBX, R11 … R8, RDI, RSI, RDX, RCX, RAX, RBP.
pub(crate) type Registers = [u64; 15];
pub(crate) const RBX: usize = 4;
pub(crate) const RAX: usize = 13;

/// What ring 3 begins with.
#[repr(C)]
pub(crate) struct Start {
    pub(crate) registers: Registers,
    rsp: u64,
    rip: u64,
    pub(crate) rflags: u64,
    /// GS base.
    pub(crate) gs: u64,
}

impl Start {
    /// Begins with `part`; every register has a value of its own.
    pub(crate) fn new(part: Part) -> Self {
        let registers = core::array::from_fn(|index| 0x1111_1111_1111_1111 * (index as u64 + 1));
        Self { registers, rsp: STACK, rip: part.address(), rflags: ONE | IF, gs: 0 }
    }
}

/// How ring 3 ended.
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// The exception's frame.
    pub(crate) frame: TrapFrame,
    /// Its GS base then.
    pub(crate) gs: u64,
}

impl End {
    /// Its registers, in the order of [`Registers`].
    pub(crate) fn registers(&self) -> Registers {
        let f = &self.frame;
        [
            f.r15, f.r14, f.r13, f.r12, f.rbx, f.r11, f.r10, f.r9, f.r8, f.rdi, f.rsi, f.rdx, f.rcx, f.rax,
            f.rbp,
        ]
    }

    pub(crate) fn vector(&self) -> u8 {
        self.frame.vector as u8
    }

    /// Did it end in this part's last UD2, its stack as it was?
    pub(crate) fn is_whole(&self) -> bool {
        self.vector() == 6 && self.frame.cs & 3 == 3 && self.frame.rsp == STACK
    }
}

struct PerProcessor {
    /// Where the kernel goes on.
    rsp: AtomicU64,
    end: UnsafeCell<Option<TrapFrame>>,
}
// SAFETY: I1.
unsafe impl Sync for PerProcessor {}

static CPUS: [PerProcessor; MAX_PROCESSORS] =
    [const { PerProcessor { rsp: AtomicU64::new(0), end: UnsafeCell::new(None) } }; MAX_PROCESSORS];
/// Exceptions that found another GS base than their processor's PCR.
pub(crate) static WRONG_GS: AtomicU32 = AtomicU32::new(0);
/// Exceptions and handlers that found AC or DF set.
pub(crate) static WRONG_FLAGS: AtomicU32 = AtomicU32::new(0);

/// What a test does with an exception before it ends ring 3's time: true resumes the frame, which it may have changed.
pub(crate) type Handler = fn(&mut TrapFrame) -> bool;
static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Is this processor's GS base its PCR's address? Which processor it is, its APIC says.
pub(crate) fn gs_is_right() -> bool {
    let me = arch::apic::id();
    // SAFETY: the register exists in long mode.
    let base = unsafe { rdmsr(IA32_GS_BASE) };
    prcb::all()
        .find(|processor| processor.prcb().apic_id() == me)
        .is_some_and(|processor| core::ptr::from_ref(processor.pcr()) as u64 == base)
}

/// Whether a handler's DF is clear, and AC where it means something, whatever was interrupted.
pub(crate) fn flags_are_right() -> bool {
    let clear = if facts().features.smap { AC | DF } else { DF };
    let flags: u64;
    // SAFETY: reads RFLAGS through this stack.
    unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
    flags & clear == 0
}

fn hook(frame: &mut TrapFrame) -> bool {
    WRONG_GS.fetch_add((!gs_is_right()).into(), Ordering::Relaxed);
    WRONG_FLAGS.fetch_add((!flags_are_right()).into(), Ordering::Relaxed);
    let handler = HANDLER.load(Ordering::Relaxed);
    // SAFETY: `map` stored a `Handler`.
    if unsafe { core::mem::transmute::<usize, Handler>(handler) }(frame) {
        return true;
    }
    let here = &CPUS[arch::cpu::number() as usize];
    let rsp = here.rsp.swap(0, Ordering::Relaxed);
    if rsp == 0 {
        return false;
    }
    // SAFETY: I1.
    unsafe { *here.end.get() = Some(*frame) };
    frame.rip = core::ptr::from_ref(&kirql_user_left) as u64;
    frame.cs = KERNEL_CODE.into();
    frame.ss = KERNEL_DATA.into();
    frame.rsp = rsp;
    frame.rflags = ONE;
    true
}

/// Makes the pages and takes the exceptions; `handler` sees each first.
pub(crate) fn map(handler: Handler, at: &mut Irql<Passive>) -> core::result::Result<UserPages, Verdict> {
    let mut pages = UserPages::map(at)?;
    let (start, end) = (core::ptr::from_ref(&kirql_user_code), core::ptr::from_ref(&kirql_user_code_end));
    let length = end as usize - start as usize;
    // SAFETY: between the two labels lies the code.
    pages.bytes(0)[..length].copy_from_slice(unsafe { core::slice::from_raw_parts(start, length) });
    pages.remap(0, As::ReadOnly, at);
    WRONG_GS.store(0, Ordering::Relaxed);
    WRONG_FLAGS.store(0, Ordering::Relaxed);
    HANDLER.store(handler as usize, Ordering::Relaxed);
    // SAFETY: the hook knows ring 3's code, and what the test makes it look for, by the frame.
    unsafe { trap::set_hook(Some(hook)) };
    Ok(pages)
}

/// Takes everything back.
pub(crate) fn unmap(pages: UserPages, at: &mut Irql<Passive>) {
    // SAFETY: none deals with nothing.
    unsafe { trap::set_hook(None) };
    pages.end(at);
}

/// Runs ring 3 from `start` until an exception that the handler leaves to us. `just_before` is called with IF=0, right before.
pub(crate) fn run(start: &Start, at: &mut Irql<Passive>, just_before: impl FnOnce()) -> Option<End> {
    at.check();
    // SAFETY: IF=0 until ring 3 has its own; set again below. The processor stays the same: the thread runs nowhere else, and
    //         everything between the two is with IF=0 or in ring 3, whose kernel stack this is.
    unsafe {
        arch::cpu::cli();
        let here = &CPUS[arch::cpu::number() as usize];
        *here.end.get() = None;
        wrmsr(IA32_KERNEL_GS_BASE, start.gs);
        just_before();
        enter(start, &here.rsp);
        let gs = rdmsr(IA32_KERNEL_GS_BASE);
        wrmsr(IA32_KERNEL_GS_BASE, 0);
        let end = (*here.end.get()).map(|frame| End { frame, gs });
        arch::cpu::sti();
        end
    }
}

/// The stack that exceptions and interrupts of ring 3 begin on here: what is free below `top`.
extern "sysv64" fn kernel_stack_ends(top: u64) {
    if let Some(here) = prcb::get(arch::cpu::number()) {
        // SAFETY: this processor's tables; IF=0. `enter` uses nothing below once in ring 3.
        unsafe { here.tables().set_kernel_stack(top & !15) };
    }
}

/// Enters ring 3; returns where the hook sends it back. IF=0 on entry and return.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(start: *const Start, rsp: *const AtomicU64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rsi], rsp",
        "mov rbx, rdi",
        "mov rdi, rsp",
        "push rdi",
        "call {kernel_stack_ends}",
        "pop rdi",
        "mov rdi, rbx",
        "push {user_data}",
        "push qword ptr [rdi + {rsp}]",
        "push qword ptr [rdi + {rflags}]",
        "push {user_code}",
        "push qword ptr [rdi + {rip}]",
        "mov r15, [rdi]",
        "mov r14, [rdi + 8]",
        "mov r13, [rdi + 16]",
        "mov r12, [rdi + 24]",
        "mov rbx, [rdi + 32]",
        "mov r11, [rdi + 40]",
        "mov r10, [rdi + 48]",
        "mov r9, [rdi + 56]",
        "mov r8, [rdi + 64]",
        "mov rsi, [rdi + 80]",
        "mov rdx, [rdi + 88]",
        "mov rcx, [rdi + 96]",
        "mov rax, [rdi + 104]",
        "mov rbp, [rdi + 112]",
        "mov rdi, [rdi + 72]",
        "jmp {return_to_user}",
        ".globl kirql_user_left",
        "kirql_user_left:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        kernel_stack_ends = sym kernel_stack_ends,
        return_to_user = sym arch::trap::return_to_user,
        user_data = const USER_DATA,
        user_code = const USER_CODE,
        rsp = const offset_of!(Start, rsp),
        rflags = const offset_of!(Start, rflags),
        rip = const offset_of!(Start, rip),
    )
}
