//! A core file of a guest that a bugcheck has ended: for gdb, with the image's symbols.
//!
//! Memory is the guest's, once, with a segment for each range that its page tables map; what they map and nothing backs (devices) is
//! left out. Processors are gdb's threads, with the registers that the report shows: where each was when it was stopped.
//!
//! Sources: System V ABI, "Program Header"; the Linux core file's `prstatus` note for x86-64, which gdb reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::guest;
use crate::memory::{Mapping, Memory, PAGE};

/// Registers by the names that the report has for them.
type Registers = BTreeMap<String, u64>;

/// In the order of the note, after which come segment bases and selectors; `-`: none of the report's.
const ORDER: [&str; 21] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "-", "rip", "cs", "rflags", "rsp", "ss",
];
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

/// Writes the core of a guest with this memory and page tables.
pub(crate) fn write(path: &Path, memory: &Memory, root: u64, serial: &str) -> Result<()> {
    let processors = registers(serial);
    ensure!(!processors.is_empty(), "the report shows no registers");
    let mappings = memory.mappings(root)?;
    let notes: Vec<u8> = processors.iter().flat_map(|(&number, registers)| note(number, registers)).collect();
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

/// NT_PRSTATUS, with the processor's number plus one as the process: zero is none.
fn note(number: u64, registers: &Registers) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    status[PID_AT..PID_AT + 4].copy_from_slice(&(number as u32 + 1).to_le_bytes());
    for (at, name) in ORDER.iter().enumerate() {
        let value = registers.get(*name).copied().unwrap_or(0);
        status[REGISTERS_AT + at * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let mut note = [5, PRSTATUS as u32, 1].map(u32::to_le_bytes).concat();
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);
    note
}

/// Whether the core at `path` has a thread for each of `cpus`, and its text is the image's.
pub(crate) fn check(path: &Path, image: &Path, cpus: u32) -> Result<()> {
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
    ensure!(threads == cpus, "{threads} threads in the core of {cpus} processors");
    let image = std::fs::read(image)?;
    let image = object::File::parse(&*image)?;
    let text = image.sections().find(|section| section.kind() == SectionKind::Text).context("no text")?;
    // What is patched at start lies elsewhere than in the first page: the stubs' table.
    let (address, wanted) = (text.address(), &text.data()?[..256]);
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
        write(file.path(), &memory, 0x1000, REPORT).expect("written");
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
