//! Where a buffer's bytes lie, as a device sees them: runs of physical addresses out of a list of pages.
//!
//! IRQL:       any.
//! Not as NT:  no map registers and no adapter objects: devices reach all of memory. What `GetScatterGatherList` would build is an iterator.
//! Tests:      the unit tests below.

use crate::mm::pfn::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// Bytes in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Physical address.
    pub address: u64,
    /// How many.
    pub bytes: u32,
}

/// The runs of a buffer: pages that follow each other are one.
#[derive(Clone)]
pub struct Runs<'a> {
    pages: &'a [u64],
    offset: u32,
    left: u32,
}

impl<'a> Runs<'a> {
    /// Of `bytes` bytes that begin `offset` bytes into the first of these pages, by their numbers. Bytes behind the last page are left out.
    pub const fn new(pages: &'a [u64], offset: u32, bytes: u32) -> Self {
        Self { pages, offset, left: bytes }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let (&first, mut rest) = self.pages.split_first().filter(|_| self.left > 0)?;
        let mut room = PAGE as u32 - self.offset;
        let mut last = first;
        while let (true, Some((&next, behind))) = (room < self.left, rest.split_first()) {
            if next != last + 1 {
                break;
            }
            (last, rest) = (next, behind);
            room = room.saturating_add(PAGE as u32);
        }
        let run = Run { address: first * PAGE + u64::from(self.offset), bytes: room.min(self.left) };
        (self.pages, self.offset, self.left) = (rest, 0, self.left - run.bytes);
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(pages: &[u64], offset: u32, bytes: u32) -> Vec<(u64, u32)> {
        Runs::new(pages, offset, bytes).map(|run| (run.address, run.bytes)).collect()
    }

    #[test]
    fn pages_in_a_row_are_one_run() {
        assert_eq!(
            runs(&[5, 6, 7, 9, 3], 0x10, 4 * 4096),
            [(0x5010, 0x2FF0), (0x9000, 0x1000), (0x3000, 0x10)]
        );
        assert_eq!(runs(&[5], 0, 512), [(0x5000, 512)]);
        assert_eq!(runs(&[5, 6], 4095, 2), [(0x5FFF, 2)]);
        assert_eq!(runs(&[6, 5], 4095, 2), [(0x6FFF, 1), (0x5000, 1)]);
        assert_eq!(runs(&[5, 6], 8, 0), []);
        assert_eq!(runs(&[], 8, 9), []);
        assert_eq!(runs(&[5], 4000, 4096), [(5 * 4096 + 4000, 96)], "no more than the pages have");
    }
}
