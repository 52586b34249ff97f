//! Security descriptors of all kinds: what is made is read back, in either form; whatever bytes they are, nothing beyond them is read, and
//! what is taken for a descriptor is one; parts of one are put into another.

#[path = "../../fuzz/descriptors.rs"]
mod fuzz;

use kernel::ob::AccessMask;
use kernel::rtl::NtStatus;
use kernel::se::acl::{AceFlags, AceKind};
use kernel::se::descriptor::{Control, Parts};
use kernel::se::{AclBuffer, Descriptor, DescriptorBuffer, SidBuffer};
use proptest::prelude::*;

const CASES: u32 = if cfg!(miri) { 15 } else { 3000 };

fn sid() -> impl Strategy<Value = SidBuffer> {
    (0..1_u64 << 48, prop::collection::vec(any::<u32>(), 0..=15))
        .prop_map(|(authority, rest)| SidBuffer::new(authority, &rest))
}

fn kind() -> impl Strategy<Value = AceKind> {
    prop::sample::select(vec![AceKind::Allow, AceKind::Deny, AceKind::Audit, AceKind::Label])
}

type Entry = (AceKind, u8, u32, SidBuffer);

fn list() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec((kind(), any::<u8>(), any::<u32>(), sid()), 0..6)
}

fn buffer(entries: &[Entry]) -> AclBuffer {
    let mut acl = AclBuffer::new().expect("memory");
    for (kind, flags, mask, sid) in entries {
        acl.push(*kind, AceFlags(*flags), AccessMask(*mask), sid).expect("short enough");
    }
    let found = acl.aces().map(|ace| (ace.kind(), ace.flags().0, ace.mask().0, ace.sid().map(SidBuffer::of)));
    assert!(found.eq(entries.iter().map(|(kind, flags, mask, sid)| (*kind, *flags, *mask, Some(*sid)))));
    acl
}

/// What a descriptor is made of; the lists may be null, or not there.
#[derive(Clone, Debug)]
struct Made {
    control: u16,
    owner: Option<SidBuffer>,
    group: Option<SidBuffer>,
    sacl: Option<Vec<Entry>>,
    dacl: Option<Vec<Entry>>,
}

fn made() -> impl Strategy<Value = Made> {
    let maybe = || prop::option::of(sid());
    (any::<u16>(), maybe(), maybe(), prop::option::of(list()), prop::option::of(list())).prop_map(
        |(control, owner, group, sacl, dacl)| {
            let present = |list: &Option<Vec<Entry>>, flag: Control| if list.is_some() { flag.0 } else { 0 };
            let control = control & 0x7FFF
                | present(&sacl, Control::SACL_PRESENT)
                | present(&dacl, Control::DACL_PRESENT);
            Made { control, owner, group, sacl, dacl }
        },
    )
}

impl Made {
    fn with<R>(&self, f: impl FnOnce(Descriptor<'_>) -> R) -> R {
        let (sacl, dacl) = (self.sacl.as_deref().map(buffer), self.dacl.as_deref().map(buffer));
        f(Descriptor {
            control: Control(self.control),
            owner: self.owner.as_deref(),
            group: self.group.as_deref(),
            sacl: sacl.as_deref(),
            dacl: dacl.as_deref(),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_made_is_read_back(made in made()) {
        made.with(|descriptor| {
            let buffer = DescriptorBuffer::of(&descriptor).expect("memory");
            assert_eq!(buffer.view(), descriptor);
            fuzz::descriptors(buffer.bytes());
        });
    }

    /// A whole one that is cut off, or has a byte changed.
    #[test]
    fn damaged_ones_are_refused_or_whole(made in made(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = made.with(|descriptor| DescriptorBuffer::of(&descriptor).expect("memory").bytes().to_vec());
        let end = cut.index(bytes.len() + 1);
        // In memory of their own, so that Miri finds a read beyond the end.
        let part = bytes[..end].to_vec();
        fuzz::descriptors(&part);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzz::descriptors(&bytes);
        fuzz::descriptors(&bytes[at..]);
    }

    #[test]
    fn any_bytes_are_refused_or_one(bytes in prop::collection::vec(prop_oneof![3 => 0..5_u8, 1 => any::<u8>()], 0..120), relative in any::<bool>()) {
        let mut bytes = bytes;
        if let (true, [revision, _, _, control, ..]) = (relative, &mut bytes[..]) {
            (*revision, *control) = (1, 0x80);
        }
        fuzz::descriptors(&bytes);
    }

    #[test]
    fn parts_of_one_are_put_into_another(one in made(), other in made(), parts in 0..16_u32) {
        one.with(|one| other.with(|other| {
            let both = one.with(Parts(parts), other);
            let from = |part: Parts| if parts & part.0 != 0 { other } else { one };
            assert_eq!(both.owner, from(Parts::OWNER).owner);
            assert_eq!(both.group, from(Parts::GROUP).group);
            assert_eq!(both.sacl, from(Parts::SACL).sacl);
            assert_eq!(both.dacl, from(Parts::DACL).dacl);
            for (part, flags) in [(Parts::OWNER, 0x1), (Parts::GROUP, 0x2), (Parts::DACL, 0x100C), (Parts::SACL, 0x2030)] {
                assert_eq!(both.control.0 & flags, from(part).control.0 & flags);
            }
            assert_eq!(one.only(Parts(0)), Descriptor::default());
            assert_eq!(one.only(Parts(15)).with(Parts(parts), other).owner, both.owner);
        }));
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn the_corpus_is_taken() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/descriptors");
    let read = |name: &str| std::fs::read(format!("{corpus}/{name}")).expect("its file");
    let files: Vec<_> = std::fs::read_dir(corpus).expect("the corpus").collect();
    for file in files {
        fuzz::descriptors(&std::fs::read(file.expect("its entry").path()).expect("its file"));
    }
    for (name, is_one) in
        [("whole", true), ("cut", false), ("null_list", true), ("other_kinds", true), ("damaged", false)]
    {
        assert_eq!(Descriptor::parse(&read(name)).is_ok(), is_one, "{name}");
    }
}

#[test]
fn a_list_has_its_limit() {
    let sid = SidBuffer::new(5, &[1; 15]);
    let mut acl = AclBuffer::new().expect("memory");
    let mut count = 0;
    let status = loop {
        match acl.push(AceKind::Allow, AceFlags::NONE, AccessMask(1), &sid) {
            Ok(()) => count += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((status, count, acl.count()), (NtStatus::ALLOTTED_SPACE_EXCEEDED, 65_527 / 76, 862));
    assert_eq!(
        acl.push(AceKind::Other(5), AceFlags::NONE, AccessMask(1), &sid),
        Err(NtStatus::INVALID_PARAMETER)
    );
}
