//! The guest's memory, as a file that outlives QEMU: read when the guest stands still, whatever it died of, and without a word to it.
//!
//! Addresses that the guest's processors use are looked up in its page tables, whose root the trace's directory tells.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Of an entry of a page table.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    file: Arc<File>,
    /// Bytes below 4 GiB; what is more begins there.
    low: u64,
    size: u64,
}

/// A range of addresses and the place in the file of what they lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Of the first byte.
    pub(crate) address: u64,
    /// Of the same.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) bytes: u64,
}

impl Memory {
    /// Bytes in all.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The place in the file of physical address `at`, if so many bytes are memory there.
    fn offset(&self, at: u64, bytes: u64) -> Option<u64> {
        let offset = match at.checked_sub(1 << 32) {
            Some(above) => self.low + above,
            None => at,
        };
        let end = offset.checked_add(bytes)?;
        ((at >> 32 != 0 || end <= self.low) && end <= self.size).then_some(offset)
    }

    /// Hands over each page of the file that is not zero.
    pub(crate) fn each_used(&self, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut chunk = vec![0; CHUNK as usize];
        for at in (0..self.size).step_by(CHUNK as usize) {
            let bytes = &mut chunk[..CHUNK.min(self.size - at) as usize];
            self.file.read_exact_at(bytes, at)?;
            for (number, page) in bytes.chunks(PAGE as usize).enumerate() {
                if page.iter().any(|&byte| byte != 0) {
                    each(at + number as u64 * PAGE, page)?;
                }
            }
        }
        Ok(())
    }

    /// What the upper half of the page tables at `root` maps and is memory, neighbours as one.
    pub(crate) fn mappings(&self, root: u64) -> Result<Vec<Mapping>> {
        let mut found = Vec::new();
        for top in 256..512 {
            self.collect(root & FRAME, 3, top, 0xFFFF << 48, &mut found)?;
        }
        Ok(found)
    }

    /// Entry `index` of a table of `level`, whose first address is `base`.
    fn collect(&self, table: u64, level: u32, index: u64, base: u64, found: &mut Vec<Mapping>) -> Result<()> {
        let entry = self.word(table + index * 8)?;
        let shift = 12 + 9 * level;
        let address = base | index << shift;
        if entry & PRESENT == 0 {
            return Ok(());
        }
        if level > 0 && (level == 3 || entry & LARGE == 0) {
            return (0..512)
                .try_for_each(|index| self.collect(entry & FRAME, level - 1, index, address, found));
        }
        let physical = entry & FRAME & !((1 << shift) - 1);
        // A large page may reach over the end of memory: what is memory of it.
        let whole = 1_u64 << shift;
        let bytes = if physical < self.low { whole.min(self.low - physical) } else { whole };
        let Some(offset) = self.offset(physical, bytes) else { return Ok(()) };
        match found.last_mut() {
            Some(last) if last.address + last.bytes == address && last.offset + last.bytes == offset => {
                last.bytes += bytes;
            }
            _ => found.push(Mapping { address, offset, bytes }),
        }
        Ok(())
    }

    /// A machine of `kind` has `size` bytes of memory in `file`.
    pub(crate) fn new(file: File, size: u64, kind: &str) -> Self {
        // Where QEMU's machines end their memory below 4 GiB, if there is more than fits.
        let (most, cut) =
            if kind.starts_with("q35") { (0xB000_0000, 0x8000_0000) } else { (0xE000_0000, 0xC000_0000) };
        Self { file: Arc::new(file), low: if size >= most { cut } else { size }, size }
    }

    /// The physical addresses that it has.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        let high = (1 << 32, self.size - self.low);
        [(0, self.low), high].into_iter().filter(|range| range.1 > 0).collect()
    }

    /// Fills `bytes` from physical address `at`.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let offset = self.offset(at, bytes.len() as u64);
        let offset = offset.with_context(|| format!("{at:#x} is no memory of the guest"))?;
        self.file
            .read_exact_at(bytes, offset)
            .with_context(|| format!("reading the guest's memory at {at:#x}"))
    }

    /// So many bytes from physical address `at`.
    pub(crate) fn bytes(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        ensure!(count <= self.size, "{count} bytes are more than the guest has");
        let mut bytes = vec![0; usize::try_from(count)?];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    fn word(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The first page, from 1 MiB on, that starts with `magic`.
    pub(crate) fn find(&self, magic: &[u8]) -> Result<Option<u64>> {
        const CHUNK: u64 = 1 << 20;
        for (start, length) in self.ranges() {
            for at in (start.max(CHUNK)..start + length).step_by(CHUNK as usize) {
                let chunk = self.bytes(at, CHUNK.min(start + length - at))?;
                let page = chunk.chunks(PAGE as usize).position(|page| page.starts_with(magic));
                if let Some(page) = page {
                    return Ok(Some(at + page as u64 * PAGE));
                }
            }
        }
        Ok(None)
    }

    /// Where `address` lies, by the page tables at `root`.
    pub(crate) fn translate(&self, root: u64, address: u64) -> Result<u64> {
        let mut table = root & FRAME;
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let entry = self.word(table + (address >> shift & 511) * 8)?;
            if entry & PRESENT == 0 {
                bail!("{address:#x} is not mapped");
            }
            if level == 0 || level < 3 && entry & LARGE != 0 {
                let within = (1 << shift) - 1;
                return Ok(entry & FRAME & !within | address & within);
            }
            table = entry & FRAME;
        }
        unreachable!("the last level returns")
    }

    /// So many bytes from the address `at` as the guest's processors see it.
    pub(crate) fn mapped(&self, root: u64, at: u64, count: u64) -> Result<Vec<u8>> {
        ensure!(count <= 1 << 20, "{count} bytes at once");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < count {
            let address = at.wrapping_add(bytes.len() as u64);
            let piece = (count - bytes.len() as u64).min(PAGE - address % PAGE);
            bytes.extend(self.bytes(self.translate(root, address)?, piece)?);
        }
        Ok(bytes)
    }
}

/// Bytes of a memory size as QEMU takes it: a number, MiB unless a letter says otherwise.
pub(crate) fn size_of(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "M" => 1 << 20,
        "K" => 1 << 10,
        "G" => 1 << 30,
        other => bail!("memory in {other}?"),
    };
    let number: u64 = digits.parse().with_context(|| format!("{text} is no size of memory"))?;
    number.checked_mul(unit).context("more memory than there are addresses")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Memory with something in it.
    pub(crate) fn memory(size: u64, contents: &[(u64, Vec<u8>)]) -> Memory {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(size).expect("its size");
        for (at, bytes) in contents {
            file.write_all_at(bytes, *at).expect("its contents");
        }
        Memory::new(file, size, "q35")
    }

    #[test]
    fn pages_are_found_by_how_they_start() {
        let memory = memory(4 << 20, &[(0x12_3008, b"magic".to_vec()), (0x24_5000, b"magic".to_vec())]);
        assert_eq!(memory.find(b"magic").expect("readable"), Some(0x24_5000));
        assert_eq!(memory.find(b"other").expect("readable"), None);
        assert!(memory.bytes(4 << 20, 1).is_err());
    }

    #[test]
    fn addresses_are_looked_up_in_pages_of_all_sizes() {
        let entry = |at: u64, value: u64| (at, value.to_le_bytes().to_vec());
        let memory = memory(
            8 << 20,
            &[
                entry(0x1000 + 511 * 8, 0x2000 | 1),
                entry(0x2000 + 510 * 8, 0x3000 | 1),
                entry(0x3000, 0x4000 | 1),
                entry(0x4000 + 8, 0x5000 | 1 | 1 << 63),
                entry(0x3000 + 8, 0x20_0000 | 0x81),
                entry(0x5010, 0x1234),
            ],
        );
        let translate = |address| memory.translate(0x1000, address).ok();
        assert_eq!(translate(0xFFFF_FFFF_8000_1010), Some(0x5010));
        assert_eq!(translate(0xFFFF_FFFF_8020_1234), Some(0x20_1234));
        assert_eq!(translate(0xFFFF_FFFF_8000_0000), None);
        assert_eq!(translate(0), None);
        assert_eq!(memory.mapped(0x1000, 0xFFFF_FFFF_8000_1010, 2).expect("mapped"), [0x34, 0x12]);
    }

    #[test]
    fn memory_above_the_hole_follows_that_below() {
        let file = tempfile::tempfile().expect("a file");
        let memory = Memory::new(file, 5 << 30, "q35");
        assert_eq!(memory.ranges(), [(0, 2 << 30), (4 << 30, 3 << 30)]);
        assert!(memory.bytes(3 << 30, 1).is_err());
    }

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(size_of("512M").ok(), Some(512 << 20));
        assert_eq!(size_of("2G").ok(), Some(2 << 30));
        assert_eq!(size_of("64").ok(), Some(64 << 20));
        assert!(size_of("many").is_err() && size_of("1X").is_err());
    }
}
