//! PVH start info: what QEMU's loader leaves in memory, its address in EBX.
//!
//! ```text
//! hvm_start_info  0 magic   4 version   8 flags   12 number of modules   16 module list
//!                24 command line   32 RSDP   40 memory map   48 its number of entries   (56 bytes)
//! module          0 address   8 size   16 command line   24 reserved                   (32 bytes)
//! memory map      0 address   8 size   16 type, as E820   20 reserved                  (24 bytes)
//! ```
//!
//! Everything is copied out at once, so that no later allocation can land on it.
//!
//! Tests: tests/suite/start_info.rs.   Sources: Xen, "x86/HVM direct boot ABI".

use core::fmt;

use crate::memory::{Physical, u32_at, u64_at};

const MAGIC: u32 = 0x336e_c578;
const SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const RANGE_SIZE: u64 = 24;

/// The largest number of memory map entries taken.
pub const MAX_RANGES: usize = 128;
/// The longest command line taken, without its end.
pub const MAX_COMMAND_LINE: usize = 4095;

/// Why the start info was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartInfoError {
    /// The structure is not in readable memory.
    Unreadable,
    /// The first word is not the magic number.
    Magic(u32),
    /// Version 0 has no memory map.
    Version(u32),
    /// The memory map is not in readable memory.
    MemoryMapUnreadable,
    /// More entries than [`MAX_RANGES`].
    MemoryMapTooLong(u32),
    /// There is no module, so no kernel.
    NoInitrd,
    /// The module list or the module is not in readable memory.
    InitrdUnreadable,
    /// The command line does not end within [`MAX_COMMAND_LINE`] bytes.
    CommandLine,
}

impl fmt::Display for StartInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(f, "the PVH start info is not in readable memory"),
            Self::Magic(found) => write!(f, "the PVH start info has the wrong magic number {found:#010x}"),
            Self::Version(found) => {
                write!(f, "the PVH start info has version {found}, which has no memory map")
            }
            Self::MemoryMapUnreadable => write!(f, "the PVH memory map is not in readable memory"),
            Self::MemoryMapTooLong(found) => {
                write!(f, "the PVH memory map has {found} entries, more than {MAX_RANGES}")
            }
            Self::NoInitrd => write!(f, "no kernel; give one with -initrd"),
            Self::InitrdUnreadable => write!(f, "the initrd is not in readable memory"),
            Self::CommandLine => write!(f, "the command line is longer than {MAX_COMMAND_LINE} bytes"),
        }
    }
}

/// One entry of the firmware's memory map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FirmwareRange {
    /// First physical address.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// E820 type: 1 is RAM.
    pub kind: u32,
}

/// The start info, copied.
#[derive(Debug, Clone)]
pub struct StartInfo {
    ranges: [FirmwareRange; MAX_RANGES],
    range_count: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    /// Physical address of the initrd.
    pub initrd_base: u64,
    /// Length of the initrd in bytes.
    pub initrd_length: u64,
    /// Physical address of the RSDP; 0 when the firmware named none.
    pub rsdp: u64,
}

impl StartInfo {
    /// Reads the structure at physical address `addr`.
    pub fn read(memory: &impl Physical, addr: u64) -> Result<Self, StartInfoError> {
        use StartInfoError as E;

        let head = memory.bytes(addr, SIZE).ok_or(E::Unreadable)?;
        let word = |at| u32_at(head, at).ok_or(E::Unreadable);
        let quad = |at| u64_at(head, at).ok_or(E::Unreadable);
        match (word(0)?, word(4)?) {
            (MAGIC, 1..) => {}
            (MAGIC, version) => return Err(E::Version(version)),
            (magic, _) => return Err(E::Magic(magic)),
        }

        let mut info = Self {
            ranges: [FirmwareRange::default(); MAX_RANGES],
            range_count: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
            initrd_base: 0,
            initrd_length: 0,
            rsdp: quad(32)?,
        };
        info.read_ranges(memory, quad(40)?, word(48)?)?;
        if word(12)? == 0 {
            return Err(E::NoInitrd);
        }
        info.read_initrd(memory, quad(16)?)?;
        info.read_command_line(memory, quad(24)?)?;
        Ok(info)
    }

    /// The firmware's memory map, in its order.
    pub fn ranges(&self) -> &[FirmwareRange] {
        &self.ranges[..self.range_count]
    }

    /// The command line, without its end.
    pub fn command_line(&self) -> &[u8] {
        &self.command_line[..self.command_line_len]
    }

    fn read_ranges(&mut self, memory: &impl Physical, addr: u64, count: u32) -> Result<(), StartInfoError> {
        use StartInfoError as E;
        if count as usize > MAX_RANGES {
            return Err(E::MemoryMapTooLong(count));
        }
        let table = memory.bytes(addr, u64::from(count) * RANGE_SIZE).ok_or(E::MemoryMapUnreadable)?;
        for (range, entry) in self.ranges.iter_mut().zip(table.chunks_exact(RANGE_SIZE as usize)) {
            *range = FirmwareRange {
                base: u64_at(entry, 0).ok_or(E::MemoryMapUnreadable)?,
                length: u64_at(entry, 8).ok_or(E::MemoryMapUnreadable)?,
                kind: u32_at(entry, 16).ok_or(E::MemoryMapUnreadable)?,
            };
        }
        self.range_count = count as usize;
        Ok(())
    }

    /// The first module is the initrd; QEMU never passes a second.
    fn read_initrd(&mut self, memory: &impl Physical, list: u64) -> Result<(), StartInfoError> {
        use StartInfoError as E;
        let module = memory.bytes(list, MODULE_SIZE).ok_or(E::InitrdUnreadable)?;
        let base = u64_at(module, 0).ok_or(E::InitrdUnreadable)?;
        let length = u64_at(module, 8).ok_or(E::InitrdUnreadable)?;
        if length == 0 {
            return Err(E::NoInitrd);
        }
        memory.bytes(base, length).ok_or(E::InitrdUnreadable)?;
        (self.initrd_base, self.initrd_length) = (base, length);
        Ok(())
    }

    fn read_command_line(&mut self, memory: &impl Physical, addr: u64) -> Result<(), StartInfoError> {
        if addr == 0 {
            return Ok(());
        }
        for at in 0..=MAX_COMMAND_LINE {
            // A byte at a time: the line may lie right before the end of what can be read.
            let byte = addr
                .checked_add(at as u64)
                .and_then(|addr| memory.bytes(addr, 1)?.first().copied())
                .ok_or(StartInfoError::CommandLine)?;
            if byte == 0 {
                self.command_line_len = at;
                return Ok(());
            }
            *self.command_line.get_mut(at).ok_or(StartInfoError::CommandLine)? = byte;
        }
        Err(StartInfoError::CommandLine)
    }
}
