//! Tokens: privileges and groups that are enabled, disabled and taken away against sets; copies may do no more, filtered ones less; numbers
//! are given out once.

use std::collections::BTreeMap;

use kernel::rtl::NtStatus;
use kernel::se::sid::known;
use kernel::se::token::{For, GroupAttributes, ImpersonationLevel, Options, TokenKind};
use kernel::se::{Luid, Privilege, Privileges, SidBuffer, Token};
use proptest::prelude::*;

const CASES: u32 = if cfg!(miri) { 4 } else { 500 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Enable(usize, bool),
    Remove(usize),
    Group(usize, bool),
    Copy,
    Filter { group: usize, privilege: usize },
}

fn steps() -> impl Strategy<Value = Step> {
    let privilege = 0..Privilege::ALL.len();
    prop_oneof![
        6 => (privilege.clone(), any::<bool>()).prop_map(|(which, on)| Step::Enable(which, on)),
        2 => privilege.clone().prop_map(Step::Remove),
        4 => (0..5_usize, any::<bool>()).prop_map(|(which, on)| Step::Group(which, on)),
        1 => Just(Step::Copy),
        1 => (0..4_usize, privilege).prop_map(|(group, privilege)| Step::Filter { group, privilege }),
    ]
}

fn group(number: usize) -> SidBuffer {
    SidBuffer::new(5, &[21, number as u32])
}

const KINDS: [GroupAttributes; 4] =
    [GroupAttributes::USUAL, GroupAttributes::ENABLED, GroupAttributes(0), GroupAttributes::DENY_ONLY];

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_token_is_what_its_sets_say(steps in prop::collection::vec(steps(), 40)) {
        let sids = [0, 1, 2, 3].map(group);
        let groups: Vec<_> = sids.iter().zip(KINDS).map(|(sid, kind)| (&**sid, kind)).collect();
        let mut token = Token::new(&Options {
            logon: Luid::SYSTEM,
            kind: TokenKind::Primary,
            user: &known::LOCAL_SERVICE,
            groups: &groups,
            privileges: Privileges::ALL,
            enabled: Privileges::of(&[Privilege::ChangeNotify]),
            owner: None,
            primary_group: &sids[0],
            default_dacl: None,
        }).expect("memory");
        let mut privileges: BTreeMap<usize, bool> =
            Privilege::ALL.iter().map(|it| *it == Privilege::ChangeNotify).enumerate().collect();
        let mut kinds = KINDS.map(|kind| kind.0);
        for step in steps {
            match step {
                Step::Enable(which, on) => {
                    let old = privileges.get_mut(&which);
                    let status = if old.is_some() { NtStatus::SUCCESS } else { NtStatus::NOT_ALL_ASSIGNED };
                    let changed = old.is_some_and(|old| std::mem::replace(old, on) != on);
                    let set = Privileges::of(&[Privilege::ALL[which]]);
                    let wanted = if changed { set } else { Privileges::NONE };
                    assert_eq!(token.set_enabled(set, on), (wanted, status));
                }
                Step::Remove(which) => {
                    privileges.remove(&which);
                    token.remove_privileges(Privileges::of(&[Privilege::ALL[which]]));
                }
                Step::Group(which, on) => {
                    let wanted = match kinds.get_mut(which) {
                        None => Err(NtStatus::NOT_ALL_ASSIGNED),
                        Some(kind) if on && *kind & 0x10 != 0 => Err(NtStatus::CANT_ENABLE_DENY_ONLY),
                        Some(kind) if !on && *kind & 1 != 0 => Err(NtStatus::CANT_DISABLE_MANDATORY),
                        Some(kind) => {
                            *kind = *kind & !4 | if on { 4 } else { 0 };
                            Ok(())
                        }
                    };
                    assert_eq!(token.set_group_enabled(&group(which), on), wanted);
                }
                Step::Copy => {
                    let copy = token.duplicate(TokenKind::Primary).expect("memory");
                    assert_ne!(copy.id(), token.id());
                    token = copy;
                }
                Step::Filter { group: which, privilege } => {
                    let set = Privileges::of(&[Privilege::ALL[privilege]]);
                    token = token.filter(&[&group(which)], set, &[]).expect("memory");
                    privileges.remove(&privilege);
                    kinds[which] = 0x10;
                }
            }
            for (number, privilege) in Privilege::ALL.iter().enumerate() {
                assert_eq!(token.privileges().has(*privilege), privileges.contains_key(&number));
                assert_eq!(token.has(*privilege), privileges.get(&number) == Some(&true), "{privilege:?}");
            }
            for (number, kind) in kinds.iter().enumerate() {
                assert_eq!(token.is(&group(number), For::Allow), kind & 4 != 0);
                assert_eq!(token.is(&group(number), For::Deny), kind & 0x14 != 0);
            }
            let changes_notify = privileges.keys().any(|it| Privilege::ALL[*it] == Privilege::ChangeNotify);
            assert_eq!(token.privileges_by_default().has(Privilege::ChangeNotify), changes_notify);
            assert!(!token.is_restricted() && token.is(&known::LOCAL_SERVICE, For::Allow));
        }
    }
}

#[test]
fn restrictions_only_grow() {
    let token = Token::system().expect("memory");
    let to = |token: &Token, sids: &[&SidBuffer]| {
        let sids: Vec<_> = sids.iter().map(|sid| &***sid).collect();
        token.filter(&[], Privileges::NONE, &sids).expect("memory")
    };
    let once = to(&token, &[&known::USERS, &known::WORLD]);
    assert!(
        once.is_restricted() && once.is_restricted_to(&known::USERS) && once.is_restricted_to(&known::WORLD)
    );
    let kept = to(&once, &[]);
    assert!(kept.is_restricted_to(&known::USERS));
    let twice = to(&once, &[&known::WORLD, &known::ADMINISTRATORS]);
    assert!(twice.is_restricted_to(&known::WORLD) && !twice.is_restricted_to(&known::USERS));
    assert!(!twice.is_restricted_to(&known::ADMINISTRATORS));
    let nobody = to(&twice, &[&known::USERS]);
    assert!(
        nobody.is_restricted()
            && !nobody.is_restricted_to(&known::WORLD)
            && !nobody.owns(&known::ADMINISTRATORS)
    );
    assert!(token.owns(&known::ADMINISTRATORS) && token.may_own(&known::LOCAL_SYSTEM));
}

#[test]
fn who_is_denied_owns_nothing_and_levels_only_fall() {
    let token = Token::system().expect("memory");
    let denied =
        token.filter(&[&known::LOCAL_SYSTEM, &known::ADMINISTRATORS], Privileges::ALL, &[]).expect("memory");
    assert!(!denied.may_own(&known::LOCAL_SYSTEM) && !denied.may_own(&known::ADMINISTRATORS));
    assert!(!denied.is(&known::LOCAL_SYSTEM, For::Allow) && denied.is(&known::LOCAL_SYSTEM, For::Deny));
    assert!(denied.privileges().is_empty());
    let levels = [
        ImpersonationLevel::Anonymous,
        ImpersonationLevel::Identification,
        ImpersonationLevel::Impersonation,
        ImpersonationLevel::Delegation,
    ];
    for had in levels {
        let client = token.duplicate(TokenKind::Impersonation(had)).expect("memory");
        for wanted in levels {
            assert_eq!(client.duplicate(TokenKind::Impersonation(wanted)).is_ok(), wanted <= had);
        }
        assert_eq!(client.duplicate(TokenKind::Primary).is_ok(), had >= ImpersonationLevel::Impersonation);
    }
    let foreign = Options {
        logon: Luid::SYSTEM,
        kind: TokenKind::Primary,
        user: &known::USERS,
        groups: &[(&known::WORLD, GroupAttributes::USUAL)],
        privileges: Privileges::NONE,
        enabled: Privileges::NONE,
        owner: Some(&known::WORLD),
        primary_group: &known::USERS,
        default_dacl: None,
    };
    assert_eq!(Token::new(&foreign).err(), Some(NtStatus::INVALID_OWNER));
    assert_ne!(Luid::next(), Luid::next());
    assert!(
        Privilege::ALL.iter().all(|it| Privilege::of(it.luid()) == Some(*it))
            && Privilege::of(Luid::SYSTEM).is_none()
    );
}
