//! Runs of slots against a list of bits, and page tables against a map: what is taken was free, what is mapped is found with its
//! rights, what is unmapped is gone, nothing else changes, and running out of tables changes nothing.

use std::collections::BTreeMap;

use kernel::mm::Exhausted;
use kernel::mm::layout::MAP;
use kernel::mm::pages::PageCache;
use kernel::mm::ranges::PageRange;
use kernel::mm::slots::Slots;
use kernel::mm::tables::{Access, Caching, Found, Leaf, Tables};
use props::arena::{Arena, on_processor};
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 100 } else { 4000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 250 };

type Small = Slots<5>;

/// The lowest run of free slots, found by looking at each.
fn lowest(taken: &[bool], wanted: usize) -> Option<usize> {
    (0..=taken.len().checked_sub(wanted)?).find(|&start| !taken[start..start + wanted].contains(&true))
}

fn slots(numbers: &[u64]) {
    let mut slots = Small::new();
    let mut taken = vec![false; Small::COUNT];
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &random in numbers {
        let (kind, a) = (random as u8 % 8, (random >> 8) as usize & 0xFFFF);
        if kind < 4 {
            let count = if kind == 0 { a % 400 } else { a % 20 };
            let found = slots.take(count);
            let wanted = (count > 0).then(|| lowest(&taken, count + 1)).flatten();
            assert_eq!(found, wanted, "{count} slots");
            if let Some(start) = found {
                taken[start..=start + count].fill(true);
                runs.push((start, count));
            }
        } else if !runs.is_empty() {
            let (start, count) = runs.swap_remove(a % runs.len());
            assert!(slots.give(start, count));
            assert!(!slots.give(start, count), "given twice");
            taken[start..=start + count].fill(false);
        }
        assert_eq!(slots.free(), taken.iter().filter(|&&taken| !taken).count());
    }
}

const LEAVES: [Leaf; 5] = [
    Leaf { access: Access::Read, caching: Caching::WriteBack },
    Leaf { access: Access::Write, caching: Caching::WriteBack },
    Leaf { access: Access::Execute, caching: Caching::WriteBack },
    Leaf { access: Access::Write, caching: Caching::Uncached },
    Leaf { access: Access::Write, caching: Caching::WriteCombining },
];

/// Addresses that share tables with each other at every level, and some that don't.
fn address(random: u64) -> u64 {
    let [top, upper, middle, low] = [random & 1, random >> 1 & 1, random >> 2 & 3, random >> 4 & 63];
    0xFFFF_D800_0000_0000 + (top << 39) + (upper << 30) + (middle << 21) + (low << 12)
}

fn tables(numbers: &[u64]) {
    // Root, and not enough for all the tables that there could be: 2 + 4 + 16.
    let arena = Arena::new(&[PageRange { start: 100, end: 116 }], true);
    let cache = PageCache::new();
    let table = || -> Result<u64, Exhausted> {
        on_processor(|at| Ok(arena.manager.allocate_zeroed(&cache, at)?.into_number().physical()))
    };
    let root = table().unwrap();
    // SAFETY: the arena's memory, and tables that only this value changes.
    let mut tables = unsafe { Tables::new(arena.manager.memory(), root) };
    let mut mapped: BTreeMap<u64, (u64, Leaf)> = BTreeMap::new();
    // Mapped before, and hidden.
    let mut hidden: BTreeMap<u64, (u64, Leaf)> = BTreeMap::new();
    let mut refused = 0;
    for &random in numbers {
        let at = address(random >> 8);
        match mapped.get(&at) {
            Some(&before) if random % 3 == 0 => {
                assert_eq!(tables.reveal(at), Found::Present(before.0));
                assert!(tables.hide(at));
                assert!(!tables.hide(at), "hidden twice");
                hidden.insert(at, before);
                mapped.remove(&at);
            }
            Some(&(physical, _)) => {
                let found = if random % 3 == 1 { tables.clear(at) } else { Found::Present(tables.unmap(at)) };
                assert_eq!(found, Found::Present(physical));
                mapped.remove(&at);
            }
            None if hidden.contains_key(&at) => {
                let before = hidden.remove(&at).unwrap();
                if random % 2 == 0 {
                    assert_eq!(tables.reveal(at), Found::Hidden(before.0));
                    mapped.insert(at, before);
                } else {
                    assert_eq!(tables.clear(at), Found::Hidden(before.0));
                }
            }
            None if random % 16 == 0 => {
                assert_eq!((tables.clear(at), tables.reveal(at)), (Found::Nothing, Found::Nothing));
                assert!(!tables.hide(at));
                refused += u32::from(tables.prepare(at, &mut || table()).is_err());
            }
            None => {
                let physical = (random >> 20 & 0xFF_FFFF_FFFF) << 12;
                let leaf = LEAVES[random as usize % LEAVES.len()];
                // SAFETY: nobody reaches anything by these addresses.
                match unsafe { tables.map(at, physical, leaf, &mut || table()) } {
                    Ok(()) => drop(mapped.insert(at, (physical, leaf))),
                    Err(Exhausted) => refused += 1,
                }
            }
        }
        assert_eq!(tables.look(at), mapped.get(&at).copied());
        let other = address(random >> 30);
        assert_eq!(tables.look(other), mapped.get(&other).copied());
    }
    assert!(refused > 0 || numbers.len() < STEPS, "tables never ran out");
    for (&at, &(physical, leaf)) in &mapped {
        assert_eq!(tables.look(at), Some((physical, leaf)));
    }
}

proptest! {
    // 250 times 4000 steps, twice.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn slots_are_taken_lowest_first_and_given_back(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        slots(&numbers);
    }

    #[test]
    fn pages_are_mapped_where_the_map_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        tables(&numbers);
    }
}

#[test]
fn contradictions_are_bugchecks() {
    let arena = Arena::new(&[PageRange { start: 100, end: 116 }], true);
    let cache = PageCache::new();
    let table = || on_processor(|at| Ok(arena.manager.allocate_zeroed(&cache, at)?.into_number().physical()));
    // SAFETY: as above.
    let mut tables = unsafe { Tables::new(arena.manager.memory(), table().unwrap()) };
    let at = address(0);
    let code = arch::stop::catch(|| {
        tables.unmap(at);
    })
    .map(|stop| (stop.code, stop.parameters[1]));
    assert_eq!(code, Some((0x1A, at)), "unmapped what was not mapped");
    // SAFETY: as above.
    unsafe { tables.map(at, 4096, LEAVES[0], &mut || table()).unwrap() };
    let code = arch::stop::catch(|| {
        // SAFETY: as above.
        unsafe { tables.map(at, 8192, LEAVES[1], &mut || table()).unwrap() }
    });
    assert_eq!(code.map(|stop| (stop.code, stop.parameters[1])), Some((0x1A, at)), "mapped twice");
    assert_eq!(tables.look(at), Some((4096, LEAVES[0])));
}

#[test]
fn parts_of_the_address_space_are_pages_of_the_kernel_half() {
    for (name, start, bytes) in MAP {
        assert!(start >= 1 << 47 && start.is_multiple_of(4096) && bytes.is_multiple_of(4096), "{name}");
        assert!(start.checked_add(bytes).is_some(), "{name}");
    }
}
