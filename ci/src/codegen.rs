//! What the compiler makes of the operations that are only worth their name if they are a few given instructions.
//!
//! The bench image's rows are functions whose operation stands between two RDTSCs (tests/bench/src/measure.rs). Here they are
//! found by name and disassembled, and what is between is counted by kind. In the rows that tell the time, or set a timer by it, the
//! operation has an RDTSC of its own, which must come right behind an LFENCE (kernel/src/ke/clock.rs): what no emulator shows.
//!
//! And what it must not make at all: code that stops because memory has run out, which `alloc`'s infallible calls come to.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::image;
use crate::symbols;

/// Instructions of a row, by kind. A slow path that the compiler puts behind the function's end is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    /// `mov cr8, r`.
    cr8_writes: u32,
    /// Locked, `xchg` with memory included.
    locked: u32,
    /// That read or write memory, the locked ones included.
    memory: u32,
    /// Jumps, calls and returns.
    branches: u32,
}

/// What must be between the RDTSCs of a row, exactly.
const RULES: &[(&str, Kinds)] = &[
    ("bench::irql::raise_lower", Kinds { cr8_writes: 2, locked: 0, memory: 0, branches: 0 }),
    ("bench::irql::raise_lower_to_high", Kinds { cr8_writes: 2, locked: 0, memory: 0, branches: 0 }),
    ("bench::irql::prcb_here", Kinds { cr8_writes: 0, locked: 0, memory: 1, branches: 0 }),
    ("bench::locks::spin", Kinds { cr8_writes: 2, locked: 1, memory: 2, branches: 1 }),
    ("bench::locks::spin_at_dispatch", Kinds { cr8_writes: 0, locked: 1, memory: 2, branches: 1 }),
];

/// Rows whose operation reads the time, once and in order.
const ORDERED: &[&str] = &[
    "bench::time::interrupt_time",
    "bench::time::system_time",
    "bench::time::performance_counter",
    "bench::time::set_cancel",
];

/// Disassembles the rows; status 1 if one is not as it must be.
pub(crate) fn check() -> Result<u8> {
    let path = image::build(image::BENCH)?;
    let mut failed = 0_u32;
    for &(name, wanted) in RULES {
        let code = function(&path, name)?;
        let found = operation(&code).map(|operation| kinds(&operation));
        if found == Some(wanted) {
            println!("ok   {name}: {wanted:?}");
        } else {
            failed += 1;
            println!("FAIL {name}: {found:?} instead of {wanted:?}");
            show(&code);
        }
    }
    for &name in ORDERED {
        let code = function(&path, name)?;
        let found = fences(&code);
        if found == [true] {
            println!("ok   {name}: LFENCE, RDTSC");
        } else {
            failed += 1;
            println!("FAIL {name}: readings of the time behind an LFENCE: {found:?} instead of one that is");
            show(&code);
        }
    }
    for package in [image::KERNEL, image::BENCH] {
        failed += u32::from(!never_aborts(&image::build(package)?)?);
    }
    Ok(u8::from(failed > 0))
}

fn show(code: &[Instruction]) {
    for instruction in code {
        println!("       {:#x}  {:?}", instruction.ip(), instruction.code());
    }
}

/// Whether no function of the image is the end of an allocation that must not fail.
fn never_aborts(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{}", path.display()))?;
    let names: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    ensure!(names.len() > 100, "{} has no symbols to look at", path.display());
    let name = path.file_name().unwrap_or_default().display();
    let found: Vec<&str> = names.into_iter().filter(|name| is_alloc_error(name)).collect();
    match found.as_slice() {
        [] => println!("ok   {name}: nothing stops for want of memory"),
        found => println!("FAIL {name}: code that stops for want of memory: {}", found.join(", ")),
    }
    Ok(found.is_empty())
}

/// `alloc::alloc::handle_alloc_error` and what it calls, mangled or not.
fn is_alloc_error(symbol: &str) -> bool {
    ["handle_alloc_error", "alloc_error_handler"].iter().any(|name| symbol.contains(name))
}

/// The instructions of the function `name` in the image at `path`.
fn function(path: &Path, name: &str) -> Result<Vec<Instruction>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{}", path.display()))?;
    let symbol = symbols::function(&file, path, name)?;
    let section = symbol.section_index().context("a function without a section")?;
    let code = file.section_by_index(section)?.data_range(symbol.address(), symbol.size())?;
    let code = code.with_context(|| format!("{name} is not in its section"))?;
    ensure!(!code.is_empty(), "{name} has no length");
    Ok(disassembled(code, symbol.address()))
}

fn disassembled(code: &[u8], address: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter().collect()
}

/// What is between the first RDTSC with its store, and the second; nothing if there are not two.
fn operation(code: &[Instruction]) -> Option<Vec<Instruction>> {
    let mut parts = code.split(|instruction| instruction.mnemonic() == Mnemonic::Rdtsc).skip(1);
    let (first, _second) = (parts.next()?, parts.next()?);
    let (store, operation) = first.split_first()?;
    stores_reading(store).then(|| operation.to_vec())
}

/// Is it what the bench has behind each of its own RDTSCs?
fn stores_reading(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_register() == Register::EAX
}

/// For each RDTSC that isn't the bench's: does it come right behind an LFENCE?
fn fences(code: &[Instruction]) -> Vec<bool> {
    let is = |at: usize, mnemonic| code.get(at).is_some_and(|it| it.mnemonic() == mnemonic);
    let readings = (0..code.len()).filter(|&at| is(at, Mnemonic::Rdtsc));
    readings
        .filter(|at| !code.get(at + 1).is_some_and(stores_reading))
        .map(|at| at.checked_sub(1).is_some_and(|before| is(before, Mnemonic::Lfence)))
        .collect()
}

fn kinds(code: &[Instruction]) -> Kinds {
    let mut kinds = Kinds::default();
    for instruction in code {
        let to_cr8 = instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register() == Register::CR8;
        kinds.cr8_writes += u32::from(to_cr8);
        kinds.locked += u32::from(is_locked(instruction));
        kinds.memory += u32::from(uses_memory(instruction));
        kinds.branches += u32::from(is_branch(instruction));
    }
    kinds
}

fn is_locked(instruction: &Instruction) -> bool {
    instruction.has_lock_prefix()
        || instruction.mnemonic() == Mnemonic::Xchg && has_memory_operand(instruction)
}

fn uses_memory(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea | Mnemonic::Nop => false,
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq => true,
        _ => has_memory_operand(instruction),
    }
}

/// Any operand that is neither a register, nor a constant, nor a jump's target.
fn has_memory_operand(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    })
}

fn is_branch(instruction: &Instruction) -> bool {
    let direct = instruction.op_kinds().any(|kind| matches!(kind, OpKind::NearBranch64));
    let other =
        matches!(instruction.mnemonic(), Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret | Mnemonic::Iretq);
    direct || other
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rdtsc; mov [0x10], eax`.
    const READ: &[u8] = &[0x0F, 0x31, 0x89, 0x04, 0x25, 0x10, 0, 0, 0];
    const CR8_WRITE: &[u8] = &[0x44, 0x0F, 0x22, 0xC0];

    fn counted(operation_bytes: &[u8]) -> Option<Kinds> {
        let code = [&[0x55][..], READ, operation_bytes, READ, &[0xC3]].concat();
        operation(&disassembled(&code, 0x1000)).map(|operation| kinds(&operation))
    }

    #[test]
    fn instructions_are_counted_by_kind_between_the_readings() {
        assert_eq!(counted(&[]), Some(Kinds::default()));
        let two = [CR8_WRITE, CR8_WRITE].concat();
        assert_eq!(counted(&two), Some(Kinds { cr8_writes: 2, ..Kinds::default() }));
        for (bytes, kinds) in [
            // lock bts qword ptr [rax], 0
            (&[0xF0, 0x48, 0x0F, 0xBA, 0x28, 0][..], Kinds { locked: 1, memory: 1, ..Kinds::default() }),
            // xchg [rax], rdi; xchg rax, rdi
            (&[0x48, 0x87, 0x38], Kinds { locked: 1, memory: 1, ..Kinds::default() }),
            (&[0x48, 0x97], Kinds::default()),
            // mov rax, gs:[0x20]
            (&[0x65, 0x48, 0x8B, 0x04, 0x25, 0x20, 0, 0, 0], Kinds { memory: 1, ..Kinds::default() }),
            // push rax; rep stosq; lea rax, [rax]; mov rax, cr8
            (&[0x50], Kinds { memory: 1, ..Kinds::default() }),
            (&[0xF3, 0x48, 0xAB], Kinds { memory: 1, ..Kinds::default() }),
            (&[0x48, 0x8D, 0x00], Kinds::default()),
            (&[0x44, 0x0F, 0x20, 0xC0], Kinds::default()),
            // jb; jmp; call; jmp rax; call [rax]
            (&[0x72, 0x00], Kinds { branches: 1, ..Kinds::default() }),
            (&[0xEB, 0x00], Kinds { branches: 1, ..Kinds::default() }),
            (&[0xE8, 0, 0, 0, 0], Kinds { branches: 1, ..Kinds::default() }),
            (&[0xFF, 0xE0], Kinds { branches: 1, ..Kinds::default() }),
            (&[0xFF, 0x10], Kinds { branches: 1, memory: 1, ..Kinds::default() }),
        ] {
            assert_eq!(counted(bytes), Some(kinds), "{bytes:x?}");
        }
    }

    /// What must stay out of a row: a lock's waiting, and whatever else comes back to the hot path.
    #[test]
    fn what_a_jump_leads_over_is_counted() {
        // lock bts [rax], 0; jae 2f; 1: cmp [rax], 0; jne 1b; lock bts [rax], 0; jb 1b; 2: mov cr8, r8
        let waits: &[u8] = &[
            0xF0, 0x48, 0x0F, 0xBA, 0x28, 0, 0x73, 0x0E, 0x48, 0x83, 0x38, 0, 0x75, 0xFA, 0xF0, 0x48, 0x0F,
            0xBA, 0x28, 0, 0x72, 0xF2, 0x44, 0x0F, 0x22, 0xC0,
        ];
        let found = Kinds { cr8_writes: 1, locked: 2, memory: 3, branches: 3 };
        assert_eq!(counted(waits), Some(found));
        assert!(RULES.iter().all(|&(_, wanted)| wanted != found));
    }

    #[test]
    fn a_function_without_two_readings_has_no_operation() {
        assert!(operation(&disassembled(READ, 0)).is_none());
        assert!(operation(&disassembled(&[0x0F, 0x31, 0x90, 0x0F, 0x31], 0)).is_none());
        assert!(operation(&[]).is_none());
    }

    #[test]
    fn a_reading_without_a_fence_is_told() {
        const LFENCE: &[u8] = &[0x0F, 0xAE, 0xE8];
        // rdtsc; shl rdx, 32
        const QUERY: &[u8] = &[0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20];
        let found = |parts: &[&[u8]]| fences(&disassembled(&[&[READ], parts, &[READ]].concat().concat(), 0));
        assert_eq!(found(&[]), [false; 0]);
        assert_eq!(found(&[LFENCE, QUERY]), [true]);
        assert_eq!(found(&[QUERY]), [false]);
        assert_eq!(found(&[LFENCE, &[0x90], QUERY]), [false], "something in between");
        assert_eq!(found(&[LFENCE, QUERY, QUERY]), [true, false]);
        assert_eq!(fences(&disassembled(QUERY, 0)), [false], "nothing in front");
    }

    #[test]
    fn names_match_whole_but_for_the_hash() {
        let mangled = "_ZN5bench4irql11raise_lower17h0123456789abcdefE";
        assert!(symbols::is_named(mangled, "bench::irql::raise_lower"));
        assert!(!symbols::is_named(mangled, "bench::irql::raise"));
        assert!(!symbols::is_named(
            "_ZN5bench4irql19raise_lower_to_high17h0123456789abcdefE",
            "bench::irql::raise_lower"
        ));
    }
}
