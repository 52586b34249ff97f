//! The responses: facts turned into the protocol's structures.
//!
//! Every structure of the protocol is a sequence of words, so all of them are built without `unsafe` in an
//! [`Arena`]; the comments give the fields.
//!
//! Tests:   tests/suite/response.rs reads them back through the `limine` crate.
//! Sources: Limine boot protocol, "Feature List".

use crate::arena::{Arena, ArenaFull};
use crate::error::Error;
use crate::initrd::{File, Initrd, MAX_MODULES, relative};
use crate::memory_map::MemoryMap;
use crate::requests::{Kind, RequestError, Requests, ShortName};

/// Bytes of arena that the fixed responses and the memory map take at most.
const FIXED_SIZE: u64 = 2048 + (crate::memory_map::MAX_ENTRIES as u64) * 32;
/// Words of a file structure.
const FILE_WORDS: usize = 14;
/// Bytes of the structure through which the kernel releases a processor, and of the pointer to it.
const PROCESSOR_SIZE: u64 = 32 + 8;

/// What the responses say, apart from processors and the memory map.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Where the direct map starts.
    pub direct_map: u64,
    /// The command line.
    pub command_line: &'a [u8],
    /// Where the kernel's block is, physically.
    pub physical_base: u64,
    /// Where it is for the kernel.
    pub virtual_base: u64,
    /// Where the RSDP is, physically.
    pub rsdp: Option<u64>,
    /// Seconds since 1970.
    pub date: Option<i64>,
    /// What the initrd holds.
    pub initrd: &'a Initrd<'a>,
    /// Where the kernel's file is, physically; page-aligned.
    pub kernel_file: u64,
    /// Where the module files are, physically; page-aligned.
    pub module_files: &'a [u64],
}

/// How large the arena must be for all that [`respond`] and the other functions here put into it.
pub fn arena_size(
    requests: &Requests,
    block: &[u8],
    facts: &Facts<'_>,
    processors: u64,
) -> Result<u64, Error> {
    let file = |name: &[u8], line: &[u8]| (FILE_WORDS * 8 + 8 + 16 + name.len() + line.len()) as u64;
    let mut size = FIXED_SIZE + processors * PROCESSOR_SIZE;
    size += 2 * file(facts.initrd.kernel.name, facts.command_line);
    size += facts.initrd.modules().iter().map(|module| file(module.name, b"")).sum::<u64>();
    for n in 0..requests.internal_module_count(block)? {
        let module = requests.internal_module(block, n)?;
        size += file(module.path, module.command_line);
    }
    Ok(size)
}

/// Answers everything but memory map and processors, which are known last.
pub fn respond(
    requests: &Requests,
    block: &mut [u8],
    arena: &mut Arena<'_>,
    facts: &Facts<'_>,
) -> Result<(), Error> {
    requests.confirm_revision(block);

    // revision, name, version
    let name = arena.string(&[b"Kirql boot"])?;
    let version = arena.string(&[env!("CARGO_PKG_VERSION").as_bytes()])?;
    requests.respond(block, Kind::BootloaderInfo, arena.words(&[0, name, version])?);
    // revision, type: a PVH start comes from a BIOS
    requests.respond(block, Kind::FirmwareType, arena.words(&[0, 0])?);
    // revision
    requests.respond(block, Kind::StackSize, arena.words(&[0])?);
    requests.respond(block, Kind::EntryPoint, arena.words(&[0])?);
    // revision, offset
    requests.respond(block, Kind::DirectMap, arena.words(&[0, facts.direct_map])?);
    // revision, mode: four levels
    requests.respond(block, Kind::PagingMode, arena.words(&[0, 0])?);
    // revision, physical base, virtual base
    let address = arena.words(&[0, facts.physical_base, facts.virtual_base])?;
    requests.respond(block, Kind::ExecutableAddress, address);
    // revision, command line
    let line = arena.string(&[facts.command_line])?;
    requests.respond(block, Kind::CommandLine, arena.words(&[0, line])?);
    // revision, address: physical, since base revision 3
    if let Some(rsdp) = facts.rsdp {
        requests.respond(block, Kind::Rsdp, arena.words(&[0, rsdp])?);
    }
    // revision, seconds
    if let Some(date) = facts.date {
        requests.respond(block, Kind::Date, arena.words(&[0, date.cast_unsigned()])?);
    }
    // revision, file
    if requests.has(Kind::ExecutableFile) {
        let kernel = put_file(arena, facts, facts.kernel_file, facts.initrd.kernel, facts.command_line)?;
        requests.respond(block, Kind::ExecutableFile, arena.words(&[0, kernel])?);
    }
    if requests.has(Kind::Modules) {
        let modules = put_modules(requests, block, arena, facts)?;
        requests.respond(block, Kind::Modules, modules);
    }
    Ok(())
}

/// Answers the memory map request: the last response, since every allocation changes the map.
pub fn respond_memory_map(
    requests: &Requests,
    block: &mut [u8],
    arena: &mut Arena<'_>,
    map: &MemoryMap,
) -> Result<(), ArenaFull> {
    let entries = arena.words(&[])?;
    for entry in map.entries() {
        // base, length, type
        arena.words(&[entry.base, entry.length, entry.kind as u64])?;
    }
    let count = map.entries().len();
    let pointers = arena.words_with(count, |n| entries + 24 * n as u64)?;
    // revision, number, pointers
    requests.respond(block, Kind::MemoryMap, arena.words(&[0, count as u64, pointers])?);
    Ok(())
}

/// Answers the request for the other processors, listing `started`, the addresses of their structures.
pub fn respond_processors(
    requests: &Requests,
    block: &mut [u8],
    arena: &mut Arena<'_>,
    (x2apic, boot_apic_id): (bool, u32),
    started: impl Iterator<Item = u64>,
) -> Result<(), ArenaFull> {
    let pointers = arena.words(&[])?;
    let mut count = 0;
    for processor in started {
        arena.words(&[processor])?;
        count += 1;
    }
    // revision, flags and the boot processor's APIC id, number, pointers
    let flags = u64::from(x2apic) | u64::from(boot_apic_id) << 32;
    requests.respond(block, Kind::Processors, arena.words(&[0, flags, count, pointers])?);
    Ok(())
}

/// Internal modules first, in the order of the request; then the initrd's others, each once.
fn put_modules(
    requests: &Requests,
    block: &[u8],
    arena: &mut Arena<'_>,
    facts: &Facts<'_>,
) -> Result<u64, Error> {
    let mut files = [0; 2 * MAX_MODULES];
    let mut listed = [false; MAX_MODULES];
    let mut count = 0;
    let modules = facts.initrd.modules();
    for n in 0..requests.internal_module_count(block)? {
        let wanted = requests.internal_module(block, n)?;
        match modules.iter().position(|module| module.name == relative(wanted.path)) {
            Some(at) => {
                files[count] =
                    put_file(arena, facts, facts.module_files[at], modules[at], wanted.command_line)?;
                listed[at] = true;
                count += 1;
            }
            None if wanted.required => {
                return Err(RequestError::ModuleMissing(ShortName::new(wanted.path)).into());
            }
            None => {}
        }
    }
    for (at, module) in modules.iter().enumerate().filter(|(at, _)| !listed[*at]) {
        files[count] = put_file(arena, facts, facts.module_files[at], *module, b"")?;
        count += 1;
    }
    let pointers = arena.words(&files[..count])?;
    // revision (1: internal modules are known), number, pointers
    Ok(arena.words(&[1, count as u64, pointers])?)
}

/// revision, address, size, path, command line, medium, TFTP address and port, partition and MBR id, three UUIDs:
/// the initrd is no disk, so all from the medium on is 0.
fn put_file(
    arena: &mut Arena<'_>,
    facts: &Facts<'_>,
    address: u64,
    file: File<'_>,
    command_line: &[u8],
) -> Result<u64, ArenaFull> {
    let path = arena.string(&[b"/", file.name])?;
    let line = arena.string(&[command_line])?;
    let mut words = [0; FILE_WORDS];
    words[..5].copy_from_slice(&[0, facts.direct_map + address, file.data.len() as u64, path, line]);
    arena.words(&words)
}
