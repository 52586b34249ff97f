//! Requests: found wherever they are, delimiters honoured, every refusal.

use crate::common::{ElfFile, TOP};
use boot::elf::Elf;
use boot::requests::{Kind, MIN_STACK, RequestError as E, Requests, Settings, ShortName};

const COMMON: [u64; 2] = [0xc7b1_dd30_df4c_8b88, 0x0a82_e883_a194_f07b];
const TAG: [u64; 3] = [0xf956_2b2d_5c95_a6c8, 0x6a7b_3849_4453_6bdc, 3];
const START: [u64; 4] =
    [0xf6b8_f4b3_9de7_d1ae, 0xfab9_1a69_40fc_b9cf, 0x785c_6ed0_15d3_e316, 0x181e_920a_7852_b9d9];
const END: [u64; 2] = [0xadc0_e053_1bb1_0d03, 0x9572_709f_3176_4c62];
const STACK: [u64; 2] = [0x224e_f046_0a8e_8926, 0xe1cb_0fc2_5f46_ea3d];
const HHDM: [u64; 2] = [0x48dc_f1cb_8ad2_b852, 0x6398_4e95_9a98_244b];
const ENTRY: [u64; 2] = [0x13d8_6c03_5a1c_d3e1, 0x2b0c_aa89_d8f3_026a];
const PAGING: [u64; 2] = [0x95c1_a0ed_ab09_44cb, 0xa4e5_cb38_42f7_488a];
const MP: [u64; 2] = [0x95a6_7b81_9a1b_857e, 0xa0b6_1b72_3b6a_73e0];
const MODULES: [u64; 2] = [0x3e7e_2797_02be_32af, 0xca1c_4f3b_d128_0cee];

/// Where `kernel` puts the words.
const DATA: u64 = TOP + 0x3000;

fn request(id: [u64; 2], revision: u64, fields: &[u64]) -> Vec<u64> {
    [&COMMON[..], &id, &[revision, 0], fields].concat()
}

/// A kernel with these words in its data segment, and its block.
fn kernel(words: &[&[u64]]) -> (Vec<u8>, Vec<u8>) {
    let data: Vec<u8> = words.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
    load(&ElfFile::with_data(&data))
}

fn load(file: &ElfFile) -> (Vec<u8>, Vec<u8>) {
    let file = file.build();
    let elf = Elf::parse(&file).expect("a good kernel");
    let mut block = vec![0xcc; elf.span() as usize];
    elf.load(&mut block);
    (file, block)
}

fn scan((file, block): &(Vec<u8>, Vec<u8>)) -> Result<Requests, E> {
    Requests::scan(block, &Elf::parse(file).expect("a good kernel"))
}

fn settings(words: &[&[u64]]) -> Result<Settings, E> {
    let kernel = kernel(words);
    scan(&kernel)?.settings(&kernel.1, &Elf::parse(&kernel.0).expect("a good kernel"))
}

fn word(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn base_revision_is_needed() {
    assert_eq!(scan(&kernel(&[&[0; 8]])), Err(E::NoBaseRevision));
    for old in 0..3 {
        assert_eq!(scan(&kernel(&[&[TAG[0], TAG[1], old]])), Err(E::BaseRevision(old)));
    }
    assert_eq!(scan(&kernel(&[&TAG, &TAG])), Err(E::Duplicate("base revision tag")));
    let line = "kernel: asks for Limine base revision 2; 3 is needed";
    assert_eq!(E::BaseRevision(2).to_string(), line);
}

#[test]
fn revision_3_is_confirmed_and_a_later_one_is_not() {
    for (asked, left) in [(3, 0), (4, 4), (u64::MAX, u64::MAX)] {
        let mut kernel = kernel(&[&[TAG[0], TAG[1], asked]]);
        let requests = scan(&kernel).expect("a request");
        requests.confirm_revision(&mut kernel.1);
        let tag = 0x3000;
        assert_eq!((word(&kernel.1, tag + 8), word(&kernel.1, tag + 16)), (3, left));
    }
}

#[test]
fn only_what_is_between_the_delimiters_counts() {
    let stack = |size| request(STACK, 0, &[size]);
    let size = |words: &[&[u64]]| settings(words).map(|settings| settings.stack_size);
    let (one, two) = (stack(0x2_0000), stack(0x3_0000));
    assert_eq!(size(&[&one, &START, &TAG, &two, &END]), Ok(0x3_0000));
    assert_eq!(size(&[&START, &TAG, &two, &END, &one]), Ok(0x3_0000));
    assert_eq!(size(&[&START, &one, &START, &TAG, &two, &END, &END]), Ok(0x3_0000));
    assert_eq!(size(&[&one, &START, &TAG, &END]), Ok(MIN_STACK));
    assert_eq!(size(&[&TAG, &START, &one, &END]), Err(E::NoBaseRevision));
    assert_eq!(size(&[&START, &one, &END, &TAG]), Err(E::NoBaseRevision));
}

#[test]
fn requests_may_be_in_any_segment_on_eight_bytes() {
    let mut file = ElfFile::kernel();
    let put = |data: &mut Vec<u8>, at: usize, words: &[u64]| {
        data[at..at + 8 * words.len()]
            .copy_from_slice(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    };
    put(&mut file.segments[0].data, 0x1208, &TAG);
    put(&mut file.segments[1].data, 8, &request(HHDM, 0, &[]));
    put(&mut file.segments[2].data, 12, &request(STACK, 0, &[0x2_0000]));
    let requests = scan(&load(&file)).expect("a tag");
    assert!(requests.has(Kind::DirectMap));
    assert!(!requests.has(Kind::StackSize), "four bytes off");
}

#[test]
fn unknown_requests_are_left_alone_and_known_ones_are_unique() {
    let unknown = request([1, 2], 0, &[]);
    assert!(scan(&kernel(&[&TAG, &unknown, &unknown])).is_ok());
    let known = request(HHDM, 0, &[]);
    assert_eq!(scan(&kernel(&[&TAG, &known, &known])), Err(E::Duplicate("request of the same id")));
}

#[test]
fn request_must_end_in_the_image() {
    let mut file = ElfFile::with_data(&[]);
    let words = [&TAG[..], &request(STACK, 0, &[])].concat();
    let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.segments[2].address += 0x1000 - data.len() as u64;
    file.segments[2].memory = data.len() as u64;
    file.segments[2].data = data;
    assert_eq!(scan(&load(&file)), Err(E::Truncated("request")));
}

#[test]
fn settings_are_read() {
    let wanted =
        settings(&[&TAG, &request(STACK, 0, &[0x2_0001]), &request(ENTRY, 0, &[TOP]), &request(MP, 0, &[1])]);
    let expected = Settings { entry: TOP, stack_size: 0x2_0010, start_processors: true, x2apic: true };
    assert_eq!(wanted, Ok(expected));
    let none = Settings { entry: TOP + 0x10, stack_size: MIN_STACK, start_processors: false, x2apic: false };
    assert_eq!(settings(&[&TAG]), Ok(none));
    let small = settings(&[&TAG, &request(STACK, 0, &[1]), &request(MP, 0, &[0])]);
    assert_eq!(small, Ok(Settings { start_processors: true, ..none }));
}

#[test]
fn impossible_settings_are_refused() {
    assert_eq!(settings(&[&TAG, &request(ENTRY, 0, &[DATA])]), Err(E::EntryPoint(DATA)));
    assert_eq!(settings(&[&TAG, &request(STACK, 0, &[1 << 32])]), Err(E::StackSize(1 << 32)));
    let paging =
        |revision, fields: [u64; 3]| settings(&[&TAG, &request(PAGING, revision, &fields)]).map(|_| ());
    assert_eq!(paging(1, [1, 1, 0]), Ok(()));
    assert_eq!(paging(1, [1, 1, 1]), Err(E::PagingMode));
    // Revision 0 has no lowest mode, so four levels will do.
    assert_eq!(paging(0, [1, 1, 1]), Ok(()));
}

#[test]
fn internal_modules_are_read() {
    let base = 8 * (TAG.len() as u64 + 8);
    let [list, module, path, line] = [DATA + base, DATA + base + 8, DATA + base + 32, DATA + base + 40];
    let text = |text: &[u8; 8]| u64::from_le_bytes(*text);
    let make = |list, module, path, flags, text: u64| {
        kernel(&[&TAG, &request(MODULES, 1, &[1, list]), &[module, path, line, flags, text, 0x78]])
    };
    let read = |kernel: (Vec<u8>, Vec<u8>)| {
        let requests = scan(&kernel).expect("requests");
        assert_eq!(requests.internal_module_count(&kernel.1), Ok(1));
        let module = requests.internal_module(&kernel.1, 0)?;
        Ok((module.path.to_vec(), module.command_line.to_vec(), module.required))
    };
    let name = text(b"/a/b\0\0\0\0");
    assert_eq!(read(make(list, module, path, 1, name)), Ok((b"/a/b".to_vec(), b"x".to_vec(), true)));
    assert_eq!(read(make(list, module, path, 0, name)), Ok((b"/a/b".to_vec(), b"x".to_vec(), false)));
    assert_eq!(read(make(list, module, path, 2, name)), Err(E::ModuleCompressed(ShortName::new(b"/a/b"))));
    for outside in [0, TOP - 1, TOP + 0x10_0000, u64::MAX, u64::MAX - 7] {
        assert_eq!(read(make(outside, module, path, 1, name)), Err(E::ModuleList));
        assert_eq!(read(make(list, outside, path, 1, name)), Err(E::ModuleList));
        assert_eq!(read(make(list, module, outside, 1, name)), Err(E::ModuleList));
    }
    // A path that runs out of the image has no end.
    let mut endless = make(list, module, TOP + 0x5f00, 1, name);
    endless.1[0x5f00..].fill(b'x');
    assert_eq!(read(endless), Err(E::ModuleList));
}

#[test]
fn internal_modules_are_counted() {
    let count = |revision, count| {
        let kernel = kernel(&[&TAG, &request(MODULES, revision, &[count, DATA])]);
        scan(&kernel).expect("requests").internal_module_count(&kernel.1)
    };
    assert_eq!(count(1, 32), Ok(32));
    assert_eq!(count(1, 33), Err(E::TooManyModules(33)));
    assert_eq!(count(0, 33), Ok(0));
    assert_eq!(
        E::ModuleMissing(ShortName::new(b"a\nb")).to_string(),
        r"kernel: module a\nb is missing in the initrd"
    );
}
