//! Sequence lock: a few words that are read often and together, without the readers writing anything.
//!
//! ```text
//! writer, holding `writer`               reader
//! sequence := odd                        s := sequence             (Acquire)   odd: again
//! fence                     (Release)    read the words            (Relaxed)
//! write the words           (Relaxed)    fence                     (Acquire)
//! sequence := next even     (Release)    sequence = s? done : again
//! ```
//!
//! A reader that sees any word of a write also sees, after its fence, that write's odd number or a later one, and tries again;
//! a reader that starts with an even number sees all of the write that stored it. The words are atomics, as a reader may look
//! at them in the middle of a write.
//!
//! IRQL:       a writer holds rank R. A reader that waits has a token strictly below R: it can't have interrupted the writer on
//!             its own processor, where it would wait for ever. From any level: `try_read`.
//! Invariants: I1 `sequence` is odd exactly while the holder of `writer` changes the words.
//! Tests:      tests/models/tests/seq.rs; tests/props/tests/injection.rs; the unit tests below.

use core::marker::PhantomData;

use crate::irql::{Below, Irql, Rank};
use crate::prim::{AtomicU64, Backoff, Ordering, const_unless_loom, fence};
use crate::word::{Held, Word};

/// `N` words that change together, with writers of rank `R`.
pub struct SeqLock<const N: usize, R: Rank> {
    sequence: AtomicU64,
    writer: Word,
    words: [AtomicU64; N],
    rank: PhantomData<fn() -> R>,
}

impl<const N: usize, R: Rank> SeqLock<N, R> {
    const_unless_loom! {
        /// All words 0.
        pub const fn new() -> Self {
            Self {
                sequence: AtomicU64::new(0),
                writer: Word::new(),
                #[cfg(not(loom))]
                words: [const { AtomicU64::new(0) }; N],
                #[cfg(loom)]
                words: core::array::from_fn(|_| AtomicU64::new(0)),
                rank: PhantomData,
            }
        }
    }

    /// Changes the words. `change` works on a copy: readers wait only while that is stored.
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn write<L: Below<R>>(&self, at: &mut Irql<L>, change: impl FnOnce(&mut [u64; N])) {
        let _raised = at.raise::<R>();
        let held = Held::acquire(&self.writer);
        let mut words = self.load();
        change(&mut words);

        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(sequence + 2, Ordering::Release);
        drop(held);
    }

    /// The words as one write left them; waits while one is going on.
    #[inline]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn read<L: Below<R>>(&self, at: &Irql<L>) -> [u64; N] {
        at.check();
        let backoff = Backoff::new();
        loop {
            match self.try_read() {
                Some(words) => return words,
                None => backoff.spin(),
            }
        }
    }

    /// The words as one write left them, unless one went on meanwhile. Any level, NMI included.
    #[inline]
    pub fn try_read(&self) -> Option<[u64; N]> {
        let sequence = self.sequence.load(Ordering::Acquire);
        if !sequence.is_multiple_of(2) {
            return None;
        }
        let words = self.load();
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some(words)
    }

    #[inline]
    fn load(&self) -> [u64; N] {
        core::array::from_fn(|i| self.words[i].load(Ordering::Relaxed))
    }
}

impl<const N: usize, R: Rank> Default for SeqLock<N, R> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::Clock;
    use crate::testing::at_passive;

    #[test]
    fn a_reader_in_the_middle_of_a_write_is_told_to_come_again() {
        let lock = SeqLock::<2, Clock>::new();
        at_passive(|at| {
            lock.write(at, |words| *words = [1, 2]);
            assert_eq!(lock.read(at), [1, 2]);
        });
        lock.sequence.fetch_add(1, Ordering::Relaxed);
        assert_eq!(lock.try_read(), None);
    }

    #[test]
    fn snapshots_are_whole() {
        const ROUNDS: u64 = if cfg!(miri) { 10 } else { 3_000 };
        let lock = SeqLock::<3, Clock>::new();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    at_passive(|at| {
                        (0..ROUNDS)
                            .for_each(|_| lock.write(at, |words| words.iter_mut().for_each(|w| *w += 1)))
                    })
                });
            }
            s.spawn(|| {
                at_passive(|at| {
                    for _ in 0..ROUNDS {
                        let [a, b, c] = lock.read(at);
                        assert!(a == b && b == c, "{a} {b} {c}");
                    }
                })
            });
        });
        assert_eq!(lock.try_read(), Some([2 * ROUNDS; 3]));
    }
}
