//! A core file of a guest that a bugcheck has ended: for gdb, with the image's symbols.
//!
//! Memory is the guest's, once, with a segment for each range that its page tables map; what they map and nothing backs (devices) is
//! left out. Processors are gdb's threads 1 and up, with the registers that the report shows: where each was when it was stopped. The kernel's
//! threads that don't run follow, their numbers behind [`FIRST_THREAD`], with the registers that their last switch saved.
//!
//! Sources: System V ABI, "Program Header"; the Linux core file's `prstatus` note for x86-64, which gdb reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::guest;
use crate::memory::{Mapping, Memory, PAGE};
use crate::trace::decode::{Threads, Trace};

/// Registers by the names that the report has for them.
type Registers = BTreeMap<String, u64>;

/// In the order of the note, after which come segment bases and selectors; `-`: none of the report's.
const ORDER: [&str; 21] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "-", "rip", "cs", "rflags", "rsp", "ss",
];
/// Behind the processors.
const FIRST_THREAD: u64 = 1000;
const PRSTATUS: usize = 336;
const PID_AT: usize = 32;
const REGISTERS_AT: usize = 112;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// The registers of each processor, by the report in what the guest printed.
pub(crate) fn registers(serial: &str) -> BTreeMap<u64, Registers> {
    let mut processors = BTreeMap::new();
    let mut current = None;
    let report = serial.split("*** STOP ").nth(1).unwrap_or_default();
    for line in report.lines() {
        if let Some((number, _)) = line.strip_prefix("cpu ").and_then(|rest| rest.split_once(':')) {
            current = number.parse().ok();
        }
        let Some(processor) = current else { continue };
        // Names and values in turn, values in hexadecimal; other lines have none of the names.
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let value = u64::from_str_radix(pair[1].trim_start_matches("0x"), 16);
            if let (true, Ok(value)) = (ORDER.contains(&pair[0]), value) {
                processors.entry(processor).or_insert_with(Registers::new).insert(pair[0].to_owned(), value);
            }
        }
        if let (guest::Event::Frame { index: 0, address }, Some(known)) =
            (guest::parse(line), processors.get_mut(&processor))
        {
            known.entry("rip".to_owned()).or_insert(address);
        }
    }
    processors
}

/// A thread that doesn't run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    number: u64,
    name: String,
    registers: Registers,
}

/// What a switch leaves on the stack (arch/src/x86_64/switch.rs), from the saved stack pointer up.
const SAVED: [&str; 7] = ["r15", "r14", "r13", "r12", "rbx", "rbp", "rip"];
/// More are no list.
const MOST_THREADS: usize = 1 << 16;

/// The threads whose registers are in memory. The list may end early where a processor was stopped in its midst.
pub(crate) fn threads(memory: &Memory, root: u64, places: &Threads) -> Vec<Thread> {
    let bytes = |at: u64, count| memory.mapped(root, at, count).ok();
    let word = |at: u64| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = if places.first == 0 { None } else { word(places.first) };
    while let Some(at) = next.filter(|&at| at != 0 && seen.len() < MOST_THREADS && seen.insert(at)) {
        next = word(at.wrapping_add(places.next_at));
        let thread = || {
            let user = u32::from_le_bytes(bytes(at.wrapping_add(places.user_at), 4)?.try_into().ok()?);
            let stack = word(at.wrapping_add(places.stack_at))?;
            let name = bytes(at.wrapping_add(places.name_at), 16)?;
            let name = String::from_utf8_lossy(name.get(..usize::from(name[15]))?).into_owned();
            let mut registers = Registers::new();
            for (place, register) in (0..).zip(SAVED) {
                registers.insert(register.to_owned(), word(stack.wrapping_add(8 * place))?);
            }
            // As they are behind the switch's return.
            registers.insert("rsp".to_owned(), stack.wrapping_add(8 * SAVED.len() as u64));
            registers.extend([("cs", 0x10), ("ss", 0x18)].map(|(name, value)| (name.to_owned(), value)));
            let number = word(at.wrapping_add(places.number_at))?;
            (user == 0).then_some(Thread { number, name, registers })
        };
        found.extend(thread());
    }
    found
}

/// The threads that don't run, as gdb calls them, for who looks at the core.
pub(crate) fn described(threads: &[Thread]) -> String {
    let mut text = String::new();
    for Thread { number, name, .. } in threads {
        let _ = write!(
            text,
            "{}LWP {} \"{name}\"",
            if text.is_empty() { "" } else { ", " },
            FIRST_THREAD + number
        );
    }
    text
}

/// Writes the core of the guest that left this trace, and `serial`; the threads in it that didn't run.
pub(crate) fn write(path: &Path, trace: &Trace, serial: &str) -> Result<Vec<Thread>> {
    let (memory, root) = (&trace.memory, trace.root);
    let processors = registers(serial);
    ensure!(!processors.is_empty(), "the report shows no registers");
    let waiting = threads(memory, root, &trace.threads);
    write_core(path, memory, root, &processors, &waiting)?;
    Ok(waiting)
}

fn write_core(
    path: &Path,
    memory: &Memory,
    root: u64,
    processors: &BTreeMap<u64, Registers>,
    waiting: &[Thread],
) -> Result<()> {
    let mappings = memory.mappings(root)?;
    let running = processors.iter().map(|(&number, registers)| note(number + 1, registers));
    let waiting = waiting.iter().map(|thread| note(FIRST_THREAD + thread.number, &thread.registers));
    let notes: Vec<u8> = running.chain(waiting).flatten().collect();
    let headers = HEADER + (mappings.len() + 1) * PROGRAM_HEADER;
    let data = (headers + notes.len()).next_multiple_of(PAGE as usize) as u64;
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let mut head = elf_header(mappings.len() as u16 + 1);
    head.extend(program_header(4, 0, headers as u64, 0, notes.len() as u64));
    for &Mapping { address, offset, bytes } in &mappings {
        head.extend(program_header(1, 7, data + offset, address, bytes));
    }
    head.extend(notes);
    file.write_all_at(&head, 0)?;
    file.set_len(data + memory.size())?;
    memory.each_used(|offset, bytes| Ok(file.write_all_at(bytes, data + offset)?))
}

fn elf_header(segments: u16) -> Vec<u8> {
    let mut header = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_CORE, EM_X86_64, version 1; no entry; program headers right behind; no sections.
    header.extend([4_u16, 62].map(u16::to_le_bytes).concat());
    header.extend(1_u32.to_le_bytes());
    header.extend([0, HEADER as u64, 0].map(u64::to_le_bytes).concat());
    header.extend(0_u32.to_le_bytes());
    header.extend([HEADER as u16, PROGRAM_HEADER as u16, segments, 0, 0, 0].map(u16::to_le_bytes).concat());
    header
}

fn program_header(kind: u32, flags: u32, offset: u64, address: u64, bytes: u64) -> Vec<u8> {
    let mut header = [kind, flags].map(u32::to_le_bytes).concat();
    let memory = if kind == 1 { bytes } else { 0 };
    header.extend([offset, address, 0, bytes, memory, 1].map(u64::to_le_bytes).concat());
    header
}

/// NT_PRSTATUS of what gdb calls that; zero is none.
fn note(number: u64, registers: &Registers) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    status[PID_AT..PID_AT + 4].copy_from_slice(&(number as u32).to_le_bytes());
    for (at, name) in ORDER.iter().enumerate() {
        let value = registers.get(*name).copied().unwrap_or(0);
        status[REGISTERS_AT + at * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let mut note = [5, PRSTATUS as u32, 1].map(u32::to_le_bytes).concat();
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);
    note
}

/// Whether the core at `path` has a thread for each of `cpus` and of those that wait, of which the kernel's own are some, each where a switch
/// goes on; and whether its text is the image's.
pub(crate) fn check(path: &Path, image: &Path, cpus: u32, waiting: &[Thread]) -> Result<()> {
    use object::read::elf::{FileHeader, ProgramHeader};
    use object::{Object, ObjectSection, SectionKind};
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&*bytes)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, &*bytes)?;
    let mut threads = 0;
    for segment in segments {
        if let Some(mut notes) = segment.notes(endian, &*bytes)? {
            while notes.next()?.is_some() {
                threads += 1;
            }
        }
    }
    let wanted = cpus as usize + waiting.len();
    ensure!(threads == wanted, "{threads} threads in the core, not {wanted}");
    let own = |name: &str| waiting.iter().filter(|thread| thread.name == name).count();
    ensure!(own("threaded DPCs") == cpus as usize, "the kernel's own threads: {}", described(waiting));
    let image = std::fs::read(image)?;
    let image = object::File::parse(&*image)?;
    let text = image.sections().find(|section| section.kind() == SectionKind::Text).context("no text")?;
    // What is patched at start lies elsewhere than in the first page: the stubs' table.
    let (address, wanted) = (text.address(), &text.data()?[..256]);
    let in_text = address..address + text.size();
    for Thread { name, registers, .. } in waiting {
        let rip = registers["rip"];
        ensure!(in_text.contains(&rip), "the thread \"{name}\" goes on at {rip:#x}");
    }
    let found = segments
        .iter()
        .find_map(|segment| segment.data_range(endian, &*bytes, address, wanted.len() as u64).ok().flatten());
    ensure!(found == Some(wanted), "the core's text at {address:#x} is not the image's");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::memory;

    const REPORT: &str = "x\n*** STOP 0x000000E2 MANUALLY_INITIATED_CRASH (0x1, 0x2, 0x3, 0x4)\n\
        cpu 0: reporting\n    rsp ffffd80000010000 rbp ffffd80000010010\n  #0 0xffffffff80001234\n\
        cpu 1: frozen at irql 0\n    vector 2 error 0x0 cr2 0000000000000000 rflags 00000246 cs 10 ss 18\n\
        \x20   rip ffffffff80005678 rsp ffffe00000000000 rbp 0000000000000001 rax 0000000000000002\n*** end of report\n";

    #[test]
    fn registers_are_those_of_the_report() {
        let found = registers(REPORT);
        assert_eq!(found.len(), 2);
        assert_eq!((found[&0]["rip"], found[&0]["rbp"]), (0xFFFF_FFFF_8000_1234, 0xFFFF_D800_0001_0010));
        assert_eq!(
            (found[&1]["rip"], found[&1]["rflags"], found[&1]["cs"]),
            (0xFFFF_FFFF_8000_5678, 0x246, 0x10)
        );
        assert!(registers("no report").is_empty());
    }

    /// Two threads in one page: one waits, one is on its stack.
    #[test]
    fn threads_are_found_by_their_list() {
        let page = 0xFFFF_FFFF_8000_0000_u64;
        let word = |at: u64, value: u64| (at, value.to_le_bytes().to_vec());
        let memory = memory(
            4 << 20,
            &[
                word(0x1000 + 511 * 8, 0x2000 | 1),
                word(0x2000 + 510 * 8, 0x3000 | 1),
                word(0x3000, 0x4000 | 1),
                word(0x4000, 0x5000 | 1),
                word(0x5000, page + 0x100),
                // The first: next, stack, user, number, name.
                word(0x5100, page + 0x200),
                word(0x5108, page + 0x300),
                word(0x5118, 7),
                (0x5120, b"waits\0\0\0\0\0\0\0\0\0\0\x05".to_vec()),
                // The second leads back to the first.
                word(0x5200, page + 0x100),
                word(0x5208, page + 0x300),
                word(0x5210, 1),
                word(0x5300 + 5 * 8, 0xBB),
                word(0x5300 + 6 * 8, 0xAA),
            ],
        );
        let places =
            Threads { first: page, next_at: 0, stack_at: 8, user_at: 16, number_at: 24, name_at: 32 };
        let found = threads(&memory, 0x1000, &places);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, found[0].name.as_str()), (7, "waits"));
        let registers = &found[0].registers;
        assert_eq!((registers["rip"], registers["rbp"], registers["rsp"]), (0xAA, 0xBB, page + 0x338));
        assert_eq!(described(&found), "LWP 1007 \"waits\"");
        assert!(threads(&memory, 0x1000, &Threads::default()).is_empty());
    }

    #[test]
    fn a_core_has_the_guests_memory_where_it_was_mapped() {
        let entry = |at: u64, value: u64| (at, value.to_le_bytes().to_vec());
        let memory = memory(
            4 << 20,
            &[
                entry(0x1000 + 511 * 8, 0x2000 | 1),
                entry(0x2000 + 510 * 8, 0x3000 | 1),
                entry(0x3000, 0x4000 | 1),
                entry(0x4000, 0x5000 | 1),
                entry(0x4008, 0x6000 | 1),
                entry(0x4010, 0xFEE0_0000 | 1),
                (0x6000, b"here".to_vec()),
            ],
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        write_core(file.path(), &memory, 0x1000, &registers(REPORT), &[]).expect("written");
        let bytes = std::fs::read(file.path()).expect("a core");
        let core = object::File::parse(&*bytes).expect("an ELF file");
        let segments: Vec<(u64, u64)> = object::Object::segments(&core)
            .map(|s| (object::ObjectSegment::address(&s), object::ObjectSegment::size(&s)))
            .collect();
        assert_eq!(segments, [(0xFFFF_FFFF_8000_0000, 0x2000)], "two pages in a row, and no device");
        let segment = object::Object::segments(&core).next().expect("one");
        let data = object::ObjectSegment::data_range(&segment, 0xFFFF_FFFF_8000_1000, 4);
        assert_eq!(data.expect("readable"), Some(&b"here"[..]));
    }
}
