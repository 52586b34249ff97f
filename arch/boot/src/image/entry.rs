//! From PVH's 32-bit entry to Rust in long mode.
//!
//! ```text
//! entry    EBX start info; flat 32-bit segments; paging off; interrupts off; the GDT may be gone
//! exit     RDI start info; GDT below; first 4 GiB mapped to themselves by 2 MiB pages, all of them
//!          writable and executable; stack of 128 KiB
//! ```
//!
//! A processor that lacks something is refused here, since what lacks long mode cannot run the rest.
//!
//! Sources: Xen, "x86/HVM direct boot ABI"; SDM vol. 3, "Switching Out of/Into IA-32e Mode Operation".

use core::arch::global_asm;

use super::console::{COM1, EXIT_CANNOT_RUN, EXIT_PORT};
use super::start::start;

/// The layout that the protocol prescribes; accessed bits are set, so that no processor writes to it.
pub(super) static GDT: [u64; 7] = [
    0,
    0x0000_9b00_0000_ffff, // 0x08: 16-bit code
    0x0000_9300_0000_ffff, // 0x10: 16-bit data
    0x00cf_9b00_0000_ffff, // 0x18: 32-bit code
    0x00cf_9300_0000_ffff, // 0x20: 32-bit data
    0x00af_9b00_0000_ffff, // 0x28: 64-bit code
    0x00cf_9300_0000_ffff, // 0x30: 64-bit data
];

/// Selectors of the GDT.
pub(super) const CODE_32: u16 = 0x18;
pub(super) const DATA_32: u16 = 0x20;
pub(super) const CODE_64: u16 = 0x28;
pub(super) const DATA_64: u16 = 0x30;

/// The limit that LGDT wants.
pub(super) const GDT_LIMIT: u16 = size_of::<[u64; 7]>() as u16 - 1;

/// CR0 as the protocol wants it: PG, WP, ET, PE; caches on, no emulation.
pub(super) const CR0: u32 = 0x8001_0011;
/// CR4: PAE.
pub(super) const CR4: u32 = 0x20;
/// EFER: NXE, LME.
pub(super) const EFER: u32 = 0x900;
/// Number of EFER.
pub(super) const MSR_EFER: u32 = 0xc000_0080;

const STACK_SIZE: usize = 128 << 10;
const PAGE_DIRECTORY_ENTRIES: usize = 4 * 512;
/// Present, writable, a 2 MiB page.
const LARGE_PAGE: u32 = 0x83;
/// Present, writable, a table.
const TABLE: u32 = 3;

// The note that names the entry point: type 18 is XEN_ELFNOTE_PHYS32_ENTRY.
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_start",
    ".popsection",
);

global_asm!(
    ".pushsection .text.pvh, \"ax\"",
    ".code32",
    ".global pvh_start",
    ".type pvh_start, @function",
    "pvh_start:",
    "cli",
    "cld",
    "mov esp, offset entry_stack_end",
    "mov esi, ebx", // CPUID uses EBX

    // What cannot be done without, with the line that says so in EDI.
    "mov edi, offset entry_no_long_mode",
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x80000001",
    "jb entry_refuse",
    "mov eax, 0x80000001",
    "cpuid",
    "bt edx, 29",
    "jnc entry_refuse",
    "mov edi, offset entry_no_nx",
    "bt edx, 20",
    "jnc entry_refuse",
    "mov edi, offset entry_no_x2apic",
    "mov eax, 1",
    "cpuid",
    "bt ecx, 21",
    "jnc entry_refuse",

    // Four page directories in a row; the high halves of all entries stay 0 from .bss.
    "mov edi, offset entry_page_directories",
    "mov eax, {large_page}",
    "xor ecx, ecx",
    "2: mov [edi + ecx * 8], eax",
    "add eax, 0x200000",
    "inc ecx",
    "cmp ecx, {directory_entries}",
    "jb 2b",
    "mov edx, offset entry_pointer_table",
    "lea eax, [edi + {table}]",
    "mov [edx], eax",
    "add eax, 0x1000",
    "mov [edx + 8], eax",
    "add eax, 0x1000",
    "mov [edx + 16], eax",
    "add eax, 0x1000",
    "mov [edx + 24], eax",
    "lea eax, [edx + {table}]",
    "mov edx, offset entry_root",
    "mov [edx], eax",

    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov cr3, edx",
    "mov ecx, {msr_efer}",
    "xor edx, edx",
    "mov eax, {efer}",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    "lgdt [entry_gdt_pointer]",
    "push {code_64}",
    "mov eax, offset entry_64",
    "push eax",
    "retf",

    // EDI: a line that ends with zero.
    "entry_refuse:",
    "mov dx, {com1} + 5",
    "mov ecx, 100000", // a stuck UART shall not hang this
    "3: in al, dx",
    "test al, 0x20",
    "loopz 3b",
    "mov al, [edi]",
    "inc edi",
    "test al, al",
    "jz 4f",
    "mov dx, {com1}",
    "out dx, al",
    "jmp entry_refuse",
    "4: mov eax, {exit_cannot_run}",
    "mov dx, {exit_port}",
    "out dx, eax",
    "5: cli",
    "hlt",
    "jmp 5b",
    ".size pvh_start, . - pvh_start",

    ".code64",
    "entry_64:",
    "mov eax, {data_64}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, esi",
    "mov esp, offset entry_stack_end",
    "xor ebp, ebp", // no caller: a backtrace ends here
    "call {start}",
    "ud2",
    ".popsection",

    ".pushsection .rodata.entry, \"a\"",
    "entry_no_long_mode: .asciz \"boot: this processor has no long mode; start QEMU (9 or newer) with -cpu max\\n\"",
    "entry_no_nx: .asciz \"boot: this processor has no NX; start QEMU (9 or newer) with -cpu max\\n\"",
    "entry_no_x2apic: .asciz \"boot: this processor has no x2APIC; start QEMU (9 or newer) with -cpu max\\n\"",
    ".balign 8",
    "entry_gdt_pointer:",
    ".word {gdt_limit}",
    ".quad {gdt}",
    ".popsection",

    ".pushsection .bss.entry, \"aw\", @nobits",
    ".balign 4096",
    "entry_root: .skip 4096",
    "entry_pointer_table: .skip 4096",
    "entry_page_directories: .skip 8 * {directory_entries}",
    ".skip {stack_size}",
    "entry_stack_end:",
    ".popsection",
    large_page = const LARGE_PAGE,
    directory_entries = const PAGE_DIRECTORY_ENTRIES,
    table = const TABLE,
    cr4 = const CR4,
    msr_efer = const MSR_EFER,
    efer = const EFER,
    cr0 = const CR0,
    code_64 = const CODE_64,
    data_64 = const DATA_64,
    com1 = const COM1,
    exit_port = const EXIT_PORT,
    exit_cannot_run = const EXIT_CANNOT_RUN,
    start = sym start,
    gdt = sym GDT,
    gdt_limit = const GDT_LIMIT,
    stack_size = const STACK_SIZE,
);
