//! The decision about an access against a reference that takes one right after the other: the first entry for it decides. With groups of all
//! kinds, owners, restricted tokens, privileges, null and empty lists, generic rights, rights that were given before.

use kernel::ke::apc::ProcessorMode;
use kernel::ob::{AccessMask, GenericMapping};
use kernel::rtl::NtStatus;
use kernel::se::acl::{AceFlags, AceKind};
use kernel::se::descriptor::Control;
use kernel::se::sid::known;
use kernel::se::token::{GroupAttributes, ImpersonationLevel, Options, Subject, TokenKind};
use kernel::se::{AclBuffer, Descriptor, Luid, Privilege, Privileges, SidBuffer, Token, access_check};
use proptest::prelude::*;

const CASES: u32 = if cfg!(miri) { 40 } else { 40_000 };

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask(0x2_0003),
    write: AccessMask(0x2_0004),
    execute: AccessMask(0x10_0008),
    all: AccessMask(0x1F_00FF),
};

/// The user's; the others are groups, by what they are to it. 1 is a usual one, 4 none of it.
const USER: usize = 0;
const DISABLED: usize = 2;
const DENY_ONLY: usize = 3;
/// Stands for the owner.
const OWNER_RIGHTS: usize = 5;
const ALL: usize = 6;

fn sid(number: usize) -> SidBuffer {
    if number == OWNER_RIGHTS { known::OWNER_RIGHTS } else { SidBuffer::new(5, &[21, number as u32]) }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: AceKind,
    inherit_only: bool,
    mask: u32,
    whose: usize,
}

#[derive(Clone, Debug)]
struct Case {
    /// None: not there; an empty one, or a null one by the second.
    entries: Option<Vec<Entry>>,
    null: bool,
    owner: Option<usize>,
    user_deny_only: bool,
    restricted: Vec<usize>,
    privileges: Privileges,
    desired: u32,
    previous: u32,
}

fn mask() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => any::<[u8; 2]>().prop_map(|[low, high]| u32::from(low) | u32::from(high & 0x1F) << 16),
        1 => any::<u32>().prop_map(|mask| 1 << (mask % 32)),
        1 => any::<u32>(),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop::sample::select(vec![
        AceKind::Allow,
        AceKind::Allow,
        AceKind::Allow,
        AceKind::Deny,
        AceKind::Audit,
    ]);
    (kind, prop::bool::weighted(0.15), mask(), 0..ALL).prop_map(|(kind, inherit_only, mask, whose)| Entry {
        kind,
        inherit_only,
        mask,
        whose,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let entries = prop::option::weighted(0.95, prop::collection::vec(entry(), 0..8));
    let restricted = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(0..ALL, 1..3)];
    let privilege = prop::sample::select(vec![
        Privileges::NONE,
        Privileges::of(&[Privilege::Security]),
        Privileges::of(&[Privilege::TakeOwnership]),
        Privileges::of(&[Privilege::Security, Privilege::TakeOwnership]),
    ]);
    let desired = (mask(), prop::bool::weighted(0.3))
        .prop_map(|(mask, most)| if most { mask | 1 << 25 } else { mask & !(1 << 25) });
    let previous = prop_oneof![2 => Just(0), 1 => mask().prop_map(|mask| mask & 0x1F_FFFF)];
    let flags = (prop::bool::weighted(0.05), prop::bool::weighted(0.1));
    (entries, flags, prop::option::of(0..OWNER_RIGHTS), restricted, privilege, desired, previous).prop_map(
        |(entries, (null, user_deny_only), owner, restricted, privileges, desired, previous)| Case {
            entries,
            null,
            owner,
            user_deny_only,
            restricted,
            privileges,
            desired,
            previous,
        },
    )
}

impl Case {
    fn token(&self) -> Token {
        let (sids, usual) = ([0, 1, 2, 3, 4].map(sid), GroupAttributes::USUAL);
        let token = Token::new(&Options {
            logon: Luid::SYSTEM,
            kind: TokenKind::Primary,
            user: &sids[USER],
            groups: &[
                (&sids[1], usual),
                (&sids[DISABLED], GroupAttributes::default()),
                (&sids[DENY_ONLY], usual),
            ],
            privileges: Privileges::ALL,
            enabled: self.privileges,
            owner: None,
            primary_group: &sids[1],
            default_dacl: None,
        });
        let mut deny_only = vec![&*sids[DENY_ONLY]];
        deny_only.extend(self.user_deny_only.then_some(&*sids[USER]));
        let restricted: Vec<SidBuffer> = self.restricted.iter().map(|it| sid(*it)).collect();
        let restricted: Vec<_> = restricted.iter().map(|it| &**it).collect();
        token.expect("memory").filter(&deny_only, Privileges::NONE, &restricted).expect("memory")
    }

    /// Is `whose` the user or a group that may be taken for an entry?
    fn is(&self, whose: usize, is_deny: bool) -> bool {
        match whose {
            USER => !self.user_deny_only || is_deny,
            1 => true,
            DENY_ONLY => is_deny,
            _ => false,
        }
    }

    fn is_owner(&self) -> bool {
        self.owner.is_some_and(|owner| {
            self.is(owner, false) && (self.restricted.is_empty() || self.restricted.contains(&owner))
        })
    }

    /// The first entry that has the right and is for one of these.
    fn first(&self, bit: u32, restricted: bool) -> bool {
        let entries =
            self.entries.iter().flatten().filter(|entry| !entry.inherit_only && entry.mask & bit != 0);
        let mut mine = entries.filter(|entry| match (entry.whose, restricted, entry.kind) {
            (_, _, AceKind::Audit) => false,
            (OWNER_RIGHTS, false, _) => self.is_owner(),
            (whose, true, _) => self.restricted.contains(&whose) || whose == OWNER_RIGHTS && self.is_owner(),
            (whose, false, kind) => self.is(whose, kind == AceKind::Deny),
        });
        mine.next().is_some_and(|entry| entry.kind == AceKind::Allow)
    }

    /// May it have this right, for which it needn't ask by a privilege?
    fn by_descriptor(&self, bit: u32) -> bool {
        let Some(entries) = self.entries.as_ref().filter(|_| !self.null) else { return true };
        let owner_rights = entries.iter().any(|entry| !entry.inherit_only && entry.whose == OWNER_RIGHTS);
        let by_owner = self.is_owner() && !owner_rights && bit & 0x6_0000 != 0;
        let by_list =
            bit < 1 << 21 && self.first(bit, false) && (self.restricted.is_empty() || self.first(bit, true));
        by_owner || by_list
    }

    fn reference(&self) -> Result<u32, NtStatus> {
        let desired = AccessMask(self.desired).mapped(&MAPPING).0;
        let (wants_all, wanted) = (desired >> 25 & 1 != 0, desired & !(1 << 25));
        let mut granted = self.previous;
        for bit in (0..32).map(|number| 1 << number).filter(|bit| wanted & bit & !self.previous != 0) {
            let allowed = match bit {
                0x0100_0000 if self.privileges.has(Privilege::Security) => true,
                0x0100_0000 => return Err(NtStatus::PRIVILEGE_NOT_HELD),
                0x0008_0000 if self.privileges.has(Privilege::TakeOwnership) => true,
                _ => self.by_descriptor(bit),
            };
            granted |= if allowed { bit } else { 0 };
        }
        if granted & wanted != wanted {
            return Err(NtStatus::ACCESS_DENIED);
        }
        if wants_all {
            let most = if self.entries.is_none() || self.null { MAPPING.all.0 } else { 0x1F_FFFF };
            let bits = (0..21).map(|number| 1 << number).filter(|bit| most & bit != 0);
            granted |= bits.filter(|bit| self.by_descriptor(*bit)).sum::<u32>();
        }
        if granted == 0 { Err(NtStatus::ACCESS_DENIED) } else { Ok(granted) }
    }

    fn subject(&self, mode: ProcessorMode) -> Result<u32, NtStatus> {
        let mut acl = AclBuffer::new().expect("memory");
        for entry in self.entries.iter().flatten() {
            let flags = if entry.inherit_only { AceFlags::INHERIT_ONLY } else { AceFlags::NONE };
            acl.push(entry.kind, flags, AccessMask(entry.mask), &sid(entry.whose)).expect("memory");
        }
        let owner = self.owner.map(sid);
        let descriptor = Descriptor {
            control: if self.entries.is_some() { Control::DACL_PRESENT } else { Control::default() },
            owner: owner.as_deref(),
            dacl: (!self.null).then_some(&*acl),
            ..Descriptor::default()
        };
        let token = self.token();
        let (desired, previous) = (AccessMask(self.desired), AccessMask(self.previous));
        let grant =
            access_check(Some(&descriptor), &Subject::new(&token), desired, previous, &MAPPING, mode)?;
        // What was asked for, and can be had by a privilege, was had by it.
        let missing = desired.mapped(&MAPPING).without(previous);
        let by_one = [
            (AccessMask::ACCESS_SYSTEM_SECURITY, Privilege::Security),
            (AccessMask::WRITE_OWNER, Privilege::TakeOwnership),
        ];
        for (right, privilege) in by_one {
            let is_used =
                mode == ProcessorMode::User && missing.contains(right) && self.privileges.has(privilege);
            assert_eq!(grant.privileges.has(privilege), is_used, "{privilege:?}");
        }
        Ok(grant.access.0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_first_entry_for_a_right_decides(case in case()) {
        assert_eq!(case.subject(ProcessorMode::User), case.reference());
        let wanted = AccessMask(case.desired).mapped(&MAPPING).0;
        let all = if wanted >> 25 & 1 != 0 { MAPPING.all.0 } else { 0 };
        assert_eq!(case.subject(ProcessorMode::Kernel), Ok(case.previous | wanted & !(1 << 25) | all));
    }
}

#[test]
fn no_descriptor_lets_nobody_in_and_impersonation_has_levels() {
    let token = Token::system().expect("memory");
    let check = |subject: &Subject<'_>, descriptor: Option<&Descriptor<'_>>, mode| {
        access_check(descriptor, subject, AccessMask(1), AccessMask::NONE, &MAPPING, mode)
            .map(|grant| grant.access.0)
    };
    let open = Descriptor::default();
    let own = Subject::new(&token);
    assert_eq!(check(&own, None, ProcessorMode::User), Err(NtStatus::ACCESS_DENIED));
    assert_eq!(check(&own, None, ProcessorMode::Kernel), Ok(1));
    assert_eq!(check(&own, Some(&open), ProcessorMode::User), Ok(1));
    for (level, wanted) in [
        (ImpersonationLevel::Anonymous, Err(NtStatus::BAD_IMPERSONATION_LEVEL)),
        (ImpersonationLevel::Identification, Err(NtStatus::BAD_IMPERSONATION_LEVEL)),
        (ImpersonationLevel::Impersonation, Ok(1)),
        (ImpersonationLevel::Delegation, Ok(1)),
    ] {
        let client = token.duplicate(TokenKind::Impersonation(level)).expect("memory");
        let subject = Subject { client: Some(&client), primary: &token };
        assert_eq!(check(&subject, Some(&open), ProcessorMode::User), wanted, "{level:?}");
    }
}
