//! The fuzz targets' corpus, replayed by the compiler that builds everything else.
//!
//! `seeds` builds the part of it that is made by hand; the rest was found by fuzzing. After a change of the seeds:
//! `cargo test -p boot --test suite -- --ignored seeds_are_written`.

use std::fs;
use std::path::{Path, PathBuf};

use boot::acpi::Madt;
use boot::elf::Elf;
use boot::initrd::Initrd;
use boot::memory::Window;
use boot::memory_map::MemoryMap;
use boot::requests::Requests;
use boot::start_info::StartInfo;

use crate::checks;
use crate::common::*;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target)
}

/// Runs `check` on each file of a target's corpus, which must hold at least its seeds.
fn replay(target: &str, check: fn(&[u8])) {
    let files: Vec<_> = fs::read_dir(corpus(target))
        .expect("the corpus is in the repository")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert!(files.len() >= seeds().iter().filter(|seed| seed.0 == target).count());
    for file in files {
        println!("{}", file.display()); // shown if the check fails
        check(&fs::read(&file).expect("readable"));
    }
}

#[test]
fn elf_corpus_keeps_the_invariants() {
    replay("elf", checks::elf);
}

#[test]
fn start_info_corpus_keeps_the_invariants() {
    replay("start_info", checks::start_info);
}

#[test]
fn madt_corpus_keeps_the_invariants() {
    replay("madt", checks::madt);
}

#[test]
fn initrd_corpus_keeps_the_invariants() {
    replay("initrd", checks::initrd);
}

#[test]
fn seeds_are_in_the_corpus() {
    for (target, name, bytes) in seeds() {
        assert!(
            fs::read(corpus(target).join(name)).expect("written") == bytes,
            "{target}/{name} is outdated"
        );
    }
}

/// What the seeds are for: a fuzzer starts from where they lead.
#[test]
fn seeds_lead_past_every_refusal() {
    let seed = |target, name| {
        let found = seeds().into_iter().find(|seed| (seed.0, seed.1) == (target, name));
        found.expect("it is in the list").2
    };
    let file = seed("elf", "requests");
    let elf = Elf::parse(&file).expect("good");
    let mut block = vec![0; elf.span() as usize];
    elf.load(&mut block);
    let requests = Requests::scan(&block, &elf).expect("good");
    assert!(requests.settings(&block, &elf).expect("good").x2apic);
    assert_eq!(requests.internal_module(&block, 0).expect("good").path, b"a");

    for name in ["pc", "messy"] {
        let memory = seed("start_info", name);
        let info = StartInfo::read(&Window::new(START_INFO, &memory), START_INFO).expect("good");
        MemoryMap::plan(info.ranges()).expect("good");
    }
    for name in ["rsdt", "xsdt"] {
        let mut madt = Madt::empty();
        madt.read(&Window::new(RSDP, &seed("madt", name)), RSDP).expect("good");
        assert_eq!(madt.processors().len(), 2);
    }
    assert_eq!(Initrd::parse(&seed("initrd", "archive")).expect("good").modules().len(), 2);
}

#[test]
#[ignore = "writes to the source tree"]
fn seeds_are_written() {
    for (target, name, bytes) in seeds() {
        fs::create_dir_all(corpus(target)).expect("writable");
        fs::write(corpus(target).join(name), bytes).expect("writable");
    }
}

/// Target, name, contents: good input that leads deep into each parser.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let some_madt = madt(&[local_apic(0, 0, 1), local_x2apic(1, 300, 1), io_apic(0xfec0_0000)]);
    let messy = StartInfoFile {
        ranges: vec![(0, 1 << 34, 1), (0xa_0000, 0x6_0001, 2), (0xb000_0000, 1 << 30, 7), (5 << 20, 99, 5)],
        command_line: Some((1..=64).collect()),
        ..StartInfoFile::new()
    };
    vec![
        ("elf", "small", small_kernel(&[])),
        ("elf", "requests", small_kernel(&requests())),
        ("start_info", "pc", StartInfoFile::new().build()),
        ("start_info", "messy", messy.build()),
        ("madt", "table", some_madt.clone()),
        ("madt", "rsdt", acpi(false, &[], &some_madt)),
        ("madt", "xsdt", acpi(true, &[], &some_madt)),
        ("initrd", "archive", archive(&[("./kernel", b"12345"), ("module", b"123"), ("empty", b"")])),
        ("initrd", "alone", b"\x7fELF".to_vec()),
    ]
}

fn small_kernel(words: &[u64]) -> Vec<u8> {
    let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut file = ElfFile::with_data(&data);
    file.segments[0].data.truncate(0x40);
    file.segments[0].memory = 0x40;
    file.segments[1].data.truncate(0x20);
    file.segments[1].memory = 0x20;
    file.build()
}

/// A start marker, the base revision tag, every request with settings of its own, a module, an end marker.
fn requests() -> Vec<u64> {
    const COMMON: [u64; 2] = [0xc7b1_dd30_df4c_8b88, 0x0a82_e883_a194_f07b];
    let mut words =
        vec![0xf6b8_f4b3_9de7_d1ae, 0xfab9_1a69_40fc_b9cf, 0x785c_6ed0_15d3_e316, 0x181e_920a_7852_b9d9];
    words.extend([0xf956_2b2d_5c95_a6c8, 0x6a7b_3849_4453_6bdc, 3]);
    let settings: [([u64; 2], &[u64]); 4] = [
        ([0x224e_f046_0a8e_8926, 0xe1cb_0fc2_5f46_ea3d], &[0x2_0000]),
        ([0x95c1_a0ed_ab09_44cb, 0xa4e5_cb38_42f7_488a], &[0, 1, 0]),
        ([0x95a6_7b81_9a1b_857e, 0xa0b6_1b72_3b6a_73e0], &[1]),
        ([0x13d8_6c03_5a1c_d3e1, 0x2b0c_aa89_d8f3_026a], &[TOP]),
    ];
    for (id, fields) in settings {
        words.extend([&COMMON[..], &id, &[1, 0], fields].concat());
    }
    // The module list follows the request's two fields: pointer; path, command line, flags; the path.
    words.extend([&COMMON[..], &[0x3e7e_2797_02be_32af, 0xca1c_4f3b_d128_0cee, 1, 0, 1]].concat());
    let at = TOP + 0x3000 + 8 * (words.len() as u64 + 1);
    words.extend([at, at + 8, at + 32, at + 33, 1, 0x61]);
    words.extend([0xadc0_e053_1bb1_0d03, 0x9572_709f_3176_4c62]);
    words
}
