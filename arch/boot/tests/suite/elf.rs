//! The kernel's file: every refusal, and the plan's invariants for random and mutated files.

use crate::common::{ElfFile, R, RW, RWX, RX, Segment, TOP};
use boot::elf::{Elf, ElfError};
use proptest::prelude::*;

use crate::checks;

/// The error for the good kernel after `spoil`.
fn refusal(spoil: impl FnOnce(&mut ElfFile)) -> ElfError {
    let mut file = ElfFile::kernel();
    spoil(&mut file);
    Elf::parse(&file.build()).expect_err("the file is spoilt")
}

#[test]
fn good_kernel_is_planned_as_one_block() {
    let file = ElfFile::kernel().build();
    let elf = Elf::parse(&file).expect("a good file");
    assert_eq!((elf.base(), elf.span(), elf.entry), (TOP, 0x6000, TOP + 0x10));
    let rights: Vec<_> = elf.segments().iter().map(|s| (s.writable, s.executable)).collect();
    assert_eq!(rights, [(false, true), (false, false), (true, false)]);
    let pages: Vec<_> = elf.segments().iter().map(|s| (s.page_base() - TOP, s.page_span())).collect();
    assert_eq!(pages, [(0, 0x2000), (0x2000, 0x1000), (0x3000, 0x3000)]);
    checks::elf(&file);
}

#[test]
fn segments_may_come_in_any_order() {
    let mut file = ElfFile::kernel();
    file.segments.reverse();
    let file = file.build();
    let elf = Elf::parse(&file).expect("order does not matter");
    assert_eq!(elf.segments().iter().map(|s| s.index).collect::<Vec<_>>(), [2, 1, 0]);
    checks::elf(&file);
}

#[test]
fn other_program_headers_and_empty_segments_are_passed_over() {
    let mut file = ElfFile::kernel();
    let note = Segment { kind: 4, ..Segment::new(RWX, 0, b"", 100) };
    file.segments.extend([note, Segment::new(RWX, 0, b"", 0)]);
    assert_eq!(Elf::parse(&file.build()).expect("nothing to refuse").segments().len(), 3);
}

#[test]
fn not_elf() {
    assert_eq!(Elf::parse(b"").unwrap_err(), ElfError::NotElf);
    assert_eq!(Elf::parse(&ElfFile::kernel().build()[..63]).unwrap_err(), ElfError::NotElf);
    assert_eq!(refusal(|file| file.magic = *b"\x7fELG"), ElfError::NotElf);
}

#[test]
fn wrong_class_order_version_machine_type() {
    assert_eq!(refusal(|file| file.class = 1), ElfError::Class(1));
    assert_eq!(refusal(|file| file.order = 2), ElfError::ByteOrder(2));
    assert_eq!(refusal(|file| file.version = 0), ElfError::Version(0));
    assert_eq!(refusal(|file| file.machine = 3), ElfError::Machine(3));
    assert_eq!(refusal(|file| file.kind = 3), ElfError::Type(3));
}

#[test]
fn program_headers_must_be_there() {
    assert_eq!(refusal(|file| file.header_size = 32), ElfError::ProgramHeaders);
    assert_eq!(refusal(|file| file.segments.clear()), ElfError::NoSegments);
    assert_eq!(refusal(|file| file.segments.iter_mut().for_each(|s| s.kind = 4)), ElfError::NoSegments);
    let file = ElfFile::kernel().build();
    assert_eq!(Elf::parse(&file[..64 + 3 * 56 - 1]).unwrap_err(), ElfError::ProgramHeaders);
}

#[test]
fn truncated_segment_is_named() {
    let file = ElfFile::kernel().build();
    assert_eq!(Elf::parse(&file[..file.len() - 1]).unwrap_err(), ElfError::Truncated(2));
    assert_eq!(refusal(|file| file.segments[1].offset = Some(u64::MAX)), ElfError::Truncated(1));
    assert_eq!(refusal(|file| file.segments[0].memory -= 1), ElfError::FileLargerThanMemory(0));
}

#[test]
fn segments_must_be_in_the_top_2_gib() {
    assert_eq!(refusal(|file| file.segments[0].address = 0x10_0000), ElfError::Address(0, 0x10_0000));
    assert_eq!(refusal(|file| file.segments[0].address = TOP - 0x1000), ElfError::Address(0, TOP - 0x1000));
    let last = 0xffff_ffff_ffff_f000;
    assert_eq!(refusal(|file| file.segments[1].address = last), ElfError::Address(1, last));
    assert_eq!(refusal(|file| file.segments[2].memory = u64::MAX), ElfError::Address(2, TOP + 0x3000));
}

#[test]
fn writable_and_executable_is_refused() {
    assert_eq!(refusal(|file| file.segments[2].flags = RWX), ElfError::WritableAndExecutable(2));
    assert_eq!(refusal(|file| file.segments[2].flags = 3), ElfError::WritableAndExecutable(2));
}

#[test]
fn overlapping_segments_and_shared_pages_are_refused() {
    assert_eq!(refusal(|file| file.segments[1].address = TOP + 0x800), ElfError::Overlap(0, 1));
    assert_eq!(refusal(|file| file.segments[1].address = TOP + 0x1800), ElfError::Overlap(0, 1));
    assert_eq!(refusal(|file| file.segments[0].memory = 0x3001), ElfError::Overlap(0, 1));
}

#[test]
fn entry_must_be_executable() {
    for entry in [0, TOP + 0x1234, TOP + 0x2000, TOP + 0x3000] {
        assert_eq!(refusal(|file| file.entry = entry), ElfError::Entry(entry));
    }
}

#[test]
fn too_many_segments() {
    let many = |count: u64| {
        refusal(|file| {
            file.segments = (0..count).map(|n| Segment::new(R, TOP + n * 0x1000, b"x", 1)).collect();
        })
    };
    assert_eq!(many(16), ElfError::Entry(TOP + 0x10));
    assert_eq!(many(17), ElfError::TooManySegments);
}

#[test]
fn each_error_is_one_line_that_says_what() {
    for (error, line) in [
        (ElfError::Machine(3), "kernel: ELF machine 3, not x86-64"),
        (ElfError::Truncated(2), "kernel: segment 2 is truncated"),
        (ElfError::Overlap(0, 1), "kernel: segments 0 and 1 overlap or share a page"),
        (ElfError::WritableAndExecutable(1), "kernel: segment 1 is both writable and executable"),
        (ElfError::Address(0, 0x1000), "kernel: segment 0 at 0x1000 is not in the higher half (top 2 GiB)"),
    ] {
        assert_eq!(error.to_string(), line);
    }
}

fn segment() -> impl Strategy<Value = Segment> {
    let flags = prop_oneof![8 => Just(RX), 8 => Just(R), 8 => Just(RW), 1 => 0..8_u32];
    let address = prop_oneof![20 => (0..64_u64).prop_map(|page| TOP + page * 0x800), 1 => any::<u64>()];
    let data = prop::collection::vec(any::<u8>(), 0..0x1800);
    (flags, address, data, 0..0x2000_u64).prop_map(|(flags, address, data, zeroes)| {
        let memory = data.len() as u64 + zeroes;
        Segment::new(flags, address, &data, memory)
    })
}

proptest! {
    #[test]
    fn random_segments_keep_the_invariants(segments in prop::collection::vec(segment(), 1..6), entry in 0..0x1000_u64) {
        let entry = segments[0].address.wrapping_add(entry);
        checks::elf(&ElfFile { segments, entry, ..ElfFile::kernel() }.build());
    }

    #[test]
    fn mutated_files_keep_the_invariants(
        changes in prop::collection::vec((0..64 + 3 * 56_usize, any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = ElfFile::kernel().build();
        for (at, value) in changes {
            file[at] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        checks::elf(&file);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        checks::elf(&bytes);
    }
}
