//! Memory for responses: words and strings, laid one after the other, addressed through the direct map.
//!
//! Tests: tests/suite/response.rs.

use core::fmt;

/// The memory set aside for responses was too small: the loader has miscounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaFull;

impl fmt::Display for ArenaFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "internal error: the responses do not fit in their memory")
    }
}

/// A region that fills up and is never emptied.
#[derive(Debug)]
pub struct Arena<'m> {
    bytes: &'m mut [u8],
    base: u64,
    used: usize,
}

impl<'m> Arena<'m> {
    /// Uses `bytes`, which the kernel sees at address `base`.
    pub fn new(bytes: &'m mut [u8], base: u64) -> Self {
        Self { bytes, base, used: 0 }
    }

    /// Puts `words` at a multiple of 8. Returns their address.
    pub fn words(&mut self, words: &[u64]) -> Result<u64, ArenaFull> {
        self.used = self.used.next_multiple_of(8);
        let address = self.base + self.used as u64;
        for word in words {
            self.put(&word.to_le_bytes())?;
        }
        Ok(address)
    }

    /// Puts `count` words, each made by `word` from its number. Returns their address.
    pub fn words_with(&mut self, count: usize, word: impl Fn(usize) -> u64) -> Result<u64, ArenaFull> {
        let address = self.words(&[])?;
        for n in 0..count {
            self.words(&[word(n)])?;
        }
        Ok(address)
    }

    /// Puts a string that is `parts` one after the other and a zero at the end. Returns its address.
    pub fn string(&mut self, parts: &[&[u8]]) -> Result<u64, ArenaFull> {
        let address = self.base + self.used as u64;
        for part in parts {
            self.put(part)?;
        }
        self.put(&[0])?;
        Ok(address)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArenaFull> {
        let rest = self.bytes.get_mut(self.used..).ok_or(ArenaFull)?;
        rest.get_mut(..bytes.len()).ok_or(ArenaFull)?.copy_from_slice(bytes);
        self.used += bytes.len();
        Ok(())
    }
}
