//! Pageable memory against a list of contents: whatever is trimmed, written, evicted, read in, taken back and ended between each other's
//! steps, an address has what was last written to it, and nobody else's page is written to. Two processors keep translations until
//! they are told to forget them.

use std::collections::BTreeMap;

use kernel::mm::frames::Frames;
use kernel::mm::pages::{Page, PageCache};
use kernel::mm::paging::{self, Ended, Read};
use kernel::mm::pfn::{PAGE_SIZE, PageNumber, State};
use kernel::mm::ranges::PageRange;
use kernel::mm::tables::{Access, Caching, Found, Leaf, Tables};
use props::arena::{Arena, on_processor};
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 250 } else { 6000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 200 };

/// Addresses, more than there are pages for.
const ADDRESSES: usize = 64;
const START: u64 = 0xFFFF_E800_0000_0000;
/// Pages: tables, a reserve, and few others.
const PAGES: u32 = 4 + Frames::RESERVE + 28;
const SLOTS: u32 = 40;
const LEAF: Leaf = Leaf { access: Access::Write, caching: Caching::WriteBack };

/// Two words of a page, far from each other: what is saved while it changes has them differ.
type Content = [u64; 2];
const PLACES: [usize; 2] = [0, PAGE_SIZE / 8 - 1];

fn address_of(index: usize) -> u64 {
    START + (index * PAGE_SIZE) as u64
}

fn page_at(physical: u64) -> PageNumber {
    // SAFETY: `PageNumber` is transparent; the tables of the test lead to pages of its arena.
    unsafe { std::mem::transmute::<u32, PageNumber>((physical / PAGE_SIZE as u64) as u32) }
}

/// Where a trim is.
enum Trim {
    No,
    Marked(Vec<usize>),
    Flushed(Vec<usize>),
}

/// A page that somebody reads in.
struct Reading {
    index: usize,
    slot: u32,
    into: PageNumber,
}

/// How a touch ended.
#[derive(Debug, PartialEq)]
enum Touch {
    Done,
    /// It began a read, or waits for one, or for memory.
    Waits,
}

struct Machine<'a> {
    arena: &'a Arena,
    cache: PageCache,
    tables: Tables,
    /// What each address that is somebody's was last filled with.
    contents: BTreeMap<usize, u64>,
    store: BTreeMap<u32, Content>,
    /// By processor: the page of an address, and whether it may be written without a look at the leaf.
    cached: [BTreeMap<usize, (u64, bool)>; 2],
    trim: Trim,
    reading: Vec<Reading>,
    /// What the writer has, the slot, and the word that it has saved already.
    writing: Option<(PageNumber, u32, u64)>,
    /// Pages of others, with what they have in them.
    others: Vec<(PageNumber, u64)>,
    /// An address whose page a device uses.
    locked: Option<(usize, PageNumber)>,
    next_value: u64,
    seen: Seen,
}

/// That what is to be tested happened.
#[derive(Default, Debug)]
struct Seen {
    read: u32,
    taken_back: u32,
    clean_out: u32,
    reserve: u32,
    ended_arriving: u32,
    ended_written: u32,
}

impl<'a> Machine<'a> {
    fn new(arena: &'a Arena, store: &'static mut [u64]) -> Self {
        let cache = PageCache::new();
        let mut table = || -> Result<u64, _> {
            on_processor(|at| Ok(arena.manager.allocate_zeroed(&cache, at)?.into_number().physical()))
        };
        let root = table().unwrap();
        // SAFETY: the arena's memory, and tables that only this value changes.
        let mut tables = unsafe { Tables::new(arena.manager.memory(), root) };
        tables.prepare(START, &mut table).unwrap();
        on_processor(|at| {
            arena.manager.drain(&cache, at);
            assert!(arena.manager.frames().lock(at).open_store(store, SLOTS).is_ok());
        });
        Self {
            arena,
            cache,
            tables,
            contents: BTreeMap::new(),
            store: BTreeMap::new(),
            cached: Default::default(),
            trim: Trim::No,
            reading: Vec::new(),
            writing: None,
            others: Vec::new(),
            locked: None,
            next_value: 1,
            seen: Seen::default(),
        }
    }

    fn frames<R>(&mut self, f: impl FnOnce(&mut Tables, &mut Frames) -> R) -> R {
        on_processor(|at| f(&mut self.tables, &mut self.arena.manager.frames().lock(at)))
    }

    fn word(&self, page: PageNumber, at: usize) -> *mut u64 {
        self.arena.manager.memory().address(page).cast::<u64>().wrapping_add(PLACES[at])
    }

    fn get(&self, page: PageNumber) -> Content {
        // SAFETY: a page of the arena.
        [0, 1].map(|at| unsafe { self.word(page, at).read() })
    }

    fn set(&self, page: PageNumber, value: u64) {
        // SAFETY: as above.
        [0, 1].into_iter().for_each(|at| unsafe { self.word(page, at).write(value) });
    }

    fn flush(&mut self) {
        self.cached.iter_mut().for_each(BTreeMap::clear);
    }

    /// What the processor does: its own translation, else the leaf, whose dirty bit it sets. `None`: a fault.
    fn translate(&mut self, processor: usize, index: usize, write: bool) -> Option<PageNumber> {
        if let Some(&(physical, dirty)) = self.cached[processor].get(&index)
            && (dirty || !write)
        {
            return Some(page_at(physical));
        }
        let Found::Present(physical) = self.tables.state(address_of(index)) else {
            return None;
        };
        let dirty = self.tables.touch(address_of(index), write);
        self.cached[processor].insert(index, (physical, dirty));
        Some(page_at(physical))
    }

    fn touch(&mut self, processor: usize, index: usize, write: bool) -> Touch {
        while self.translate(processor, index, write).is_none() {
            if self.fault(index) == Touch::Waits {
                return Touch::Waits;
            }
        }
        let page = self.translate(processor, index, write).unwrap();
        let value = self.contents[&index];
        assert_eq!(self.get(page), [value; 2], "address {index} has lost its content");
        if write {
            self.set(page, self.next_value);
            self.contents.insert(index, self.next_value);
            self.next_value += 1;
        }
        Touch::Done
    }

    fn fault(&mut self, index: usize) -> Touch {
        let address = address_of(index);
        let found = match self.tables.reveal(address) {
            Found::Transition(_) => {
                self.seen.taken_back += 1;
                self.frames(|tables, frames| paging::take_back(tables, frames, address))
            }
            found => found,
        };
        match found {
            Found::Present(_) | Found::Hidden(_) | Found::Transition(_) => Touch::Done,
            Found::Arriving(_) => Touch::Waits,
            Found::Nothing => {
                let made = on_processor(|at| self.arena.manager.keep_promise(at)).into_number();
                assert_eq!(self.get(made), [0; 2], "a fresh page");
                // SAFETY: nobody reaches anything by these addresses.
                unsafe {
                    self.tables.map(address, made.physical(), LEAF, &mut || unreachable!("a table")).unwrap();
                }
                Touch::Done
            }
            Found::Out(slot) => {
                let spare = self.frames(|_, frames| {
                    let counts = frames.counts();
                    counts.free + counts.zeroed + counts.standby - counts.promised
                });
                if let Some(into) = self.frames(|_, frames| frames.take_to_read()) {
                    self.seen.reserve += u32::from(spare == 0);
                    // SAFETY: as above.
                    let began = unsafe { paging::begin_read(&mut self.tables, address, slot, into, LEAF) };
                    assert!(began);
                    self.set(into, 0xBAD);
                    self.reading.push(Reading { index, slot, into });
                } else {
                    assert_eq!(spare, 0, "refused with memory left");
                }
                Touch::Waits
            }
        }
    }

    fn end_read(&mut self, which: usize, fails: bool) {
        if self.reading.is_empty() {
            return;
        }
        let Reading { index, slot, into } = self.reading.swap_remove(which % self.reading.len());
        let is_awaited = self.tables.state(address_of(index)) == Found::Arriving(into.physical());
        if is_awaited && !fails {
            let [first, second] = self.store[&slot];
            assert_eq!(first, second, "a page was saved while it changed");
            self.set(into, first);
        }
        let read = self
            .frames(|tables, frames| paging::end_read(tables, frames, address_of(index), slot, into, !fails));
        assert_eq!(read == Read::Arrived, is_awaited && !fails);
        if read == Read::Nowhere {
            // SAFETY: taken for this, and mapped nowhere.
            on_processor(|at| self.arena.manager.free(unsafe { Page::from_number(into) }, &self.cache, at));
        }
        self.seen.read += u32::from(read == Read::Arrived);
    }

    fn step_trim(&mut self, random: u64) {
        self.trim = match std::mem::replace(&mut self.trim, Trim::No) {
            Trim::No => {
                let chosen = (0..ADDRESSES).filter(|&index| random >> index & 1 != 0);
                Trim::Marked(
                    chosen
                        .filter(|&index| self.tables.begin_trim(address_of(index)) != Found::Nothing)
                        .collect(),
                )
            }
            Trim::Marked(pages) => {
                self.flush();
                Trim::Flushed(pages)
            }
            Trim::Flushed(pages) => {
                for index in pages {
                    let address = address_of(index);
                    let trimmed = self.tables.trimmed(address);
                    let left = self.frames(|tables, frames| paging::end_trim(tables, frames, address));
                    let Some(trimmed) = trimmed.filter(|_| left) else { continue };
                    let page = page_at(trimmed.page);
                    assert!(
                        self.locked.is_none_or(|(_, locked)| locked != page),
                        "a locked page was trimmed"
                    );
                    let state = self.arena.manager.memory().entry(page).state();
                    self.seen.clean_out += u32::from(state == Some(State::Standby));
                }
                Trim::No
            }
        };
    }

    /// The writer saves one word when it begins and the other when it ends.
    fn step_write(&mut self, fails: bool) {
        match self.writing.take() {
            Some((page, slot, first)) => {
                let second = self.get(page)[1];
                self.store.insert(slot, if fails { [0xBAD; 2] } else { [first, second] });
                self.frames(|_, frames| frames.end_write(page, Some(slot), !fails));
            }
            None => {
                if let Some((page, slot)) = self.frames(|_, frames| frames.begin_write()) {
                    let slot = slot.expect("a trimmed page has a slot");
                    self.writing = Some((page, slot, self.get(page)[0]));
                }
            }
        }
    }

    fn allocate(&mut self, index: usize) {
        let promised = on_processor(|at| self.arena.manager.promise(1, at));
        if promised.is_ok() {
            self.contents.insert(index, 0);
        }
    }

    fn end(&mut self, index: usize) {
        if self.locked.is_some_and(|(locked, _)| locked == index) {
            return;
        }
        self.contents.remove(&index);
        let state = self.tables.state(address_of(index));
        self.seen.ended_arriving += u32::from(matches!(state, Found::Arriving(_)));
        match self.frames(|tables, frames| paging::end(tables, frames, address_of(index))) {
            Ended::Nothing => on_processor(|at| self.arena.manager.unpromise(1, at)),
            Ended::Done => {}
            Ended::Page { page, being_written, .. } => {
                self.seen.ended_written += u32::from(being_written);
                self.flush();
                // SAFETY: the leaf's, which is gone.
                let page = unsafe { Page::from_number(page) };
                on_processor(|at| {
                    let manager = self.arena.manager;
                    if being_written {
                        manager.discard(page, &self.cache, at);
                    } else {
                        manager.free(page, &self.cache, at);
                    }
                });
            }
        }
    }

    /// Somebody else takes a page, and fills it; or gives it back, as it was.
    fn step_other(&mut self, take: bool) {
        if take {
            if let Ok(page) = on_processor(|at| self.arena.manager.allocate(&self.cache, at)) {
                let page = page.into_number();
                self.set(page, self.next_value);
                self.others.push((page, self.next_value));
                self.next_value += 1;
            }
        } else if let Some((page, value)) = self.others.pop() {
            assert_eq!(self.get(page), [value; 2], "another's page was written to");
            // SAFETY: taken above.
            on_processor(|at| self.arena.manager.free(unsafe { Page::from_number(page) }, &self.cache, at));
        }
    }

    /// A device uses a page that is there, until the next such step.
    fn step_lock(&mut self, index: usize) {
        match self.locked.take() {
            Some((_, page)) => self.frames(|_, frames| frames.dereference(page)),
            None => {
                if let Found::Present(physical) = self.tables.state(address_of(index)) {
                    let page = page_at(physical);
                    assert!(self.frames(|_, frames| frames.try_reference(page)));
                    self.locked = Some((index, page));
                }
            }
        }
    }

    fn step(&mut self, random: u64) {
        let kind = random as u8 % 64;
        let index = (random >> 8) as usize % ADDRESSES;
        let (processor, write, rare) =
            ((random >> 20) as usize % 2, random >> 21 & 1 != 0, (random >> 24).is_multiple_of(8));
        match kind {
            0..34 => match self.contents.contains_key(&index) {
                true => _ = self.touch(processor, index, write),
                false => self.allocate(index),
            },
            34..38 => self.end_read((random >> 16) as usize, rare),
            38..46 => self.step_trim(random >> 8 | random << 40),
            46..54 => self.step_write(rare),
            54..56 if self.contents.contains_key(&index) => self.end(index),
            56..60 => self.step_other(!rare || self.others.is_empty()),
            60 => self.step_lock(index),
            61 => {
                // The checked build's trim.
                self.tables.hide(address_of(index));
                self.flush();
            }
            62 => self.frames(|_, frames| frames.fill_reserve()),
            63 => (0..4).for_each(|_| self.step_other(false)),
            _ => {}
        }
    }

    fn verify(&mut self) {
        let counts = self.frames(|_, frames| frames.verify()).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let state = |state: fn(&Found) -> bool| {
            (0..ADDRESSES).filter(|&index| state(&self.tables.state(address_of(index)))).count() as u32
        };
        let untouched =
            self.contents.keys().filter(|&&index| self.tables.state(address_of(index)) == Found::Nothing);
        let reserve = counts.promised - untouched.count() as u32;
        assert!(reserve <= Frames::RESERVE, "{reserve} pages promised to nobody");
        let in_transition = state(|found| matches!(found, Found::Transition(_)));
        // One of them may be the writer's, and one of the writer's may be back or gone.
        assert!(in_transition.abs_diff(counts.standby + counts.modified) <= 1);
        // Each leaf that is out has a slot, and those in transition; others may.
        let out = state(|found| matches!(found, Found::Out(_)));
        assert!(self.frames(|_, frames| frames.slots()).used >= out + in_transition);
    }

    /// Everything comes back; without a store, its content is still there. Then it ends.
    fn finish(mut self, withdraw: bool) -> Seen {
        if self.writing.is_some() {
            self.step_write(false);
        }
        if self.locked.is_some() {
            self.step_lock(0);
        }
        while !self.reading.is_empty() {
            self.end_read(0, false);
        }
        while !self.others.is_empty() {
            self.step_other(false);
        }
        while !matches!(self.trim, Trim::No) {
            self.step_trim(0);
        }
        if withdraw {
            assert!(self.frames(|_, frames| frames.set_store_closing(true)));
            // As many as memory has room for; those that are promised don't.
            let last = self.contents.keys().copied().collect::<Vec<_>>();
            for index in last {
                if self.tables.state(address_of(index)) != Found::Nothing {
                    while self.touch(0, index, false) == Touch::Waits {
                        if self.reading.is_empty() {
                            self.end(index);
                            break;
                        }
                        self.end_read(0, false);
                    }
                }
                self.frames(|tables, frames| paging::keep_in_memory(tables, frames, address_of(index)));
            }
            assert!(self.frames(|_, frames| frames.close_store()).is_some(), "slots are still taken");
            let left = self.contents.keys().copied().collect::<Vec<_>>();
            left.into_iter().for_each(|index| assert_eq!(self.touch(1, index, true), Touch::Done));
        }
        let left = self.contents.keys().copied().collect::<Vec<_>>();
        left.into_iter().for_each(|index| self.end(index));
        if !withdraw {
            assert!(self.frames(|_, frames| frames.close_store()).is_some(), "slots are still taken");
        }
        on_processor(|at| self.arena.manager.drain(&self.cache, at));
        let counts = self.frames(|_, frames| frames.verify()).unwrap();
        let free = counts.free + counts.zeroed;
        assert_eq!((free, counts.standby, counts.modified, counts.promised), (PAGES - 4, 0, 0, 0));
        self.seen
    }
}

fn run(numbers: &[u64], withdraw: bool) -> Seen {
    let arena = Arena::new(&[PageRange { start: 100, end: 100 + PAGES }], true);
    let store = Box::into_raw(vec![0_u64; Frames::store_words(SLOTS)].into_boxed_slice());
    // SAFETY: a fresh box, which outlives the machine.
    let mut machine = Machine::new(&arena, unsafe { &mut *store });
    for (number, &random) in numbers.iter().enumerate() {
        machine.step(random);
        if number % 50 == 0 {
            machine.verify();
        }
    }
    machine.verify();
    let seen = machine.finish(withdraw);
    // SAFETY: made above; the store is closed.
    drop(unsafe { Box::from_raw(store) });
    seen
}

proptest! {
    // 200 times 6000 steps.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 3000, ..ProptestConfig::default() })]
    #[test]
    fn addresses_keep_their_content(
        numbers in prop::collection::vec(any::<u64>(), STEPS),
        withdraw in any::<bool>(),
    ) {
        let seen = run(&numbers, withdraw);
        if numbers.len() == STEPS && !cfg!(miri) {
            prop_assert!(seen.read > 20 && seen.taken_back > 20 && seen.clean_out > 5, "{:?}", seen);
        }
    }
}

/// What comes about seldom, by a sequence that is always the same.
#[test]
#[cfg_attr(miri, ignore = "takes too long there")]
fn what_is_rare_comes_about() {
    let mut state = 1_u64;
    let numbers: Vec<u64> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        state ^ state >> 29
    })
    .take(60_000)
    .collect();
    let seen = run(&numbers, false);
    assert!(seen.reserve > 0 && seen.ended_arriving > 0 && seen.ended_written > 0, "{seen:?}");
}

#[test]
fn slots_are_given_back_once() {
    let arena = Arena::new(&[PageRange { start: 100, end: 100 + PAGES }], false);
    let store = Box::into_raw(vec![0; 1].into_boxed_slice());
    let stop = arch::stop::catch(|| {
        on_processor(|at| {
            let mut frames = arena.manager.frames().lock(at);
            // SAFETY: a fresh box, which is freed below.
            assert!(frames.open_store(unsafe { &mut *store }, 64).is_ok());
            frames.give_slot(3);
        });
    });
    // SAFETY: made above; nothing is done with the frames any more.
    drop(unsafe { Box::from_raw(store) });
    assert_eq!(stop.map(|stop| (stop.code, stop.parameters[..2].to_vec())), Some((0x1A, vec![0x413, 3])));
}
