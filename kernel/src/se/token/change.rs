//! What changes of a token, and tokens that are made of others.

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Group, GroupAttributes, ImpersonationLevel, Token, TokenKind};
use crate::rtl::{NtStatus, vec};
use crate::se::acl::AclBuffer;
use crate::se::privilege::{Luid, Privileges};
use crate::se::sid::{Sid, SidBuffer, known};

impl Token {
    /// Enables or disables those of `privileges` that it has; which were changed.
    ///
    /// # Errors
    /// STATUS_NOT_ALL_ASSIGNED: it hasn't all of them; those that it has were changed.
    #[doc(alias = "ZwAdjustPrivilegesToken")]
    pub fn set_enabled(&self, privileges: Privileges, enabled: bool) -> (Privileges, NtStatus) {
        let had = self.privileges();
        let before = Privileges(if enabled {
            self.enabled.fetch_or(had.0 & privileges.0, Relaxed)
        } else {
            self.enabled.fetch_and(!privileges.0, Relaxed)
        });
        let changed = if enabled { !before.0 } else { before.0 } & had.0 & privileges.0;
        let status = if had.contains(privileges) { NtStatus::SUCCESS } else { NtStatus::NOT_ALL_ASSIGNED };
        (Privileges(changed), status)
    }

    /// Takes `privileges` away for good.
    pub fn remove_privileges(&self, privileges: Privileges) {
        self.privileges.fetch_and(!privileges.0, Relaxed);
    }

    /// Enables or disables a group.
    ///
    /// # Errors
    /// STATUS_CANT_DISABLE_MANDATORY; STATUS_CANT_ENABLE_DENY_ONLY; STATUS_NOT_ALL_ASSIGNED: it isn't in it.
    #[doc(alias = "ZwAdjustGroupsToken")]
    pub fn set_group_enabled(&self, sid: &Sid, enabled: bool) -> Result<(), NtStatus> {
        let group = self.groups.iter().find(|group| *group.sid == *sid).ok_or(NtStatus::NOT_ALL_ASSIGNED)?;
        let attributes = GroupAttributes(group.attributes.load(Relaxed));
        if enabled && attributes.contains(GroupAttributes::DENY_ONLY) {
            return Err(NtStatus::CANT_ENABLE_DENY_ONLY);
        }
        if !enabled && attributes.contains(GroupAttributes::MANDATORY) {
            return Err(NtStatus::CANT_DISABLE_MANDATORY);
        }
        // The other attributes never change.
        if enabled {
            group.attributes.fetch_or(GroupAttributes::ENABLED.0, Relaxed);
        } else {
            group.attributes.fetch_and(!GroupAttributes::ENABLED.0, Relaxed);
        }
        Ok(())
    }

    /// A copy for another purpose, as it is now.
    ///
    /// # Errors
    /// STATUS_BAD_IMPERSONATION_LEVEL: it is further than this one may be used; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwDuplicateToken")]
    pub fn duplicate(&self, kind: TokenKind) -> Result<Self, NtStatus> {
        let allowed = match (self.kind, kind) {
            (TokenKind::Primary, _) => true,
            (TokenKind::Impersonation(had), TokenKind::Impersonation(wanted)) => wanted <= had,
            (TokenKind::Impersonation(had), TokenKind::Primary) => had >= ImpersonationLevel::Impersonation,
        };
        if !allowed {
            return Err(NtStatus::BAD_IMPERSONATION_LEVEL);
        }
        self.changed(kind, &[], Privileges::NONE, &[])
    }

    /// A copy that may do less: `deny_only` of its user and groups count where something is denied alone, `removed` privileges are gone,
    /// and with `restricted` it is given only what those have, too. What it is restricted to already, and more, is kept.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "SeFilterToken")]
    #[doc(alias = "ZwFilterToken")]
    pub fn filter(
        &self,
        deny_only: &[&Sid],
        removed: Privileges,
        restricted: &[&Sid],
    ) -> Result<Self, NtStatus> {
        self.changed(self.kind, deny_only, removed, restricted)
    }

    fn changed(
        &self,
        kind: TokenKind,
        deny_only: &[&Sid],
        removed: Privileges,
        restricted: &[&Sid],
    ) -> Result<Self, NtStatus> {
        let is_denied = |sid: &Sid| deny_only.iter().any(|it| **it == *sid);
        let mut groups = Vec::new();
        groups.try_reserve_exact(self.groups.len()).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        for (sid, mut attributes) in self.groups() {
            if is_denied(sid) {
                let lost = GroupAttributes::USUAL.with(GroupAttributes::OWNER);
                attributes = GroupAttributes(attributes.0 & !lost.0).with(GroupAttributes::DENY_ONLY);
            }
            vec::push(
                &mut groups,
                Group { sid: SidBuffer::of(sid), attributes: AtomicU32::new(attributes.0) },
            )?;
        }
        let mut all = Vec::new();
        // Of one that is restricted already only what both have is left; else all are.
        for sid in self
            .restricted
            .iter()
            .filter(|sid| restricted.is_empty() || restricted.iter().any(|it| **it == ***sid))
        {
            vec::push(&mut all, *sid)?;
        }
        if !self.is_restricted() {
            restricted.iter().try_for_each(|sid| vec::push(&mut all, SidBuffer::of(sid)))?;
        } else if all.is_empty() {
            // Restricted to nobody: not the same as not restricted.
            vec::push(&mut all, known::NULL)?;
        }
        let mut token = Self {
            id: Luid::next(),
            logon: self.logon,
            kind,
            user: self.user,
            is_user_deny_only: self.is_user_deny_only || is_denied(&self.user),
            groups,
            restricted: all,
            owner: self.owner,
            primary_group: self.primary_group,
            privileges: AtomicU64::new(self.privileges().without(removed).0),
            enabled: AtomicU64::new(self.enabled_privileges().without(removed).0),
            default_enabled: self.default_enabled,
            default_dacl: self.default_dacl().map(AclBuffer::of).transpose()?,
        };
        if !token.may_own(&token.owner) {
            // T3. A user who may only be denied still is who it is.
            token.owner = token.user;
        }
        Ok(token)
    }
}
