//! The kernel's ELF file: checked, planned as one block of pages, copied into it.
//!
//! Only what the protocol needs: ELF64, x86-64, linked at a fixed address in the top 2 GiB. Everything else is
//! refused by name before a byte of it is copied.
//!
//! Invariants: I1 segments are sorted by address. I2 no two share a page. I3 each lies in the block
//!             `[base, base + span)`, base and span multiples of a page. I4 none is writable and executable.
//!             I5 the file part of each lies in the file. I6 the entry point is in an executable segment.
//! Tests:      tests/suite/elf.rs (each refusal; I1-I6 for random and mutated files), fuzz target `elf`.
//! Sources:    System V ABI, "Object Files" and "Program Loading"; its AMD64 supplement.

use core::fmt;

use crate::memory::{PAGE, align_down, align_up, u16_at, u32_at, u64_at};

/// The lowest address at which the protocol lets a kernel be linked.
pub const LOWEST_ADDRESS: u64 = 0xffff_ffff_8000_0000;
/// The largest number of loadable segments.
pub const MAX_SEGMENTS: usize = 16;

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

/// Why the kernel's file was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElfError {
    /// Shorter than an ELF header, or its first four bytes are not ELF's.
    NotElf,
    /// Not 64-bit.
    Class(u8),
    /// Not little-endian.
    ByteOrder(u8),
    /// Not version 1.
    Version(u32),
    /// Not x86-64.
    Machine(u16),
    /// Not a statically linked executable.
    Type(u16),
    /// The program headers have another size, or the table leaves the file.
    ProgramHeaders,
    /// Nothing to load.
    NoSegments,
    /// More than [`MAX_SEGMENTS`].
    TooManySegments,
    /// The segment's file part leaves the file.
    Truncated(usize),
    /// The segment is larger in the file than in memory.
    FileLargerThanMemory(usize),
    /// The segment is not in the top 2 GiB.
    Address(usize, u64),
    /// The segment is both writable and executable.
    WritableAndExecutable(usize),
    /// Two segments overlap or share a page.
    Overlap(usize, usize),
    /// The entry point is in no executable segment.
    Entry(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel: ")?;
        match self {
            Self::NotElf => write!(f, "not an ELF file"),
            Self::Class(class) => write!(f, "ELF class {class}, not 64-bit"),
            Self::ByteOrder(order) => write!(f, "ELF byte order {order}, not little-endian"),
            Self::Version(version) => write!(f, "ELF version {version}, not 1"),
            Self::Machine(machine) => write!(f, "ELF machine {machine}, not x86-64"),
            Self::Type(kind) => write!(f, "ELF type {kind}, not a statically linked executable"),
            Self::ProgramHeaders => write!(f, "program headers are malformed or truncated"),
            Self::NoSegments => write!(f, "no loadable segment"),
            Self::TooManySegments => write!(f, "more than {MAX_SEGMENTS} loadable segments"),
            Self::Truncated(index) => write!(f, "segment {index} is truncated"),
            Self::FileLargerThanMemory(index) => {
                write!(f, "segment {index} is larger in the file than in memory")
            }
            Self::Address(index, address) => {
                write!(f, "segment {index} at {address:#x} is not in the higher half (top 2 GiB)")
            }
            Self::WritableAndExecutable(index) => {
                write!(f, "segment {index} is both writable and executable")
            }
            Self::Overlap(first, second) => {
                write!(f, "segments {first} and {second} overlap or share a page")
            }
            Self::Entry(entry) => write!(f, "entry point {entry:#x} is not in an executable segment"),
        }
    }
}

/// One loadable segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its program header's number, for messages.
    pub index: usize,
    /// Address of its first byte.
    pub address: u64,
    /// Length in memory; not 0.
    pub length: u64,
    /// Where its contents start in the file.
    pub file_offset: u64,
    /// How much of it the file holds; the rest is zero.
    pub file_length: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it may be executed.
    pub executable: bool,
}

impl Segment {
    /// First page.
    pub fn page_base(&self) -> u64 {
        align_down(self.address, PAGE)
    }

    /// Bytes from the first page to the end of the last. `Elf::parse` has checked that this does not wrap:
    /// the last page of the address space would end at 2^64.
    pub fn page_span(&self) -> u64 {
        align_down(self.address + (self.length - 1), PAGE) - self.page_base() + PAGE
    }

    fn last_page(&self) -> u64 {
        align_down(self.address + (self.length - 1), PAGE)
    }

    fn parse(index: usize, header: &[u8], file_len: u64) -> Result<Option<Self>, ElfError> {
        let word = |at| u32_at(header, at).ok_or(ElfError::ProgramHeaders);
        let quad = |at| u64_at(header, at).ok_or(ElfError::ProgramHeaders);
        let flags = word(4)?;
        let segment = Self {
            index,
            address: quad(16)?,
            length: quad(40)?,
            file_offset: quad(8)?,
            file_length: quad(32)?,
            writable: flags & PF_W != 0,
            executable: flags & PF_X != 0,
        };
        if word(0)? != PT_LOAD || segment.length == 0 {
            return Ok(None);
        }
        if segment.file_length > segment.length {
            return Err(ElfError::FileLargerThanMemory(index));
        }
        if segment.file_offset.checked_add(segment.file_length).is_none_or(|end| end > file_len) {
            return Err(ElfError::Truncated(index));
        }
        // The last page of all is left out, so that no end address ever wraps to 0.
        let end = segment.address.checked_add(segment.length).and_then(|end| align_up(end, PAGE));
        if segment.address < LOWEST_ADDRESS || end.is_none() {
            return Err(ElfError::Address(index, segment.address));
        }
        if segment.writable && segment.executable {
            return Err(ElfError::WritableAndExecutable(index));
        }
        Ok(Some(segment))
    }
}

/// A kernel file that passed every check.
#[derive(Debug, Clone)]
pub struct Elf<'a> {
    file: &'a [u8],
    segments: [Segment; MAX_SEGMENTS],
    count: usize,
    /// The ELF header's entry point.
    pub entry: u64,
}

impl<'a> Elf<'a> {
    /// Checks `file` and plans its segments.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        let headers = program_headers(file)?;
        let mut elf = Self {
            file,
            segments: [Segment::default(); MAX_SEGMENTS],
            count: 0,
            entry: u64_at(file, 24).ok_or(ElfError::NotElf)?,
        };
        for (index, header) in headers.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
            if let Some(segment) = Segment::parse(index, header, file.len() as u64)? {
                *elf.segments.get_mut(elf.count).ok_or(ElfError::TooManySegments)? = segment;
                elf.count += 1;
            }
        }
        elf.segments[..elf.count].sort_unstable_by_key(|segment| segment.address);
        for pair in elf.segments().windows(2) {
            if pair[1].page_base() <= pair[0].last_page() {
                return Err(ElfError::Overlap(pair[0].index, pair[1].index));
            }
        }
        if elf.count == 0 {
            return Err(ElfError::NoSegments);
        }
        if !elf.is_executable(elf.entry) {
            return Err(ElfError::Entry(elf.entry));
        }
        Ok(elf)
    }

    /// The segments, sorted by address.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.count]
    }

    /// Address of the block: the first segment's first page.
    pub fn base(&self) -> u64 {
        self.segments().first().map_or(0, Segment::page_base)
    }

    /// Length of the block, whole pages.
    pub fn span(&self) -> u64 {
        self.segments().last().map_or(0, |last| last.page_base() + last.page_span() - self.base())
    }

    /// Whether `address` is inside an executable segment.
    pub fn is_executable(&self, address: u64) -> bool {
        self.segments().iter().any(|s| s.executable && s.address <= address && address - s.address < s.length)
    }

    /// Copies the segments into `block`, which is `span()` bytes; all of it that no file part fills becomes zero.
    ///
    /// # Panics
    /// If `block` is shorter.
    pub fn load(&self, block: &mut [u8]) {
        let mut done = 0;
        for segment in self.segments() {
            // I3 and I5: all four are in range.
            let start = (segment.address - self.base()) as usize;
            let filled = start + segment.file_length as usize;
            let from = segment.file_offset as usize;
            block[done..start].fill(0);
            block[start..filled].copy_from_slice(&self.file[from..from + segment.file_length as usize]);
            done = filled;
        }
        block[done..].fill(0);
    }
}

/// Checks the ELF header. Returns the program header table.
fn program_headers(file: &[u8]) -> Result<&[u8], ElfError> {
    let header: &[u8; HEADER_SIZE] = file.first_chunk().ok_or(ElfError::NotElf)?;
    if header[..4] != *b"\x7fELF" {
        return Err(ElfError::NotElf);
    }
    if header[4] != 2 {
        return Err(ElfError::Class(header[4]));
    }
    if header[5] != 1 {
        return Err(ElfError::ByteOrder(header[5]));
    }
    let half = |at| u16_at(header, at).ok_or(ElfError::NotElf);
    match half(18)? {
        62 => {}
        machine => return Err(ElfError::Machine(machine)),
    }
    match u32_at(header, 20).ok_or(ElfError::NotElf)? {
        1 => {}
        version => return Err(ElfError::Version(version)),
    }
    match half(16)? {
        2 => {}
        kind => return Err(ElfError::Type(kind)),
    }
    let count = usize::from(half(56)?);
    if count == 0 {
        return Err(ElfError::NoSegments);
    }
    if usize::from(half(54)?) != PROGRAM_HEADER_SIZE {
        return Err(ElfError::ProgramHeaders);
    }
    let offset = u64_at(header, 32).and_then(|offset| usize::try_from(offset).ok());
    offset
        .and_then(|offset| file.get(offset..)?.get(..count * PROGRAM_HEADER_SIZE))
        .ok_or(ElfError::ProgramHeaders)
}
