//! Runs of page-sized slots in a fixed range of addresses: which are taken. What system PTEs are handed out by.
//!
//! Each run is followed by a slot that stays empty, so that an access behind its end faults.
//!
//! Invariants: I1 bit n of `taken` is set exactly if slot n is part of a run, the empty slot behind it included.
//!             I2 no slot of a word below `lowest` is free.
//! Tests:      tests/props/tests/mm_space.rs.

/// `WORDS` times 64 slots.
pub struct Slots<const WORDS: usize> {
    taken: [u64; WORDS],
    lowest: usize,
    /// Counted up from zero, so that a static one is all zeroes and takes no room in the image's file.
    used: usize,
}

impl<const WORDS: usize> Slots<WORDS> {
    /// How many there are.
    pub const COUNT: usize = WORDS * 64;

    /// All free.
    pub const fn new() -> Self {
        Self { taken: [0; WORDS], lowest: 0, used: 0 }
    }

    /// Slots in no run.
    pub fn free(&self) -> usize {
        Self::COUNT - self.used
    }

    /// The lowest run of `count` slots with an empty one behind it. `None`: there is none, or `count` is zero.
    pub fn take(&mut self, count: usize) -> Option<usize> {
        if count == 0 || count >= Self::COUNT {
            return None;
        }
        let wanted = count + 1;
        let mut start = self.lowest * 64;
        loop {
            start = self.next(start, Self::COUNT, false)?;
            if start + wanted > Self::COUNT {
                return None;
            }
            // A taken slot among those wanted ends the free run; what is behind them isn't looked at.
            let obstacle = self.next(start, start + wanted, true);
            if obstacle.is_none() {
                self.set(start, wanted, true);
                self.used += wanted;
                self.lowest = self.next(self.lowest * 64, Self::COUNT, false).map_or(WORDS, |slot| slot / 64);
                return Some(start);
            }
            start = obstacle.unwrap_or(Self::COUNT);
        }
    }

    /// Gives a run back, by what [`take`](Self::take) was asked for and gave. Says whether it was one.
    #[must_use]
    pub fn give(&mut self, start: usize, count: usize) -> bool {
        let wanted = count + 1;
        let whole = start + wanted <= Self::COUNT && self.next(start, start + wanted, false).is_none();
        if whole {
            self.set(start, wanted, false);
            self.used -= wanted;
            self.lowest = self.lowest.min(start / 64);
        }
        whole
    }

    /// The first slot of `start..end` that is taken, or free.
    fn next(&self, start: usize, end: usize, taken: bool) -> Option<usize> {
        let invert = if taken { 0 } else { u64::MAX };
        let mut word = start / 64;
        let mut bits = (self.taken.get(word)? ^ invert) & (u64::MAX << (start % 64));
        while bits == 0 {
            word += 1;
            if word * 64 >= end {
                return None;
            }
            bits = self.taken.get(word)? ^ invert;
        }
        let slot = word * 64 + bits.trailing_zeros() as usize;
        (slot < end).then_some(slot)
    }

    fn set(&mut self, start: usize, count: usize, taken: bool) {
        let mut at = start;
        while at < start + count {
            let in_word = (64 - at % 64).min(start + count - at);
            let mask = (u64::MAX >> (64 - in_word)) << (at % 64);
            if taken {
                self.taken[at / 64] |= mask;
            } else {
                self.taken[at / 64] &= !mask;
            }
            at += in_word;
        }
    }
}

impl<const WORDS: usize> Default for Slots<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}
