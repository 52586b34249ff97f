//! The pool against a list of blocks: blocks don't overlap, are aligned, keep their content; counters agree; when all is freed, the
//! page manager has what it had. The same for the checked pool and the release one. Then each misuse, and its bugcheck.

use std::panic::Location;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use kernel::mm::Exhausted;
use kernel::mm::local::Local;
use kernel::mm::pool::block::overhead;
use kernel::mm::pool::class::Class;
use kernel::mm::pool::{At, Pool, Statistics, Tag};
use kernel::mm::ranges::PageRange;
use props::arena::{Arena, on_processor};
use proptest::prelude::*;
use sync::irql::{Irql, Passive, PoolAccess};

const TAGS: [Tag; 3] = [Tag::new(b"One "), Tag::new(b"Two "), Tag::new(b"More")];
const PAGES: u32 = 700;
const STEPS: usize = if cfg!(miri) { 25 } else { 4000 };
/// The longest blocks: Miri paints slowly.
const LONGEST: usize = if cfg!(miri) { 9000 } else { 40_000 };

fn at_pool<R>(f: impl FnOnce(&mut At) -> R) -> R {
    // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
    unsafe { Irql::<Passive>::with(|at| f(&mut at.raise::<PoolAccess>())) }
}

struct Block {
    bytes: NonNull<[u8]>,
    tag: usize,
    seed: u8,
}

impl Block {
    /// What a block of that length and seed holds: another byte at each place, over and over.
    fn pattern(&self) -> Vec<u8> {
        (0..=255).map(|at: u8| self.seed.wrapping_add(at)).collect()
    }

    fn paint(&self) {
        let pattern = self.pattern();
        for at in (0..self.bytes.len()).step_by(pattern.len()) {
            let count = pattern.len().min(self.bytes.len() - at);
            // SAFETY: the block is ours.
            unsafe {
                self.bytes.cast::<u8>().add(at).as_ptr().copy_from_nonoverlapping(pattern.as_ptr(), count)
            };
        }
    }

    fn is_painted(&self) -> bool {
        let pattern = self.pattern();
        // SAFETY: as above; painted, so initialised.
        unsafe { self.bytes.as_ref() }.chunks(pattern.len()).all(|piece| *piece == pattern[..piece.len()])
    }
}

struct Machine<const SITES: usize> {
    pool: Pool<SITES>,
    locals: [Local; 2],
    arena: Arena,
}

impl<const SITES: usize> Machine<SITES> {
    fn new(pages: u32) -> Box<Self> {
        let arena = Arena::new(&[PageRange { start: 1000, end: 1000 + pages }], true);
        Box::new(Self { pool: Pool::new(arena.manager), locals: [Local::new(), Local::new()], arena })
    }

    #[track_caller]
    fn allocate(&self, local: usize, tag: usize, size: usize) -> Result<NonNull<[u8]>, Exhausted> {
        let site = Location::caller();
        at_pool(|at| self.pool.allocate(TAGS[tag], size, site, &self.locals[local], at))
    }

    #[track_caller]
    fn free(&self, local: usize, tag: usize, block: NonNull<u8>) {
        let site = Location::caller();
        // SAFETY: the tests' own promise, which some of them break to see it found.
        at_pool(|at| unsafe { self.pool.free(block, TAGS[tag], site, &self.locals[local], at) });
    }

    fn drain(&self) {
        self.locals.iter().for_each(|local| {
            at_pool(|at| {
                self.pool.drain(local, at);
                self.pool.drain_pages(local, at);
            });
        });
    }

    fn free_pages(&self) -> u32 {
        on_processor(|at| self.arena.manager.frames().lock(at).verify().unwrap().free)
    }
}

/// Bytes that the pool takes for a request.
fn rounded(size: usize, checked: bool) -> u64 {
    Class::of(size, checked).map_or(size.next_multiple_of(4096), |class| class.bytes(checked)) as u64
}

fn run<const SITES: usize>(numbers: &[u64]) {
    let machine = Machine::<SITES>::new(PAGES);
    let mut blocks: Vec<Block> = Vec::new();
    let mut counted = [Statistics::default(); TAGS.len()];
    let mut refused = 0;
    for &random in numbers {
        let (kind, local, tag) =
            (random as u8 % 32, usize::from(random >> 8 & 1 != 0), (random >> 9) as usize % TAGS.len());
        let (a, b) = ((random >> 16) as usize & 0xFFFF, (random >> 32) as usize);
        match kind {
            // The longer the list, the more is freed, so that it breathes.
            0..17 => {
                let size = match a % 16 {
                    0..9 => b % 200,
                    9..13 => b % 4200,
                    13 => [0, 16, 4080, 4096, 4097, 8192, 64][b % 7],
                    14 => b % LONGEST,
                    _ => 4000 + b % 100,
                };
                match machine.allocate(local, tag, size) {
                    Ok(bytes) => {
                        assert_eq!(bytes.len(), size);
                        let align = if size >= 4096 { 4096 } else { 16 };
                        assert!(bytes.addr().get().is_multiple_of(align), "{size} bytes at {bytes:?}");
                        let block = Block { bytes, tag, seed: random as u8 };
                        block.paint();
                        blocks.push(block);
                        counted[tag].allocations += 1;
                        counted[tag].bytes += rounded(size, SITES > 0);
                    }
                    Err(Exhausted) => refused += 1,
                }
            }
            17..31 => {
                if !blocks.is_empty() {
                    let block = blocks.swap_remove(b % blocks.len());
                    assert!(
                        block.is_painted(),
                        "somebody else wrote into a block of {} bytes",
                        block.bytes.len()
                    );
                    machine.free(local, block.tag, block.bytes.cast());
                    counted[block.tag].frees += 1;
                    counted[block.tag].bytes -= rounded(block.bytes.len(), SITES > 0);
                }
            }
            _ => at_pool(|at| machine.pool.drain(&machine.locals[local], at)),
        }
    }
    for (tag, counted) in TAGS.into_iter().zip(counted) {
        assert_eq!(machine.pool.statistics(tag, machine.locals.iter()), counted, "{tag}");
    }
    // Who holds what: by the account, and by the list.
    let mut live = (0, 0);
    at_pool(|at| machine.pool.leaks(at, |leak| live = (live.0 + leak.blocks, live.1 + leak.bytes)));
    if SITES > 0 {
        let bytes: usize = blocks.iter().map(|block| block.bytes.len()).sum();
        assert_eq!(live, (blocks.len() as u64, bytes as u64));
    }
    // Never refused before memory was short: the blocks of that time filled at least a third of it.
    assert!(refused == 0 || counted.iter().map(|tag| tag.allocations).sum::<u64>() > 50);
    for block in blocks {
        assert!(block.is_painted());
        machine.free(0, block.tag, block.bytes.cast());
    }
    machine.drain();
    assert_eq!(at_pool(|at| machine.pool.slab_pages(at)), 0, "slabs kept");
    assert_eq!(machine.free_pages(), PAGES, "pages lost");
}

proptest! {
    // 250 times 4000 steps, on each of two pools.
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 250 },
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]
    #[test]
    fn blocks_are_where_the_list_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        run::<0>(&numbers);
        run::<64>(&numbers);
    }
}

fn exhausts<const SITES: usize>() {
    const PAGES: u32 = 64;
    let machine = Machine::<SITES>::new(PAGES);
    for size in [0, 64, 1000, 4000, 4096, 20_000] {
        let mut blocks = Vec::new();
        while let Ok(block) = machine.allocate(0, 0, size) {
            blocks.push(block.cast::<u8>());
        }
        // Above a page, a block is found where 2^n pages are free.
        let taken = if size > 4096 { size.div_ceil(4096).next_power_of_two() * 4096 } else { size + 80 };
        assert!(blocks.len() * taken > PAGES as usize * 3 / 4 * 4096, "{} blocks of {size}", blocks.len());
        assert_eq!(machine.allocate(1, 1, size), Err(Exhausted));
        // Freed by the other processor, in another order.
        blocks.chunks(7).rev().flatten().for_each(|&block| machine.free(1, 0, block));
        machine.drain();
        assert_eq!(machine.free_pages(), PAGES, "after blocks of {size}");
    }
    assert_eq!(machine.allocate(0, 0, usize::MAX), Err(Exhausted));
    assert_eq!(machine.allocate(0, 0, 1 << 45), Err(Exhausted));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes there: it hands out every block")]
fn exhaustion_is_an_error_and_leaves_nothing_behind() {
    exhausts::<0>();
    exhausts::<64>();
}

/// Runs `f` on a block of `size` bytes; the bugcheck's code and parameters, and the block's address.
fn stop<const SITES: usize>(size: usize, f: impl Fn(&Machine<SITES>, NonNull<u8>)) -> (u32, [u64; 4], u64) {
    let machine = Machine::<SITES>::new(64);
    let block = machine.allocate(0, 0, size).unwrap().cast::<u8>();
    let stop = arch::stop::catch(|| f(&machine, block)).expect("a bugcheck");
    // A caught stop leaves the level of the code that it unwound.
    // SAFETY: no token is left.
    unsafe { arch::irql::set(0) };
    (stop.code, stop.parameters, block.addr().get() as u64)
}

fn one() -> u64 {
    TAGS[0].value().into()
}

fn twice_and_wrong<const SITES: usize>() {
    for size in [1, 64, 4000, 4096, 9000] {
        let (code, parameters, block) = stop::<SITES>(size, |machine, block| {
            machine.free(0, 0, block);
            machine.free(0, 0, block);
        });
        assert_eq!((code, parameters[0], parameters[3]), (0xC2, 7, block), "{size}");
        let (code, parameters, block) = stop::<SITES>(size, |machine, block| machine.free(0, 1, block));
        assert_eq!((code, parameters), (0xC2, [0xA, block, one(), TAGS[1].value().into()]), "{size}");
    }
    // A pointer into a block.
    let (code, parameters, block) = stop::<SITES>(64, |machine, block| {
        // SAFETY: within the block.
        let inside = unsafe {
            block.write_bytes(0, 64);
            block.add(32)
        };
        machine.free(0, 0, inside);
    });
    assert_eq!((code, parameters[0], parameters[1]), (0x19, 0x20, block + 32));
    // The word before a block.
    let (code, parameters, block) = stop::<SITES>(64, |machine, block| {
        // SAFETY: in the same page of the arena.
        unsafe { block.sub(8).cast::<u64>().write(0x4141) };
        machine.free(0, 0, block);
    });
    assert_eq!((code, parameters[0], parameters[1], parameters[2]), (0x19, 0x20, block, 0x4141));
    // The same while it is free: found by the next owner's free at the latest.
    let damaged = arch::stop::catch(|| {
        let machine = Machine::<SITES>::new(64);
        let block = machine.allocate(0, 0, 64).unwrap().cast::<u8>();
        machine.free(0, 0, block);
        // SAFETY: in the same page of the arena.
        unsafe { block.sub(8).cast::<u64>().write(0x4141) };
        for _ in 0..100 {
            let other = machine.allocate(0, 0, 64).unwrap().cast();
            machine.free(0, 0, other);
        }
    });
    // SAFETY: no token is left.
    unsafe { arch::irql::set(0) };
    let damaged = damaged.expect("a bugcheck");
    assert_eq!((damaged.code, damaged.parameters[0]), (0x19, 0x20));
    // A page that is nobody's block.
    let (code, parameters, block) = stop::<SITES>(9000, |machine, block| {
        // SAFETY: within the block.
        machine.free(0, 0, unsafe { block.add(4096) });
    });
    assert_eq!((code, parameters[0], parameters[1]), (0xC2, 0x42, block + 4096));
}

#[test]
fn freeing_twice_or_what_is_another_s_is_a_bugcheck_in_every_build() {
    twice_and_wrong::<0>();
    twice_and_wrong::<64>();
}

#[test]
fn the_checked_pool_finds_writes_behind_the_end_and_after_the_free() {
    for size in [0, 1, 64, 100, 4000, 4097, 9000] {
        let (code, parameters, block) = stop::<64>(size, |machine, block| {
            // SAFETY: in the same page of the arena.
            unsafe { block.add(size).write(0) };
            machine.free(0, 0, block);
        });
        assert_eq!((code, parameters), (0x19, [0x21, block, one(), block + size as u64]), "{size}");
    }
    // Reuse is delayed, so what was freed is found when its turn comes.
    let (code, parameters, block) = stop::<64>(64, |machine, block| {
        machine.free(0, 0, block);
        // SAFETY: in the same page of the arena.
        unsafe { block.add(24).write(1) };
        for _ in 0..if cfg!(miri) { 300 } else { 2000 } {
            let other = machine.allocate(0, 1, 64).unwrap().cast();
            assert!(other != block, "reused with another's write in it");
            machine.free(0, 1, other);
        }
    });
    assert_eq!((code, parameters), (0x19, [0x3, block, one(), block + 24]));
}

#[test]
fn leaks_are_told_by_tag_and_call_site() {
    let machine = Machine::<64>::new(64);
    let early = machine.allocate(0, 0, 10).unwrap();
    at_pool(|at| machine.pool.mark(at));
    let line = line!() + 1;
    let late = [(); 3].map(|()| machine.allocate(1, 1, 100).unwrap());
    machine.free(0, 0, machine.allocate(0, 0, 5000).unwrap().cast());
    let mut told = (0, 0);
    at_pool(|at| {
        machine.pool.leaks(at, |leak| {
            // One place may have several `Location`s.
            assert_eq!((leak.tag, leak.site.line()), (TAGS[1], line));
            told = (told.0 + leak.blocks, told.1 + leak.bytes);
        });
    });
    assert_eq!(told, (3, 300));
    late.into_iter().for_each(|block| machine.free(0, 1, block.cast()));
    machine.free(0, 0, early.cast());
    at_pool(|at| machine.pool.leaks(at, |leak| panic!("{leak:?}")));
}

#[test]
fn every_size_has_the_smallest_class_that_holds_it() {
    for checked in [false, true] {
        let classes: Vec<Class> = Class::all().collect();
        for size in (0..=5000).step_by(if cfg!(miri) { 61 } else { 1 }) {
            let wanted = classes.iter().find(|class| class.total() >= size + overhead(checked));
            assert_eq!(Class::of(size, checked), wanted.copied(), "{size}");
        }
        for class in classes {
            assert!(class.total().is_multiple_of(16) && class.in_a_page() * class.total() <= 4096);
            assert!(class.most_kept() >= 2);
        }
    }
}

/// Processors that allocate and free at once, each other's blocks included.
fn threads<const SITES: usize>() {
    const ROUNDS: usize = if cfg!(miri) { 6 } else { 20_000 };
    const PROCESSORS: usize = 3;
    let arena = Arena::new(&[PageRange { start: 1000, end: 1000 + PAGES }], true);
    let pool = Pool::<SITES>::new(arena.manager);
    let places: [AtomicPtr<u8>; 8] = Default::default();
    let give = |block: *mut u8, local: &Local| {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: who swapped the block out of its place owns it; its first word is its size, and the rest was filled with it.
        unsafe {
            let size = block.cast::<usize>().read();
            for at in (8..size).step_by(17) {
                assert_eq!(
                    block.add(at).read(),
                    size as u8,
                    "somebody else wrote into a block of {size} bytes"
                );
            }
            at_pool(|at| pool.free(block, TAGS[0], Location::caller(), local, at));
        }
    };
    let run = |number: usize| {
        let local = Local::new();
        let mut random = 0x9E37_79B9_u32 ^ (number as u32 + 1) << 16;
        for _ in 0..ROUNDS {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let size = if random.is_multiple_of(5) {
                8 + random as usize % 12_000
            } else {
                8 + random as usize % 200
            };
            let site = Location::caller();
            let Ok(block) = at_pool(|at| pool.allocate(TAGS[0], size, site, &local, at)) else { continue };
            let block = block.cast::<u8>();
            // SAFETY: our own block.
            unsafe {
                (8..size).step_by(17).for_each(|at| block.add(at).write(size as u8));
                block.cast::<usize>().write(size);
            }
            give(places[random as usize >> 20 & 7].swap(block.as_ptr(), Ordering::AcqRel), &local);
        }
        local
    };
    let locals: Vec<Local> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PROCESSORS).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    places.iter().for_each(|place| give(place.swap(std::ptr::null_mut(), Ordering::AcqRel), &locals[0]));
    let counted = pool.statistics(TAGS[0], locals.iter());
    assert_eq!((counted.bytes, counted.allocations), (0, counted.frees));
    assert!(counted.allocations as usize > PROCESSORS * ROUNDS / 2);
    for local in &locals {
        at_pool(|at| {
            pool.drain(local, at);
            pool.drain_pages(local, at);
        });
    }
    assert_eq!(
        on_processor(|at| arena.manager.frames().lock(at).verify().unwrap().free),
        PAGES,
        "pages lost"
    );
}

#[test]
fn processors_hand_blocks_to_each_other() {
    threads::<0>();
    threads::<64>();
}
