//! The responses, read back as a kernel reads them: through the `limine` crate's requests in its own image.

use std::slice;

use boot::arena::{Arena, ArenaFull};
use boot::elf::Elf;
use boot::error::Error;
use boot::initrd::Initrd;
use boot::memory_map::{Kind, MemoryMap};
use boot::requests::{RequestError, Requests, ShortName};
use boot::response::{self, Facts};
use boot::start_info::FirmwareRange;
use limine::BaseRevision;
use limine::firmware_type::FirmwareType;
use limine::memory_map::EntryType;
use limine::modules::ModuleFlags;
use limine::mp::RequestFlags;
use limine::paging::Mode;
use limine::request::*;

use crate::common::{ElfFile, TOP, archive};

/// Requests as a kernel's linker script lays them out.
#[repr(C)]
struct Image {
    start: RequestsStartMarker,
    base_revision: BaseRevision,
    info: BootloaderInfoRequest,
    command_line: ExecutableCmdlineRequest,
    firmware: FirmwareTypeRequest,
    stack: StackSizeRequest,
    direct_map: HhdmRequest,
    paging: PagingModeRequest,
    processors: MpRequest,
    memory: MemoryMapRequest,
    file: ExecutableFileRequest,
    modules: ModuleRequest,
    rsdp: RsdpRequest,
    date: DateAtBootRequest,
    address: ExecutableAddressRequest,
    device_tree: DeviceTreeBlobRequest,
    end: RequestsEndMarker,
}

impl Image {
    fn new() -> Self {
        Self {
            start: RequestsStartMarker::new(),
            base_revision: BaseRevision::new(),
            info: BootloaderInfoRequest::new(),
            command_line: ExecutableCmdlineRequest::new(),
            firmware: FirmwareTypeRequest::new(),
            stack: StackSizeRequest::new(),
            direct_map: HhdmRequest::new(),
            paging: PagingModeRequest::new(),
            processors: MpRequest::new().with_flags(RequestFlags::X2APIC),
            memory: MemoryMapRequest::new(),
            file: ExecutableFileRequest::new(),
            modules: ModuleRequest::new(),
            rsdp: RsdpRequest::new(),
            date: DateAtBootRequest::new(),
            address: ExecutableAddressRequest::new(),
            device_tree: DeviceTreeBlobRequest::new(),
            end: RequestsEndMarker::new(),
        }
    }

    /// The kernel's file with this image at the start of its data segment, and after it a list of one internal
    /// module, `/mod/b`, with the command line `b=1`, that the module request points to.
    fn kernel(self, flags: ModuleFlags) -> Vec<u8> {
        let mut words = self.words();
        let at = TOP + 0x3000 + 8 * words.len() as u64;
        let fields =
            words.iter().position(|word| *word == 0x3e7e_2797_02be_32af).expect("the module request") + 4;
        words[fields..fields + 2].copy_from_slice(&[1, at]);
        words.extend([at + 8, at + 32, at + 40, flags.bits()]);
        words.extend([u64::from_le_bytes(*b"/mod/b\0\0"), u64::from_le_bytes(*b"b=1\0\0\0\0\0")]);
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ElfFile::with_data(&data).build()
    }

    fn words(self) -> Vec<u64> {
        const { assert!(size_of::<Image>().is_multiple_of(8)) };
        let image = std::ptr::from_ref(&self).cast::<u64>();
        // SAFETY: 1. an Image is whole words, and aligned to them. 2. The requests are made of words only, all of them
        //         initialized: there is no padding between or in them.
        unsafe { slice::from_raw_parts(image, size_of::<Image>() / 8) }.to_vec()
    }
}

/// A block as the loader fills it: of words, so that an `Image` in it is aligned.
struct Booted {
    block: Vec<u64>,
    // What the responses point to.
    _arena: Vec<u64>,
    _processors: Vec<[u64; 4]>,
    _archive: Vec<u8>,
}

impl Booted {
    fn image(&self) -> &Image {
        let image = self.block[0x3000 / 8..].as_ptr().cast::<Image>();
        // SAFETY: 1. the data segment starts at 0x3000 with an Image, whose words the loader has only given addresses
        //         of responses, or confirmed the revision in. 2. It is aligned, and borrowed with `self`.
        unsafe { &*image }
    }
}

fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: words are bytes, and the borrow is passed on.
    unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// The files of the initrd besides the kernel.
const MODULES: [(&str, &[u8]); 2] = [("mod/a", b"first"), ("mod/b", b"second")];

/// Boots `kernel` with `modules`; addresses that the kernel dereferences are this process's own.
fn boot(kernel: &[u8], modules: &[(&str, &[u8])], spare: isize) -> Result<Booted, Error> {
    let files: Vec<_> = [("kirql", kernel)].into_iter().chain(modules.iter().copied()).collect();
    let archive = archive(&files);
    let initrd = Initrd::parse(&archive)?;
    let elf = Elf::parse(initrd.kernel.data)?;
    let mut block = vec![0; elf.span() as usize / 8];
    elf.load(bytes_of(&mut block));
    let requests = Requests::scan(bytes_of(&mut block), &elf)?;

    let module_files: Vec<_> = initrd.modules().iter().map(|file| file.data.as_ptr().addr() as u64).collect();
    let facts = Facts {
        direct_map: 0,
        command_line: b"seed=7",
        physical_base: 0x20_0000,
        virtual_base: elf.base(),
        rsdp: Some(0xf_5250),
        date: Some(1_709_210_096),
        initrd: &initrd,
        kernel_file: initrd.kernel.data.as_ptr().addr() as u64,
        module_files: &module_files,
    };
    let processors = vec![[1 << 32, 0, 0, 0], [2 | 300 << 32, 0, 0, 0]];
    let size = response::arena_size(&requests, bytes_of(&mut block), &facts, 2)?;
    let mut arena_words = vec![0; (size as usize / 8).saturating_add_signed(spare)];
    let base = arena_words.as_ptr().addr() as u64;
    let mut arena = Arena::new(bytes_of(&mut arena_words), base);
    let block_bytes = bytes_of(&mut block);
    response::respond(&requests, block_bytes, &mut arena, &facts)?;
    let list = processors.iter().map(|processor| processor.as_ptr().addr() as u64);
    response::respond_processors(&requests, block_bytes, &mut arena, (true, 5), list)?;
    let ranges = [FirmwareRange { base: 1 << 20, length: 1 << 20, kind: 1 }; 1];
    let mut map = MemoryMap::plan(&ranges)?;
    map.claim("it", 1 << 20, 0x1000, Kind::Executable)?;
    response::respond_memory_map(&requests, block_bytes, &mut arena, &map)?;
    Ok(Booted { block, _arena: arena_words, _processors: processors, _archive: archive })
}

fn good() -> Booted {
    boot(&Image::new().kernel(ModuleFlags::REQUIRED), &MODULES, 0).expect("a good boot")
}

#[test]
fn base_revision_3_is_confirmed() {
    let booted = good();
    assert!(booted.image().base_revision.is_supported());
    assert_eq!(booted.image().base_revision.loaded_revision(), Some(3));
}

#[test]
fn facts_arrive() {
    let booted = good();
    let image = booted.image();
    let info = image.info.get_response().expect("answered");
    assert_eq!((info.name(), info.version()), ("Kirql boot", env!("CARGO_PKG_VERSION")));
    assert_eq!(image.command_line.get_response().expect("answered").cmdline(), c"seed=7");
    assert!(image.firmware.get_response().expect("answered").firmware_type() == FirmwareType::X86_BIOS);
    assert_eq!(image.stack.get_response().expect("answered").revision(), 0);
    assert_eq!(image.direct_map.get_response().expect("answered").offset(), 0);
    assert!(image.paging.get_response().expect("answered").mode() == Mode::FOUR_LEVEL);
    assert_eq!(image.rsdp.get_response().expect("answered").address(), 0xf_5250);
    assert_eq!(image.date.get_response().expect("answered").timestamp().as_secs(), 1_709_210_096);
    let address = image.address.get_response().expect("answered");
    assert_eq!((address.physical_base(), address.virtual_base()), (0x20_0000, TOP));
}

#[test]
fn unknown_request_stays_unanswered() {
    assert!(good().image().device_tree.get_response().is_none());
}

#[test]
fn memory_map_arrives() {
    let booted = good();
    let entries = booted.image().memory.get_response().expect("answered").entries();
    let found: Vec<_> = entries.iter().map(|entry| (entry.base, entry.length)).collect();
    assert_eq!(found, [(1 << 20, 0x1000), ((1 << 20) + 0x1000, (1 << 20) - 0x1000)]);
    assert!(entries[0].entry_type == EntryType::EXECUTABLE_AND_MODULES);
    assert!(entries[1].entry_type == EntryType::USABLE);
}

#[test]
fn processors_arrive() {
    let booted = good();
    let response = booted.image().processors.get_response().expect("answered");
    assert_eq!((response.flags().bits(), response.bsp_lapic_id()), (1, 5));
    let found: Vec<_> = response.cpus().iter().map(|cpu| (cpu.id, cpu.lapic_id)).collect();
    assert_eq!(found, [(0, 1), (2, 300)]);
}

/// The contents of a file that `_booted` has.
fn contents<'b>(_booted: &'b Booted, file: &limine::file::File) -> &'b [u8] {
    // SAFETY: the loader was told addresses and lengths of files in `_archive`, and passes them on.
    unsafe { slice::from_raw_parts(file.addr(), file.size() as usize) }
}

#[test]
fn kernel_file_arrives() {
    let kernel = Image::new().kernel(ModuleFlags::REQUIRED);
    let booted = boot(&kernel, &MODULES, 0).expect("a good boot");
    let found = booted.image().file.get_response().expect("answered").file();
    assert_eq!((found.path(), found.string()), (c"/kirql", c"seed=7"));
    assert!(contents(&booted, found) == kernel);
}

#[test]
fn requested_modules_come_first_and_each_file_once() {
    let booted = good();
    let modules = booted.image().modules.get_response().expect("answered");
    assert_eq!(modules.revision(), 1);
    let found: Vec<_> =
        modules.modules().iter().map(|m| (m.path(), m.string(), contents(&booted, m))).collect();
    assert_eq!(found, [(c"/mod/b", c"b=1", &b"second"[..]), (c"/mod/a", c"", b"first")]);
}

#[test]
fn missing_module_matters_only_if_it_is_required() {
    let others = &MODULES[..1];
    let refused = RequestError::ModuleMissing(ShortName::new(b"/mod/b"));
    let required = boot(&Image::new().kernel(ModuleFlags::REQUIRED), others, 0);
    assert_eq!(required.err(), Some(Error::Request(refused)));
    let booted = boot(&Image::new().kernel(ModuleFlags::empty()), others, 0).expect("it is optional");
    assert_eq!(booted.image().modules.get_response().expect("answered").modules().len(), 1);
}

#[test]
fn arena_too_small_is_an_error() {
    let kernel = Image::new().kernel(ModuleFlags::REQUIRED);
    assert_eq!(boot(&kernel, &MODULES, isize::MIN).err(), Some(Error::Arena(ArenaFull)));
}
