//! Bitmaps: NT's RTL_BITMAP, and the safe view that does the work.
//!
//! Bit n is bit n % 32 of word n / 32. Bits of the last word behind the map's size are nobody's: they are neither read nor changed.
//!
//! IRQL:       any, where the words are nonpaged. Who may use a map when is its owner's rule.
//! Not as NT:  a search begins at the very hint; NT's may begin some bits before it.
//! Tests:      tests/props/tests/rtl_bitmap.rs, against a list of booleans.
//! Sources:    WDK, RTL_BITMAP, `RtlInitializeBitMap`, `RtlFindClearBits`, `RtlFindClearBitsAndSet`, `RtlFindNextForwardRunClear`,
//!             `RtlFindLastBackwardRunClear`, `RtlFindClearRuns`, `RtlAreBitsClear`, `RtlNumberOfSetBits`.

use super::NtStatus;

const BITS: u32 = u32::BITS;

/// Bits in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "RTL_BITMAP_RUN")]
pub struct Run {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

sync::nt_layout! { [] Run = "RTL_BITMAP_RUN" { first => "StartingIndex", count => "NumberOfBits", } }

/// A map of bits in somebody's words.
#[derive(Debug)]
pub struct Bitmap<'a> {
    words: &'a mut [u32],
    size: u32,
}

/// The bits of a word from `from` up to `to`, which is at most 32.
const fn mask(from: u32, to: u32) -> u32 {
    below(to) & !below(from)
}

const fn below(bit: u32) -> u32 {
    if bit >= BITS { u32::MAX } else { (1 << bit) - 1 }
}

impl<'a> Bitmap<'a> {
    /// A map of `size` bits, as they are in `words`. Nothing: there are fewer.
    #[doc(alias = "RtlInitializeBitMap")]
    pub fn new(words: &'a mut [u32], size: u32) -> Option<Self> {
        let count = size.div_ceil(BITS) as usize;
        Some(Self { words: words.get_mut(..count)?, size })
    }

    /// How many bits it has.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The words of `first..first + count`, each with the mask of what is in it; none if that isn't all within the map.
    fn parts(&self, first: u32, count: u32) -> impl Iterator<Item = (usize, u32)> + use<> {
        let end = first.checked_add(count).filter(|&end| end <= self.size).unwrap_or(first);
        let words = if first < end { first / BITS..end.div_ceil(BITS) } else { 0..0 };
        words.map(move |word| {
            let start = word * BITS;
            (word as usize, mask(first.saturating_sub(start), (end - start).min(BITS)))
        })
    }

    fn is_inside(&self, first: u32, count: u32) -> bool {
        first.checked_add(count).is_some_and(|end| end <= self.size)
    }

    /// Is the bit set? One behind the map isn't.
    #[doc(alias = "RtlTestBit")]
    #[doc(alias = "RtlCheckBit")]
    pub fn test(&self, bit: u32) -> bool {
        bit < self.size && self.words[(bit / BITS) as usize] >> (bit % BITS) & 1 != 0
    }

    /// Sets `count` bits from `first` on; none, if not all of them are in the map.
    #[doc(alias = "RtlSetBits")]
    pub fn set(&mut self, first: u32, count: u32) {
        self.parts(first, count).for_each(|(word, mask)| self.words[word] |= mask);
    }

    /// Clears `count` bits from `first` on; none, if not all of them are in the map.
    #[doc(alias = "RtlClearBits")]
    pub fn clear(&mut self, first: u32, count: u32) {
        self.parts(first, count).for_each(|(word, mask)| self.words[word] &= !mask);
    }

    /// Sets all bits.
    #[doc(alias = "RtlSetAllBits")]
    pub fn set_all(&mut self) {
        self.set(0, self.size);
    }

    /// Clears all bits.
    #[doc(alias = "RtlClearAllBits")]
    pub fn clear_all(&mut self) {
        self.clear(0, self.size);
    }

    /// Are all of them set? False for none, and for what is not all in the map.
    #[doc(alias = "RtlAreBitsSet")]
    pub fn are_set(&self, first: u32, count: u32) -> bool {
        count != 0
            && self.is_inside(first, count)
            && self.parts(first, count).all(|(word, mask)| self.words[word] & mask == mask)
    }

    /// Are all of them clear? False for none, and for what is not all in the map.
    #[doc(alias = "RtlAreBitsClear")]
    pub fn are_clear(&self, first: u32, count: u32) -> bool {
        count != 0
            && self.is_inside(first, count)
            && self.parts(first, count).all(|(word, mask)| self.words[word] & mask == 0)
    }

    /// How many are set.
    #[doc(alias = "RtlNumberOfSetBits")]
    pub fn count_set(&self) -> u32 {
        self.parts(0, self.size).map(|(word, mask)| (self.words[word] & mask).count_ones()).sum()
    }

    /// How many are clear.
    #[doc(alias = "RtlNumberOfClearBits")]
    pub fn count_clear(&self) -> u32 {
        self.size - self.count_set()
    }

    /// The first bit from `from` on that is `set`; the map's size where there is none.
    fn next(&self, from: u32, set: bool) -> u32 {
        let parts = self.parts(from, self.size.saturating_sub(from));
        for (word, mask) in parts {
            let found = (if set { self.words[word] } else { !self.words[word] }) & mask;
            if found != 0 {
                return word as u32 * BITS + found.trailing_zeros();
            }
        }
        self.size
    }

    /// Behind the last bit below `below` that is `set`; 0 where there is none.
    fn behind_last(&self, below: u32, set: bool) -> u32 {
        let mut end = below;
        while end > 0 {
            let word = (end - 1) / BITS;
            let bits = self.words[word as usize];
            let found = (if set { bits } else { !bits }) & mask(0, end - word * BITS);
            if found != 0 {
                return (word + 1) * BITS - found.leading_zeros();
            }
            end = word * BITS;
        }
        0
    }

    /// The run of bits that are `set` from `from` on, or the next one behind it.
    fn run(&self, from: u32, set: bool) -> Option<Run> {
        let first = self.next(from, set);
        let count = self.next(first, !set) - first;
        (count != 0).then_some(Run { first, count })
    }

    /// All runs that are `set`, from `from` on.
    fn runs(&self, from: u32, set: bool) -> impl Iterator<Item = Run> {
        let run = self.run(from, set);
        core::iter::successors(run, move |run| self.run(run.first + run.count, set))
    }

    /// The first `count` bits in a row that are `set`, from `hint` on, else from the start on. Of a run that is longer its beginning, or
    /// what begins at the hint. For none it is the hint.
    fn find(&self, count: u32, hint: u32, set: bool) -> Option<u32> {
        let hint = if hint < self.size { hint } else { 0 };
        if count == 0 {
            return Some(hint);
        }
        let from = |from| self.runs(from, set).find(|run| run.count >= count).map(|run| run.first);
        from(hint).or_else(|| from(0))
    }

    /// The first of `count` clear bits in a row: the first such place from `hint` on, else from the map's start on. Nothing: there is none.
    #[doc(alias = "RtlFindClearBits")]
    pub fn find_clear(&self, count: u32, hint: u32) -> Option<u32> {
        self.find(count, hint, false)
    }

    /// The same for bits that are set.
    #[doc(alias = "RtlFindSetBits")]
    pub fn find_set(&self, count: u32, hint: u32) -> Option<u32> {
        self.find(count, hint, true)
    }

    /// [`find_clear`](Self::find_clear), and sets them.
    #[doc(alias = "RtlFindClearBitsAndSet")]
    pub fn find_clear_and_set(&mut self, count: u32, hint: u32) -> Option<u32> {
        let first = self.find_clear(count, hint)?;
        self.set(first, count);
        Some(first)
    }

    /// [`find_set`](Self::find_set), and clears them.
    #[doc(alias = "RtlFindSetBitsAndClear")]
    pub fn find_set_and_clear(&mut self, count: u32, hint: u32) -> Option<u32> {
        let first = self.find_set(count, hint)?;
        self.clear(first, count);
        Some(first)
    }

    /// The clear run that `from` is in, as far as it is behind that, or the next one.
    #[doc(alias = "RtlFindNextForwardRunClear")]
    pub fn next_clear_run(&self, from: u32) -> Option<Run> {
        self.run(from, false)
    }

    /// The clear run that `from` is in, up to that, or the one before it.
    #[doc(alias = "RtlFindLastBackwardRunClear")]
    pub fn last_clear_run(&self, from: u32) -> Option<Run> {
        let end = self.behind_last(from.saturating_add(1).min(self.size), false);
        let first = self.behind_last(end, true);
        (first < end).then_some(Run { first, count: end - first })
    }

    /// The longest clear run, of several the first.
    #[doc(alias = "RtlFindLongestRunClear")]
    pub fn longest_clear_run(&self) -> Option<Run> {
        self.runs(0, false).reduce(|best, run| if run.count > best.count { run } else { best })
    }

    /// Writes clear runs into `found`: the first ones in their order, or the longest ones, the longest first. How many were written.
    #[doc(alias = "RtlFindClearRuns")]
    pub fn clear_runs(&self, found: &mut [Run], longest: bool) -> usize {
        let mut count = 0;
        for run in self.runs(0, false) {
            let place = if longest {
                found[..count].iter().position(|other| other.count < run.count).unwrap_or(count)
            } else {
                count
            };
            if place == found.len() {
                if longest { continue } else { break }
            }
            count = (count + 1).min(found.len());
            found[place..count].rotate_right(1);
            found[place] = run;
        }
        count
    }
}

/// NT's RTL_BITMAP, byte for byte.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "RTL_BITMAP")]
pub struct KBitmap {
    /// Bits.
    pub size: u32,
    /// The words.
    pub buffer: *mut u32,
}

sync::nt_layout! { [] KBitmap = "RTL_BITMAP" { size => "SizeOfBitMap", buffer => "Buffer", } }

impl KBitmap {
    /// The map.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: it has bits, and they are nowhere.
    ///
    /// # Safety
    /// If `buffer` is not null, the words of `size` bits are there, aligned to 4, initialised, and nobody else's while the result is used.
    pub unsafe fn view<'a>(&mut self) -> Result<Bitmap<'a>, NtStatus> {
        let count = self.size.div_ceil(BITS) as usize;
        let words: &mut [u32] = match count {
            0 => &mut [],
            _ if self.buffer.is_null() => return Err(NtStatus::INVALID_PARAMETER),
            // SAFETY: the caller's, and not null.
            _ => unsafe { core::slice::from_raw_parts_mut(self.buffer, count) },
        };
        Ok(Bitmap { words, size: self.size })
    }
}
