//! The memory map: planned from the firmware's, handed out from, and finally given to the kernel.
//!
//! Invariants: I1 entries are sorted and do not overlap.
//!             I2 usable, reclaimable and executable entries start and end on a page.
//!             I3 page 0 and the video and ROM area below 1 MiB are never usable.
//!             I4 `claim` and `allocate` change kinds only: the bytes covered stay the same.
//!             I5 neighbours of one kind are merged, so that entries do not pile up.
//! Tests:      tests/suite/memory_map.rs (I1-I5, random maps and requests), fuzz target `start_info`.

use core::fmt;

use crate::memory::{PAGE, align_down, align_up};
use crate::start_info::{FirmwareRange, MAX_RANGES};

/// The largest number of entries a map may have.
pub const MAX_ENTRIES: usize = 512;

/// The end of memory that this loader uses or maps: beyond it the direct map would run into its own code.
pub const PHYSICAL_LIMIT: u64 = 1 << 46;

/// Video memory and ROMs of a PC: not memory to hand out, whatever a virtual firmware says.
const LEGACY_HOLE: (u64, u64) = (0xa_0000, 0x10_0000);

/// The kinds of memory, with the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// Free.
    Usable = 0,
    /// Not to be touched.
    Reserved = 1,
    /// ACPI tables.
    AcpiReclaimable = 2,
    /// Firmware state.
    AcpiNvs = 3,
    /// Broken.
    Bad = 4,
    /// Ours; the kernel's once it has read the responses.
    Reclaimable = 5,
    /// The kernel, its file, and the modules.
    Executable = 6,
}

impl Kind {
    fn from_e820(kind: u32) -> Self {
        match kind {
            1 => Self::Usable,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNvs,
            5 => Self::Bad,
            _ => Self::Reserved,
        }
    }

    /// Where firmware ranges overlap, the kind with the higher rank wins: doubtful memory is not used.
    fn rank(self) -> u8 {
        match self {
            Self::Usable | Self::Reclaimable | Self::Executable => 0,
            Self::AcpiReclaimable => 1,
            Self::AcpiNvs => 2,
            Self::Reserved => 3,
            Self::Bad => 4,
        }
    }

    /// Whether the direct map covers it in base revision 3.
    pub fn is_mapped(self) -> bool {
        matches!(self, Self::Usable | Self::Reclaimable | Self::Executable)
    }
}

/// One entry of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First physical address.
    pub base: u64,
    /// Length in bytes; not 0.
    pub length: u64,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// The address after the last byte.
    pub fn end(&self) -> u64 {
        self.base + self.length
    }
}

/// Why memory could not be planned or had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryError {
    /// More entries than [`MAX_ENTRIES`].
    TooFragmented,
    /// Something lies where the firmware reports no usable memory.
    NotUsable(&'static str, u64, u64),
    /// Nothing large enough is free below the limit.
    NoRoom(&'static str, u64),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFragmented => write!(f, "the memory map needs more than {MAX_ENTRIES} entries"),
            Self::NotUsable(what, base, length) => {
                write!(f, "{what} at {base:#x}, {length:#x} bytes, is not in usable memory")
            }
            Self::NoRoom(what, length) => {
                write!(f, "no room for {what}, {length:#x} bytes; give more with -m")
            }
        }
    }
}

/// A memory map.
#[derive(Debug, Clone)]
pub struct MemoryMap {
    entries: [Entry; MAX_ENTRIES],
    count: usize,
}

impl MemoryMap {
    /// Plans a map from the firmware's ranges, which may come in any order and overlap.
    pub fn plan(ranges: &[FirmwareRange]) -> Result<Self, MemoryError> {
        let mut map =
            Self { entries: [Entry { base: 0, length: 0, kind: Kind::Reserved }; MAX_ENTRIES], count: 0 };
        let mut cuts = Cuts::new();
        for range in ranges {
            cuts.add(range.base)?;
            cuts.add(range.base.saturating_add(range.length))?;
        }
        for pair in cuts.sorted().windows(2) {
            let &[base, end] = pair else { continue };
            let covering = ranges.iter().filter(|r| r.base <= base && end <= r.base.saturating_add(r.length));
            let kind = covering.map(|r| Kind::from_e820(r.kind)).max_by_key(|kind| kind.rank());
            if let Some(kind) = kind {
                map.add(base, end, kind)?;
            }
        }
        map.trim_usable()?;
        Ok(map)
    }

    /// The entries, sorted by address.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.count]
    }

    /// Turns usable memory at a given place, rounded out to pages, into `kind`.
    pub fn claim(
        &mut self,
        what: &'static str,
        base: u64,
        length: u64,
        kind: Kind,
    ) -> Result<(), MemoryError> {
        let refused = MemoryError::NotUsable(what, base, length);
        let end = base.checked_add(length).and_then(|end| align_up(end, PAGE)).ok_or(refused)?;
        let start = align_down(base, PAGE);
        let at = self
            .entries()
            .iter()
            .position(|e| e.kind == Kind::Usable && e.base <= start && end <= e.end())
            .ok_or(refused)?;
        self.recolour(at, start, end, kind)
    }

    /// Takes `length` bytes, rounded up to pages, at a multiple of `align` from the lowest usable memory in
    /// `[from, below)`. Returns the address.
    pub fn allocate(
        &mut self,
        what: &'static str,
        length: u64,
        align: u64,
        (from, below): (u64, u64),
        kind: Kind,
    ) -> Result<u64, MemoryError> {
        let refused = MemoryError::NoRoom(what, length);
        let length = align_up(length.max(1), PAGE).ok_or(refused)?;
        let fit = |e: &Entry| {
            let base = align_up(e.base.max(from), align.max(PAGE))?;
            (base.checked_add(length)? <= e.end().min(below)).then_some(base)
        };
        let (at, base) = self
            .entries()
            .iter()
            .enumerate()
            .filter(|(_, e)| e.kind == Kind::Usable)
            .find_map(|(at, e)| Some((at, fit(e)?)))
            .ok_or(refused)?;
        self.recolour(at, base, base + length, kind)?;
        Ok(base)
    }

    /// Calls `f` with each longest run of memory that the direct map covers: its base and length.
    pub fn for_each_mapped<E>(&self, mut f: impl FnMut(u64, u64) -> Result<(), E>) -> Result<(), E> {
        let mut run: Option<(u64, u64)> = None;
        for entry in self.entries().iter().filter(|e| e.kind.is_mapped()) {
            run = match run {
                Some((base, end)) if end == entry.base => Some((base, entry.end())),
                _ => {
                    if let Some((base, end)) = run {
                        f(base, end - base)?;
                    }
                    Some((entry.base, entry.end()))
                }
            };
        }
        run.map_or(Ok(()), |(base, end)| f(base, end - base))
    }

    /// Adds at the end, merging with a neighbour of the same kind (I5).
    fn add(&mut self, base: u64, end: u64, kind: Kind) -> Result<(), MemoryError> {
        if base == end {
            return Ok(());
        }
        if let Some(last) = self.entries[..self.count].last_mut()
            && last.kind == kind
            && last.end() == base
        {
            last.length += end - base;
            return Ok(());
        }
        let slot = self.entries.get_mut(self.count).ok_or(MemoryError::TooFragmented)?;
        *slot = Entry { base, length: end - base, kind };
        self.count += 1;
        Ok(())
    }

    /// Makes I2 and I3 true: what a usable range loses becomes reserved, so nothing vanishes (I4).
    fn trim_usable(&mut self) -> Result<(), MemoryError> {
        let old = self.clone();
        self.count = 0;
        for entry in old.entries() {
            if entry.kind != Kind::Usable {
                self.add(entry.base, entry.end(), entry.kind)?;
                continue;
            }
            let below = (PAGE, LEGACY_HOLE.0);
            let above = (LEGACY_HOLE.1, PHYSICAL_LIMIT);
            let mut done = entry.base;
            for (from, to) in [below, above] {
                let start = align_up(entry.base.max(from), PAGE).unwrap_or(u64::MAX);
                let end = align_down(entry.end().min(to), PAGE);
                if start < end {
                    self.add(done, start, Kind::Reserved)?;
                    self.add(start, end, Kind::Usable)?;
                    done = end;
                }
            }
            self.add(done, entry.end(), Kind::Reserved)?;
        }
        Ok(())
    }

    /// Gives `[start, end)`, inside entry `at`, another kind. On error the map is as before.
    fn recolour(&mut self, at: usize, start: u64, end: u64, kind: Kind) -> Result<(), MemoryError> {
        let old = self.clone();
        self.count = at;
        let middle = old.entries[at];
        let rebuilt = (|| {
            self.add(middle.base, start, middle.kind)?;
            self.add(start, end, kind)?;
            self.add(end, middle.end(), middle.kind)?;
            old.entries()[at + 1..].iter().try_for_each(|e| self.add(e.base, e.end(), e.kind))
        })();
        if rebuilt.is_err() {
            *self = old;
        }
        rebuilt
    }
}

/// The addresses at which the firmware's ranges start and end.
struct Cuts {
    at: [u64; 2 * MAX_RANGES],
    count: usize,
}

impl Cuts {
    fn new() -> Self {
        Self { at: [0; 2 * MAX_RANGES], count: 0 }
    }

    fn add(&mut self, address: u64) -> Result<(), MemoryError> {
        *self.at.get_mut(self.count).ok_or(MemoryError::TooFragmented)? = address;
        self.count += 1;
        Ok(())
    }

    fn sorted(&mut self) -> &[u64] {
        let at = &mut self.at[..self.count];
        at.sort_unstable();
        at
    }
}
