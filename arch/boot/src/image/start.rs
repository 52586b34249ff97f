//! The boot, in order.

use core::fmt::Display;
use core::ptr;
use core::slice;

use boot::acpi::{self, Madt};
use boot::arena::Arena;
use boot::elf::Elf;
use boot::error::Error;
use boot::initrd::{Initrd, MAX_MODULES};
use boot::memory::{LARGE_PAGE, PAGE, Physical};
use boot::memory_map::{Kind, MemoryError, MemoryMap};
use boot::paging::{Access, DIRECT_MAP, PageTables, Table, Tables};
use boot::requests::{Kind as Request, Requests, Settings};
use boot::response::{self, Facts};
use boot::start_info::{StartInfo, StartInfoError};

use super::handoff::{self, Processor};
use super::machine::{IDENTITY_END, Identity, image, owned};
use super::processors::{self, Apic};
use super::{console, devices};

/// Where memory is taken from: above what old devices and firmware use, below the end of the identity map.
const ANYWHERE: (u64, u64) = (1 << 20, IDENTITY_END);
/// Where a processor can start: below the video memory, but not at the interrupt vectors.
const LOW: (u64, u64) = (PAGE, 0xa_0000);

/// What `enter_kernel` needs.
struct Kernel {
    root: u64,
    stack_end: u64,
    entry: u64,
}

/// Called by entry.rs with the physical address of the start info.
pub(super) extern "sysv64" fn start(start_info: u64) -> ! {
    console::initialize();
    match boot(start_info) {
        // SAFETY: `boot` has mapped everything, the handoff page included, and set the stack aside.
        Ok(kernel) => unsafe { handoff::enter_kernel(kernel.root, kernel.stack_end, kernel.entry) },
        Err(error) => console::refuse(&error as &dyn Display),
    }
}

fn boot(start_info: u64) -> Result<Kernel, Error> {
    let info = StartInfo::read(&Identity, start_info)?;
    let mut map = MemoryMap::plan(info.ranges())?;
    let (image_base, image_length) = image();
    map.claim("the loader", image_base, image_length, Kind::Reclaimable)?;
    map.claim("the initrd", info.initrd_base, info.initrd_length, Kind::Executable)?;

    let bytes = Identity.bytes(info.initrd_base, info.initrd_length);
    let initrd = Initrd::parse(bytes.ok_or(StartInfoError::InitrdUnreadable)?)?;
    let elf = Elf::parse(initrd.kernel.data)?;
    let physical_base = map.allocate("the kernel", elf.span(), LARGE_PAGE, ANYWHERE, Kind::Executable)?;
    // SAFETY: just allocated.
    let block = unsafe { owned(physical_base, elf.span()) };
    elf.load(block);

    let requests = Requests::scan(block, &elf)?;
    let settings = requests.settings(block, &elf)?;
    let (rsdp, mut madt) = find_processors(&info)?;
    devices::mask_pics();
    for &io_apic in madt.io_apics() {
        // SAFETY: the MADT, its checksum right, says that one is there.
        unsafe { devices::mask_io_apic(io_apic) };
    }

    let mut module_files = [0; MAX_MODULES];
    if requests.has(Request::Modules) {
        for (file, module) in module_files.iter_mut().zip(initrd.modules()) {
            *file = page_aligned(&mut map, "a module", module.data)?;
        }
    }
    let kernel_file = if requests.has(Request::ExecutableFile) {
        page_aligned(&mut map, "the kernel's file", initrd.kernel.data)?
    } else {
        0
    };
    let facts = Facts {
        direct_map: DIRECT_MAP,
        command_line: info.command_line(),
        physical_base,
        virtual_base: elf.base(),
        rsdp,
        date: if requests.has(Request::Date) { devices::date() } else { None },
        initrd: &initrd,
        kernel_file,
        module_files: &module_files[..initrd.modules().len()],
    };

    let apic = Apic::initialize(settings.x2apic);
    madt.add(acpi::Processor { uid: 0, apic_id: apic.id })?;
    let count = if settings.start_processors { madt.processors().len() } else { 1 };
    let size = response::arena_size(&requests, block, &facts, count as u64)?;
    let base = map.allocate("the responses", size, PAGE, ANYWHERE, Kind::Reclaimable)?;
    // SAFETY: just allocated.
    let mut arena = Arena::new(unsafe { owned(base, size) }, DIRECT_MAP + base);
    response::respond(&requests, block, &mut arena, &facts)?;

    let stack_size = settings.stack_size.next_multiple_of(PAGE);
    let stacks = map.allocate("the stacks", stack_size * count as u64, PAGE, ANYWHERE, Kind::Reclaimable)?;
    let trampoline = if count > 1 {
        map.allocate("the processors' first page", PAGE, PAGE, LOW, Kind::Reclaimable)?
    } else {
        0
    };
    let list = list_processors(&mut map, &madt, apic, DIRECT_MAP + stacks, stack_size, count)?;
    let root = map_all(&mut map, &elf, physical_base)?;
    if settings.start_processors {
        if count > 1 {
            // SAFETY: trampoline, list and stacks were just allocated, and `map_all` has mapped what `root` shall.
            unsafe { processors::start(apic, list, trampoline, root) };
        }
        let started = list.iter().filter(|processor| processor.has_arrived());
        let addresses = started.map(|processor| DIRECT_MAP + ptr::from_ref(processor).addr() as u64);
        response::respond_processors(&requests, block, &mut arena, (apic.x2apic, apic.id), addresses)?;
    }
    response::respond_memory_map(&requests, block, &mut arena, &map)?;
    let Settings { entry, .. } = settings;
    Ok(Kernel { root, stack_end: DIRECT_MAP + stacks + stack_size, entry })
}

/// The RSDP, and what the MADT lists. A machine without ACPI has the processor that runs this.
fn find_processors(info: &StartInfo) -> Result<(Option<u64>, Madt), Error> {
    let mut madt = Madt::empty();
    let rsdp = match info.rsdp {
        0 => acpi::search_rsdp(&Identity),
        address => Some(address),
    };
    if let Some(rsdp) = rsdp {
        madt.read(&Identity, rsdp)?;
    }
    Ok((rsdp, madt))
}

/// Where the file is if that is on a page boundary, else where a copy is.
fn page_aligned(map: &mut MemoryMap, what: &'static str, file: &[u8]) -> Result<u64, MemoryError> {
    let address = file.as_ptr().addr() as u64;
    if address.is_multiple_of(PAGE) {
        return Ok(address);
    }
    let length = file.len() as u64;
    let copy = map.allocate(what, length, PAGE, ANYWHERE, Kind::Executable)?;
    // SAFETY: just allocated.
    unsafe { owned(copy, length) }.copy_from_slice(file);
    Ok(copy)
}

/// Writes the list through which the kernel releases processors; the first stack is for the one that runs this.
fn list_processors(
    map: &mut MemoryMap,
    madt: &Madt,
    apic: Apic,
    stacks: u64,
    stack_size: u64,
    count: usize,
) -> Result<&'static [Processor], MemoryError> {
    let length = (size_of::<Processor>() * count) as u64;
    let base = map.allocate("the list of processors", length, PAGE, ANYWHERE, Kind::Reclaimable)?;
    let list = base as *mut Processor;
    let mut stack_end = stacks + stack_size;
    let own = |processor: &&acpi::Processor| count > 1 || processor.apic_id == apic.id;
    for (n, processor) in madt.processors().iter().filter(own).take(count).enumerate() {
        let stack = if processor.apic_id == apic.id {
            0
        } else {
            stack_end += stack_size;
            stack_end
        };
        // SAFETY: entry `n` of memory just allocated for `count`.
        unsafe { ptr::write(list.add(n), Processor::new(processor.uid, processor.apic_id, stack)) };
    }
    // SAFETY: all `count` entries are written: `madt` has at least so many, and one of them is `apic`'s. From here on
    //         only atomic fields change.
    Ok(unsafe { slice::from_raw_parts(list, count) })
}

/// Maps the direct map, the kernel and the handoff page.
fn map_all(map: &mut MemoryMap, elf: &Elf<'_>, physical_base: u64) -> Result<u64, Error> {
    // Tables are taken from usable memory, so what is mapped does not change meanwhile.
    let before = map.clone();
    let mut tables = PageTables::new(FromMap(map), has_huge_pages())?;
    before.for_each_mapped(|base, length| tables.map(DIRECT_MAP + base, base, length, Access::Write))?;
    for segment in elf.segments() {
        let access = match (segment.writable, segment.executable) {
            (true, _) => Access::Write,
            (false, true) => Access::Execute,
            (false, false) => Access::Read,
        };
        let physical = physical_base + (segment.page_base() - elf.base());
        tables.map(segment.page_base(), physical, segment.page_span(), access)?;
    }
    handoff::map(&mut tables)?;
    Ok(tables.root())
}

/// Page tables from the memory map, reached through the identity map.
struct FromMap<'m>(&'m mut MemoryMap);

impl Tables for FromMap<'_> {
    fn allocate(&mut self) -> Result<u64, MemoryError> {
        let address = self.0.allocate("page tables", PAGE, PAGE, ANYWHERE, Kind::Reclaimable)?;
        // SAFETY: just allocated.
        unsafe { owned(address, PAGE) }.fill(0);
        Ok(address)
    }

    fn table(&mut self, address: u64) -> &mut Table {
        // SAFETY: `allocate` returned it, so it is a page that only this type uses; `&mut self` lends one at a time.
        unsafe { &mut *(address as *mut Table) }
    }
}

fn has_huge_pages() -> bool {
    core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 26 != 0
}
