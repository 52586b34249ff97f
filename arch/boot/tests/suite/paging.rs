//! Page tables: what is mapped is what a walk finds, with the rights it was given; nothing is mapped twice.

use boot::memory::{HUGE_PAGE, LARGE_PAGE, PAGE};
use boot::memory_map::MemoryError;
use boot::paging::{Access, DIRECT_MAP, HANDOFF_PAGE, PageTables, PagingError, Table, Tables, index};
use proptest::prelude::*;

/// Tables at the addresses 0x1000, 0x2000, ...
#[derive(Debug, Default)]
struct Vector(Vec<Table>, usize);

impl Vector {
    fn new() -> Self {
        Self(Vec::new(), usize::MAX)
    }
}

impl Tables for &mut Vector {
    fn allocate(&mut self) -> Result<u64, MemoryError> {
        if self.0.len() == self.1 {
            return Err(MemoryError::NoRoom("page tables", PAGE));
        }
        self.0.push([0; 512]);
        Ok(self.0.len() as u64 * PAGE)
    }

    fn table(&mut self, address: u64) -> &mut Table {
        &mut self.0[(address / PAGE) as usize - 1]
    }
}

/// What the processor would find: physical address, size of the page, writable, executable.
fn walk(tables: &Vector, address: u64) -> Option<(u64, u64, bool, bool)> {
    let mut table = 1;
    for level in (0..4).rev() {
        let entry = tables.0[table - 1][index(address, level)];
        if entry & 1 == 0 {
            return None;
        }
        let size = PAGE << (9 * level);
        if level == 0 || entry & 0x80 != 0 {
            let base = entry & 0x000f_ffff_ffff_f000;
            assert!(base.is_multiple_of(size), "a page is not aligned to its size");
            return Some((base + address % size, size, entry & 2 != 0, entry >> 63 == 0));
        }
        table = ((entry & 0x000f_ffff_ffff_f000) / PAGE) as usize;
    }
    None
}

#[test]
fn rights_are_those_asked_for() {
    let mut tables = Vector::new();
    let mut pages = PageTables::new(&mut tables, true).expect("memory");
    let base = 0xffff_ffff_8000_0000;
    pages.map(base, 0x20_0000, 0x2000, Access::Execute).expect("free");
    pages.map(base + 0x2000, 0x20_2000, 0x1000, Access::Read).expect("free");
    pages.map(base + 0x3000, 0x20_3000, 0x1000, Access::Write).expect("free");
    assert_eq!(pages.root(), PAGE);
    assert_eq!(walk(&tables, base + 0x1234), Some((0x20_1234, PAGE, false, true)));
    assert_eq!(walk(&tables, base + 0x2000), Some((0x20_2000, PAGE, false, false)));
    assert_eq!(walk(&tables, base + 0x3fff), Some((0x20_3fff, PAGE, true, false)));
    assert_eq!(walk(&tables, base + 0x4000), None);
}

#[test]
fn direct_map_uses_the_largest_pages() {
    let (base, end) = (HUGE_PAGE - LARGE_PAGE - PAGE, 3 * HUGE_PAGE + LARGE_PAGE + PAGE);
    for (huge, middle) in [(true, HUGE_PAGE), (false, LARGE_PAGE)] {
        let mut tables = Vector::new();
        let mut pages = PageTables::new(&mut tables, huge).expect("memory");
        pages.map(DIRECT_MAP + base, base, end - base, Access::Write).expect("free");
        let size = |at| walk(&tables, DIRECT_MAP + at).map(|(_, size, _, _)| size);
        assert_eq!([size(base - 1), size(end)], [None; 2]);
        assert_eq!([size(base), size(end - 1)], [Some(PAGE); 2]);
        assert_eq!([size(base + PAGE), size(end - PAGE - 1)], [Some(LARGE_PAGE); 2]);
        assert_eq!([size(HUGE_PAGE), size(3 * HUGE_PAGE - 1)], [Some(middle); 2]);
    }
}

#[test]
fn large_pages_need_both_addresses_aligned() {
    let mut tables = Vector::new();
    let mut pages = PageTables::new(&mut tables, true).expect("memory");
    let (base, physical) = (0xffff_ffff_8000_0000, LARGE_PAGE + PAGE);
    pages.map(base, physical, 2 * LARGE_PAGE, Access::Read).expect("free");
    for at in [0, LARGE_PAGE, 2 * LARGE_PAGE - PAGE] {
        assert_eq!(walk(&tables, base + at), Some((physical + at, PAGE, false, false)));
    }
}

#[test]
fn nothing_is_mapped_twice() {
    for (length, again) in [(PAGE, PAGE), (LARGE_PAGE, PAGE), (PAGE, LARGE_PAGE), (HUGE_PAGE, PAGE)] {
        let mut tables = Vector::new();
        let mut pages = PageTables::new(&mut tables, true).expect("memory");
        pages.map(HANDOFF_PAGE, 0, length, Access::Execute).expect("free");
        let twice = pages.map(HANDOFF_PAGE, 0, again, Access::Write);
        assert_eq!(twice, Err(PagingError::Occupied(HANDOFF_PAGE)));
    }
}

#[test]
fn out_of_memory_is_an_error() {
    for count in 1..4 {
        let mut tables = Vector(Vec::new(), count);
        let mut pages = PageTables::new(&mut tables, true).expect("memory for the root");
        let refused = PagingError::Memory(MemoryError::NoRoom("page tables", PAGE));
        assert_eq!(pages.map(DIRECT_MAP, 0, PAGE, Access::Write), Err(refused));
    }
}

proptest! {
    /// Runs of pages, apart from each other; an address inside one is found there, one between them is not found.
    #[test]
    fn walks_find_what_was_mapped(
        runs in prop::collection::vec((1..2000_u64, 1..2000_u64, any::<bool>()), 1..6),
        huge in any::<bool>(),
        probes in prop::collection::vec(0..25_000_u64, 32),
    ) {
        let mut tables = Vector::new();
        let mut pages = PageTables::new(&mut tables, huge).expect("memory");
        let mut at = 0;
        let mut mapped = Vec::new();
        for (gap, length, write) in runs {
            at += gap;
            let access = if write { Access::Write } else { Access::Read };
            pages.map(DIRECT_MAP + at * PAGE, at * PAGE, length * PAGE, access).expect("free");
            mapped.push((at, at + length, write));
            at += length;
        }
        for page in probes {
            let expected = mapped.iter().find(|run| (run.0..run.1).contains(&page));
            let found = walk(&tables, DIRECT_MAP + page * PAGE + 5);
            prop_assert_eq!(found.map(|(at, _, write, execute)| (at, write, execute)),
                expected.map(|run| (page * PAGE + 5, run.2, false)));
        }
    }
}
