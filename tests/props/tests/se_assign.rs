//! The descriptor of a new object: which entries a container hands to which kind of object and how they go on from there, against the rules'
//! table; the creator and generic rights, then and later; which of several lists is taken; who may be named as the owner.

use kernel::ke::apc::ProcessorMode;
use kernel::ob::{AccessMask, GenericMapping};
use kernel::rtl::NtStatus;
use kernel::se::acl::{AceFlags, AceKind};
use kernel::se::assign::assign;
use kernel::se::descriptor::Control;
use kernel::se::sid::known;
use kernel::se::token::{GroupAttributes, Options, Subject, TokenKind};
use kernel::se::{Acl, AclBuffer, Descriptor, Luid, Privilege, Privileges, Sid, SidBuffer, Token};

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask(0x2_0001),
    write: AccessMask(0x2_0002),
    execute: AccessMask(0x2_0004),
    all: AccessMask(0x1F_0007),
};

const OI: u8 = 1;
const CI: u8 = 2;
const NP: u8 = 4;
const IO: u8 = 8;

static USER: SidBuffer = SidBuffer::new(5, &[21, 1]);
static GROUP: SidBuffer = SidBuffer::new(5, &[21, 2]);
static OTHER: SidBuffer = SidBuffer::new(5, &[21, 3]);

fn token(enabled: Privileges) -> Token {
    let may_own = GroupAttributes::USUAL.with(GroupAttributes::OWNER);
    let default = list(&[(AceKind::Allow, 0, 0x1000_0000, &USER)]);
    Token::new(&Options {
        logon: Luid::SYSTEM,
        kind: TokenKind::Primary,
        user: &USER,
        groups: &[(&GROUP, may_own)],
        privileges: Privileges::ALL,
        enabled,
        owner: None,
        primary_group: &GROUP,
        default_dacl: Some(&default),
    })
    .expect("memory")
}

type Entry<'a> = (AceKind, u8, u32, &'a Sid);

fn list(entries: &[Entry<'_>]) -> AclBuffer {
    let mut acl = AclBuffer::new().expect("memory");
    for (kind, flags, mask, sid) in entries {
        acl.push(*kind, AceFlags(*flags), AccessMask(*mask), sid).expect("memory");
    }
    acl
}

fn entries(acl: Option<&Acl>) -> Vec<Entry<'_>> {
    let aces = acl.into_iter().flat_map(Acl::aces);
    aces.map(|ace| (ace.kind(), ace.flags().0, ace.mask().0, ace.sid().expect("of such a kind"))).collect()
}

fn with_dacl(acl: Option<&Acl>, defaulted: bool) -> Descriptor<'_> {
    let flag = if defaulted { Control::DACL_DEFAULTED } else { Control::default() };
    Descriptor { control: Control::DACL_PRESENT.with(flag), dacl: acl, ..Descriptor::default() }
}

/// What an entry of a container's list is in a new object: the entries with their flags, and whether each is as it stood there.
fn handed_down(entry: Entry<'_>, is_container: bool) -> Vec<Entry<'_>> {
    let (kind, flags, mask, sid) = entry;
    // The rules' table: for objects, for containers.
    let new = match (is_container, flags & (OI | CI | NP)) {
        (false, 1 | 3 | 5 | 7) => Some(0),
        (true, 1) => Some(OI | IO),
        (true, 2) => Some(CI),
        (true, 3) => Some(OI | CI),
        (true, 6 | 7) => Some(0),
        _ => None,
    };
    let Some(new) = new else { return Vec::new() };
    let told = flags & 0xC0;
    if new & IO != 0 {
        return vec![(kind, new | told, mask, sid)];
    }
    let meant: (u32, &Sid) = match mask {
        0x1000_0000 => (0x1F_0007, sid),
        mask => (mask, sid),
    };
    let meant = match sid.to_string().as_str() {
        "S-1-3-0" => (meant.0, &*USER),
        "S-1-3-1" => (meant.0, &*GROUP),
        _ => meant,
    };
    if new != 0 && meant != (mask, sid) {
        return vec![(kind, told, meant.0, meant.1), (kind, new | IO | told, mask, sid)];
    }
    vec![(kind, new | told, meant.0, meant.1)]
}

#[test]
fn entries_go_where_the_rules_say() {
    let token = token(Privileges::NONE);
    let subject = Subject::new(&token);
    for kind in [AceKind::Allow, AceKind::Deny] {
        for flags in (0..16_u8).flat_map(|flags| [flags, flags | 0x10, flags | 0xC0]) {
            for sid in [&known::CREATOR_OWNER, &known::CREATOR_GROUP, &OTHER] {
                for mask in [3, 0x1000_0000] {
                    for is_container in [false, true] {
                        let entry: Entry<'_> = (kind, flags, mask, sid);
                        // One that goes on by itself, so that the list isn't empty.
                        let acl = list(&[entry, (AceKind::Allow, OI | CI, 1, &OTHER)]);
                        let parent = with_dacl(Some(&acl), false);
                        let new = assign(
                            Some(&parent),
                            None,
                            is_container,
                            &subject,
                            &MAPPING,
                            ProcessorMode::User,
                        );
                        let new = new.expect("memory");
                        let mut wanted = handed_down(entry, is_container);
                        wanted.push((AceKind::Allow, if is_container { OI | CI } else { 0 }, 1, &OTHER));
                        assert_eq!(entries(new.view().dacl), wanted, "{entry:?}, container: {is_container}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_grandchild_gets_what_its_grandparent_meant() {
    let token = token(Privileges::NONE);
    let subject = Subject::new(&token);
    let acl = list(&[(AceKind::Allow, OI | CI, 0x1000_0000, &known::CREATOR_OWNER)]);
    let grandparent = with_dacl(Some(&acl), false);
    let make = |parent: &Descriptor<'_>, is_container| {
        assign(Some(parent), None, is_container, &subject, &MAPPING, ProcessorMode::User).expect("memory")
    };
    let parent = make(&grandparent, true);
    let child = make(&parent.view(), false);
    assert_eq!(entries(child.view().dacl), [(AceKind::Allow, 0, 0x1F_0007, &*USER)]);
}

#[test]
fn lists_are_taken_in_their_order() {
    let token = token(Privileges::NONE);
    let subject = Subject::new(&token);
    let inherited = list(&[(AceKind::Allow, OI, 1, &OTHER)]);
    let barren = list(&[(AceKind::Allow, 0, 1, &OTHER)]);
    let own = list(&[(AceKind::Deny, 0, 2, &OTHER)]);
    let (parent, no_heir) = (with_dacl(Some(&inherited), false), with_dacl(Some(&barren), false));
    let make = |parent: Option<&Descriptor<'_>>, explicit: Option<&Descriptor<'_>>| {
        let new = assign(parent, explicit, false, &subject, &MAPPING, ProcessorMode::User).expect("memory");
        let view = new.view();
        assert!(view.control.contains(Control::DACL_PRESENT));
        assert_eq!((view.owner, view.group), (Some(&*USER), Some(&*GROUP)));
        view.dacl.map(|acl| entries(Some(acl)).iter().map(|entry| (entry.0, entry.2)).collect::<Vec<_>>())
    };
    let (allow, deny) = (AceKind::Allow, AceKind::Deny);
    assert_eq!(
        make(Some(&parent), Some(&with_dacl(Some(&own), false))),
        Some(vec![(deny, 2)]),
        "the maker's"
    );
    assert_eq!(make(Some(&parent), Some(&with_dacl(None, false))), None, "the maker's null one");
    assert_eq!(
        make(Some(&parent), Some(&with_dacl(Some(&own), true))),
        Some(vec![(allow, 1)]),
        "the container's"
    );
    assert_eq!(
        make(Some(&no_heir), Some(&with_dacl(Some(&own), true))),
        Some(vec![(deny, 2)]),
        "the maker's default"
    );
    assert_eq!(make(Some(&no_heir), None), Some(vec![(allow, 0x1F_0007)]), "the token's");
    assert_eq!(make(None, None), Some(vec![(allow, 0x1F_0007)]), "the token's");
}

#[test]
fn owners_and_system_lists_need_a_right_to_them() {
    let acl = list(&[(AceKind::Audit, 0xC0, 1, &OTHER)]);
    let owned = |owner: &'static Sid| Descriptor { owner: Some(owner), ..Descriptor::default() };
    let audited = Descriptor { control: Control::SACL_PRESENT, sacl: Some(&acl), ..Descriptor::default() };
    let make = |explicit: &Descriptor<'_>, privileges, mode| {
        let token = token(Privileges::of(privileges));
        let new = assign(None, Some(explicit), false, &Subject::new(&token), &MAPPING, mode)?;
        Ok((new.view().owner.map(SidBuffer::of), entries(new.view().sacl).len()))
    };
    let (user, kernel) = (ProcessorMode::User, ProcessorMode::Kernel);
    assert_eq!(make(&owned(&USER), &[], user), Ok((Some(USER), 0)));
    assert_eq!(make(&owned(&GROUP), &[], user), Ok((Some(GROUP), 0)));
    assert_eq!(make(&owned(&OTHER), &[], user), Err(NtStatus::INVALID_OWNER));
    assert_eq!(make(&owned(&OTHER), &[Privilege::Restore], user), Ok((Some(OTHER), 0)));
    assert_eq!(make(&owned(&OTHER), &[], kernel), Ok((Some(OTHER), 0)));
    assert_eq!(make(&audited, &[], user), Err(NtStatus::PRIVILEGE_NOT_HELD));
    assert_eq!(make(&audited, &[Privilege::Security], user), Ok((Some(USER), 1)));
}
