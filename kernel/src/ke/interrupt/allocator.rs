//! Which device vectors are free. A vector's upper half is the IRQL that it is delivered at, so each device level has sixteen,
//! and the same vector means the same on every processor.

use sync::irql::DeviceLevel;

const CLASSES: usize = 9;
const FIRST: u8 = 3;

/// Bit v of `used[c]`: vector `(c + 3) << 4 | v` is taken.
pub struct VectorAllocator {
    used: [u16; CLASSES],
}

impl VectorAllocator {
    /// All free.
    pub const fn new() -> Self {
        Self { used: [0; CLASSES] }
    }

    /// The lowest free vector that is delivered at `level`.
    pub fn allocate(&mut self, level: DeviceLevel) -> Option<u8> {
        let used = &mut self.used[usize::from(level.cr8() - FIRST)];
        let low = used.trailing_ones() as u8;
        if low == 16 {
            return None;
        }
        *used |= 1 << low;
        Some(level.cr8() << 4 | low)
    }

    /// Takes `vector` itself; false if it is taken, or not a device's.
    pub fn reserve(&mut self, vector: u8) -> bool {
        let Some(level) = DeviceLevel::of_vector(vector) else { return false };
        let used = &mut self.used[usize::from(level.cr8() - FIRST)];
        let free = *used & 1 << (vector & 15) == 0;
        *used |= 1 << (vector & 15);
        free
    }

    /// Gives back what `allocate` or `reserve` gave.
    pub fn free(&mut self, vector: u8) {
        debug_assert!((0x30..=0xBF).contains(&vector), "a device's vector");
        self.used[usize::from((vector >> 4) - FIRST)] &= !(1 << (vector & 15));
    }
}

impl Default for VectorAllocator {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(cr8: u8) -> DeviceLevel {
        DeviceLevel::new(cr8).unwrap()
    }

    #[test]
    fn a_class_has_sixteen_each_once() {
        let mut vectors = VectorAllocator::new();
        for class in 3..=11 {
            let taken: Vec<u8> = std::iter::from_fn(|| vectors.allocate(level(class))).collect();
            assert_eq!(taken, (class << 4..=class << 4 | 15).collect::<Vec<_>>());
        }
        vectors.free(0x57);
        assert_eq!((vectors.allocate(level(4)), vectors.allocate(level(5))), (None, Some(0x57)));
    }

    #[test]
    fn reserved_ones_are_skipped() {
        let mut vectors = VectorAllocator::new();
        assert!(vectors.reserve(0x30) && !vectors.reserve(0x30));
        assert_eq!(vectors.allocate(level(3)), Some(0x31));
        assert!(!vectors.reserve(0x2F) && !vectors.reserve(0xC0));
    }
}
