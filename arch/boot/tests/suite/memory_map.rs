//! The memory map: how firmware ranges are planned, how memory is taken, and the invariants for random maps.

use boot::memory_map::{Kind, MAX_ENTRIES, MemoryError, MemoryMap, PHYSICAL_LIMIT};
use boot::start_info::FirmwareRange;
use proptest::prelude::*;

use crate::checks;

const MIB: u64 = 1 << 20;

fn plan(ranges: &[(u64, u64, u32)]) -> MemoryMap {
    let ranges: Vec<_> =
        ranges.iter().map(|&(base, length, kind)| FirmwareRange { base, length, kind }).collect();
    MemoryMap::plan(&ranges).expect("few ranges")
}

/// The map as start, end, kind.
fn shape(map: &MemoryMap) -> Vec<(u64, u64, Kind)> {
    map.entries().iter().map(|entry| (entry.base, entry.end(), entry.kind)).collect()
}

#[test]
fn a_pc_is_planned() {
    let map =
        plan(&[(0x10_0000, 127 * MIB, 1), (0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xf_0000, 0x1_0000, 2)]);
    assert_eq!(
        shape(&map),
        [
            (0, 0x1000, Kind::Reserved),
            (0x1000, 0x9_f000, Kind::Usable),
            (0x9_f000, 0xa_0000, Kind::Reserved),
            (0xf_0000, 0x10_0000, Kind::Reserved),
            (0x10_0000, 128 * MIB, Kind::Usable),
        ]
    );
}

#[test]
fn the_legacy_hole_is_never_usable() {
    let map = plan(&[(0, 4 * MIB, 1)]);
    assert_eq!(
        shape(&map),
        [
            (0, 0x1000, Kind::Reserved),
            (0x1000, 0xa_0000, Kind::Usable),
            (0xa_0000, 0x10_0000, Kind::Reserved),
            (0x10_0000, 4 * MIB, Kind::Usable),
        ]
    );
}

#[test]
fn where_ranges_overlap_the_doubtful_kind_wins() {
    let map = plan(&[(MIB, 4 * MIB, 1), (2 * MIB, MIB, 3), (2 * MIB, 2 * MIB, 2), (3 * MIB, MIB / 2, 5)]);
    assert_eq!(
        shape(&map),
        [
            (MIB, 2 * MIB, Kind::Usable),
            (2 * MIB, 3 * MIB, Kind::Reserved),
            (3 * MIB, 3 * MIB + MIB / 2, Kind::Bad),
            (3 * MIB + MIB / 2, 4 * MIB, Kind::Reserved),
            (4 * MIB, 5 * MIB, Kind::Usable),
        ]
    );
}

#[test]
fn usable_ranges_shrink_to_pages() {
    let map = plan(&[(MIB + 1, 0x3000, 1), (2 * MIB + 1, 0xffe, 1)]);
    assert_eq!(
        shape(&map),
        [
            (MIB + 1, MIB + 0x1000, Kind::Reserved),
            (MIB + 0x1000, MIB + 0x3000, Kind::Usable),
            (MIB + 0x3000, MIB + 0x3001, Kind::Reserved),
            (2 * MIB + 1, 2 * MIB + 0xfff, Kind::Reserved),
        ]
    );
}

#[test]
fn memory_beyond_the_direct_map_is_not_used() {
    let map = plan(&[(PHYSICAL_LIMIT - MIB, 2 * MIB, 1)]);
    assert_eq!(shape(&map)[1], (PHYSICAL_LIMIT, PHYSICAL_LIMIT + MIB, Kind::Reserved));
}

#[test]
fn allocation_takes_the_lowest_fit() {
    let mut map = plan(&[(MIB, 4 * MIB, 1), (8 * MIB, 56 * MIB, 1)]);
    let mut take = |length, align| map.allocate("it", length, align, (MIB, 32 * MIB), Kind::Executable);
    assert_eq!(take(1, 0x1000), Ok(MIB));
    assert_eq!(take(MIB, 2 * MIB), Ok(2 * MIB));
    assert_eq!(take(3 * MIB, 0x1000), Ok(8 * MIB));
    assert_eq!(take(22 * MIB, 0x1000), Err(MemoryError::NoRoom("it", 22 * MIB)));
    assert_eq!(take(21 * MIB, 0x1000), Ok(11 * MIB));
    assert_eq!(take(u64::MAX, 0x1000), Err(MemoryError::NoRoom("it", u64::MAX)));
}

#[test]
fn claims_must_be_usable_throughout() {
    let mut map = plan(&[(MIB, 4 * MIB, 1), (5 * MIB, MIB, 2)]);
    assert_eq!(map.claim("it", 2 * MIB + 5, 10, Kind::Reclaimable), Ok(()));
    assert_eq!(shape(&map)[1], (2 * MIB, 2 * MIB + 0x1000, Kind::Reclaimable));
    for (base, length) in
        [(2 * MIB, 1), (4 * MIB, 2 * MIB), (16 * MIB, 1), (u64::MAX, 1), (u64::MAX, u64::MAX)]
    {
        let before = shape(&map);
        assert_eq!(
            map.claim("it", base, length, Kind::Reclaimable),
            Err(MemoryError::NotUsable("it", base, length))
        );
        assert_eq!(shape(&map), before);
    }
}

#[test]
fn neighbours_of_a_kind_are_one_entry() {
    let mut map = plan(&[(MIB, 4 * MIB, 1)]);
    for _ in 0..1000 {
        map.allocate("it", 0x1000, 0x1000, (MIB, u64::MAX), Kind::Reclaimable).expect("there is room");
    }
    assert_eq!(map.entries().len(), 2);
}

#[test]
fn a_full_map_refuses_and_stays_as_it_was() {
    let mut map = plan(&[(MIB, 64 * MIB, 1)]);
    let mut at = MIB;
    let refused = loop {
        at += 0x2000;
        let before = shape(&map);
        if let Err(error) = map.claim("it", at, 1, Kind::Reclaimable) {
            assert_eq!(shape(&map), before);
            break error;
        }
    };
    assert_eq!(refused, MemoryError::TooFragmented);
    assert!(map.entries().len() > MAX_ENTRIES - 2);
}

fn range() -> impl Strategy<Value = FirmwareRange> {
    let address = prop_oneof![
        4 => (0..64_u64).prop_map(|n| n << 18),
        4 => (0..4096_u64).prop_map(|n| n << 9),
        1 => (0..64_u64).prop_map(|n| (1 << n) - 1),
        1 => any::<u64>(),
    ];
    let kind = prop_oneof![4 => Just(1_u32), 1 => 0..9_u32];
    (address.clone(), address, kind).prop_map(|(base, length, kind)| FirmwareRange { base, length, kind })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn random_maps_keep_the_invariants(
        ranges in prop::collection::vec(range(), 0..24),
        steps in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        checks::memory_map(&ranges, &steps);
    }
}
