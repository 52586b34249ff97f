//! Paged pool's bookkeeping against a list of blocks: blocks lie apart, aligned, in pages that may be touched; they keep their
//! content; a page is ended once its last block is gone and not before; what is promised is what is handed out; misuse is found.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::panic::Location;
use std::ptr::NonNull;

use kernel::mm::Exhausted;
use kernel::mm::frames::CHUNK;
use kernel::mm::pfn::{Memory, PAGE_SIZE, Pfn};
use kernel::mm::pool::Tag;
use kernel::mm::pool::paged::{Backing, PagedPool};
use proptest::prelude::*;
use sync::irql::{Apc, Irql, Passive, PoolLock};

const CHUNKS: u32 = 3;
const STEPS: usize = if cfg!(miri) { 30 } else { 4000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 250 };
/// Pages that can be promised: fewer than there are addresses.
const MEMORY: u32 = 1000;

/// What the pool did with what stands behind it.
#[derive(Default)]
struct Seen {
    promised: u32,
    grown: u32,
}

struct Host(RefCell<Seen>, RefCell<u32>);

impl Backing for Host {
    fn grow(&self, chunk: u32, _: &mut Irql<PoolLock>) -> Result<(), Exhausted> {
        let mut seen = self.0.borrow_mut();
        assert_eq!(chunk, seen.grown, "chunks come in order");
        // Some fail, and are tried again.
        let tries = self.1.replace_with(|tries| *tries + 1);
        if tries.is_multiple_of(3) || chunk >= CHUNKS {
            return Err(Exhausted);
        }
        seen.grown += 1;
        Ok(())
    }

    fn promise(&self, count: u32, _: &mut Irql<Apc>) -> Result<(), Exhausted> {
        let mut seen = self.0.borrow_mut();
        if seen.promised + count > MEMORY {
            return Err(Exhausted);
        }
        seen.promised += count;
        Ok(())
    }

    fn unpromise(&self, count: u32, _: &mut Irql<Apc>) {
        self.0.borrow_mut().promised -= count;
    }

    fn end(&self, _: u32, count: u32, _: &mut Irql<Apc>) {
        self.0.borrow_mut().promised -= count;
    }
}

// SAFETY: the tests use a pool from one thread.
unsafe impl Sync for Host {}

type Pool<const SITES: usize> = PagedPool<SITES, Host>;

/// A pool over memory of its own.
struct Machine<const SITES: usize> {
    pool: NonNull<Pool<SITES>>,
    bitmap: *mut [u64],
    memory: [(*mut u8, Layout); 2],
}

impl<const SITES: usize> Machine<SITES> {
    fn new() -> Self {
        let pages = Layout::from_size_align((CHUNKS * CHUNK) as usize * PAGE_SIZE, PAGE_SIZE).unwrap();
        let entries = Layout::array::<Pfn>((CHUNKS * CHUNK) as usize).unwrap();
        // Fresh pages are zero, as those that a fault makes.
        // SAFETY: neither layout is empty.
        let memory = [pages, entries].map(|layout| (unsafe { std::alloc::alloc_zeroed(layout) }, layout));
        // SAFETY: memory and entries for all chunks that the bitmap has bits for and the backing grows to.
        let pool = unsafe {
            let memory = Memory::new(memory[0].0, memory[1].0.cast::<Pfn>());
            PagedPool::new(Host(RefCell::default(), RefCell::new(0)), memory)
        };
        let pool = NonNull::from(Box::leak(Box::new(pool)));
        // One word has bits for 64 chunks; the backing grows to three.
        let bitmap = Box::into_raw(vec![0_u64; 1].into_boxed_slice());
        let this = Self { pool, bitmap, memory };
        // SAFETY: used through the pool alone until both are freed.
        at_apc(|at| this.start(unsafe { &mut *bitmap }, at));
        this
    }
}

impl<const SITES: usize> Deref for Machine<SITES> {
    type Target = Pool<SITES>;

    fn deref(&self) -> &Pool<SITES> {
        // SAFETY: it lives as long as this.
        unsafe { self.pool.as_ref() }
    }
}

impl<const SITES: usize> Drop for Machine<SITES> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, in the same way; nobody borrows the pool.
        unsafe {
            drop(Box::from_raw(self.pool.as_ptr()));
            drop(Box::from_raw(self.bitmap));
            self.memory.into_iter().for_each(|(start, layout)| std::alloc::dealloc(start, layout));
        }
    }
}

fn at_apc<R>(f: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::<Passive>::with(|at| f(&mut at.raise::<Apc>())) }
}

const TAGS: [Tag; 3] = [Tag::new(b"One "), Tag::new(b"Two "), Tag::new(b"Tres")];

struct Block {
    start: NonNull<u8>,
    size: usize,
    tag: usize,
    byte: u8,
}

fn fill(block: &Block) {
    // SAFETY: a block of that size.
    unsafe { block.start.write_bytes(block.byte, block.size) };
}

fn check(block: &Block) {
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(block.start.as_ptr(), block.size) };
    assert!(*bytes == vec![block.byte; block.size], "{:?} lost its content", block.start);
}

fn run<const SITES: usize>(numbers: &[u64]) {
    let pool = Machine::<SITES>::new();
    let site = Location::caller();
    let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
    let mut bytes = [0_u64; TAGS.len()];
    at_apc(|at| {
        for &random in numbers {
            let (kind, a, b) =
                (random as u8, (random >> 8) as usize & 0xFFFF, (random >> 24) as usize & 0xFF_FFFF);
            let tag = (random >> 48) as usize % TAGS.len();
            if kind % 2 == 0 || blocks.is_empty() {
                let size = match kind >> 1 & 15 {
                    0 => b % 40_000,
                    1 => 4000 + b % 200,
                    2 => PAGE_SIZE * (1 + b % 3),
                    _ => b % 1500,
                };
                let Ok(found) = pool.allocate(TAGS[tag], size, site, at) else {
                    let seen = pool.backing().0.borrow();
                    let room = size.div_ceil(PAGE_SIZE).next_power_of_two() as u32;
                    // Refused for a promise, or since growing failed this time.
                    assert!(
                        seen.promised + room > MEMORY || seen.grown < CHUNKS,
                        "refused with room for {size}"
                    );
                    continue;
                };
                let start = found.cast::<u8>().addr().get();
                assert!(start.is_multiple_of(16) && (size < PAGE_SIZE || start.is_multiple_of(PAGE_SIZE)));
                let last = start + size.max(1) - 1;
                assert!(pool.is_allocated(start) && pool.is_allocated(last), "{start:#x} can't be touched");
                let before = blocks.range(..=last).next_back();
                assert!(
                    before.is_none_or(|(&other, block)| other + block.size <= start),
                    "{start:#x} overlaps"
                );
                let block = Block { start: found.cast(), size, tag, byte: random as u8 };
                fill(&block);
                blocks.insert(start, block);
                bytes[tag] += 1;
            } else {
                let from = *blocks.keys().nth(a % blocks.len()).unwrap();
                let block = blocks.remove(&from).unwrap();
                check(&block);
                // SAFETY: the list says that it is in use.
                unsafe { pool.free(block.start, TAGS[block.tag], site, at) };
                bytes[block.tag] -= 1;
            }
            let held: u32 = pool.pages_in_use(at);
            assert_eq!(pool.backing().0.borrow().promised, held, "promises and addresses");
        }
        for (index, &tag) in TAGS.iter().enumerate() {
            let found = pool.statistics(tag, at);
            assert_eq!(found.allocations - found.frees, bytes[index]);
        }
        pool.verify(at).unwrap();
        for block in blocks.into_values() {
            check(&block);
            // SAFETY: as above.
            unsafe { pool.free(block.start, TAGS[block.tag], site, at) };
        }
        pool.drain(at);
        assert_eq!(pool.pages_in_use(at), 0, "addresses lost");
        assert_eq!(pool.backing().0.borrow().promised, 0, "promises lost");
        assert!(TAGS.iter().all(|&tag| pool.statistics(tag, at).bytes == 0));
        pool.verify(at).unwrap();
    });
}

proptest! {
    // 250 times 4000 steps, for each of two pools.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 500, ..ProptestConfig::default() })]
    #[test]
    fn blocks_are_what_the_list_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        run::<0>(&numbers);
    }

    #[test]
    fn checked_blocks_are_what_the_list_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        run::<64>(&numbers);
    }
}

/// The bugcheck that `misuse` of a fresh block ends in: its code and first parameter.
fn stop<const SITES: usize>(
    size: usize,
    misuse: impl Fn(&Pool<SITES>, NonNull<u8>, &mut Irql<Apc>),
) -> (u32, u64) {
    let pool = Machine::<SITES>::new();
    let site = Location::caller();
    let block = at_apc(|at| {
        // The backing's first try to grow fails.
        pool.allocate(TAGS[0], size, site, at).or_else(|_| pool.allocate(TAGS[0], size, site, at))
    });
    let block = block.unwrap().cast::<u8>();
    let stop = arch::stop::catch(|| at_apc(|at| misuse(&pool, block, at)));
    stop.map(|stop| (stop.code, stop.parameters[0])).expect("a bugcheck")
}

#[test]
fn misuse_is_found() {
    fn free<const SITES: usize>(pool: &Pool<SITES>, block: NonNull<u8>, tag: usize, at: &mut Irql<Apc>) {
        // SAFETY: none: that is the test. What is touched is the pool's memory, which stays.
        unsafe { pool.free(block, TAGS[tag], Location::caller(), at) };
    }
    fn twice<const SITES: usize>(pool: &Pool<SITES>, block: NonNull<u8>, at: &mut Irql<Apc>) {
        // Another block keeps the page.
        let _ = pool.allocate(TAGS[0], 100, Location::caller(), at);
        free(pool, block, 0, at);
        free(pool, block, 0, at);
    }
    assert_eq!(stop::<0>(100, twice), (0xC2, 7));
    assert_eq!(stop::<8>(100, twice), (0xC2, 7));
    // Its addresses are free again: no block of the pool's.
    assert_eq!(stop::<0>(10_000, twice).0, 0xC2);
    assert_eq!(stop::<8>(10_000, twice).0, 0xC2);
    assert_eq!(stop::<0>(100, |pool, block, at| free(pool, block, 1, at)), (0xC2, 0xA));
    assert_eq!(stop::<0>(9000, |pool, block, at| free(pool, block, 1, at)), (0xC2, 0xA));
    // SAFETY: inside the block, or the pool's memory: see above.
    let inside = |block: NonNull<u8>, by: usize| unsafe { block.add(by) };
    assert_eq!(stop::<0>(100, |pool, block, at| free(pool, inside(block, 16), 0, at)), (0xC2, 0x42));
    assert_eq!(stop::<0>(9000, |pool, block, at| free(pool, inside(block, 4096), 0, at)), (0xC2, 0x42));
    assert_eq!(stop::<0>(9000, |pool, block, at| free(pool, inside(block, 16), 0, at)), (0xC2, 0x42));
    let overrun = |by: usize| {
        move |pool: &Pool<8>, block: NonNull<u8>, at: &mut Irql<Apc>| {
            // SAFETY: behind the block, in the pool's memory.
            unsafe { block.add(by).write(0) };
            free(pool, block, 0, at);
        }
    };
    assert_eq!(stop::<8>(100, overrun(100)), (0x19, 0x21));
    assert_eq!(stop::<8>(9000, overrun(9000)), (0x19, 0x21));
    // Written to after it was freed: found when its turn comes again.
    let late = |pool: &Pool<8>, block: NonNull<u8>, at: &mut Irql<Apc>| {
        let keep = pool.allocate(TAGS[0], 100, Location::caller(), at);
        free(pool, block, 0, at);
        // SAFETY: the pool's memory, which stays.
        unsafe { block.add(50).write(0) };
        for _ in 0..200 {
            if let Ok(other) = pool.allocate(TAGS[0], 100, Location::caller(), at) {
                free(pool, other.cast(), 0, at);
            }
        }
        assert!(keep.is_ok());
    };
    assert_eq!(stop::<8>(100, late), (0x19, 0x3));
}

#[test]
fn nothing_outside_may_be_touched() {
    let pool = Machine::<0>::new();
    let block = at_apc(|at| {
        let first = pool.allocate(TAGS[0], 20_000, Location::caller(), at);
        first.or_else(|_| pool.allocate(TAGS[0], 20_000, Location::caller(), at))
    });
    let start = block.unwrap().cast::<u8>();
    let address = start.addr().get();
    assert!(pool.is_allocated(address) && pool.is_allocated(address + 5 * PAGE_SIZE - 1));
    assert!(!pool.is_allocated(address + 5 * PAGE_SIZE) && !pool.is_allocated(address.wrapping_sub(1)));
    assert!(!pool.is_allocated(address + (CHUNK as usize + 1) * PAGE_SIZE), "not grown to");
    assert!(!pool.is_allocated(0) && !pool.is_allocated(usize::MAX));
    // SAFETY: allocated above.
    at_apc(|at| unsafe { pool.free(start, TAGS[0], Location::caller(), at) });
    assert!(!pool.is_allocated(address));
}
