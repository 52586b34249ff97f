//! A machine's memory in a test: pages, the entries of the database, and a page manager that was started on them.

use std::alloc::Layout;

use kernel::mm::frames::{CHUNK, Frames};
use kernel::mm::pages::PageManager;
use kernel::mm::pfn::{Memory, PAGE_SIZE, Pfn};
use kernel::mm::ranges::{PageRange, Ranges};
use sync::irql::{Irql, PageCacheAccess, Passive};

/// Memory for as long as it lives.
pub struct Arena {
    /// The manager of its pages.
    pub manager: &'static PageManager,
    raw_manager: *mut PageManager,
    /// What is free at the start.
    pub ranges: Vec<PageRange>,
    entries: (*mut u8, Layout),
    pages: (*mut u8, Layout),
    opened: *mut [u64],
}

impl Arena {
    /// Free pages `ranges`, ascending. Entries hold garbage, as memory does after power-on. `contents`: the pages can be touched.
    pub fn new(ranges: &[PageRange], contents: bool) -> Self {
        let first = ranges[0].start / CHUNK * CHUNK;
        let end = ranges[ranges.len() - 1].end.next_multiple_of(CHUNK);
        let count = (end - first) as usize;
        let entries_layout = Layout::array::<Pfn>(count).unwrap();
        let pages_layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: neither layout is empty.
        let (entries, pages) = unsafe {
            (
                std::alloc::alloc(entries_layout),
                if contents { std::alloc::alloc(pages_layout) } else { std::ptr::null_mut() },
            )
        };
        // SAFETY: fresh memory of that size.
        unsafe { entries.write_bytes(0xA5, entries_layout.size()) };
        let bitmap = Box::into_raw(vec![0_u64; Frames::bitmap_words(end)].into_boxed_slice());
        let mut boot = Ranges::new();
        for &range in ranges {
            assert!(boot.push(range));
        }
        let manager = Box::into_raw(Box::new(PageManager::default()));
        let raw_manager = manager;
        // SAFETY: a fresh box, which lives until the drop.
        let manager: &'static PageManager = unsafe { &*manager };
        on_processor(|at| {
            // SAFETY: the arena's own memory; the bitmap is used through the manager alone from here on.
            unsafe {
                let memory = Memory::new(
                    pages.wrapping_sub(first as usize * PAGE_SIZE),
                    entries.cast::<Pfn>().wrapping_sub(first as usize),
                );
                manager.start(memory, boot, &mut *bitmap, at);
            }
        });
        Self {
            manager,
            raw_manager,
            ranges: ranges.to_vec(),
            entries: (entries, entries_layout),
            pages: (pages, pages_layout),
            opened: bitmap,
        }
    }

    /// How many pages there are.
    pub fn total(&self) -> u32 {
        self.ranges.iter().map(|range| range.len()).sum()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `new`, in the same way; whoever uses the manager borrows the arena's life by convention of the tests.
        unsafe {
            drop(Box::from_raw(self.raw_manager));
            drop(Box::from_raw(self.opened));
            std::alloc::dealloc(self.entries.0, self.entries.1);
            if !self.pages.0.is_null() {
                std::alloc::dealloc(self.pages.0, self.pages.1);
            }
        }
    }
}

/// Runs `f` with the right to this thread's page cache.
pub fn on_processor<R>(f: impl FnOnce(&mut Irql<PageCacheAccess>) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::<Passive>::with(|at| f(&mut at.raise::<PageCacheAccess>())) }
}
