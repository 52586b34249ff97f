//! What must hold for whatever bytes the loader is given. A check panics when it does not.
//!
//! Used by the fuzz targets here, and by `arch/boot/tests`: on the committed corpus, and on random and mutated input.

use boot::acpi::{self, Madt};
use boot::elf::{Elf, LOWEST_ADDRESS};
use boot::initrd::Initrd;
use boot::memory::{PAGE, Window};
use boot::memory_map::{Entry, Kind, MemoryMap, PHYSICAL_LIMIT};
use boot::requests::{MIN_STACK, Requests};
use boot::start_info::{FirmwareRange, StartInfo};

/// Where the input lies in the physical memory that the parsers see.
pub(crate) const BASE: u64 = 0x1000;

/// Blocks above this size are planned, but not filled: the check shall stay quick.
const LARGEST_BLOCK: u64 = 4 << 20;

/// A kernel file: the plan keeps the invariants of `boot::elf`; what is loaded is the file's bytes and zeroes.
pub(crate) fn elf(file: &[u8]) {
    let Ok(elf) = Elf::parse(file) else { return };
    check_elf_plan(&elf, file);
    if elf.span() > LARGEST_BLOCK {
        return;
    }
    let mut block = vec![0xcc; elf.span() as usize];
    elf.load(&mut block);
    check_block(&elf, file, &block);
    if let Ok(requests) = Requests::scan(&block, &elf) {
        check_requests(&requests, &elf, &mut block);
    }
}

fn check_elf_plan(elf: &Elf<'_>, file: &[u8]) {
    let segments = elf.segments();
    assert!(!segments.is_empty());
    assert!(elf.base() >= LOWEST_ADDRESS && elf.base().is_multiple_of(PAGE));
    assert!(elf.span() > 0 && elf.span().is_multiple_of(PAGE));
    let end = elf.base().checked_add(elf.span()).expect("the block ends in the address space");
    for segment in segments {
        assert!(!(segment.writable && segment.executable));
        assert!(segment.address >= elf.base() && segment.length <= end - segment.address);
        assert!(segment.file_length <= segment.length);
        assert!(
            segment.file_offset.checked_add(segment.file_length).is_some_and(|end| end <= file.len() as u64)
        );
        assert!(segment.page_base() + segment.page_span() <= end);
    }
    for pair in segments.windows(2) {
        assert!(pair[0].page_base() + pair[0].page_span() <= pair[1].page_base());
    }
    assert!(elf.is_executable(elf.entry));
}

fn check_block(elf: &Elf<'_>, file: &[u8], block: &[u8]) {
    let mut expected = vec![0; block.len()];
    for segment in elf.segments() {
        let to = (segment.address - elf.base()) as usize;
        let (from, length) = (segment.file_offset as usize, segment.file_length as usize);
        expected[to..to + length].copy_from_slice(&file[from..from + length]);
    }
    assert!(block == expected, "the block is not the file's segments and zeroes");
}

fn check_requests(requests: &Requests, elf: &Elf<'_>, block: &mut [u8]) {
    if let Ok(settings) = requests.settings(block, elf) {
        assert!(elf.is_executable(settings.entry));
        assert!(settings.stack_size >= MIN_STACK && settings.stack_size.is_multiple_of(16));
    }
    for n in 0..requests.internal_module_count(block).unwrap_or(0) {
        // Its strings are slices of the block; reading them is the check.
        let _ = requests.internal_module(block, n);
    }
    requests.confirm_revision(block);
}

/// A start info at the input's first byte, its tables anywhere in it: the memory map keeps its invariants, before
/// and after memory is taken as the command line's bytes say.
pub(crate) fn start_info(input: &[u8]) {
    let Ok(info) = StartInfo::read(&Window::new(BASE, input), BASE) else { return };
    assert!(info.initrd_base >= BASE && info.initrd_length <= input.len() as u64);
    memory_map(info.ranges(), info.command_line());
}

/// Plans a map of `ranges`, then claims and allocates as the bytes of `steps` say.
pub(crate) fn memory_map(ranges: &[FirmwareRange], steps: &[u8]) {
    let Ok(mut map) = MemoryMap::plan(ranges) else { return };
    check_map(&map);
    check_against_firmware(&map, ranges);
    for pair in steps.chunks_exact(2) {
        let before = map.clone();
        step(&mut map, pair[0], pair[1]);
        check_map(&map);
        check_step(&before, &map);
    }
}

/// Takes memory; on success checks what was taken.
fn step(map: &mut MemoryMap, what: u8, size: u8) {
    let kind = if what & 1 == 0 { Kind::Reclaimable } else { Kind::Executable };
    let length = (u64::from(size) << (what >> 1 & 15)) + 1;
    let (base, align, below) = if what & 0x20 == 0 {
        let align = PAGE << (what >> 6);
        let below = 1 << (20 + u32::from(size % 24));
        match map.allocate("a test", length, align, (PAGE, below), kind) {
            Ok(base) => (base, align, below),
            Err(_) => return,
        }
    } else {
        let base = u64::from(size) << (what >> 6 << 2) << 10;
        match map.claim("a test", base, length, kind) {
            Ok(()) => (base, 1, u64::MAX),
            Err(_) => return,
        }
    };
    assert!(base.is_multiple_of(align) && base + length <= below);
    let holds = |entry: &Entry| entry.kind == kind && entry.base <= base && base + length <= entry.end();
    assert!(map.entries().iter().any(holds), "what was taken is not in the map");
}

/// I1, I2, I3 and I5 of `boot::memory_map`.
fn check_map(map: &MemoryMap) {
    for entry in map.entries() {
        assert!(entry.length > 0 && entry.base.checked_add(entry.length).is_some());
        if entry.kind.is_mapped() {
            assert!(entry.base.is_multiple_of(PAGE) && entry.length.is_multiple_of(PAGE));
            assert!(entry.base >= PAGE && entry.end() <= PHYSICAL_LIMIT);
            assert!(entry.end() <= 0xa_0000 || entry.base >= 0x10_0000);
        }
    }
    for pair in map.entries().windows(2) {
        assert!(pair[0].end() <= pair[1].base);
        assert!(pair[0].end() < pair[1].base || pair[0].kind != pair[1].kind, "neighbours are not merged");
    }
    check_mapped_runs(map);
}

/// The direct map's runs are the mapped entries, joined where they touch.
fn check_mapped_runs(map: &MemoryMap) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let Ok(()) = map.for_each_mapped(|base, length| {
        runs.push((base, base + length));
        Ok::<(), core::convert::Infallible>(())
    });
    assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
    let mapped = map.entries().iter().filter(|entry| entry.kind.is_mapped());
    assert_eq!(
        runs.iter().map(|run| run.1 - run.0).sum::<u64>(),
        mapped.map(|entry| entry.length).sum::<u64>()
    );
}

/// Every byte that the firmware names is in the map (I4), and only what it calls RAM throughout is usable.
fn check_against_firmware(map: &MemoryMap, ranges: &[FirmwareRange]) {
    let end = |range: &FirmwareRange| range.base.saturating_add(range.length);
    let mut sorted: Vec<_> = ranges.iter().map(|range| (range.base, end(range))).collect();
    sorted.sort_unstable();
    let (mut total, mut done) = (0, 0);
    for (base, end) in sorted {
        total += end.saturating_sub(base.max(done));
        done = done.max(end);
    }
    assert_eq!(map.entries().iter().map(|entry| entry.length).sum::<u64>(), total);
    for entry in map.entries().iter().filter(|entry| entry.kind == Kind::Usable) {
        let contradicts = |range: &&FirmwareRange| {
            range.kind != 1 && range.length > 0 && range.base < entry.end() && entry.base < end(range)
        };
        assert!(ranges.iter().find(contradicts).is_none(), "usable against the firmware's word");
    }
}

/// Taking memory turns usable memory into another kind, and does nothing else (I4).
fn check_step(before: &MemoryMap, after: &MemoryMap) {
    let of = |map: &MemoryMap, usable: bool| -> u64 {
        let matching = map
            .entries()
            .iter()
            .filter(|entry| entry.kind.is_mapped() && (entry.kind == Kind::Usable) == usable);
        matching.map(|entry| entry.length).sum()
    };
    assert_eq!(of(before, true) + of(before, false), of(after, true) + of(after, false));
    assert!(of(after, true) <= of(before, true));
    let fixed =
        |map: &MemoryMap| map.entries().iter().copied().filter(|e| !e.kind.is_mapped()).collect::<Vec<_>>();
    assert_eq!(fixed(before), fixed(after));
}

/// A MADT, and the same bytes as memory with an RSDP at their start: no processor is listed twice or as "none".
pub(crate) fn madt(input: &[u8]) {
    let mut madt = Madt::empty();
    let _ = madt.parse(input);
    check_madt(&madt);

    let memory = Window::new(BASE, input);
    let mut madt = Madt::empty();
    let _ = madt.read(&memory, BASE);
    check_madt(&madt);
    assert_eq!(acpi::search_rsdp(&memory), None, "the window does not reach the BIOS area");
}

fn check_madt(madt: &Madt) {
    let mut ids: Vec<_> = madt.processors().iter().map(|processor| processor.apic_id).collect();
    assert!(!ids.contains(&u32::MAX));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "a processor is listed twice");
}

/// An initrd: each file's name and contents are slices of it, in order; names are what file names may be.
pub(crate) fn initrd(input: &[u8]) {
    let Ok(initrd) = Initrd::parse(input) else { return };
    if initrd.kernel.data.as_ptr() == input.as_ptr() {
        assert!(initrd.kernel.data.len() == input.len() && initrd.modules().is_empty());
        return;
    }
    let mut from = 0;
    for file in [initrd.kernel].iter().chain(initrd.modules()) {
        assert!(!file.name.is_empty() && !file.name.contains(&0) && !file.name.starts_with(b"/"));
        let name = file.name.as_ptr().addr() - input.as_ptr().addr();
        let data = file.data.as_ptr().addr() - input.as_ptr().addr();
        assert!(from < name && name < data && data + file.data.len() <= input.len());
        from = data + file.data.len();
    }
}
