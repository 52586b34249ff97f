//! The initrd: the kernel's ELF file alone, or a cpio archive of the kernel and its modules.
//!
//! The archive is "newc" (magic 070701): per file a header of 110 characters, eight hexadecimal digits a field,
//! the name with a zero at its end, the contents; name and contents each padded to four bytes. The first regular
//! file is the kernel, the others are modules, in their order.
//!
//! Tests:   tests/suite/initrd.rs, fuzz target `initrd`.   Sources: cpio(5), "New ASCII Format".

use core::fmt;

/// The largest number of modules.
pub const MAX_MODULES: usize = 32;

const MAGIC: &[u8; 6] = b"070701";
const HEADER_SIZE: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// Why the initrd was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdError {
    /// The archive ends in the middle of file `n`, or has no trailer.
    Truncated(usize),
    /// File `n` does not start with the magic number, or has a malformed number in its header.
    Header(usize),
    /// The name of file `n` is empty, does not end, or is not a path that a file name may be.
    Name(usize),
    /// The archive has no regular file.
    NoKernel,
    /// More than [`MAX_MODULES`] modules.
    TooManyModules,
}

impl fmt::Display for InitrdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "initrd: ")?;
        match self {
            Self::Truncated(file) => write!(f, "archive is truncated at file {file}"),
            Self::Header(file) => write!(f, "file {file} of the archive has a malformed header"),
            Self::Name(file) => write!(f, "file {file} of the archive has a malformed name"),
            Self::NoKernel => write!(f, "the archive holds no file"),
            Self::TooManyModules => write!(f, "the archive holds more than {MAX_MODULES} modules"),
        }
    }
}

/// A file of the initrd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct File<'a> {
    /// Its path, without a leading `/` or `./`.
    pub name: &'a [u8],
    /// Its contents.
    pub data: &'a [u8],
}

/// What the initrd holds.
#[derive(Debug, Clone)]
pub struct Initrd<'a> {
    /// The kernel.
    pub kernel: File<'a>,
    modules: [File<'a>; MAX_MODULES],
    module_count: usize,
}

impl<'a> Initrd<'a> {
    /// Reads `bytes`. What does not start as an archive is taken for the kernel's own file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InitrdError> {
        let alone = File { name: b"kernel", data: bytes };
        let mut initrd = Self { kernel: alone, modules: [File::default(); MAX_MODULES], module_count: 0 };
        if !bytes.starts_with(MAGIC) {
            return Ok(initrd);
        }
        let mut kernel = None;
        let mut archive = Archive { bytes, at: 0, index: 0 };
        while let Some(file) = archive.next()? {
            match (file, kernel) {
                (None, _) => {}
                (Some(file), None) => kernel = Some(file),
                (Some(file), Some(_)) => initrd.push(file)?,
            }
        }
        initrd.kernel = kernel.ok_or(InitrdError::NoKernel)?;
        Ok(initrd)
    }

    /// The modules, in the archive's order.
    pub fn modules(&self) -> &[File<'a>] {
        &self.modules[..self.module_count]
    }

    fn push(&mut self, file: File<'a>) -> Result<(), InitrdError> {
        *self.modules.get_mut(self.module_count).ok_or(InitrdError::TooManyModules)? = file;
        self.module_count += 1;
        Ok(())
    }
}

/// `path` as file names are compared: without a leading `/` or `./`.
pub fn relative(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"/").or_else(|| path.strip_prefix(b"./")) {
        path = rest;
    }
    path
}

struct Archive<'a> {
    bytes: &'a [u8],
    at: usize,
    index: usize,
}

impl<'a> Archive<'a> {
    /// The next entry: `None` at the trailer, `Some(None)` for what is not a regular file.
    fn next(&mut self) -> Result<Option<Option<File<'a>>>, InitrdError> {
        let index = self.index;
        self.index += 1;
        let header = self.take(HEADER_SIZE, index)?;
        if !header.starts_with(MAGIC) {
            return Err(InitrdError::Header(index));
        }
        let mode = number(header, 1).ok_or(InitrdError::Header(index))?;
        let size = number(header, 6).ok_or(InitrdError::Header(index))?;
        let name_size = number(header, 11).ok_or(InitrdError::Header(index))?;

        let name = self.take(name_size as usize, index)?;
        self.pad();
        let Some((0, name)) = name.split_last() else {
            return Err(InitrdError::Name(index));
        };
        if name == TRAILER {
            return Ok(None);
        }
        let data = self.take(size as usize, index)?;
        self.pad();
        if mode & FILE_TYPE != REGULAR {
            return Ok(Some(None));
        }
        let name = relative(name);
        // The kernel gets the name as a C string.
        if name.is_empty() || name.contains(&0) {
            return Err(InitrdError::Name(index));
        }
        Ok(Some(Some(File { name, data })))
    }

    fn take(&mut self, len: usize, index: usize) -> Result<&'a [u8], InitrdError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let taken = taken.ok_or(InitrdError::Truncated(index))?;
        self.at += len;
        Ok(taken)
    }

    /// Moves to the next multiple of four, counted from the archive's start.
    fn pad(&mut self) {
        self.at = self.at.next_multiple_of(4);
    }
}

/// Field `n` of a header, counted after the magic number.
fn number(header: &[u8], n: usize) -> Option<u32> {
    let digits = header.get(6 + 8 * n..)?.get(..8)?;
    digits.iter().try_fold(0, |value: u32, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}
