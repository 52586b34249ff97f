//! The kernel's requests: found in its loaded image, checked, and read.
//!
//! A request is 8-byte aligned: four words of id, a revision, the pointer to the response (0 until answered), then
//! its own fields. The base revision tag is three words: two magic ones and the revision asked for. If the image
//! has delimiters, only what lies after the last start and before the first end counts.
//!
//! Places are offsets into the block that the kernel was loaded to; addresses are the kernel's own.
//!
//! Tests:   tests/suite/requests.rs, with the request structures of the `limine` crate.
//! Sources: Limine boot protocol, "Base protocol revisions", "Requests Delimiters", "Feature List".

use core::fmt;

use crate::elf::Elf;
use crate::initrd::MAX_MODULES;
use crate::memory::u64_at;

/// The base revision that this loader follows.
pub const BASE_REVISION: u64 = 3;
/// The smallest stack the protocol allows.
pub const MIN_STACK: u64 = 64 << 10;

const START_MARKER: [u64; 4] =
    [0xf6b8_f4b3_9de7_d1ae, 0xfab9_1a69_40fc_b9cf, 0x785c_6ed0_15d3_e316, 0x181e_920a_7852_b9d9];
const END_MARKER: [u64; 2] = [0xadc0_e053_1bb1_0d03, 0x9572_709f_3176_4c62];
const BASE_REVISION_TAG: [u64; 2] = [0xf956_2b2d_5c95_a6c8, 0x6a7b_3849_4453_6bdc];
const COMMON: [u64; 2] = [0xc7b1_dd30_df4c_8b88, 0x0a82_e883_a194_f07b];

const REVISION_AT: usize = 32;
const RESPONSE_AT: usize = 40;
const FIELDS_AT: usize = 48;
const MODULE_REQUIRED: u64 = 1;
const MODULE_COMPRESSED: u64 = 2;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $first:literal, $second:literal, $fields:literal;)*) => {
        /// The requests that this loader answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name),* }

        /// For each kind: the second half of its id, and how many fields its first revision has.
        const KINDS: &[(Kind, [u64; 2], usize)] = &[$((Kind::$name, [$first, $second], $fields)),*];
    };
}

kinds! {
    /// Name and version of the loader.
    BootloaderInfo = 0xf550_38d8_e2a1_202f, 0x2794_26fc_f5f5_9740, 0;
    /// The command line.
    CommandLine = 0x4b16_1536_e598_651e, 0xb390_ad4a_2f1f_303a, 0;
    /// BIOS or UEFI.
    FirmwareType = 0x8c2f_75d9_0bef_28a8, 0x7045_a468_8eac_00c3, 0;
    /// How large the stacks shall be.
    StackSize = 0x224e_f046_0a8e_8926, 0xe1cb_0fc2_5f46_ea3d, 1;
    /// Where the direct map starts.
    DirectMap = 0x48dc_f1cb_8ad2_b852, 0x6398_4e95_9a98_244b, 0;
    /// Four or five levels of page tables.
    PagingMode = 0x95c1_a0ed_ab09_44cb, 0xa4e5_cb38_42f7_488a, 1;
    /// Start of the other processors.
    Processors = 0x95a6_7b81_9a1b_857e, 0xa0b6_1b72_3b6a_73e0, 1;
    /// The memory map.
    MemoryMap = 0x67cf_3d9d_378a_806f, 0xe304_acdf_c50c_3c62, 0;
    /// Another entry point than the ELF file's.
    EntryPoint = 0x13d8_6c03_5a1c_d3e1, 0x2b0c_aa89_d8f3_026a, 1;
    /// The kernel's file.
    ExecutableFile = 0xad97_e90e_83f1_ed67, 0x31eb_5d1c_5ff2_3b69, 0;
    /// The modules.
    Modules = 0x3e7e_2797_02be_32af, 0xca1c_4f3b_d128_0cee, 0;
    /// Where ACPI's tables start.
    Rsdp = 0xc5e7_7b6b_397e_7b43, 0x2763_7845_accd_cf3c, 0;
    /// The date.
    Date = 0x5027_46e1_84c0_88aa, 0xfbc5_ec83_e632_7893, 0;
    /// Where the kernel was loaded.
    ExecutableAddress = 0x71ba_7686_3cc5_5f63, 0xb264_4a48_c516_a487, 0;
}

/// The start of a name, for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortName {
    bytes: [u8; 40],
    len: usize,
}

impl ShortName {
    /// Keeps as much of `name` as fits.
    pub fn new(name: &[u8]) -> Self {
        let mut bytes = [0; 40];
        let len = name.len().min(bytes.len());
        bytes[..len].copy_from_slice(&name[..len]);
        Self { bytes, len }
    }
}

impl fmt::Display for ShortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes[..self.len].escape_ascii())
    }
}

/// Why the requests were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestError {
    /// There is no base revision tag.
    NoBaseRevision,
    /// The kernel asks for a base revision that is too old.
    BaseRevision(u64),
    /// The same request, or the base revision tag, is there twice.
    Duplicate(&'static str),
    /// A request leaves the kernel's image.
    Truncated(&'static str),
    /// The kernel demands five levels of page tables, or impossible ones.
    PagingMode,
    /// The stack that is asked for cannot be had on any machine.
    StackSize(u64),
    /// The entry point asked for is in no executable segment.
    EntryPoint(u64),
    /// The list of internal modules is longer than [`MAX_MODULES`].
    TooManyModules(u64),
    /// The list of internal modules, or a name in it, leaves the kernel's image.
    ModuleList,
    /// A required module is not in the initrd.
    ModuleMissing(ShortName),
    /// A module is to be decompressed, which the protocol has dropped.
    ModuleCompressed(ShortName),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBaseRevision => {
                write!(f, "kernel: no Limine base revision tag, so revision 0; {BASE_REVISION} is needed")
            }
            Self::BaseRevision(found) => {
                write!(f, "kernel: asks for Limine base revision {found}; {BASE_REVISION} is needed")
            }
            Self::Duplicate(what) => write!(f, "kernel: more than one {what}"),
            Self::Truncated(what) => write!(f, "kernel: the {what} leaves the image"),
            Self::PagingMode => write!(f, "kernel: demands a paging mode other than four levels"),
            Self::StackSize(size) => write!(f, "kernel: asks for a stack of {size:#x} bytes"),
            Self::EntryPoint(entry) => {
                write!(f, "kernel: requested entry point {entry:#x} is not in an executable segment")
            }
            Self::TooManyModules(count) => {
                write!(f, "kernel: requests {count} modules, more than {MAX_MODULES}")
            }
            Self::ModuleList => write!(f, "kernel: the list of requested modules leaves the image"),
            Self::ModuleMissing(name) => write!(f, "kernel: module {name} is missing in the initrd"),
            Self::ModuleCompressed(name) => {
                write!(f, "kernel: module {name} is to be decompressed, which is not supported")
            }
        }
    }
}

/// What the kernel wants done, apart from being told facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The first instruction's address.
    pub entry: u64,
    /// Size of each stack, a multiple of 16.
    pub stack_size: u64,
    /// Whether to start the other processors.
    pub start_processors: bool,
    /// Whether to enable x2APIC.
    pub x2apic: bool,
}

/// A module that the kernel's own image asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalModule<'b> {
    /// Its path.
    pub path: &'b [u8],
    /// The command line to hand it.
    pub command_line: &'b [u8],
    /// Whether the boot fails without it.
    pub required: bool,
}

/// Where the requests are in the kernel's block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    /// The kernel's address of the block's first byte.
    base: u64,
    tag: usize,
    found: [Option<usize>; KINDS.len()],
}

impl Requests {
    /// Searches the part of `block` that `elf` filled from its file: zeroes hold no request.
    pub fn scan(block: &[u8], elf: &Elf<'_>) -> Result<Self, RequestError> {
        let mut tag = None;
        let mut found = [None; KINDS.len()];
        'segments: for segment in elf.segments() {
            let start = (segment.address - elf.base()) as usize;
            let end = (start + segment.file_length as usize).min(block.len());
            let first = start.next_multiple_of(8);
            // Only the first word is tested in this loop, which passes over the whole image.
            for at in (first..end.saturating_sub(15)).step_by(8) {
                match u64_at(block, at) {
                    Some(word) if word == COMMON[0] => note_request(block, at, &mut found)?,
                    Some(word) if word == BASE_REVISION_TAG[0] => note_tag(block, at, &mut tag)?,
                    Some(word) if word == START_MARKER[0] && words_are(block, at, &START_MARKER) => {
                        (tag, found) = (None, [None; KINDS.len()]);
                    }
                    Some(word) if word == END_MARKER[0] && words_are(block, at, &END_MARKER) => {
                        break 'segments;
                    }
                    _ => {}
                }
            }
        }
        let tag = tag.ok_or(RequestError::NoBaseRevision)?;
        let requests = Self { base: elf.base(), tag, found };
        match requests.wanted_revision(block) {
            BASE_REVISION.. => Ok(requests),
            older => Err(RequestError::BaseRevision(older)),
        }
    }

    /// Whether the kernel made this request.
    pub fn has(&self, kind: Kind) -> bool {
        self.found[kind as usize].is_some()
    }

    /// What the kernel wants, checked.
    pub fn settings(&self, block: &[u8], elf: &Elf<'_>) -> Result<Settings, RequestError> {
        if let Some([_, max, min]) = self.paging_mode(block)
            && (min != 0 || max < min)
        {
            return Err(RequestError::PagingMode);
        }
        let entry = self.field(block, Kind::EntryPoint, 0);
        if let Some(entry) = entry
            && !elf.is_executable(entry)
        {
            return Err(RequestError::EntryPoint(entry));
        }
        let asked = self.field(block, Kind::StackSize, 0).unwrap_or(0);
        if asked > u64::from(u32::MAX) {
            return Err(RequestError::StackSize(asked));
        }
        Ok(Settings {
            entry: entry.unwrap_or(elf.entry),
            stack_size: asked.max(MIN_STACK).next_multiple_of(16),
            start_processors: self.has(Kind::Processors),
            x2apic: self.field(block, Kind::Processors, 0).is_some_and(|flags| flags & 1 != 0),
        })
    }

    /// How many modules the kernel's image asks for.
    pub fn internal_module_count(&self, block: &[u8]) -> Result<usize, RequestError> {
        let count = self.later_field(block, Kind::Modules, 0).unwrap_or(0);
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_MODULES)
            .ok_or(RequestError::TooManyModules(count))
    }

    /// The `n`th module that the kernel's image asks for: an array of pointers to path, command line and flags.
    pub fn internal_module<'b>(&self, block: &'b [u8], n: usize) -> Result<InternalModule<'b>, RequestError> {
        let read = |address: u64| u64_at(block, self.offset(address)?);
        let string = |address| {
            let rest = block.get(self.offset(address)?..)?;
            Some(&rest[..rest.iter().position(|byte| *byte == 0)?])
        };
        let module = || {
            let list = self.later_field(block, Kind::Modules, 1)?;
            let module = read(list.checked_add(8 * n as u64)?)?;
            let path = string(read(module)?)?;
            let command_line = string(read(module.checked_add(8)?)?)?;
            Some((path, command_line, read(module.checked_add(16)?)?))
        };
        let (path, command_line, flags) = module().ok_or(RequestError::ModuleList)?;
        if flags & MODULE_COMPRESSED != 0 {
            return Err(RequestError::ModuleCompressed(ShortName::new(path)));
        }
        Ok(InternalModule { path, command_line, required: flags & MODULE_REQUIRED != 0 })
    }

    /// Tells the kernel which base revision it got: the one used goes to word 1, and word 2 becomes 0 if that is
    /// the one it asked for.
    pub fn confirm_revision(&self, block: &mut [u8]) {
        let supported = self.wanted_revision(block) == BASE_REVISION;
        write(block, self.tag + 8, BASE_REVISION);
        if supported {
            write(block, self.tag + 16, 0);
        }
    }

    /// Writes the address of the response to a request, if there is that request.
    pub fn respond(&self, block: &mut [u8], kind: Kind, response: u64) {
        if let Some(at) = self.found[kind as usize] {
            write(block, at + RESPONSE_AT, response);
        }
    }

    fn wanted_revision(&self, block: &[u8]) -> u64 {
        u64_at(block, self.tag + 16).unwrap_or(0)
    }

    /// Field `n` of a request.
    fn field(&self, block: &[u8], kind: Kind, n: usize) -> Option<u64> {
        u64_at(block, self.found[kind as usize]? + FIELDS_AT + 8 * n)
    }

    /// Field `n` of a request, if the request is of revision 1 or later.
    fn later_field(&self, block: &[u8], kind: Kind, n: usize) -> Option<u64> {
        let revision = u64_at(block, self.found[kind as usize]? + REVISION_AT)?;
        if revision == 0 { None } else { self.field(block, kind, n) }
    }

    /// Preferred, highest and lowest mode.
    fn paging_mode(&self, block: &[u8]) -> Option<[u64; 3]> {
        let mode = self.field(block, Kind::PagingMode, 0)?;
        let max = self.later_field(block, Kind::PagingMode, 1).unwrap_or(mode);
        let min = self.later_field(block, Kind::PagingMode, 2).unwrap_or(0);
        Some([mode, max, min])
    }

    fn offset(&self, address: u64) -> Option<usize> {
        usize::try_from(address.checked_sub(self.base)?).ok()
    }
}

fn note_request(
    block: &[u8],
    at: usize,
    found: &mut [Option<usize>; KINDS.len()],
) -> Result<(), RequestError> {
    if u64_at(block, at + 8) != Some(COMMON[1]) {
        return Ok(());
    }
    let known = KINDS.iter().find(|(_, id, _)| words_are(block, at + 16, id));
    let Some(&(kind, _, fields)) = known else {
        return Ok(());
    };
    if at + FIELDS_AT + 8 * fields > block.len() {
        return Err(RequestError::Truncated("request"));
    }
    match found[kind as usize].replace(at) {
        None => Ok(()),
        Some(_) => Err(RequestError::Duplicate("request of the same id")),
    }
}

fn note_tag(block: &[u8], at: usize, tag: &mut Option<usize>) -> Result<(), RequestError> {
    if !words_are(block, at, &BASE_REVISION_TAG) {
        return Ok(());
    }
    if at + 24 > block.len() {
        return Err(RequestError::Truncated("base revision tag"));
    }
    match tag.replace(at) {
        None => Ok(()),
        Some(_) => Err(RequestError::Duplicate("base revision tag")),
    }
}

fn words_are(block: &[u8], at: usize, words: &[u64]) -> bool {
    words.iter().enumerate().all(|(n, word)| u64_at(block, at + 8 * n) == Some(*word))
}

/// `scan` has checked that what is written lies in the block.
fn write(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
