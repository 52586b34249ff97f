//! Access masks: what may be done with an object, as drivers and user mode ask for it.
//!
//! | bits | |
//! |---|---|
//! | 0–15 | specific to the object's type |
//! | 16–20 | standard rights |
//! | 24, 25 | system security, and as much as allowed |
//! | 28–31 | generic rights, which the type maps to the others |
//!
//! Sources: WDK, "ACCESS_MASK", "Generic Access Rights", GENERIC_MAPPING, `RtlMapGenericMask`.

use core::fmt;
use core::ops::{BitAnd, BitOr};

/// A set of rights.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[doc(alias = "ACCESS_MASK")]
pub struct AccessMask(pub u32);

impl AccessMask {
    /// None.
    pub const NONE: Self = Self(0);
    /// To delete it.
    pub const DELETE: Self = Self(0x0001_0000);
    /// To read its security descriptor.
    pub const READ_CONTROL: Self = Self(0x0002_0000);
    /// To write its discretionary access control list.
    pub const WRITE_DAC: Self = Self(0x0004_0000);
    /// To write its owner.
    pub const WRITE_OWNER: Self = Self(0x0008_0000);
    /// To wait for it.
    pub const SYNCHRONIZE: Self = Self(0x0010_0000);
    /// DELETE, READ_CONTROL, WRITE_DAC and WRITE_OWNER.
    pub const STANDARD_RIGHTS_REQUIRED: Self = Self(0x000F_0000);
    /// What reading takes of the standard rights.
    pub const STANDARD_RIGHTS_READ: Self = Self::READ_CONTROL;
    /// What writing takes of the standard rights.
    pub const STANDARD_RIGHTS_WRITE: Self = Self::READ_CONTROL;
    /// What executing takes of the standard rights.
    pub const STANDARD_RIGHTS_EXECUTE: Self = Self::READ_CONTROL;
    /// All standard rights.
    pub const STANDARD_RIGHTS_ALL: Self = Self(0x001F_0000);
    /// All that a type can define.
    pub const SPECIFIC_RIGHTS_ALL: Self = Self(0x0000_FFFF);
    /// To read and write its system access control list.
    pub const ACCESS_SYSTEM_SECURITY: Self = Self(0x0100_0000);
    /// Asked for: as much as there is.
    pub const MAXIMUM_ALLOWED: Self = Self(0x0200_0000);
    /// Asked for: all of the type's.
    pub const GENERIC_ALL: Self = Self(0x1000_0000);
    /// Asked for: what the type maps executing to.
    pub const GENERIC_EXECUTE: Self = Self(0x2000_0000);
    /// Asked for: what the type maps writing to.
    pub const GENERIC_WRITE: Self = Self(0x4000_0000);
    /// Asked for: what the type maps reading to.
    pub const GENERIC_READ: Self = Self(0x8000_0000);

    /// Both sets, in constants, too.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Is all of `other` in it?
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Is there none?
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// With the generic rights replaced by what `mapping` says of them.
    #[doc(alias = "RtlMapGenericMask")]
    pub const fn mapped(self, mapping: &GenericMapping) -> Self {
        const ALL: AccessMask = AccessMask::GENERIC_ALL
            .with(AccessMask::GENERIC_EXECUTE)
            .with(AccessMask::GENERIC_WRITE)
            .with(AccessMask::GENERIC_READ);
        let mut rights = self.without(ALL);
        if self.contains(Self::GENERIC_READ) {
            rights = rights.with(mapping.read);
        }
        if self.contains(Self::GENERIC_WRITE) {
            rights = rights.with(mapping.write);
        }
        if self.contains(Self::GENERIC_EXECUTE) {
            rights = rights.with(mapping.execute);
        }
        if self.contains(Self::GENERIC_ALL) {
            rights = rights.with(mapping.all);
        }
        rights
    }
}

impl BitOr for AccessMask {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitAnd for AccessMask {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for AccessMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010X}", self.0)
    }
}

/// What a type's generic rights are. NT's GENERIC_MAPPING, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "GENERIC_MAPPING")]
pub struct GenericMapping {
    /// Of GENERIC_READ.
    pub read: AccessMask,
    /// Of GENERIC_WRITE.
    pub write: AccessMask,
    /// Of GENERIC_EXECUTE.
    pub execute: AccessMask,
    /// Of GENERIC_ALL.
    pub all: AccessMask,
}

const _: () = assert!(size_of::<GenericMapping>() == 16);

sync::nt_layout! {
    [] GenericMapping = "GENERIC_MAPPING" {
        read => "GenericRead", write => "GenericWrite", execute => "GenericExecute", all => "GenericAll",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPING: GenericMapping = GenericMapping {
        read: AccessMask(0x2_0001),
        write: AccessMask(0x2_0002),
        execute: AccessMask(0x12_0000),
        all: AccessMask(0x1F_0003),
    };

    #[test]
    fn generic_rights_are_replaced_and_others_kept() {
        let mapped = |mask: u32| AccessMask(mask).mapped(&MAPPING).0;
        assert_eq!(mapped(0x8000_0000), 0x2_0001);
        assert_eq!(mapped(0xC000_0000), 0x2_0003);
        assert_eq!(mapped(0x2001_0000), 0x13_0000);
        assert_eq!(mapped(0x1200_0010), 0x021F_0013, "MAXIMUM_ALLOWED is nothing generic");
        assert_eq!(mapped(0x1F_FFFF), 0x1F_FFFF);
    }

    #[test]
    fn a_set_contains_what_it_has() {
        assert!(AccessMask(3).contains(AccessMask(2)) && AccessMask(3).contains(AccessMask::NONE));
        assert!(!AccessMask(3).contains(AccessMask(6)));
        assert_eq!(AccessMask(7).without(AccessMask(2)), AccessMask(5));
    }
}
