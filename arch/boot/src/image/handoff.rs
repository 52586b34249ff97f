//! The last step to the kernel, on the boot processor and on the others.
//!
//! The kernel's page tables do not have the identity map that the loader runs in. So this code has a page of its
//! own, mapped at one address in both: it loads the kernel's tables, and stays there on the processors that wait.
//!
//! ```text
//! HANDOFF_PAGE   read, execute; the loader's section .handoff; position-independent
//!   enter_kernel     boot processor
//!   arrive           others, from the trampoline (processors.rs): x2APIC, stack, "here I am", wait, go
//! ```
//!
//! Ordering: a waiting processor reads `goto_address` and then what it leads to; the kernel wrote them in the other
//! order. x86 keeps both orders without a fence.
//!
//! Sources: Limine boot protocol, "Machine state at entry", "MP Feature".

use core::arch::global_asm;
use core::mem::{offset_of, transmute};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;

use boot::memory::PAGE;
use boot::paging::{Access, DIRECT_MAP, HANDOFF_PAGE, PageTables, PagingError, Table, Tables, index};

use super::entry::{GDT, GDT_LIMIT};
use super::machine::page_table_root;

/// The PAT of the protocol: WB, WT, UC-, UC, WP, WC, and two that it leaves open.
const PAT: u64 = 0x0000_0105_0007_0406;
const MSR_PAT: u32 = 0x277;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_X2APIC_ID: u32 = 0x802;
/// In the APIC base register: APIC on, x2APIC on.
const X2APIC_ENABLED: u32 = 0xc00;

/// What the kernel reads about a processor and releases it by. The protocol's structure; its reserved word is ours.
#[repr(C)]
pub(super) struct Processor {
    pub(super) uid: u32,
    pub(super) apic_id: u32,
    /// Where its stack ends; 0 once it has arrived.
    pub(super) stack: AtomicU64,
    goto_address: AtomicU64,
    extra_argument: AtomicU64,
}

const _: () = assert!(size_of::<Processor>() == 32, "the protocol's size");

impl Processor {
    pub(super) fn new(uid: u32, apic_id: u32, stack: u64) -> Self {
        Self {
            uid,
            apic_id,
            stack: AtomicU64::new(stack),
            goto_address: AtomicU64::new(0),
            extra_argument: AtomicU64::new(0),
        }
    }

    /// Whether it waits for the kernel to release it, or is the boot processor.
    pub(super) fn has_arrived(&self) -> bool {
        self.stack.load(Acquire) == 0
    }
}

/// What a processor needs on its way here.
#[repr(C)]
pub(super) struct Arrival {
    /// The kernel's page tables.
    pub(super) root: u64,
    /// The list of processors, in the direct map.
    pub(super) list: u64,
    /// Its length.
    pub(super) count: u64,
    /// Whether to enable x2APIC: 1 or 0.
    pub(super) x2apic: u64,
}

unsafe extern "C" {
    /// The page's first byte; boot.ld.
    safe static handoff_start: u8;
    safe static handoff_enter_kernel: u8;
    safe static handoff_arrive: u8;
}

/// Maps the handoff page in the kernel's tables, and shares it with the loader's own.
pub(super) fn map<T: Tables>(tables: &mut PageTables<T>) -> Result<(), PagingError> {
    tables.map(HANDOFF_PAGE, (&raw const handoff_start).addr() as u64, PAGE, Access::Execute)?;
    // SAFETY: CR3 holds entry_root, which is mapped to itself, and which nothing else touches after entry.rs.
    let own: &mut Table = unsafe { &mut *(page_table_root() as *mut Table) };
    let slot = index(HANDOFF_PAGE, 3);
    own[slot] = tables.root_entry(slot);
    Ok(())
}

/// The address that a place in the handoff page has in both page tables.
fn mapped(place: *const u8) -> u64 {
    HANDOFF_PAGE + (place.addr() - (&raw const handoff_start).addr()) as u64
}

/// Where `arrive` is, for the trampoline.
pub(super) fn arrive_address() -> u64 {
    mapped(&raw const handoff_arrive)
}

/// Leaves the loader.
///
/// # Safety
/// `map` has been called for the tables at `root`, which map the direct map, the kernel and its `entry`; `stack_end`
/// is the end of a stack, in the direct map.
pub(super) unsafe fn enter_kernel(root: u64, stack_end: u64, entry: u64) -> ! {
    type Enter = unsafe extern "sysv64" fn(u64, u64, u64) -> !;
    // SAFETY: the address is that of the function below, with this signature, in a page that `map` has mapped.
    let enter = unsafe { transmute::<usize, Enter>(mapped(&raw const handoff_enter_kernel) as usize) };
    // SAFETY: the caller's promise.
    unsafe { enter(root, stack_end, entry) }
}

global_asm!(
    ".pushsection .handoff, \"ax\"",
    ".code64",

    // RDI page tables, RSI end of the stack, RDX entry point; never returns.
    ".type handoff_enter_kernel, @function",
    "handoff_enter_kernel:",
    "mov cr3, rdi", // the identity map is gone, the old stack with it
    "mov rsp, rsi",
    "push 0",
    "mov rbx, rdx",
    "xor edi, edi",
    "jmp handoff_go",
    ".size handoff_enter_kernel, . - handoff_enter_kernel",

    // RDI an Arrival, in the identity map; any state that trampoline_64 left; never returns.
    ".type handoff_arrive, @function",
    "handoff_arrive:",
    "mov rax, [rdi + {root}]",
    "mov rsi, [rdi + {list}]",
    "mov r8, [rdi + {count}]",
    "mov r9, [rdi + {x2apic}]",
    "mov cr3, rax", // the identity map is gone, RDI with it
    "test r9d, r9d",
    "jz 2f",
    "mov ecx, {msr_apic_base}",
    "rdmsr",
    "or eax, {x2apic_enabled}",
    "wrmsr",
    "mov ecx, {msr_x2apic_id}",
    "rdmsr",
    "mov edi, eax",
    "jmp 3f",
    "2: mov eax, 1", // no x2APIC: the id of eight bits
    "cpuid",
    "shr ebx, 24",
    "mov edi, ebx",

    // RSI runs over the list until it is at our id.
    "3: test r8, r8",
    "jz 5f",
    "cmp [rsi + {apic_id}], edi",
    "je 4f",
    "add rsi, {processor_size}",
    "dec r8",
    "jmp 3b",
    "4: mov rsp, [rsi + {stack}]",
    "push 0",
    "mov qword ptr [rsi + {stack}], 0", // arrived
    "6: mov rbx, [rsi + {goto_address}]",
    "test rbx, rbx",
    "jnz 7f",
    "pause",
    "jmp 6b",
    "7: mov rdi, rsi",
    "jmp handoff_go",
    "5: cli", // nobody knows us
    "hlt",
    "jmp 5b",
    ".size handoff_arrive, . - handoff_arrive",

    // RBX where to, RDI its argument; on the new stack, the zero return address pushed.
    "handoff_go:",
    "mov eax, {pat_low}",
    "mov edx, {pat_high}",
    "mov ecx, {msr_pat}",
    "wrmsr",
    "movabs rax, offset handoff_gdt_pointer + {direct_map}",
    "lgdt [rax]",
    "push rbx",
    "xor eax, eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "xor ebp, ebp",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "cld",
    "ret",
    ".popsection",

    ".pushsection .rodata.handoff, \"a\"",
    ".balign 8",
    "handoff_gdt_pointer:",
    ".word {gdt_limit}",
    ".quad {gdt} + {direct_map}",
    ".popsection",
    root = const offset_of!(Arrival, root),
    list = const offset_of!(Arrival, list),
    count = const offset_of!(Arrival, count),
    x2apic = const offset_of!(Arrival, x2apic),
    apic_id = const offset_of!(Processor, apic_id),
    stack = const offset_of!(Processor, stack),
    goto_address = const offset_of!(Processor, goto_address),
    processor_size = const size_of::<Processor>(),
    msr_apic_base = const MSR_APIC_BASE,
    x2apic_enabled = const X2APIC_ENABLED,
    msr_x2apic_id = const MSR_X2APIC_ID,
    msr_pat = const MSR_PAT,
    pat_low = const PAT as u32,
    pat_high = const (PAT >> 32) as u32,
    direct_map = const DIRECT_MAP,
    gdt = sym GDT,
    gdt_limit = const GDT_LIMIT,
);
