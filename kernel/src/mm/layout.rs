//! The kernel half of the address space.
//!
//! ```text
//!  FFFF8000'00000000  all of memory (HHDM): the loader's offset, never executable, without the image's own pages
//!  FFFFD000'00000000  device registers
//!  FFFFE000'00000000  stacks, each above its guard pages
//!  FFFFFFFF'80000000  the image: text R-X, rodata R--, data RW-
//! ```

use core::ops::Range;

/// Device registers, mapped once and for good.
pub const DEVICES: u64 = 0xFFFF_D000_0000_0000;
/// Kernel stacks.
pub const STACKS: u64 = 0xFFFF_E000_0000_0000;

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
pub fn is_text(address: u64) -> bool {
    Segment::Text.range().contains(&address)
}
