//! The decision: may a subject have the rights to an object that it asks for?
//!
//! | looked at | says |
//! |---|---|
//! | the caller's mode | the kernel may do everything |
//! | the thread's impersonation | below Impersonation nothing |
//! | privileges | ACCESS_SYSTEM_SECURITY by SeSecurityPrivilege alone; WRITE_OWNER by SeTakeOwnershipPrivilege, too |
//! | the owner | has READ_CONTROL and WRITE_DAC, unless an entry for OWNER_RIGHTS says what it has |
//! | no list, or a null one | everything |
//! | the list's entries, in their order | of each right the first entry that has it decides; what none has is denied |
//! | the same for what a restricted token is restricted to | both must allow it |
//!
//! IRQL:       any, where descriptor and token are nonpaged.
//! Not as NT:  mandatory labels aren't judged. Of an entry's mask the generic bits are nothing, as they were mapped when it was assigned.
//! Tests:      tests/props/tests/se_access.rs, against a reference that looks at one right at a time.
//! Sources:    WDK, `SeAccessCheck`; "How AccessCheck Works", "Order of ACEs in a DACL", "Owner of a New Object", "Restricted Tokens".

use super::acl::{AceFlags, AceKind, Acl};
use super::descriptor::Descriptor;
use super::privilege::{Privilege, Privileges};
use super::sid::{Sid, known};
use super::token::{For, Subject, Token};
use crate::ke::apc::ProcessorMode;
use crate::ob::{AccessMask, GenericMapping};
use crate::rtl::NtStatus;

/// What a list can allow.
const BY_LIST: AccessMask = AccessMask::STANDARD_RIGHTS_ALL.with(AccessMask::SPECIFIC_RIGHTS_ALL);
/// What an owner may by itself.
const BY_OWNER: AccessMask = AccessMask::READ_CONTROL.with(AccessMask::WRITE_DAC);

/// What was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The rights, those that the caller had before included.
    pub access: AccessMask,
    /// Privileges that were used.
    pub privileges: Privileges,
}

/// An object's side.
struct Object<'a> {
    dacl: &'a Acl,
    /// Is the token the owner's?
    is_owned: bool,
}

/// `desired` rights, besides `previous` ones which the subject has already, to an object with this descriptor. With MAXIMUM_ALLOWED all that it
/// may have, and at least the others.
///
/// # Errors
/// STATUS_ACCESS_DENIED, also where the object has no descriptor; STATUS_PRIVILEGE_NOT_HELD, for ACCESS_SYSTEM_SECURITY;
/// STATUS_BAD_IMPERSONATION_LEVEL.
#[doc(alias = "SeAccessCheck")]
pub fn access_check(
    descriptor: Option<&Descriptor<'_>>,
    subject: &Subject<'_>,
    desired: AccessMask,
    previous: AccessMask,
    mapping: &GenericMapping,
    mode: ProcessorMode,
) -> Result<Grant, NtStatus> {
    let desired = desired.mapped(mapping);
    let wants_all = desired.contains(AccessMask::MAXIMUM_ALLOWED);
    let wanted = desired.without(AccessMask::MAXIMUM_ALLOWED);
    let all = if wants_all { mapping.all } else { AccessMask::NONE };
    let mut grant = Grant { access: previous, privileges: Privileges::NONE };
    if mode == ProcessorMode::Kernel {
        grant.access = previous | wanted | all;
        return Ok(grant);
    }
    let descriptor = descriptor.ok_or(NtStatus::ACCESS_DENIED)?;
    let token = subject.effective()?;
    by_privilege(&mut grant, token, wanted)?;
    let allowed = match descriptor.effective_dacl() {
        None => wanted | all,
        Some(dacl) => {
            let is_owned = descriptor.owner.is_some_and(|owner| token.owns(owner));
            let object = Object { dacl, is_owned };
            let of_interest = if wants_all { BY_LIST } else { wanted.without(grant.access) };
            object.by_owner() | object.by_list(token, of_interest)
        }
    };
    if !(allowed | grant.access).contains(wanted) {
        return Err(NtStatus::ACCESS_DENIED);
    }
    grant.access = grant.access | wanted | if wants_all { allowed } else { AccessMask::NONE };
    // Who asks for nothing and has nothing gets nothing.
    if grant.access.is_empty() { Err(NtStatus::ACCESS_DENIED) } else { Ok(grant) }
}

/// What of `wanted` privileges give.
fn by_privilege(grant: &mut Grant, token: &Token, wanted: AccessMask) -> Result<(), NtStatus> {
    let missing = wanted.without(grant.access);
    let mut give = |privilege, access| {
        let has = token.has(privilege);
        if has {
            grant.access = grant.access | access;
            grant.privileges = grant.privileges | Privileges::of(&[privilege]);
        }
        has
    };
    if missing.contains(AccessMask::ACCESS_SYSTEM_SECURITY)
        && !give(Privilege::Security, AccessMask::ACCESS_SYSTEM_SECURITY)
    {
        return Err(NtStatus::PRIVILEGE_NOT_HELD);
    }
    if missing.contains(AccessMask::WRITE_OWNER) {
        give(Privilege::TakeOwnership, AccessMask::WRITE_OWNER);
    }
    Ok(())
}

impl Object<'_> {
    /// What the token has for being the owner's.
    fn by_owner(&self) -> AccessMask {
        let mut entries = self.dacl.aces().filter(|ace| !ace.flags().contains(AceFlags::INHERIT_ONLY));
        let is_replaced = entries.any(|ace| ace.sid() == Some(&*known::OWNER_RIGHTS));
        if self.is_owned && !is_replaced { BY_OWNER } else { AccessMask::NONE }
    }

    /// What of `wanted` the entries allow to the token, and to what it is restricted to.
    fn by_list(&self, token: &Token, wanted: AccessMask) -> AccessMask {
        let allowed = self.judge(wanted, |sid, purpose| token.is(sid, purpose));
        if !token.is_restricted() {
            return allowed;
        }
        self.judge(allowed, |sid, _| token.is_restricted_to(sid))
    }

    /// What of `wanted` the entries allow to whom `is` says.
    fn judge(&self, wanted: AccessMask, is: impl Fn(&Sid, For) -> bool) -> AccessMask {
        let mut allowed = AccessMask::NONE;
        let mut undecided = wanted & BY_LIST;
        for ace in self.dacl.aces() {
            if undecided.is_empty() {
                break;
            }
            let mask = ace.mask() & undecided;
            let purpose = match ace.kind() {
                AceKind::Allow => For::Allow,
                AceKind::Deny => For::Deny,
                _ => continue,
            };
            if mask.is_empty() || ace.flags().contains(AceFlags::INHERIT_ONLY) {
                continue;
            }
            let Some(sid) = ace.sid() else { continue };
            if !(is(sid, purpose) || self.is_owned && *sid == *known::OWNER_RIGHTS) {
                continue;
            }
            undecided = undecided.without(mask);
            if purpose == For::Allow {
                allowed = allowed | mask;
            }
        }
        allowed
    }
}
