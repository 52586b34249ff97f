//! PCI configuration space of random content: whatever is read there, everything ends, nothing is found twice, nothing is left changed; and
//! of devices that are as the specification wants them, what is found is what they have.

use std::collections::{BTreeMap, BTreeSet};

use arch::msi::Message;
use kernel::io::pci::bar::{self, Bar, Space};
use kernel::io::pci::capability::{capabilities, extended, id};
use kernel::io::pci::config::{Address, Config, command, read_command, register};
use kernel::io::pci::header::{Header, Kind};
use kernel::io::pci::msi::{self, MASKED, Msi, Msix};
use kernel::io::pci::walk::{Functions, walk};
use kernel::io::virtio::transport::{Part, Transport};
use proptest::prelude::*;

const CASES: u32 = if cfg!(miri) { 20 } else { 2_000 };

/// A function's 4096 bytes. A write changes the bits that can be changed.
#[derive(Clone)]
struct Registers {
    words: Vec<u32>,
    /// By word; what isn't named can be changed as a whole.
    fixed: BTreeMap<usize, u32>,
    /// Base address registers were read or written while the function answered.
    probed_live: bool,
}

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x?} …, fixed {:#x?}", &self.words[..64], self.fixed)
    }
}

impl Registers {
    fn empty() -> Self {
        Self { words: vec![0; 1024], fixed: BTreeMap::new(), probed_live: false }
    }

    fn set8(&mut self, at: u16, value: u8) {
        let (word, shift) = (usize::from(at / 4), 8 * (at % 4));
        self.words[word] = self.words[word] & !(0xFF << shift) | u32::from(value) << shift;
    }

    fn set16(&mut self, at: u16, value: u16) {
        self.set8(at, value as u8);
        self.set8(at + 1, (value >> 8) as u8);
    }
}

impl Config for Registers {
    fn read(&mut self, register: u16) -> u32 {
        self.words.get(usize::from(register / 4)).copied().unwrap_or(u32::MAX)
    }

    fn write(&mut self, register: u16, value: u32) {
        let at = usize::from(register / 4);
        let answers = self.words[1] as u16 & (command::IO | command::MEMORY) != 0;
        self.probed_live |= (4..10).contains(&at) && answers;
        let fixed = self.fixed.get(&at).copied().unwrap_or(0);
        // The status register's ones are cleared by ones.
        let value = if at == 1 { value & 0xFFFF | self.words[1] & !value & 0xFFFF_0000 } else { value };
        if let Some(word) = self.words.get_mut(at) {
            *word = *word & fixed | value & !fixed;
        }
    }
}

/// Words that are likely to mean something: small, all ones, or anything.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0_u32..=0xFF,
        Just(u32::MAX),
        Just(0),
        any::<u32>(),
        any::<u32>().prop_map(|w| w & 0xFCFC_FFFF)
    ]
}

fn random_space() -> impl Strategy<Value = Registers> {
    let fixed = proptest::collection::btree_map(0_usize..1024, word(), 0..24);
    (proptest::collection::vec(word(), 80), any::<u64>(), fixed).prop_map(|(head, seed, fixed)| {
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u32
        };
        let words = (0..1024).map(|at| head.get(at).copied().unwrap_or_else(&mut random)).collect();
        Registers { words, fixed, probed_live: false }
    })
}

fn check_bar(bar: &Bar) {
    assert!(bar.length.is_power_of_two() && bar.base.is_multiple_of(bar.length), "{bar:?}");
    let end = bar.base.checked_add(bar.length).unwrap();
    match bar.space {
        Space::Io => assert!(end <= 1 << 16),
        Space::Memory { is_wide: false, .. } => assert!(end <= 1 << 32),
        Space::Memory { is_wide: true, .. } => assert!(end <= 1 << 52),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn random_content_ends_and_stays(mut space in random_space()) {
        let before = space.words.clone();
        let found: Vec<_> = capabilities(&mut space).collect();
        let places: BTreeSet<_> = found.iter().map(|capability| capability.at).collect();
        prop_assert_eq!(places.len(), found.len());
        prop_assert!(places.iter().all(|&at| (0x40..0x100).contains(&at) && at % 4 == 0));
        let found: Vec<_> = extended(&mut space).collect();
        let places: BTreeSet<_> = found.iter().map(|capability| capability.at).collect();
        prop_assert_eq!(places.len(), found.len());
        prop_assert!(places.iter().all(|&at| (0x100..0x1000).contains(&at) && at % 4 == 0));
        let Some(header) = Header::read(&mut space) else { return Ok(()) };
        let bars = bar::probe(&mut space, header.kind);
        bars.iter().flatten().for_each(check_bar);
        prop_assert!(bars[header.kind.bars()..].iter().all(Option::is_none));
        prop_assert!(!space.probed_live || space.fixed.contains_key(&1));
        for (at, (was, is)) in before.iter().zip(&space.words).enumerate() {
            prop_assert!(was == is, "word {} was {:#x} and is {:#x}", at, was, is);
        }
        if let Some(msix) = Msix::find(&mut space, &bars) {
            let range = bars[usize::from(msix.bar)].unwrap();
            prop_assert!(u64::from(msix.offset) + u64::from(msix.count) * 16 <= range.length);
            msix.enable(&mut space);
            msix.disable(&mut space);
        }
        if let Some(found) = Transport::find(&mut space, &bars) {
            for part in [found.common, found.notify, found.specific] {
                let range = bars[usize::from(part.bar)].unwrap();
                prop_assert!(u64::from(part.offset) + u64::from(part.length) <= range.length);
            }
            let notified = (0..=u16::MAX).filter_map(|queue| found.notify_offset(queue)).max();
            prop_assert!(notified.is_none_or(|offset| offset + 2 <= found.notify.length as usize));
        }
        if let Some(msi) = Msi::find(&mut space) {
            msi.enable(&mut space, Message::new(3, 0x41).unwrap());
            msi.set_masked(&mut space, true);
            msi.disable(&mut space);
        }
    }

    #[test]
    fn ranges_are_those_of_the_device(wanted in device_ranges(), live in any::<bool>()) {
        let (mut space, kind) = (with_ranges(&wanted), Kind::Function);
        space.words[1] = if live { u32::from(command::MEMORY | command::IO | command::MASTER) } else { 0 };
        let before = space.words.clone();
        let found = bar::probe(&mut space, kind);
        prop_assert_eq!(found, as_bars(&wanted));
        prop_assert_eq!(space.words, before);
        prop_assert!(!space.probed_live);
    }

    #[test]
    fn walks_end_and_tell_each_function_once(tree in buses()) {
        let mut told = BTreeSet::new();
        let mut twice = 0;
        walk(&mut { &tree }, |_, address, _| -> Result<(), ()> {
            twice += u32::from(!told.insert(address));
            Ok(())
        }).unwrap();
        prop_assert_eq!(twice, 0);
        prop_assert_eq!(told, tree.reachable());
    }

    #[test]
    fn an_entry_never_sends_a_mixed_message(messages in proptest::collection::vec((0_u32..255, 0x30_u8..=0xBF), 1..8)) {
        let mut entry = Table { words: [0, 0, 0, MASKED], sent: Vec::new() };
        for &(apic_id, vector) in &messages {
            msi::set(&mut entry, Message::new(apic_id, vector).unwrap());
            prop_assert_eq!(entry.words[3] & MASKED, 0);
        }
        let set: BTreeSet<_> = messages.iter().map(|&(id, vector)| Message::new(id, vector).unwrap())
            .map(|message| (message.address, message.data)).collect();
        prop_assert!(entry.sent.iter().all(|sent| set.contains(sent)), "{:?}", entry.sent);
        msi::mask(&mut entry);
        prop_assert_eq!(entry.words[3] & MASKED, MASKED);
    }
}

/// An entry of a device that sends at every moment.
struct Table {
    words: [u32; 4],
    sent: Vec<(u64, u32)>,
}

impl msi::Entry for Table {
    fn write(&mut self, index: usize, value: u32) {
        self.words[index] = value;
        if self.words[3] & MASKED == 0 {
            self.sent.push((u64::from(self.words[1]) << 32 | u64::from(self.words[0]), self.words[2]));
        }
    }

    fn read(&self, index: usize) -> u32 {
        self.words[index]
    }
}

/// By register: nothing, a narrow range, ports, or a wide one that takes two. Length by its power of two, place by a multiple.
#[derive(Clone, Copy, Debug)]
enum Range {
    None,
    Ports { power: u32, place: u32 },
    Narrow { power: u32, place: u32, prefetchable: bool },
    Wide { power: u32, place: u64, prefetchable: bool },
}

fn device_ranges() -> impl Strategy<Value = Vec<Range>> {
    let range = prop_oneof![
        Just(Range::None),
        (2_u32..=8, any::<u32>())
            .prop_map(|(power, place)| Range::Ports { power, place: place % (1 << (16 - power)) }),
        (4_u32..=31, any::<u32>(), any::<bool>()).prop_map(|(power, place, prefetchable)| {
            Range::Narrow { power, place: place % (1 << (32 - power)), prefetchable }
        }),
        (4_u32..=50, any::<u64>(), any::<bool>()).prop_map(|(power, place, prefetchable)| {
            Range::Wide { power, place: place % (1 << (52 - power)), prefetchable }
        }),
    ];
    proptest::collection::vec(range, 6)
}

/// How many registers one takes, from where on; those that don't fit are left out.
fn placed(ranges: &[Range]) -> Vec<(usize, Range)> {
    let mut at = 0;
    let mut placed = Vec::new();
    for &range in ranges {
        let width = if matches!(range, Range::Wide { .. }) { 2 } else { 1 };
        if at + width <= 6 {
            placed.push((at, range));
            at += width;
        }
    }
    placed
}

fn with_ranges(ranges: &[Range]) -> Registers {
    let mut space = Registers::empty();
    space.words[0] = 0x1234_5678;
    for word in 4..10 {
        space.fixed.insert(word, u32::MAX);
    }
    for (at, range) in placed(ranges) {
        let word = 4 + at;
        match range {
            Range::None => {}
            Range::Ports { power, place } => {
                space.words[word] = place << power | 1;
                // Half of all devices have no upper half.
                space
                    .fixed
                    .insert(word, ((1 << power) - 1) | if place.is_multiple_of(2) { 0xFFFF_0000 } else { 0 });
            }
            Range::Narrow { power, place, prefetchable } => {
                space.words[word] = place << power | u32::from(prefetchable) << 3;
                space.fixed.insert(word, (1 << power) - 1);
            }
            Range::Wide { power, place, prefetchable } => {
                let (base, fixed) = (place << power, (1_u64 << power) - 1);
                space.words[word] = base as u32 | u32::from(prefetchable) << 3 | 0b100;
                space.words[word + 1] = (base >> 32) as u32;
                space.fixed.insert(word, fixed as u32 | 0xF);
                space.fixed.insert(word + 1, (fixed >> 32) as u32);
            }
        }
    }
    space
}

fn as_bars(ranges: &[Range]) -> bar::Bars {
    let mut bars = [None; bar::MOST];
    for (at, range) in placed(ranges) {
        bars[at] = match range {
            Range::None => None,
            Range::Ports { power, place } => {
                Some(Bar { space: Space::Io, base: u64::from(place << power), length: 1 << power })
            }
            Range::Narrow { power, place, prefetchable } => Some(Bar {
                space: Space::Memory { is_wide: false, is_prefetchable: prefetchable },
                base: u64::from(place << power),
                length: 1 << power,
            }),
            Range::Wide { power, place, prefetchable } => Some(Bar {
                space: Space::Memory { is_wide: true, is_prefetchable: prefetchable },
                base: place << power,
                length: 1 << power,
            }),
        };
    }
    bars
}

/// Functions by address: the bus that it is a bridge to, and whether it says that its device has more functions.
#[derive(Clone, Debug)]
struct Tree(BTreeMap<Address, (Option<u8>, bool)>);

fn buses() -> impl Strategy<Value = Tree> {
    let address = (prop_oneof![Just(0_u8), 0_u8..4, Just(255)], 0_u8..32, prop_oneof![Just(0_u8), 0_u8..8]);
    let function = (proptest::option::of(prop_oneof![0_u8..5, Just(255)]), any::<bool>());
    proptest::collection::btree_map(
        address.prop_map(|(bus, device, function)| Address::new(bus, device, function)),
        function,
        0..40,
    )
    .prop_map(Tree)
}

impl Tree {
    /// By following bridges until nothing new is found.
    fn reachable(&self) -> BTreeSet<Address> {
        let mut buses = BTreeSet::from([0]);
        loop {
            let visible = |(address, _): &(&Address, &(Option<u8>, bool))| {
                let first = self.0.get(&Address::new(address.bus(), address.device(), 0));
                buses.contains(&address.bus())
                    && (address.function() == 0 || first.is_some_and(|first| first.1))
            };
            let found: Vec<_> = self.0.iter().filter(visible).collect();
            let more: BTreeSet<u8> =
                found.iter().filter_map(|(_, function)| function.0).chain(buses.iter().copied()).collect();
            if more == buses {
                return found.into_iter().map(|(address, _)| *address).collect();
            }
            buses = more;
        }
    }
}

impl Functions for &Tree {
    fn at(&mut self, address: Address) -> Option<impl Config> {
        let mut space = Registers::empty();
        space.words[0] = u32::MAX;
        if let Some(&(bridge, multi)) = self.0.get(&address) {
            space.words[0] = 0x0001_1AF4;
            space.set8(register::HEADER_TYPE, u8::from(bridge.is_some()) | u8::from(multi) << 7);
            space.set8(register::BUSES + 1, bridge.unwrap_or(0));
        }
        Some(space)
    }
}

#[test]
fn a_list_that_bites_its_tail_ends() {
    let mut space = Registers::empty();
    space.words[1] = 1 << 20;
    space.set8(register::CAPABILITIES, 0x40);
    for (at, kind, next) in [(0x40, id::VENDOR, 0x50), (0x50, id::MSI, 0x60), (0x60, id::MSIX, 0x53)] {
        space.set8(at, kind);
        space.set8(at + 1, next);
    }
    let found: Vec<_> =
        capabilities(&mut space).map(|capability| (capability.id as u8, capability.at)).collect();
    assert_eq!(found, [(id::VENDOR, 0x40), (id::MSI, 0x50), (id::MSIX, 0x60)]);
    space.words[1] = 0;
    assert_eq!(capabilities(&mut space).count(), 0, "without the status bit there is no list");
}

#[test]
fn msi_is_written_before_it_is_enabled() {
    for (control, data, mask) in
        [(0x0000, 0x48, None), (0x0080, 0x4C, None), (0x0180, 0x4C, Some(0x50)), (0x0100, 0x48, Some(0x4C))]
    {
        let mut space = Registers::empty();
        space.words[1] = 1 << 20 | u32::from(command::MASTER);
        space.set8(register::CAPABILITIES, 0x40);
        space.set8(0x40, id::MSI);
        space.set16(0x42, control | 0b011 << 4);
        let msi = Msi::find(&mut space).unwrap();
        msi.enable(&mut space, Message::new(5, 0x62).unwrap());
        assert_eq!(space.read(0x44), 0xFEE0_5000);
        assert_eq!(space.read16(data), 0x62);
        assert_eq!(space.read16(0x42), control | 1, "one message, enabled");
        assert_eq!(msi.set_masked(&mut space, true), mask.is_some());
        if let Some(mask) = mask {
            assert_eq!(space.read(mask) & 1, 1);
        }
        msi.disable(&mut space);
        assert_eq!(space.read16(0x42), control);
        assert_eq!(read_command(&mut space), command::MASTER);
    }
}

/// A virtio device's capabilities: each part once, the notify one with its multiplier behind.
#[test]
fn a_virtio_device_is_found_by_its_capabilities() {
    let mut space = with_ranges(&[Range::Wide { power: 14, place: 1, prefetchable: true }]);
    space.words[1] = 1 << 20;
    space.set8(register::CAPABILITIES, 0x40);
    // Kind, offset, length; the first one of a kind counts, and one that reaches out of the range doesn't.
    let parts = [
        (3, 0x1000, 0x1000),
        (1, 0x3FF0, 0x100),
        (1, 0, 0x1000),
        (4, 0x2000, 0x1000),
        (2, 0x3000, 0x40),
        (1, 0x800, 0x100),
    ];
    for (number, (kind, offset, length)) in parts.into_iter().enumerate() {
        let at = 0x40 + 0x18 * number as u16;
        space.set8(at, id::VENDOR);
        space.set8(at + 1, if number + 1 < parts.len() { (at + 0x18) as u8 } else { 0 });
        space.set8(at + 3, kind);
        space.words[usize::from(at / 4) + 2] = offset;
        space.words[usize::from(at / 4) + 3] = length;
        space.words[usize::from(at / 4) + 4] = 4;
    }
    let bars = bar::probe(&mut space, Kind::Function);
    let found = Transport::find(&mut space, &bars).unwrap();
    assert_eq!(found.common, Part { bar: 0, offset: 0, length: 0x1000 });
    assert_eq!(found.specific, Part { bar: 0, offset: 0x2000, length: 0x1000 });
    assert_eq!((found.notify.offset, found.notify_multiplier), (0x3000, 4));
    assert_eq!(found.notify_offset(15), Some(0x3C));
    assert_eq!(found.notify_offset(16), None, "outside of the part");
    assert_eq!(found.notify_offset(u16::MAX), None);
}
