//! Memory descriptor lists against the definition: a list describes the bytes from its address on, and its n-th number is that of the
//! n-th page that they touch. Lists are made, cut into parts of parts, and advanced at random.

use std::collections::BTreeSet;
use std::ptr::{NonNull, without_provenance_mut};

use kernel::mm::mdl::{KMdl, Mdl, MdlError, flags, spanned_pages};
use kernel::mm::pfn::PAGE_SIZE;
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 100 } else { 1000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 1000 };

/// The page that lies at a virtual page, by this test's rule.
fn page_at(virtual_page: usize) -> u64 {
    (virtual_page as u64).wrapping_mul(0x9E37_79B9) >> 3
}

/// How many pages are touched, counted one by one.
fn touched(address: usize, bytes: u32) -> usize {
    let ends = (0..bytes as usize).step_by(PAGE_SIZE).chain((bytes as usize).checked_sub(1));
    ends.map(|at| (address + at) / PAGE_SIZE).collect::<BTreeSet<_>>().len()
}

/// Where the lists' buffers have their other address, as far from the first as this.
const MAPPED: usize = 0x5000_0000;

struct List {
    mdl: Mdl,
    address: usize,
    bytes: u32,
    _room: Room,
}

/// The list's memory. Not a box: moving one would end the list's own pointer into it.
struct Room(*mut [u64]);

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: made from a box, and the list is gone with it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl List {
    fn new(address: usize, bytes: u32) -> Self {
        let words = Mdl::size_for(address, bytes).unwrap() / 8;
        let room = Box::into_raw(vec![0xA5A5_A5A5_u64; words].into_boxed_slice());
        let place = NonNull::new(room).unwrap().cast::<KMdl>();
        // SAFETY: so many bytes, aligned to 8, which live beside the list.
        let mdl = unsafe { Mdl::initialize(place, without_provenance_mut(address), bytes) }.unwrap();
        let mut list = Self { mdl, address, bytes, _room: Room(room) };
        // SAFETY: a new list; the pages are numbers that nobody follows.
        unsafe { list.mdl.set_pages(|page| page_at(address / PAGE_SIZE + page)) };
        list
    }

    fn verify(&self) {
        assert_eq!((self.mdl.address().addr(), self.mdl.bytes()), (self.address, self.bytes));
        assert_eq!(self.mdl.header().start_va.addr() % PAGE_SIZE, 0);
        assert!((self.mdl.header().byte_offset as usize) < PAGE_SIZE);
        assert_eq!(self.mdl.page_count(), touched(self.address, self.bytes));
        for (at, &page) in self.mdl.pages().iter().enumerate() {
            assert_eq!(page, page_at(self.address / PAGE_SIZE + at), "page {at}");
        }
        let mapped = self.mdl.header().mapped_system_va.addr();
        assert!(mapped == 0 || mapped == self.address + MAPPED, "{mapped:#x} for {:#x}", self.address);
    }

    /// As if it had been locked or mapped: there is no machine here to do so.
    fn set_flags(&mut self, flags: i16) {
        // SAFETY: the list's own header, borrowed uniquely.
        unsafe { self.mdl.as_raw().as_mut().flags = flags };
    }

    /// A part with room for `room` bytes, or what was wrong.
    fn part(&self, into: usize, bytes: u32, room: u32) -> Result<Self, MdlError> {
        let address = self.address + into;
        let mut part = Self::new(address, room);
        self.mdl.build_partial(&mut part.mdl, without_provenance_mut(address), bytes)?;
        part.bytes = if bytes == 0 { self.bytes - into as u32 } else { bytes };
        Ok(part)
    }
}

/// A list that holds pages, or has a mapping of its own, is made no part: it stays as it is, so that both can be ended.
fn refused_target(source: &List, random: u32) {
    let mut target = List::new(source.address, source.bytes);
    let (held, wanted) = match random % 3 {
        0 => (flags::PAGES_LOCKED, MdlError::Locked),
        1 => (flags::MAPPED_TO_SYSTEM_VA | flags::PAGES_LOCKED, MdlError::Mapped),
        _ => {
            let of_its_own = flags::MAPPED_TO_SYSTEM_VA | flags::PARTIAL_HAS_BEEN_MAPPED;
            (flags::PARTIAL | of_its_own, MdlError::Mapped)
        }
    };
    target.set_flags(held);
    let address = without_provenance_mut(source.address);
    assert_eq!(source.mdl.build_partial(&mut target.mdl, address, source.bytes / 2), Err(wanted));
    assert_eq!(target.mdl.header().flags, held);
    target.verify();
}

fn lists(numbers: &[u64]) {
    let mut lists: Vec<List> = Vec::new();
    for &random in numbers {
        let [kind, a, b, c] = [0, 8, 24, 44].map(|shift| (random >> shift) as u32 & 0xF_FFFF);
        if kind % 8 < 2 || lists.is_empty() {
            let list = List::new(0x10_0000 + a as usize, b % 40_000);
            list.verify();
            lists.push(list);
            continue;
        }
        let at = c as usize % lists.len();
        let list = &mut lists[at];
        if kind % 8 < 5 {
            let (into, bytes) = (a % (list.bytes + 3), b % (list.bytes + 3));
            let wanted = if bytes == 0 { list.bytes.saturating_sub(into) } else { bytes };
            let room = if a % 5 == 0 { b / 7 % 40_000 } else { wanted };
            let part = list.part(into as usize, bytes, room);
            let enough = spanned_pages(list.address + into as usize, room)
                >= touched(list.address + into as usize, wanted);
            let inside = into <= list.bytes && wanted <= list.bytes - into;
            match part {
                Ok(part) => {
                    assert!(inside && enough);
                    assert!(part.mdl.has(flags::PARTIAL));
                    part.verify();
                    lists.push(part);
                }
                Err(error) => {
                    assert!(!inside && error == MdlError::Range || !enough && error == MdlError::TooSmall);
                }
            }
        } else if kind % 8 < 7 && a % 4 == 0 {
            refused_target(list, b);
        } else if kind % 8 < 7 {
            let bytes = a % (list.bytes + 2);
            let result = list.mdl.advance_unlocked(bytes);
            if bytes <= list.bytes {
                assert_eq!(result, Ok(()));
                list.address += bytes as usize;
                list.bytes -= bytes;
            } else {
                assert_eq!(result, Err(MdlError::Range));
            }
        } else {
            lists.swap_remove(at);
        }
        lists.iter().for_each(List::verify);
        lists.truncate(12);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_describe_their_bytes(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        lists(&numbers);
    }

    #[test]
    fn pages_are_those_that_are_touched(address in any::<u32>(), bytes in 0..40_000_u32) {
        prop_assert_eq!(spanned_pages(address as usize, bytes), touched(address as usize, bytes));
    }
}

#[test]
fn the_largest_list_is_the_last_whose_size_fits() {
    let most = (Mdl::MOST_PAGES * PAGE_SIZE) as u32;
    assert_eq!(Mdl::size_for(0x1000, most), Some(48 + 8 * Mdl::MOST_PAGES));
    assert_eq!(Mdl::size_for(0x1000, most + 1), None);
    assert_eq!(Mdl::size_for(0x1001, most), None);
    assert_eq!(Mdl::size_for(0xFFF, u32::MAX), None);
    assert_eq!(Mdl::size_for(0xFFF, 2), Some(48 + 16));
}

#[test]
fn a_part_does_not_take_its_parents_lock_over() {
    let parent = List::new(0x1234, 10_000);
    let part = parent.part(5000, 0, 5000).unwrap();
    assert!(part.mdl.has(flags::PARTIAL) && !part.mdl.has(flags::PAGES_LOCKED));
    assert_eq!(part.mdl.header().mapped_system_va.addr(), 0);
}
