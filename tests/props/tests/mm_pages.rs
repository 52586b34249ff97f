//! Page allocation against a list that says of each page what it is: pages are handed out once, where they were asked for, with
//! the right content; none is lost; a request fails only if the list has no place for it; shares and references move pages as
//! the list says. The invariants of `Frames` are verified throughout.

use std::collections::BTreeMap;

use kernel::mm::frames::{CHUNK, Frames};
use kernel::mm::pages::{NO_LIMIT, Page, PageCache};
use kernel::mm::pfn::{PageNumber, State};
use kernel::mm::ranges::PageRange;
use props::arena::{Arena, on_processor};
use proptest::prelude::*;

/// 4 GiB, where the zones meet.
const BORDER: u32 = 1 << 20;

/// Memory on both sides of 4 GiB, with holes, and edges inside of chunks.
const RANGES: [PageRange; 4] = [
    PageRange { start: BORDER - 3 * CHUNK - 100, end: BORDER - 2 * CHUNK - 37 },
    PageRange { start: BORDER - 2 * CHUNK - 9, end: BORDER - 100 },
    PageRange { start: BORDER, end: BORDER + CHUNK + 1 },
    PageRange { start: BORDER + CHUNK + 7, end: BORDER + 2 * CHUNK + 300 },
];

#[derive(Clone, Debug)]
enum Op {
    Allocate(usize),
    Free(usize, u16),
    Contiguous { count: u32, align: u8, limit: u32 },
    Pair(usize),
    FreeRun(usize, u16),
    Drain(usize),
    Zero,
    TakeZeroed,
    Share(u16),
    Unshare(u16, bool),
    Reference(u16),
    Dereference(u16),
    Write(bool),
    Within(u32, PageRange),
    Promise(u32),
    Unpromise(u32),
    Keep,
    Retire(u16),
}

/// What a random number stands for. One number an operation: a million values of a nested strategy take a minute to draw.
fn op(random: u64) -> Op {
    let (kind, a, b, c) =
        (random as u8 % 48, (random >> 8) as u16, (random >> 24) as u16, (random >> 40) as u32);
    let cache = usize::from(b % 2);
    match kind {
        0..12 => Op::Allocate(cache),
        12..22 => Op::Free(cache, a),
        22..25 => Op::Contiguous {
            count: match b % 9 {
                0..6 => 1 + c % 19,
                6..8 => 1 + c % 599,
                _ => 1 + c % (3 * CHUNK - 1),
            },
            align: (a % 11) as u8,
            limit: match a >> 4 & 7 {
                0..5 => NO_LIMIT,
                5 => BORDER,
                _ => BORDER - 3 * CHUNK - 100 + (c >> 3) % (7 * CHUNK),
            },
        },
        25..28 => Op::FreeRun(cache, a),
        28 => Op::Drain(cache),
        29..31 => Op::Zero,
        31 => Op::TakeZeroed,
        32..34 => Op::Share(a),
        34..38 => Op::Unshare(a, b.is_multiple_of(2)),
        38 => Op::Reference(a),
        39..41 => Op::Dereference(a),
        41 => Op::Write(a.is_multiple_of(4)),
        42..44 => Op::Promise(if b % 8 == 0 { c % 2000 } else { c % 20 }),
        44 if b % 2 == 0 => {
            let start = BORDER - 3 * CHUNK - 200 + c % (6 * CHUNK);
            Op::Within(1 + u32::from(a) % 40, PageRange { start, end: start + 1 + u32::from(b) % 900 })
        }
        44 => Op::Unpromise(c % 40),
        45 if b.is_multiple_of(64) => Op::Retire(a),
        45 => Op::Pair(cache),
        _ => Op::Keep,
    }
}

/// What the list says of a page that is not free.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    /// In use, with references and shares.
    Active {
        references: u32,
        shares: u32,
        dirty: bool,
    },
    Run,
    /// Somebody clears it, to put it back.
    Clearing,
    Zeroed,
    Standby,
    Modified,
    Bad,
}

const FRESH: Is = Is::Active { references: 1, shares: 1, dirty: false };

/// Tests can't make numbers of pages.
fn page_of(number: u32) -> PageNumber {
    // SAFETY: `PageNumber` is transparent; used as a key only, or for a page that was handed out.
    unsafe { std::mem::transmute::<u32, PageNumber>(number) }
}

struct Model<'a> {
    arena: &'a Arena,
    caches: [PageCache; 2],
    /// Every page that isn't free or in a cache.
    used: BTreeMap<PageNumber, Is>,
    runs: Vec<(PageNumber, u32)>,
    /// What is being written, to no slot: one of its references.
    writing: Option<PageNumber>,
    /// Zeroed and standby pages before the step.
    spare: (u32, u32),
    promised: u32,
}

impl Model<'_> {
    fn mark(&mut self, page: PageNumber, is: Is) {
        let known = self.arena.ranges.iter().any(|range| (range.start..range.end).contains(&page.number()));
        assert!(known, "{page:?} is no memory");
        let before = self.used.insert(page, is);
        assert!(before.is_none(), "{page:?} is {before:?} already");
    }

    /// Some page of which `f` holds: the first behind a random one.
    fn pick(&self, which: u16, f: impl Fn(Is) -> bool) -> Option<(PageNumber, Is)> {
        let from = RANGES[0].start + u32::from(which) % (RANGES[3].end - RANGES[0].start);
        let from = page_of(from);
        let found = self.used.range(from..).chain(self.used.range(..from)).find(|&(_, &is)| f(is));
        found.map(|(&page, &is)| (page, is))
    }

    fn frames<R>(&self, f: impl FnOnce(&mut Frames) -> R) -> R {
        on_processor(|at| f(&mut self.arena.manager.frames().lock(at)))
    }

    fn cached(&self) -> u32 {
        self.caches.iter().map(PageCache::len).sum()
    }

    fn drain(&mut self) {
        on_processor(|at| {
            self.caches.iter().for_each(|cache| self.arena.manager.drain(cache, at));
        });
    }

    /// Free, or to be made free.
    fn is_free(&self, number: u32) -> bool {
        let is = self.used.get(&page_of(number)).copied();
        self.arena.ranges.iter().any(|range| (range.start..range.end).contains(&number))
            && matches!(is, None | Some(Is::Zeroed | Is::Standby))
    }

    /// Is there a place by the rules that `Frames` states? Blocks of 2^n up to a chunk, then whole chunks.
    fn has_room(&self, count: u32, align: u8, limit: u32) -> bool {
        let first = RANGES[0].start;
        let mut used = vec![0_u32; (RANGES[3].end - first) as usize + 1];
        for (page, is) in &self.used {
            used[(page.number() - first) as usize + 1] = u32::from(!matches!(is, Is::Zeroed | Is::Standby));
        }
        // How many are in use before each page.
        for at in 1..used.len() {
            used[at] += used[at - 1];
        }
        let size = count.next_power_of_two().max(1 << align);
        let (size, step) =
            if size <= CHUNK { (size, size) } else { (count.next_multiple_of(CHUNK), CHUNK.max(1 << align)) };
        let last = RANGES[RANGES.len() - 1].end;
        (first / step * step..last).step_by(step as usize).any(|start| {
            let run = PageRange { start, end: start + size };
            // Neighbouring ranges of the array touch nowhere, so a run lies within one.
            run.end <= limit
                && RANGES.iter().any(|range| range.covers(run))
                && used[(run.end - first) as usize] == used[(run.start - first) as usize]
        })
    }

    /// Zeroed and standby pages that the manager made free: the entries say so.
    fn learn_reclaims(&mut self) {
        let counts = self.frames(|frames| frames.counts());
        if (counts.zeroed, counts.standby) == self.spare {
            return;
        }
        let memory = self.arena.manager.memory();
        self.used.retain(|&page, is| match is {
            Is::Zeroed => memory.entry(page).state() == Some(State::Zeroed),
            Is::Standby => memory.entry(page).state() == Some(State::Standby),
            _ => true,
        });
    }

    fn contiguous(&mut self, count: u32, align: u8, limit: u32) {
        let manager = self.arena.manager;
        let take = || on_processor(|at| manager.allocate_contiguous(count, align, limit, at));
        let page = match take() {
            Ok(page) => Ok(page),
            Err(_) => {
                self.drain();
                let counts = self.frames(|frames| frames.counts());
                let left = counts.free + counts.zeroed + counts.standby;
                let again = take();
                let wanted = count <= left - self.promised && self.has_room(count, align, limit);
                assert_eq!(again.is_ok(), wanted, "{count} {align} {limit}");
                again
            }
        };
        self.learn_reclaims();
        let Ok(page) = page else { return };
        let first = page.into_number();
        assert!(first.number().is_multiple_of(1 << align), "{first:?} is not aligned to 2^{align}");
        assert!(first.number() + count <= limit, "{first:?} + {count} is above {limit}");
        self.mark_run(first, count);
    }

    fn mark_run(&mut self, first: PageNumber, count: u32) {
        self.runs.push((first, count));
        for number in first.number()..first.number() + count {
            let page = page_of(number);
            self.mark(page, Is::Run);
        }
    }

    fn step(&mut self, op: &Op) {
        let counts = self.frames(|frames| frames.counts());
        assert!(counts.free + counts.zeroed >= self.promised, "what was promised is not there");
        self.spare = (counts.zeroed, counts.standby);
        let manager = self.arena.manager;
        match *op {
            Op::Allocate(cache) => {
                let page = on_processor(|at| manager.allocate(&self.caches[cache], at));
                self.learn_reclaims();
                match page {
                    Ok(page) => self.mark(page.into_number(), FRESH),
                    Err(_) => {
                        // Nothing but pairs, for which nobody asks the caches here.
                        let kept = self.caches[cache].len();
                        assert!(
                            kept.is_multiple_of(2) && kept <= 2 * PageCache::PAIRS as u32,
                            "{kept} are kept"
                        );
                        let counts = self.frames(|frames| frames.counts());
                        assert_eq!((counts.free + counts.zeroed, counts.standby), (self.promised, 0));
                    }
                }
            }
            Op::Free(cache, which) => {
                if let Some((page, _)) =
                    self.pick(which, |is| matches!(is, Is::Active { references: 1, shares: 1, .. }))
                {
                    self.used.remove(&page);
                    // SAFETY: the list says that it is in use, once.
                    let page = unsafe { Page::from_number(page) };
                    on_processor(|at| manager.free(page, &self.caches[cache], at));
                }
            }
            Op::Contiguous { count, align, limit } => self.contiguous(count, align, limit),
            Op::Pair(cache) => {
                match on_processor(|at| manager.allocate_pair(&self.caches[cache], at)) {
                    Ok(page) => {
                        self.learn_reclaims();
                        self.mark_run(page.into_number(), 2);
                    }
                    // The lists had none, which is told of runs: here nobody asks the caches.
                    Err(_) => self.contiguous(2, 0, NO_LIMIT),
                }
            }
            Op::FreeRun(cache, which) => {
                if !self.runs.is_empty() {
                    let (first, count) = self.runs.swap_remove(which as usize % self.runs.len());
                    self.used
                        .retain(|page, _| !(first.number()..first.number() + count).contains(&page.number()));
                    // SAFETY: the list says that the run was handed out.
                    on_processor(|at| unsafe {
                        let page = Page::from_number(first);
                        match count {
                            2 => manager.free_pair(page, &self.caches[cache], at),
                            _ => manager.free_contiguous(page, count, at),
                        }
                    });
                }
            }
            Op::Drain(cache) => on_processor(|at| manager.drain(&self.caches[cache], at)),
            // It takes until the next such step: others go on meanwhile.
            Op::Zero => match self.pick(0, |is| is == Is::Clearing) {
                Some((page, _)) => {
                    self.frames(|frames| frames.give_zeroed(page));
                    self.used.insert(page, Is::Zeroed);
                }
                None => {
                    if let Some(page) = self.frames(Frames::take_to_zero) {
                        self.mark(page, Is::Clearing);
                    }
                }
            },
            Op::TakeZeroed => {
                if let Some(page) = self.frames(Frames::take_zeroed) {
                    assert_eq!(self.used.insert(page, FRESH), Some(Is::Zeroed));
                }
            }
            Op::Share(which) => {
                let wanted = |is| matches!(is, Is::Active { .. } | Is::Standby | Is::Modified);
                if let Some((page, is)) = self.pick(which, wanted) {
                    let came_back = self.frames(|frames| frames.share(page));
                    let (expected, now) = match is {
                        Is::Active { references, shares: 0, dirty } => {
                            (true, Is::Active { references: references + 1, shares: 1, dirty })
                        }
                        Is::Active { references, shares, dirty } => {
                            (false, Is::Active { references, shares: shares + 1, dirty })
                        }
                        is => (true, Is::Active { references: 1, shares: 1, dirty: is == Is::Modified }),
                    };
                    assert_eq!(came_back, expected);
                    self.used.insert(page, now);
                }
            }
            Op::Unshare(which, written) => {
                if let Some((page, Is::Active { references, shares, dirty })) =
                    self.pick(which, |is| matches!(is, Is::Active { shares: 1.., .. }))
                {
                    self.frames(|frames| frames.unshare(page, written));
                    let gone = u32::from(shares == 1);
                    self.settle(page, references - gone, shares - 1, dirty || written);
                }
            }
            Op::Reference(which) => {
                if let Some((page, Is::Active { references, shares, dirty })) =
                    self.pick(which, |is| matches!(is, Is::Active { .. }))
                {
                    self.frames(|frames| frames.reference(page));
                    self.settle(page, references + 1, shares, dirty);
                }
            }
            Op::Dereference(which) => {
                let wanted = |is| matches!(is, Is::Active { references, shares, .. } if references > u32::from(shares > 0));
                if let Some((page, Is::Active { references, shares, dirty })) = self.pick(which, wanted) {
                    let writers = self.writing == Some(page);
                    if writers && references == 1 + u32::from(shares > 0) {
                        return;
                    }
                    self.frames(|frames| frames.dereference(page));
                    self.settle(page, references - 1, shares, dirty);
                }
            }
            // Where the range begins inside of a block, the block is passed over: so a refusal says nothing.
            Op::Within(count, within) => {
                let page = on_processor(|at| manager.allocate_contiguous_within(count, 0, within, at));
                self.learn_reclaims();
                if let Ok(page) = page {
                    let first = page.into_number();
                    let run = PageRange { start: first.number(), end: first.number() + count };
                    assert!(within.covers(run), "{run:?} is not in {within:?}");
                    let size = count.next_power_of_two();
                    assert_eq!(
                        run.start / size,
                        (run.end - 1) / size,
                        "{run:?} crosses a multiple of {size}"
                    );
                    self.runs.push((first, count));
                    (run.start..run.end).for_each(|number| self.mark(page_of(number), Is::Run));
                }
            }
            Op::Promise(count) => {
                let before = self.frames(|frames| frames.counts());
                let can = self.frames(|frames| frames.promise(count));
                self.learn_reclaims();
                let left = before.free + before.zeroed + before.standby - self.promised;
                assert_eq!(can, count <= left, "{count} promised of {left}");
                if can {
                    self.promised += count;
                }
            }
            Op::Unpromise(count) => {
                let count = count.min(self.promised);
                self.frames(|frames| frames.unpromise(count));
                self.promised -= count;
            }
            // Whatever was taken by others meanwhile, it is there.
            Op::Keep => {
                if self.promised > 0 {
                    let (page, is_zero) = self.frames(Frames::keep_promise);
                    self.promised -= 1;
                    if is_zero {
                        assert_eq!(self.used.insert(page, FRESH), Some(Is::Zeroed));
                    } else {
                        self.mark(page, FRESH);
                    }
                }
            }
            // For good: whoever is given it again finds it marked.
            Op::Retire(which) => {
                let alone = |is| matches!(is, Is::Active { references: 1, shares: 1, .. });
                if let Some((page, _)) = self.pick(which, alone) {
                    self.frames(|frames| frames.retire(page));
                    self.used.insert(page, Is::Bad);
                }
            }
            // It takes until the next such step, and doesn't always succeed.
            Op::Write(fails) => match self.writing.take() {
                Some(page) => {
                    self.frames(|frames| frames.end_write(page, None, !fails));
                    let Some(&Is::Active { references, shares, dirty }) = self.used.get(&page) else {
                        panic!("{page:?} went while it was written");
                    };
                    self.settle(page, references - 1, shares, dirty || fails);
                }
                None => {
                    self.writing = self.frames(Frames::begin_write).map(|(page, _)| page);
                    if let Some(page) = self.writing {
                        let now = Is::Active { references: 1, shares: 0, dirty: false };
                        assert_eq!(self.used.insert(page, now), Some(Is::Modified));
                    }
                }
            },
        }
    }

    fn settle(&mut self, page: PageNumber, references: u32, shares: u32, dirty: bool) {
        let now = match (references, dirty) {
            (0, true) => Is::Modified,
            (0, false) => Is::Standby,
            _ => Is::Active { references, shares, dirty },
        };
        self.used.insert(page, now);
    }

    /// Every page is somewhere, and its entry agrees with the list.
    fn compare(&self) {
        let counts = self.frames(|frames| frames.verify()).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let is = |wanted: Is| self.used.values().filter(|&&is| is == wanted).count() as u32;
        assert_eq!(
            (counts.zeroed, counts.standby, counts.modified, counts.bad),
            (is(Is::Zeroed), is(Is::Standby), is(Is::Modified), is(Is::Bad))
        );
        assert_eq!(counts.promised, self.promised);
        let total = self.used.len() as u32 + self.cached() + counts.free;
        assert_eq!(total, self.arena.total(), "pages lost or made");
        let memory = self.arena.manager.memory();
        for (&page, &is) in &self.used {
            let wanted = match is {
                Is::Active { shares: 0, .. } => State::Transition,
                Is::Active { .. } | Is::Run | Is::Clearing => State::Active,
                Is::Zeroed => State::Zeroed,
                Is::Standby => State::Standby,
                Is::Modified => State::Modified,
                Is::Bad => State::Bad,
            };
            assert_eq!(memory.entry(page).state(), Some(wanted), "{page:?}");
            if let Is::Active { references, shares, .. } = is {
                assert_eq!(memory.entry(page).counts(), (references, shares), "{page:?}");
            }
        }
    }
}

const STEPS: usize = if cfg!(miri) { 60 } else { 4000 };

proptest! {
    // 256 times 4000 steps.
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 256 },
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]
    #[test]
    fn pages_are_where_the_list_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        let arena = Arena::new(&RANGES, false);
        let caches = [PageCache::new(), PageCache::new()];
        let mut model = Model { arena: &arena, caches, used: BTreeMap::new(), runs: Vec::new(), writing: None, spare: (0, 0), promised: 0 };
        for (number, &random) in numbers.iter().enumerate() {
            model.step(&op(random));
            if number % 400 == 0 {
                model.compare();
            }
        }
        model.compare();
        // The lists agree, page by page, on what is free.
        model.drain();
        let free = (RANGES[0].start..RANGES[3].end).filter(|&number| model.is_free(number)).count();
        let counts = model.frames(|frames| frames.counts());
        prop_assert_eq!(free as u32, counts.free + counts.zeroed + counts.standby);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes there, for steps that the random ones take as well")]
fn pages_freed_in_any_order_merge_to_what_they_were() {
    let arena = Arena::new(&RANGES, false);
    let cache = PageCache::new();
    let mut pages = Vec::new();
    on_processor(|at| {
        while let Ok(page) = arena.manager.allocate(&cache, at) {
            pages.push(page);
        }
        assert_eq!(pages.len() as u32, arena.total());
        // Every second one first, so that nothing merges until the others come.
        let (even, odd): (Vec<_>, Vec<_>) =
            pages.into_iter().partition(|page| page.number().number() % 2 == 0);
        for page in even.into_iter().chain(odd) {
            arena.manager.free(page, &cache, at);
        }
        arena.manager.drain(&cache, at);
        let counts = arena.manager.frames().lock(at).verify().unwrap();
        assert_eq!(counts.free, arena.total());
        // The largest run that there was before is there again: a chunk above 4 GiB and one below.
        for limit in [NO_LIMIT, BORDER] {
            assert!(arena.manager.allocate_contiguous(CHUNK, 9, limit, at).is_ok());
        }
        assert!(arena.manager.allocate_contiguous(2 * CHUNK, 0, NO_LIMIT, at).is_err());
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes long there: it hands out every page")]
fn memory_added_later_is_used() {
    let arena = Arena::new(&[RANGES[0], RANGES[3]], false);
    let late = [PageRange { start: RANGES[0].end, end: RANGES[0].end + 20 }, RANGES[2]];
    on_processor(|at| {
        for range in late {
            // SAFETY: the arena has entries for everything between its first and its last range.
            unsafe { arena.manager.frames().lock(at).add(range) };
        }
        let counts = arena.manager.frames().lock(at).verify().unwrap();
        assert_eq!(counts.free, arena.total() + late[0].len() + late[1].len());
        let cache = PageCache::new();
        let mut count = 0;
        while let Ok(page) = arena.manager.allocate(&cache, at) {
            let _ = page.into_number();
            count += 1;
        }
        assert_eq!(count, counts.free);
    });
}

#[test]
fn a_promise_that_nobody_made_is_a_bugcheck() {
    let arena = Arena::new(&RANGES, false);
    let stop =
        |f: fn(&mut Frames)| arch::stop::catch(|| on_processor(|at| f(&mut arena.manager.frames().lock(at))));
    assert_eq!(
        stop(|frames| frames.unpromise(1)).map(|stop| (stop.code, stop.parameters[0])),
        Some((0x1A, 0x410))
    );
    let kept_twice = stop(|frames| {
        assert!(frames.promise(1));
        frames.keep_promise();
        frames.keep_promise();
    });
    assert_eq!(kept_twice.map(|stop| (stop.code, stop.parameters[0])), Some((0x1A, 0x410)));
}

#[test]
fn a_page_freed_twice_or_under_io_is_a_bugcheck() {
    let stop = |f: &dyn Fn(&Arena, PageNumber, &PageCache)| {
        let arena = Arena::new(&RANGES, false);
        let cache = PageCache::new();
        let page = on_processor(|at| arena.manager.allocate(&cache, at)).unwrap().into_number();
        let stop = arch::stop::catch(|| f(&arena, page, &cache)).expect("a bugcheck");
        assert_eq!(stop.parameters[0], u64::from(page.number()));
        stop.code
    };
    // SAFETY: none: the second time, nobody owns the page. That is the test; entries are atomics, so nothing worse happens.
    let free = |arena: &Arena, page, cache: &PageCache| unsafe {
        on_processor(|at| arena.manager.free(Page::from_number(page), cache, at));
    };
    assert_eq!(
        stop(&|arena, page, cache| {
            free(arena, page, cache);
            free(arena, page, cache);
        }),
        0x4E
    );
    assert_eq!(
        stop(&|arena, page, cache| {
            on_processor(|at| arena.manager.frames().lock(at).reference(page));
            free(arena, page, cache);
        }),
        0x4E
    );
    // Either of two pages that a cache keeps together.
    for which in 0..2 {
        let arena = Arena::new(&RANGES, false);
        let cache = PageCache::new();
        let first = on_processor(|at| arena.manager.allocate_pair(&cache, at)).unwrap().into_number();
        // SAFETY: both are this test's.
        on_processor(|at| unsafe { arena.manager.free_pair(Page::from_number(first), &cache, at) });
        let page = page_of(first.number() + which);
        // That it isn't this test's any more is the test, as above.
        let stop = arch::stop::catch(|| free(&arena, page, &cache));
        assert_eq!(stop.map(|stop| (stop.code, stop.parameters[0])), Some((0x4E, page.number().into())));
    }
    // A count that reached zero does not rise by a reference.
    assert_eq!(
        stop(&|arena, page, _| {
            on_processor(|at| {
                let mut frames = arena.manager.frames().lock(at);
                frames.unshare(page, false);
                frames.reference(page);
            });
        }),
        0x4E
    );
}
