//! The map of the address space. The picture with reasons is in docs/architecture.md; here are the numbers, and the proof that the
//! parts don't overlap.

#[cfg(target_os = "none")]
use core::ops::Range;

/// Where the loaders put all of memory. Limine may be told to put it elsewhere; `arch::paging` knows where it is.
pub const DIRECT: u64 = 0xFFFF_8000_0000_0000;
/// The PFN database: 32 bytes a page, backed where there is memory.
pub const PFN_DATABASE: u64 = 0xFFFF_C000_0000_0000;
/// Device registers, mapped once and for good by bring-up.
pub const DEVICES: u64 = 0xFFFF_D000_0000_0000;
/// System PTEs: mappings that come and go.
pub const SYSTEM_PTES: u64 = 0xFFFF_D800_0000_0000;
/// Kernel stacks.
pub const STACKS: u64 = 0xFFFF_E000_0000_0000;
/// Paged pool: 256 GiB of addresses, of which mm/paged.rs uses as much as it has entries for.
pub const PAGED_POOL: u64 = 0xFFFF_E800_0000_0000;
/// What is known of each page of paged pool: 32 bytes, backed where the pool has grown to.
pub const PAGED_POOL_ENTRIES: u64 = 0xFFFF_E840_0000_0000;
/// KUSER_SHARED_DATA, one page, where NT has it and drivers read it.
pub const KUSER_SHARED_DATA: u64 = 0xFFFF_F780_0000_0000;
/// Session space, where NT had it, for later: nothing is mapped. One entry of the root and all behind it, so that the processes of a
/// session can share it and others have another.
pub const SESSION: u64 = 0xFFFF_F900_0000_0000;
/// The image.
pub const IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

const TIB: u64 = 1 << 40;
const GIB: u64 = 1 << 30;

/// The parts, ascending: name, first byte, bytes.
pub const MAP: [(&str, u64, u64); 10] = [
    ("all of memory", DIRECT, 64 * TIB),
    ("PFN database", PFN_DATABASE, TIB / 2),
    ("devices", DEVICES, TIB / 2),
    ("system PTEs", SYSTEM_PTES, GIB),
    ("stacks", STACKS, TIB / 2),
    ("paged pool", PAGED_POOL, TIB / 4),
    ("paged pool's entries", PAGED_POOL_ENTRIES, TIB / 4),
    ("KUSER_SHARED_DATA", KUSER_SHARED_DATA, 4096),
    ("session space", SESSION, TIB / 2),
    ("image", IMAGE, 2 * GIB - 4096),
];

const _: () = {
    let mut at = 1;
    while at < MAP.len() {
        assert!(MAP[at - 1].1 + MAP[at - 1].2 <= MAP[at].1, "two parts of the map overlap");
        at += 1;
    }
    assert!(SESSION.is_multiple_of(TIB / 2), "session space is one entry of the root");
};

/// The first byte of the part that `address` lies in.
pub fn part(address: u64) -> Option<u64> {
    MAP.iter()
        .map(|&(_, start, bytes)| (start, bytes))
        .find(|&(start, bytes)| address.wrapping_sub(start) < bytes)
        .map(|(start, _)| start)
}

/// One of the image's segments, as image.ld bounds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Code.
    Text,
    /// Constants.
    Rodata,
    /// Everything that is written, zeroed memory included.
    Data,
}

#[cfg(target_os = "none")]
unsafe extern "C" {
    safe static __text_start: u8;
    safe static __text_end: u8;
    safe static __rodata_start: u8;
    safe static __rodata_end: u8;
    safe static __data_start: u8;
    safe static __data_end: u8;
}

impl Segment {
    /// All three, ascending and without gaps.
    pub const ALL: [Segment; 3] = [Segment::Text, Segment::Rodata, Segment::Data];

    /// Its addresses, page-aligned.
    #[cfg(target_os = "none")]
    pub fn range(self) -> Range<u64> {
        let at = |symbol: &'static u8| core::ptr::from_ref(symbol) as u64;
        match self {
            Segment::Text => at(&__text_start)..at(&__text_end),
            Segment::Rodata => at(&__rodata_start)..at(&__rodata_end),
            Segment::Data => at(&__data_start)..at(&__data_end),
        }
    }
}

/// Whether `address` is in the image's code.
#[cfg(target_os = "none")]
pub fn is_text(address: u64) -> bool {
    Segment::Text.range().contains(&address)
}
