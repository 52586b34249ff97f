//! Symbolic links: names that stand for a path.
//!
//! Sources: WDK, "Object Names", `ZwOpenSymbolicLinkObject`, `IoCreateSymbolicLink`.

use super::access::{AccessMask, GenericMapping};
use super::types::{Body, ObjectType};
use crate::mm::pool::Tag;
use crate::rtl::{NtStatus, WideStr, WideString};

/// To read where it leads.
pub const SYMBOLIC_LINK_QUERY: AccessMask = AccessMask(1);
/// All of them.
pub const SYMBOLIC_LINK_ALL_ACCESS: AccessMask = AccessMask(0x000F_0001);

/// See the module. Where it leads never changes.
pub struct SymbolicLink {
    target: WideString,
}

impl SymbolicLink {
    /// To `target`, which need not exist.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: to nowhere; STATUS_NAME_TOO_LONG; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwCreateSymbolicLinkObject")]
    pub fn to(target: &WideStr) -> Result<Self, NtStatus> {
        if target.is_empty() {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        Ok(Self { target: WideString::of(&[target])? })
    }

    /// Where it leads.
    #[doc(alias = "ZwQuerySymbolicLinkObject")]
    pub fn target(&self) -> &WideStr {
        &self.target
    }
}

impl Body for SymbolicLink {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<SymbolicLink> = ObjectType::new(
            "SymbolicLink",
            Tag::new(b"ObSy"),
            GenericMapping {
                read: AccessMask::STANDARD_RIGHTS_READ.with(SYMBOLIC_LINK_QUERY),
                write: AccessMask::STANDARD_RIGHTS_WRITE,
                execute: AccessMask::STANDARD_RIGHTS_EXECUTE.with(SYMBOLIC_LINK_QUERY),
                all: SYMBOLIC_LINK_ALL_ACCESS,
            },
            SYMBOLIC_LINK_ALL_ACCESS,
        );
        &TYPE
    }
}
