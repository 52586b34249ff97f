//! The descriptor of a new object: what its maker says, what its container hands down, what its maker's token has for such cases.
//!
//! | part | from |
//! |---|---|
//! | owner, group | the maker's descriptor, else its token |
//! | lists | the maker's descriptor; else what the container hands down; else what the descriptor has by default; for the discretionary one, else the token |
//!
//! An entry that is handed to a container, and there means one thing for itself and another for what is within (as it is for the creator, or
//! for generic rights), becomes two: one that means what it means there, and one for what is within.
//!
//! IRQL:       as the pool.
//! Not as NT:  as NT's `SeAssignSecurity`, not its Ex: entries that are handed down are not marked, and added to none that the maker gives.
//! Tests:      tests/props/tests/se_assign.rs.
//! Sources:    WDK, `SeAssignSecurity`; "ACE Inheritance Rules", "DACL for a New Object", "Owner of a New Object".

use super::acl::{Ace, AceFlags, Acl, AclBuffer};
use super::descriptor::{Control, Descriptor, DescriptorBuffer};
use super::privilege::Privilege;
use super::sid::{Sid, known};
use super::token::Subject;
use crate::ke::apc::ProcessorMode;
use crate::ob::GenericMapping;
use crate::rtl::NtStatus;

/// What a new object is.
struct New<'a> {
    is_container: bool,
    owner: &'a Sid,
    group: &'a Sid,
    mapping: &'a GenericMapping,
}

/// The descriptor of a new object within what has the descriptor `parent`, for which its maker wants `explicit`.
///
/// # Errors
/// STATUS_INVALID_OWNER: nobody whom the maker may name; STATUS_PRIVILEGE_NOT_HELD: it may give no system list;
/// STATUS_BAD_IMPERSONATION_LEVEL; STATUS_ALLOTTED_SPACE_EXCEEDED; STATUS_INSUFFICIENT_RESOURCES.
#[doc(alias = "SeAssignSecurity")]
pub fn assign(
    parent: Option<&Descriptor<'_>>,
    explicit: Option<&Descriptor<'_>>,
    is_container: bool,
    subject: &Subject<'_>,
    mapping: &GenericMapping,
    mode: ProcessorMode,
) -> Result<DescriptorBuffer, NtStatus> {
    let token = subject.effective()?;
    let (explicit, parent) = (explicit.copied().unwrap_or_default(), parent.copied().unwrap_or_default());
    let owner = explicit.owner.unwrap_or(token.owner());
    if !token.may_own(owner) && *owner != *token.owner() && !subject.has(Privilege::Restore, mode) {
        return Err(NtStatus::INVALID_OWNER);
    }
    let group = explicit.group.unwrap_or(token.primary_group());
    if explicit.sacl.is_some() && !subject.has(Privilege::Security, mode) {
        return Err(NtStatus::PRIVILEGE_NOT_HELD);
    }
    let new = New { is_container, owner, group, mapping };
    let is_set = |present, defaulted| {
        let control = explicit.control;
        (control.contains(present), control.contains(present) && !control.contains(defaulted))
    };
    let (has_dacl, chose_dacl) = is_set(Control::DACL_PRESENT, Control::DACL_DEFAULTED);
    let dacl = if chose_dacl {
        Some(explicit.dacl.map(|acl| new.applied(acl)).transpose()?)
    } else if let Some(inherited) = parent.dacl.map(|acl| new.inherited(acl)).transpose()?.flatten() {
        Some(Some(inherited))
    } else if has_dacl {
        Some(explicit.dacl.map(|acl| new.applied(acl)).transpose()?)
    } else {
        token.default_dacl().map(|acl| new.applied(acl)).transpose()?.map(Some)
    };
    let (_, chose_sacl) = is_set(Control::SACL_PRESENT, Control::SACL_DEFAULTED);
    let sacl = match parent.sacl.filter(|_| !chose_sacl).map(|acl| new.inherited(acl)).transpose()?.flatten()
    {
        Some(inherited) => Some(inherited),
        None => explicit.sacl.map(|acl| new.applied(acl)).transpose()?,
    };
    let mut control = Control(explicit.control.0 & Control::DACL_PROTECTED.with(Control::SACL_PROTECTED).0);
    for (is_there, flag) in [
        (dacl.is_some(), Control::DACL_PRESENT),
        (sacl.is_some(), Control::SACL_PRESENT),
        (explicit.owner.is_none(), Control::OWNER_DEFAULTED),
        (explicit.group.is_none(), Control::GROUP_DEFAULTED),
    ] {
        control = if is_there { control.with(flag) } else { control };
    }
    let (sacl, dacl) = (sacl.as_deref(), dacl.as_ref().and_then(|dacl| dacl.as_deref()));
    DescriptorBuffer::of(&Descriptor { control, owner: Some(owner), group: Some(group), sacl, dacl })
}

/// What `acl`, set on an object that is there, says there: its generic rights are what `mapping` says.
pub(super) fn mapped(acl: &Acl, mapping: &GenericMapping) -> Result<AclBuffer, NtStatus> {
    let mut list = AclBuffer::new()?;
    acl.aces().try_for_each(|ace| match ace.sid() {
        Some(sid) if !ace.flags().contains(AceFlags::INHERIT_ONLY) => {
            list.push_changed(ace, ace.flags(), ace.mask().mapped(mapping), sid)
        }
        _ => list.push_with(ace, ace.flags()),
    })?;
    list.raise_revision(acl);
    Ok(list)
}

impl New<'_> {
    /// What `acl`, given for the object itself, says there.
    fn applied(&self, acl: &Acl) -> Result<AclBuffer, NtStatus> {
        let mut list = AclBuffer::new()?;
        acl.aces().try_for_each(|ace| self.give(&mut list, ace, ace.flags()))?;
        list.raise_revision(acl);
        Ok(list)
    }

    /// What a container's `acl` hands down; nothing: it hands down nothing.
    fn inherited(&self, acl: &Acl) -> Result<Option<AclBuffer>, NtStatus> {
        let mut list = AclBuffer::new()?;
        for ace in acl.aces() {
            if let Some(flags) = self.handed_down(ace.flags()) {
                self.give(&mut list, ace, flags)?;
            }
        }
        list.raise_revision(acl);
        Ok((list.count() > 0).then_some(list))
    }

    /// The flags that an entry with `flags` has in the new object; nothing: it isn't meant for such a one.
    fn handed_down(&self, flags: AceFlags) -> Option<AceFlags> {
        let to_objects = flags.contains(AceFlags::OBJECT_INHERIT);
        let to_containers = flags.contains(AceFlags::CONTAINER_INHERIT);
        let told = flags.without(AceFlags::INHERITANCE);
        if !self.is_container {
            return to_objects.then_some(told);
        }
        let goes_on = !flags.contains(AceFlags::NO_PROPAGATE);
        let both = AceFlags(flags.0 & AceFlags::OBJECT_INHERIT.with(AceFlags::CONTAINER_INHERIT).0);
        match (to_containers, to_objects) {
            (true, _) if goes_on => Some(told.with(both)),
            (true, _) => Some(told),
            // It only passes through.
            (false, true) if goes_on => Some(told.with(both).with(AceFlags::INHERIT_ONLY)),
            _ => None,
        }
    }

    /// Adds `ace` with `flags`, as it is meant in the new object.
    fn give(&self, list: &mut AclBuffer, ace: Ace<'_>, flags: AceFlags) -> Result<(), NtStatus> {
        let Some(sid) = ace.sid().filter(|_| !flags.contains(AceFlags::INHERIT_ONLY)) else {
            return list.push_with(ace, flags);
        };
        let meant_for = if *sid == *known::CREATOR_OWNER {
            self.owner
        } else if *sid == *known::CREATOR_GROUP {
            self.group
        } else {
            sid
        };
        let mask = ace.mask().mapped(self.mapping);
        let both = AceFlags::OBJECT_INHERIT.0 | AceFlags::CONTAINER_INHERIT.0;
        let is_handed_on = self.is_container && flags.0 & both != 0;
        if !is_handed_on || (mask == ace.mask() && meant_for == sid) {
            return list.push_changed(ace, flags, mask, meant_for);
        }
        list.push_changed(ace, flags.without(AceFlags::INHERITANCE), mask, meant_for)?;
        list.push_with(ace, flags.with(AceFlags::INHERIT_ONLY))
    }
}
