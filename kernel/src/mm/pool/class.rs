//! Size classes: every 16 bytes up to 512, then the sizes of which a page holds seven, six, five, four, three, two and one.
//!
//! A block is what lies around it and the payload together. All blocks of a page have one class.

use super::block;
use crate::mm::pfn::PAGE_SIZE;

/// Bytes of a block, by class.
const TOTALS: [u16; CLASSES] = totals();
/// How many classes there are.
pub const CLASSES: usize = 31 + 7;
/// Everything is a multiple of this.
const GRAIN: usize = 16;

const fn totals() -> [u16; CLASSES] {
    let mut totals = [0; CLASSES];
    let mut at = 0;
    while at < 31 {
        totals[at] = (at as u16 + 2) * GRAIN as u16;
        at += 1;
    }
    let mut share = 7;
    while share > 0 {
        totals[at] = (PAGE_SIZE / share / GRAIN * GRAIN) as u16;
        at += 1;
        share -= 1;
    }
    totals
}

/// Bytes of a payload, in a release pool and in a checked one, where the smallest classes have no room for one.
static BYTES: [[usize; CLASSES]; 2] = [payloads(false), payloads(true)];

const fn payloads(checked: bool) -> [usize; CLASSES] {
    let mut bytes = [0; CLASSES];
    let mut at = 0;
    while at < CLASSES {
        bytes[at] = (TOTALS[at] as usize).saturating_sub(block::prefix(checked));
        at += 1;
    }
    bytes
}

/// The smallest class that holds so many grains.
static CLASS_OF: [u8; PAGE_SIZE / GRAIN + 1] = classes();

const fn classes() -> [u8; PAGE_SIZE / GRAIN + 1] {
    let mut classes = [0; PAGE_SIZE / GRAIN + 1];
    let (mut grains, mut class) = (0, 0);
    while grains < classes.len() {
        if grains * GRAIN > TOTALS[class] as usize {
            class += 1;
        }
        classes[grains] = class as u8;
        grains += 1;
    }
    classes
}

/// A size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// The class of a request, or nothing: it gets pages.
    #[inline]
    #[expect(clippy::manual_div_ceil, reason = "see below")]
    pub const fn of(size: usize, checked: bool) -> Option<Self> {
        if size > PAGE_SIZE - block::overhead(checked) {
            return None;
        }
        // Not `div_ceil`, which is three instructions more.
        let grains = (size + block::overhead(checked) + GRAIN - 1) / GRAIN;
        Some(Self(CLASS_OF[grains]))
    }

    /// The class with this index, if there is one.
    #[inline]
    pub const fn new(index: u16) -> Option<Self> {
        if (index as usize) < CLASSES { Some(Self(index as u8)) } else { None }
    }

    /// All of them, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES as u8).map(Self)
    }

    /// From 0.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of a block with what lies around it.
    #[inline]
    pub const fn total(self) -> usize {
        TOTALS[self.0 as usize] as usize
    }

    /// Bytes that a block gives its owner, red zone included in the checked build.
    #[inline]
    pub const fn bytes(self, checked: bool) -> usize {
        BYTES[checked as usize][self.0 as usize]
    }

    /// Blocks of a page.
    pub const fn in_a_page(self) -> usize {
        PAGE_SIZE / self.total()
    }

    /// Blocks that a processor keeps for itself: two pages' worth, but two to 32.
    pub const fn most_kept(self) -> u16 {
        let fair = PAGE_SIZE / self.total() * 2;
        if fair < 2 {
            2
        } else if fair > 32 {
            32
        } else {
            fair as u16
        }
    }
}

const _: () = assert!(TOTALS[CLASSES - 1] as usize == PAGE_SIZE, "the largest class is a page");
