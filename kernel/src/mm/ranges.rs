//! A short sorted list of page ranges: what bring-up hands over.

/// Pages `start..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRange {
    /// The first page's number.
    pub start: u32,
    /// The number behind the last page's.
    pub end: u32,
}

impl PageRange {
    /// How many pages.
    pub const fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// None?
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// What both have.
    pub fn intersect(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// Is all of `other` in it?
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// As many as fit; ascending and disjoint.
#[derive(Debug)]
pub struct Ranges {
    items: [PageRange; Self::MAX],
    count: usize,
}

impl Ranges {
    /// Firmware has a dozen or two.
    pub const MAX: usize = 64;

    /// None.
    pub const fn new() -> Self {
        Self { items: [PageRange { start: 0, end: 0 }; Self::MAX], count: 0 }
    }

    /// Adds a range that lies behind all others; joins it to the last if it touches. Empty ones are left out. Says whether
    /// there was room.
    pub fn push(&mut self, range: PageRange) -> bool {
        if range.is_empty() {
            return true;
        }
        if let Some(last) = self.items[..self.count].last_mut() {
            if last.end == range.start {
                last.end = range.end;
                return true;
            }
            if range.start < last.end {
                return false;
            }
        }
        let Some(slot) = self.items.get_mut(self.count) else { return false };
        *slot = range;
        self.count += 1;
        true
    }

    /// All of them.
    pub fn as_slice(&self) -> &[PageRange] {
        &self.items[..self.count]
    }
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}
