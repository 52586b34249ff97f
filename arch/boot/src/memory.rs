//! Physical memory as the parsers see it: bytes at an address, or nothing.
//!
//! The image reads through the identity map of the first 4 GiB, tests and fuzz targets through a slice;
//! neither can be made to read outside of what it has.

/// Size of the smallest page, the unit in which memory is handed out.
pub const PAGE: u64 = 4096;
/// Size of a page that one page-directory entry maps.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Size of a page that one page-directory-pointer entry maps.
pub const HUGE_PAGE: u64 = 1 << 30;

/// A way to read physical memory.
pub trait Physical {
    /// The `len` bytes at physical address `addr`; `None` when any of them cannot be read.
    fn bytes(&self, addr: u64, len: u64) -> Option<&[u8]>;
}

/// Memory that is one slice at a known physical address.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    base: u64,
    bytes: &'a [u8],
}

impl<'a> Window<'a> {
    /// Shows `bytes` at physical address `base`.
    pub fn new(base: u64, bytes: &'a [u8]) -> Self {
        Self { base, bytes }
    }
}

impl Physical for Window<'_> {
    fn bytes(&self, addr: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(start..end)
    }
}

/// Rounds down to a multiple of `align`, a power of two.
pub const fn align_down(value: u64, align: u64) -> u64 {
    value & !(align - 1)
}

/// Rounds up to a multiple of `align`, a power of two; `None` past the end of the address space.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(sum) => Some(align_down(sum, align)),
        None => None,
    }
}

/// The little-endian `u16` at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(field(bytes, at)?))
}

/// The little-endian `u32` at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(field(bytes, at)?))
}

/// The little-endian `u64` at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(field(bytes, at)?))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_reads_inside_and_nowhere_else() {
        let window = Window::new(0x1000, b"abcd");
        assert_eq!(window.bytes(0x1001, 3), Some(&b"bcd"[..]));
        assert_eq!(window.bytes(0x1001, 4), None);
        assert_eq!(window.bytes(0xfff, 1), None);
        assert_eq!(window.bytes(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn fields_end_with_the_slice() {
        let bytes = [1, 0, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(u16_at(&bytes, 0), Some(1));
        assert_eq!(u32_at(&bytes, 2), Some(2));
        assert_eq!(u64_at(&bytes, 1), Some(0x200));
        assert_eq!(u64_at(&bytes, 2), None);
        assert_eq!(u16_at(&bytes, usize::MAX), None);
    }

    #[test]
    fn align_up_does_not_wrap() {
        assert_eq!(align_up(1, PAGE), Some(PAGE));
        assert_eq!(align_up(PAGE, PAGE), Some(PAGE));
        assert_eq!(align_up(u64::MAX, PAGE), None);
    }
}
