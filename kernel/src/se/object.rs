//! An object's security descriptor, as a part of its body.
//!
//! IRQL:    PASSIVE and APC.
//! Tests:   tests/props/tests/se_objects.rs.
//! Sources: WDK, `ObCheckObjectAccess`, `ZwSetSecurityObject`, `ZwQuerySecurityObject`, SECURITY_INFORMATION.

use sync::event::MayWait;
use sync::irql::Irql;

use super::access::access_check;
use super::acl::Acl;
use super::assign::{assign, mapped};
use super::descriptor::{Descriptor, DescriptorBuffer, Parts};
use super::token::Subject;
use crate::ke::apc::ProcessorMode;
use crate::ob::{AccessMask, GenericMapping, PushLock};
use crate::rtl::NtStatus;

/// See the module. Without one everybody may do everything, as on NT.
pub struct Security {
    descriptor: PushLock<Option<DescriptorBuffer>>,
}

impl Security {
    /// With that descriptor, or none.
    pub const fn new(descriptor: Option<DescriptorBuffer>) -> Self {
        Self { descriptor: PushLock::new(descriptor) }
    }

    /// Calls `f` with what it says.
    #[doc(alias = "ZwQuerySecurityObject")]
    pub fn with<L: MayWait, R>(&self, at: &mut Irql<L>, f: impl FnOnce(Option<&Descriptor<'_>>) -> R) -> R {
        let guard = self.descriptor.shared(at);
        f(guard.as_ref().map(DescriptorBuffer::view).as_ref())
    }

    /// Those `parts` of `new` in place of its own, generic rights as `mapping` says. Whether the caller may is the handle's to say. Not as NT:
    /// any owner is taken, not the caller's token's alone.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES; nothing is changed then.
    #[doc(alias = "ZwSetSecurityObject")]
    pub fn set<L: MayWait>(
        &self,
        parts: Parts,
        new: Descriptor<'_>,
        mapping: &GenericMapping,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let list = |acl: Option<&Acl>| acl.map(|acl| mapped(acl, mapping)).transpose();
        let (dacl, sacl) = (list(new.dacl)?, list(new.sacl)?);
        let new = Descriptor { dacl: dacl.as_deref(), sacl: sacl.as_deref(), ..new };
        let old = {
            let mut guard = self.descriptor.exclusive(at);
            let before = guard.as_ref().map(DescriptorBuffer::view).unwrap_or_default();
            let both = DescriptorBuffer::of(&before.with(parts, new))?;
            guard.replace(both)
        };
        // When the lock isn't held.
        drop(old);
        Ok(())
    }

    /// What of `desired` rights `who` has, from user mode.
    ///
    /// # Errors
    /// As [`access_check`].
    #[doc(alias = "ObCheckObjectAccess")]
    pub fn check<L: MayWait>(
        &self,
        who: &Subject<'_>,
        desired: AccessMask,
        mapping: &GenericMapping,
        at: &mut Irql<L>,
    ) -> Result<AccessMask, NtStatus> {
        self.with(at, |descriptor| {
            let open = Descriptor::default();
            let descriptor = descriptor.unwrap_or(&open);
            let user = ProcessorMode::User;
            access_check(Some(descriptor), who, desired, AccessMask::NONE, mapping, user)
                .map(|grant| grant.access)
        })
    }

    /// The descriptor of a new object within this one: as its maker's token and this say, or, where the kernel makes it, this one's own.
    ///
    /// # Errors
    /// As [`assign`].
    pub fn for_new<L: MayWait>(
        &self,
        who: Option<&Subject<'_>>,
        is_container: bool,
        mapping: &GenericMapping,
        at: &mut Irql<L>,
    ) -> Result<Option<DescriptorBuffer>, NtStatus> {
        self.with(at, |descriptor| match who {
            None => descriptor.map(DescriptorBuffer::of).transpose(),
            Some(who) => assign(descriptor, None, is_container, who, mapping, ProcessorMode::User).map(Some),
        })
    }
}
