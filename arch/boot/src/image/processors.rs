//! Starting the other processors, all at once.
//!
//! A started processor is in real mode and knows its first page only: the trampoline, a page below 1 MiB.
//!
//! ```text
//! trampoline page   0x000  trampoline_start   16-bit: GDT, protected mode
//!                          trampoline_32      page tables, long mode
//!                          trampoline_64      to `arrive` in the handoff page, with RDI = 0x800 + arrival
//!                   0x800  Parameters         written by `start`, read by the code through the page's own base
//! ```
//!
//! ```text
//! boot processor                               each other one
//! write list, parameters, trampoline
//! INIT to each, a moment, start-up to each     trampoline, arrive: finds itself in the list, takes its stack,
//! wait until every `stack` is 0                `stack` = 0 (x86 stores are releases), waits for the kernel
//! ```
//!
//! The wait is bounded by loop turns and not by a clock: none is calibrated yet, and when other work slows this
//! processor down, it slows the others as well.
//!
//! Not as Limine: MTRRs are not copied, since PC firmware has set them on every processor before a PVH start.
//!
//! Sources: SDM vol. 3, "MP Initialization Protocol", "x2APIC Register Address Space".

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;

use boot::paging::DIRECT_MAP;

use super::console::say;
use super::entry::{CODE_32, CODE_64, CR0, CR4, DATA_32, DATA_64, EFER, GDT, GDT_LIMIT, MSR_EFER};
use super::handoff::{Arrival, Processor, arrive_address};
use super::machine::{out8, page_table_root, read_msr, write_msr};

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_X2APIC_ID: u32 = 0x802;
const MSR_X2APIC_COMMAND: u32 = 0x830;
const X2APIC: u64 = 1 << 10;
const APIC_ON: u64 = 1 << 11;
/// The command registers of an APIC in memory: low word, high word.
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const COMMAND_PENDING: u32 = 1 << 12;
/// Interrupt commands, level asserted.
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// Where Parameters are in the trampoline page.
const PARAMETERS: usize = 0x800;

/// Turns of the wait that a processor has after the first start-up, before it gets the second.
const FIRST_WAIT: u32 = 1_000;
/// Turns that it has after that: one to two seconds, each turn being a port access.
const SECOND_WAIT: u32 = 1_000_000;

/// What the trampoline's code cannot know.
#[repr(C)]
struct Parameters {
    /// For the jump to trampoline_32: offset, selector.
    far_32: (u32, u32),
    /// For the jump to trampoline_64.
    far_64: (u32, u32),
    /// The loader's page tables, which map the trampoline to itself.
    root: u64,
    /// `arrive`.
    arrive: u64,
    arrival: Arrival,
    gdt_padding: u16,
    /// For LGDT: limit, base.
    gdt_limit: u16,
    gdt_base: u32,
}

/// This processor's APIC.
#[derive(Clone, Copy)]
pub(super) struct Apic {
    pub(super) x2apic: bool,
    pub(super) id: u32,
}

impl Apic {
    /// Finds it, and enables x2APIC if that is wanted. One that firmware has enabled stays so.
    pub(super) fn initialize(want_x2apic: bool) -> Self {
        // SAFETY: every processor with long mode has this register; entry.rs has checked for x2APIC.
        let base = unsafe { read_msr(MSR_APIC_BASE) };
        if !want_x2apic && base & X2APIC == 0 {
            let id = core::arch::x86_64::__cpuid(1).ebx >> 24;
            return Self { x2apic: false, id };
        }
        // SAFETY: as above; from either mode this transition is allowed.
        unsafe { write_msr(MSR_APIC_BASE, base | X2APIC | APIC_ON) };
        // SAFETY: x2APIC is enabled.
        Self { x2apic: true, id: unsafe { read_msr(MSR_X2APIC_ID) } as u32 }
    }

    /// Whether an interrupt can be sent to `id`: without x2APIC, ids have eight bits, and 255 is everyone.
    fn reaches(self, id: u32) -> bool {
        self.x2apic || id < 0xff
    }

    /// Sends an interrupt command.
    ///
    /// # Safety
    /// `id` is a processor that waits for it, and `command` does to it what the memory shared with it is ready for.
    unsafe fn send(self, id: u32, command: u32) {
        if self.x2apic {
            // SAFETY: x2APIC is enabled; for the rest, the caller's word.
            unsafe { write_msr(MSR_X2APIC_COMMAND, u64::from(id) << 32 | u64::from(command)) };
            return;
        }
        // SAFETY: every processor with long mode has this register.
        let base = unsafe { read_msr(MSR_APIC_BASE) } & 0xf_ffff_f000;
        let (low, high) = ((base + COMMAND_LOW) as *mut u32, (base + COMMAND_HIGH) as *mut u32);
        // SAFETY: the APIC is there, in the identity map; for the rest, the caller's word.
        unsafe {
            ptr::write_volatile(high, id << 24);
            ptr::write_volatile(low, command);
            while ptr::read_volatile(low) & COMMAND_PENDING != 0 {}
        }
    }
}

unsafe extern "C" {
    safe static trampoline_start: u8;
    safe static trampoline_32: u8;
    safe static trampoline_64: u8;
    safe static trampoline_end: u8;
}

/// Starts every processor of `list` but this one, and says which did not arrive.
///
/// # Safety
/// `page` is memory of ours, a page below 1 MiB; the handoff page and the direct map are mapped in the tables at `root`;
/// `list` is in memory that stays, and each stack in it is the end of memory of ours in the direct map.
pub(super) unsafe fn start(apic: Apic, list: &'static [Processor], page: u64, root: u64) {
    // SAFETY: the caller's word for `page`.
    unsafe { write_trampoline(page, root, list, apic.x2apic) };

    let missing = || list.iter().filter(|p| !p.has_arrived());
    let command = |command| {
        for processor in missing().filter(|p| apic.reaches(p.apic_id)) {
            // SAFETY: 1. firmware lists the processor as one to be started so. 2. What it will read is written.
            unsafe { apic.send(processor.apic_id, command) };
        }
    };
    let wait = |turns| {
        (0..turns).any(|_| {
            moment();
            missing().next().is_none()
        })
    };
    let startup = STARTUP | (page >> 12) as u32;

    command(INIT);
    (0..100).for_each(|_| moment());
    command(startup);
    if !wait(FIRST_WAIT) {
        // Hardware may lose the first one; a processor that runs ignores the second.
        command(startup);
        wait(SECOND_WAIT);
    }
    for processor in missing() {
        say(&format_args!("processor with APIC id {} did not start", processor.apic_id));
    }
}

/// About a microsecond, and a chance for the other processors of an emulator that runs one at a time.
fn moment() {
    core::hint::spin_loop();
    // SAFETY: port 0x80 takes diagnostic codes; nothing listens.
    unsafe { out8(0x80, 0) };
}

/// # Safety
/// `page` is memory of ours.
unsafe fn write_trampoline(page: u64, root: u64, list: &[Processor], x2apic: bool) {
    let start = &raw const trampoline_start;
    let place = |symbol: *const u8| (page as usize + symbol.addr() - start.addr()) as u32;
    let length = (&raw const trampoline_end).addr() - start.addr();
    let parameters = Parameters {
        far_32: (place(&raw const trampoline_32), u32::from(CODE_32)),
        far_64: (place(&raw const trampoline_64), u32::from(CODE_64)),
        root: page_table_root(),
        arrive: arrive_address(),
        arrival: Arrival {
            root,
            list: DIRECT_MAP + list.as_ptr().addr() as u64,
            count: list.len() as u64,
            x2apic: x2apic.into(),
        },
        gdt_padding: 0,
        gdt_limit: GDT_LIMIT,
        gdt_base: (&raw const GDT).addr() as u32,
    };
    // SAFETY: 1. The page is ours. 2. The code is shorter than PARAMETERS, which the assembler checks.
    unsafe {
        ptr::copy_nonoverlapping(start, page as *mut u8, length);
        ptr::write((page as usize + PARAMETERS) as *mut Parameters, parameters);
    }
}

global_asm!(
    ".pushsection .rodata.trampoline, \"a\"",
    ".code16",
    "trampoline_start:",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    "xor ebx, ebx", // EBX: the page's base, for the code that has no segment to give it
    "mov bx, ax",
    "shl ebx, 4",
    ".byte 0x66", // LGDT with a base of 32 bits
    "lgdt [{parameters} + {gdt_limit}]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xff, 0x2e", // JMP to a 32-bit offset and selector in memory
    ".word {parameters} + {far_32}",

    ".code32",
    "trampoline_32:",
    "mov eax, {data_32}",
    "mov ds, eax",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, [ebx + {parameters} + {root}]",
    "mov cr3, eax",
    "mov ecx, {msr_efer}",
    "xor edx, edx",
    "mov eax, {efer}",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    ".byte 0xff, 0xab", // JMP to an offset and selector at EBX + ...
    ".long {parameters} + {far_64}",

    ".code64",
    "trampoline_64:",
    "mov eax, {data_64}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ebx, ebx", // the upper half is undefined after a mode switch
    "lea rdi, [rbx + {parameters} + {arrival}]",
    "jmp [rbx + {parameters} + {arrive}]",
    "trampoline_end:",
    ".if trampoline_end - trampoline_start > {parameters}",
    ".error \"the trampoline's code runs into its parameters\"",
    ".endif",
    ".popsection",
    parameters = const PARAMETERS,
    gdt_limit = const offset_of!(Parameters, gdt_limit),
    far_32 = const offset_of!(Parameters, far_32),
    far_64 = const offset_of!(Parameters, far_64),
    root = const offset_of!(Parameters, root),
    arrival = const offset_of!(Parameters, arrival),
    arrive = const offset_of!(Parameters, arrive),
    data_32 = const DATA_32,
    data_64 = const DATA_64,
    cr4 = const CR4,
    cr0 = const CR0,
    efer = const EFER,
    msr_efer = const MSR_EFER,
);
