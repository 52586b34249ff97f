//! Tokens: who somebody is, and what may be done in that name.
//!
//! IRQL:       questions at any level; what makes a token as the pool.
//! Invariants: T1 a token's user, groups, owner and lists are fixed when it is made. What changes are privileges and groups' attributes, bit
//!                by bit, so whoever asks takes no lock.
//!             T2 a privilege counts if it is there and enabled. One that was removed doesn't come back, whoever enables it meanwhile.
//!             T3 the owner of what the token makes is its user, or a group that may own.
//! Not as NT:  groups are of a fixed order and looked at one by one, without hashes; there are no quotas, sessions, audit policies, and no
//!             virtualization. Integrity levels are carried and not judged.
//! Tests:      tests/props/tests/se_access.rs, tests/props/tests/se_tokens.rs.
//! Sources:    WDK, TOKEN_GROUPS, TOKEN_PRIVILEGES, `SeFilterToken`, `SeTokenIsRestricted`, SECURITY_SUBJECT_CONTEXT; "SID Attributes in
//!             an Access Token", "Restricted Tokens".

mod change;

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::acl::{AceFlags, AceKind, Acl, AclBuffer};
use super::privilege::{Luid, Privilege, Privileges};
use super::sid::{Sid, SidBuffer, known};
use crate::ke::apc::ProcessorMode;
use crate::mm::pool::Tag;
use crate::ob::{AccessMask, Body, GenericMapping, ObjectType};
use crate::rtl::{NtStatus, vec};

/// What a group is to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupAttributes(pub u32);

impl GroupAttributes {
    /// SE_GROUP_MANDATORY: it can't be disabled.
    pub const MANDATORY: Self = Self(1);
    /// SE_GROUP_ENABLED_BY_DEFAULT.
    pub const ENABLED_BY_DEFAULT: Self = Self(2);
    /// SE_GROUP_ENABLED: it counts.
    pub const ENABLED: Self = Self(4);
    /// SE_GROUP_OWNER: it may be an object's owner.
    pub const OWNER: Self = Self(8);
    /// SE_GROUP_USE_FOR_DENY_ONLY: it counts where something is denied, alone.
    pub const DENY_ONLY: Self = Self(0x10);
    /// SE_GROUP_INTEGRITY: it says how trustworthy the token is.
    pub const INTEGRITY: Self = Self(0x20);
    /// Mandatory, and enabled.
    pub const USUAL: Self = Self::MANDATORY.with(Self::ENABLED_BY_DEFAULT).with(Self::ENABLED);

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is all of `other` in it?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How far another's token may be used in its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[doc(alias = "SECURITY_IMPERSONATION_LEVEL")]
pub enum ImpersonationLevel {
    /// Not to know who it is.
    Anonymous,
    /// To know who it is.
    Identification,
    /// To act as it.
    Impersonation,
    /// To act as it elsewhere, too.
    Delegation,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A process's own.
    Primary,
    /// A thread's that acts for another.
    Impersonation(ImpersonationLevel),
}

/// May what is asked be allowed by it, or denied alone?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
}

struct Group {
    sid: SidBuffer,
    attributes: AtomicU32,
}

/// See the module.
pub struct Token {
    id: Luid,
    logon: Luid,
    kind: TokenKind,
    user: SidBuffer,
    is_user_deny_only: bool,
    groups: Vec<Group>,
    /// Whose rights are needed besides; none: the token isn't restricted.
    restricted: Vec<SidBuffer>,
    owner: SidBuffer,
    primary_group: SidBuffer,
    /// T2.
    privileges: AtomicU64,
    enabled: AtomicU64,
    default_enabled: Privileges,
    default_dacl: Option<AclBuffer>,
}

/// What a token is made of.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The logon that it is of.
    pub logon: Luid,
    /// What it is for.
    pub kind: TokenKind,
    /// Who it is.
    pub user: &'a Sid,
    /// What it belongs to.
    pub groups: &'a [(&'a Sid, GroupAttributes)],
    /// What it may do whatever an object says.
    pub privileges: Privileges,
    /// Those of them that are enabled.
    pub enabled: Privileges,
    /// Whose what it makes is; none: the user's.
    pub owner: Option<&'a Sid>,
    /// The group of what it makes.
    pub primary_group: &'a Sid,
    /// Who may do what with what it makes, where nobody says so.
    pub default_dacl: Option<&'a Acl>,
}

impl Token {
    /// One of its own.
    ///
    /// # Errors
    /// STATUS_INVALID_OWNER: the owner is neither the user nor a group that may own; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwCreateToken")]
    pub fn new(options: &Options<'_>) -> Result<Self, NtStatus> {
        let mut groups = Vec::new();
        groups.try_reserve_exact(options.groups.len()).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        for (sid, attributes) in options.groups {
            vec::push(
                &mut groups,
                Group { sid: SidBuffer::of(sid), attributes: AtomicU32::new(attributes.0) },
            )?;
        }
        let token = Self {
            id: Luid::next(),
            logon: options.logon,
            kind: options.kind,
            user: SidBuffer::of(options.user),
            is_user_deny_only: false,
            groups,
            restricted: Vec::new(),
            owner: SidBuffer::of(options.owner.unwrap_or(options.user)),
            primary_group: SidBuffer::of(options.primary_group),
            privileges: AtomicU64::new(options.privileges.0),
            enabled: AtomicU64::new(options.enabled.0 & options.privileges.0),
            default_enabled: options.enabled,
            default_dacl: options.default_dacl.map(AclBuffer::of).transpose()?,
        };
        // T3.
        if token.may_own(&token.owner) { Ok(token) } else { Err(NtStatus::INVALID_OWNER) }
    }

    /// The system's own.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn system() -> Result<Self, NtStatus> {
        let usual = GroupAttributes::USUAL;
        let owner =
            GroupAttributes::ENABLED_BY_DEFAULT.with(GroupAttributes::ENABLED).with(GroupAttributes::OWNER);
        let mut dacl = AclBuffer::new()?;
        let administrators =
            AccessMask::GENERIC_READ.with(AccessMask::GENERIC_EXECUTE).with(AccessMask::READ_CONTROL);
        dacl.push(AceKind::Allow, AceFlags::NONE, AccessMask::GENERIC_ALL, &known::LOCAL_SYSTEM)?;
        dacl.push(AceKind::Allow, AceFlags::NONE, administrators, &known::ADMINISTRATORS)?;
        Self::new(&Options {
            logon: Luid::SYSTEM,
            kind: TokenKind::Primary,
            user: &known::LOCAL_SYSTEM,
            groups: &[
                (&known::ADMINISTRATORS, owner),
                (&known::WORLD, usual),
                (&known::AUTHENTICATED_USERS, usual),
                (&known::SYSTEM_INTEGRITY, GroupAttributes::INTEGRITY),
            ],
            privileges: Privileges::ALL,
            enabled: Privileges::ALL,
            owner: Some(&known::ADMINISTRATORS),
            primary_group: &known::LOCAL_SYSTEM,
            default_dacl: Some(&dacl),
        })
    }

    /// Its own number.
    pub fn id(&self) -> Luid {
        self.id
    }

    /// Its logon's.
    pub fn logon(&self) -> Luid {
        self.logon
    }

    /// What it is for.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    /// Who it is.
    pub fn user(&self) -> &Sid {
        &self.user
    }

    /// What it belongs to, with what each is to it.
    pub fn groups(&self) -> impl Iterator<Item = (&Sid, GroupAttributes)> {
        self.groups.iter().map(|group| (&*group.sid, GroupAttributes(group.attributes.load(Relaxed))))
    }

    /// Whose what it makes is.
    pub fn owner(&self) -> &Sid {
        &self.owner
    }

    /// The group of what it makes.
    pub fn primary_group(&self) -> &Sid {
        &self.primary_group
    }

    /// Who may do what with what it makes, where nobody says so.
    pub fn default_dacl(&self) -> Option<&Acl> {
        self.default_dacl.as_deref()
    }

    /// The privileges that it has, enabled or not.
    pub fn privileges(&self) -> Privileges {
        Privileges(self.privileges.load(Relaxed))
    }

    /// Those that count.
    pub fn enabled_privileges(&self) -> Privileges {
        Privileges(self.enabled.load(Relaxed) & self.privileges.load(Relaxed))
    }

    /// Those that it has and that were enabled when it was made: SE_PRIVILEGE_ENABLED_BY_DEFAULT.
    pub fn privileges_by_default(&self) -> Privileges {
        Privileges(self.default_enabled.0 & self.privileges.load(Relaxed))
    }

    /// May it do that, whatever an object says?
    pub fn has(&self, privilege: Privilege) -> bool {
        self.enabled_privileges().has(privilege)
    }

    /// May all, or with `any` one, of these be done by it?
    #[doc(alias = "SePrivilegeCheck")]
    pub fn has_all(&self, wanted: Privileges, any: bool) -> bool {
        let enabled = self.enabled_privileges();
        if any { enabled.0 & wanted.0 != 0 } else { enabled.contains(wanted) }
    }

    /// Is more needed than what its user and groups have?
    #[doc(alias = "SeTokenIsRestricted")]
    pub fn is_restricted(&self) -> bool {
        !self.restricted.is_empty()
    }

    /// Is `sid` its user or a group that counts for that?
    pub fn is(&self, sid: &Sid, purpose: For) -> bool {
        if *self.user == *sid {
            return !self.is_user_deny_only || purpose == For::Deny;
        }
        self.groups().any(|(group, attributes)| {
            let counts = attributes.contains(GroupAttributes::ENABLED)
                || purpose == For::Deny && attributes.contains(GroupAttributes::DENY_ONLY);
            counts && group == sid
        })
    }

    /// Is `sid` among what it is restricted to?
    pub fn is_restricted_to(&self, sid: &Sid) -> bool {
        self.restricted.iter().any(|it| **it == *sid)
    }

    /// Is it the owner `sid`? A restricted one must be that by what it is restricted to, too.
    pub fn owns(&self, sid: &Sid) -> bool {
        self.is(sid, For::Allow) && (!self.is_restricted() || self.is_restricted_to(sid))
    }

    /// May `sid` be the owner of what it makes?
    pub fn may_own(&self, sid: &Sid) -> bool {
        let owner = GroupAttributes::OWNER.with(GroupAttributes::ENABLED);
        *self.user == *sid && !self.is_user_deny_only
            || self.groups().any(|(group, attributes)| group == sid && attributes.contains(owner))
    }
}

/// To make it a process's.
pub const TOKEN_ASSIGN_PRIMARY: AccessMask = AccessMask(0x1);
/// To copy it.
pub const TOKEN_DUPLICATE: AccessMask = AccessMask(0x2);
/// To act as it.
pub const TOKEN_IMPERSONATE: AccessMask = AccessMask(0x4);
/// To read it.
pub const TOKEN_QUERY: AccessMask = AccessMask(0x8);
/// To enable and disable privileges.
pub const TOKEN_ADJUST_PRIVILEGES: AccessMask = AccessMask(0x20);
/// To enable and disable groups.
pub const TOKEN_ADJUST_GROUPS: AccessMask = AccessMask(0x40);
/// To change the owner, group and list of what it makes.
pub const TOKEN_ADJUST_DEFAULT: AccessMask = AccessMask(0x80);
/// All of them.
pub const TOKEN_ALL_ACCESS: AccessMask = AccessMask(0x000F_01FF);

impl Body for Token {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Token> = ObjectType::new(
            "Token",
            Tag::new(b"Toke"),
            GenericMapping {
                read: AccessMask::STANDARD_RIGHTS_READ.with(TOKEN_QUERY),
                write: AccessMask::STANDARD_RIGHTS_WRITE
                    .with(TOKEN_ADJUST_PRIVILEGES)
                    .with(TOKEN_ADJUST_GROUPS)
                    .with(TOKEN_ADJUST_DEFAULT),
                execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
                all: TOKEN_ALL_ACCESS,
            },
            TOKEN_ALL_ACCESS,
        );
        &TYPE
    }
}

/// In whose name something is asked for.
#[derive(Clone, Copy)]
#[doc(alias = "SECURITY_SUBJECT_CONTEXT")]
pub struct Subject<'a> {
    /// Whom the thread acts for, if for somebody.
    pub client: Option<&'a Token>,
    /// The process's.
    pub primary: &'a Token,
}

impl<'a> Subject<'a> {
    /// A process, as it is.
    pub fn new(primary: &'a Token) -> Self {
        Self { client: None, primary }
    }

    /// The token that counts.
    ///
    /// # Errors
    /// STATUS_BAD_IMPERSONATION_LEVEL: the thread may know who it is, and not act as it.
    pub fn effective(&self) -> Result<&'a Token, NtStatus> {
        let token = self.client.unwrap_or(self.primary);
        match token.kind() {
            TokenKind::Impersonation(level) if level < ImpersonationLevel::Impersonation => {
                Err(NtStatus::BAD_IMPERSONATION_LEVEL)
            }
            _ => Ok(token),
        }
    }

    /// May that be done, whatever an object says? The kernel may.
    #[doc(alias = "SeSinglePrivilegeCheck")]
    pub fn has(&self, privilege: Privilege, mode: ProcessorMode) -> bool {
        mode == ProcessorMode::Kernel || self.effective().is_ok_and(|token| token.has(privilege))
    }
}
