//! What user mode may do with a page: NT's PAGE_* values, and what each means.
//!
//! Not as NT: PAGE_NOCACHE and PAGE_WRITECOMBINE are refused: the HHDM maps all memory write-back, and two kinds of caching for one
//!            page are undefined.
//! Tests:     the unit tests below; tests/props/tests/mm_process.rs.
//! Sources:   WDK and SDK, "Memory Protection Constants".

pub use crate::mm::fault::Kind as Access;
use crate::rtl::NtStatus;

/// The eight kinds; the numbers are those in a page-table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing.
    NoAccess,
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
    /// Reading, and writing to a copy of one's own.
    WriteCopy,
    /// Executing, which on x86 includes reading.
    Execute,
    /// Executing and reading.
    ExecuteRead,
    /// All: the only kind that is both written and executed, and only because user mode asked for it by this name.
    ExecuteReadWrite,
    /// Executing, reading, and writing to a copy of one's own.
    ExecuteWriteCopy,
}

use Kind::{
    Execute, ExecuteRead, ExecuteReadWrite, ExecuteWriteCopy, NoAccess, ReadOnly, ReadWrite, WriteCopy,
};

impl Kind {
    const ALL: [Kind; 8] =
        [NoAccess, ReadOnly, ReadWrite, WriteCopy, Execute, ExecuteRead, ExecuteReadWrite, ExecuteWriteCopy];

    /// PAGE_NOACCESS is 1, PAGE_READONLY 2 and so on.
    const fn bits(self) -> u32 {
        1 << self as u8
    }
}

/// A page's protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// What may be done.
    pub kind: Kind,
    /// The first touch is told, and takes this away (PAGE_GUARD).
    pub guard: bool,
}

const PAGE_GUARD: u32 = 0x100;

impl Protection {
    /// Without a guard.
    pub const fn of(kind: Kind) -> Self {
        Self { kind, guard: false }
    }

    /// From NT's number: one kind, perhaps with PAGE_GUARD, which PAGE_NOACCESS does not go with.
    pub fn from_bits(bits: u32) -> Result<Self, NtStatus> {
        let found = Kind::ALL.into_iter().find(|kind| kind.bits() == bits & !PAGE_GUARD);
        let guard = bits & PAGE_GUARD != 0;
        match found {
            Some(kind) if !(guard && kind == NoAccess) => Ok(Self { kind, guard }),
            _ => Err(NtStatus::INVALID_PAGE_PROTECTION),
        }
    }

    /// NT's number.
    pub const fn bits(self) -> u32 {
        self.kind.bits() | if self.guard { PAGE_GUARD } else { 0 }
    }

    /// Five bits, for a page-table entry.
    pub(super) const fn encode(self) -> u64 {
        self.kind as u64 | (self.guard as u64) << 3
    }

    /// From those bits.
    pub(super) const fn decode(bits: u64) -> Self {
        Self { kind: Kind::ALL[bits as usize & 7], guard: bits & 8 != 0 }
    }

    /// Does the kind allow it? A guard comes first.
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => !matches!(self.kind, NoAccess),
            Access::Write => {
                matches!(self.kind, ReadWrite | WriteCopy | ExecuteReadWrite | ExecuteWriteCopy)
            }
            Access::Execute => {
                matches!(self.kind, Execute | ExecuteRead | ExecuteReadWrite | ExecuteWriteCopy)
            }
        }
    }

    /// Is what is written written to a copy?
    pub const fn copies(self) -> bool {
        matches!(self.kind, WriteCopy | ExecuteWriteCopy)
    }

    /// That of the copy.
    pub(super) const fn of_copy(self) -> Self {
        let kind = match self.kind {
            WriteCopy => ReadWrite,
            ExecuteWriteCopy => ExecuteReadWrite,
            other => other,
        };
        Self { kind, guard: self.guard }
    }

    /// After its guard was touched.
    pub(super) const fn unguarded(self) -> Self {
        Self { kind: self.kind, guard: false }
    }

    /// May a section that was made with `self` have a view with `wanted`? Copies need reading alone, as the section stays as it is.
    pub const fn admits(self, wanted: Protection) -> bool {
        let write = wanted.allows(Access::Write) && !wanted.copies();
        (!wanted.allows(Access::Read) || self.allows(Access::Read))
            && (!write || (self.allows(Access::Write) && !self.copies()))
            && (!wanted.allows(Access::Execute) || self.allows(Access::Execute))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_nts() {
        for (bits, kind) in [
            (0x01, NoAccess),
            (0x02, ReadOnly),
            (0x04, ReadWrite),
            (0x08, WriteCopy),
            (0x10, Execute),
            (0x20, ExecuteRead),
            (0x40, ExecuteReadWrite),
            (0x80, ExecuteWriteCopy),
        ] {
            assert_eq!(Protection::from_bits(bits), Ok(Protection::of(kind)));
            assert_eq!(Protection::of(kind).bits(), bits);
            assert_eq!(Protection::decode(Protection::of(kind).encode()), Protection::of(kind));
            let guarded = Protection::from_bits(bits | 0x100);
            assert_eq!(guarded.is_ok(), kind != NoAccess);
            if let Ok(guarded) = guarded {
                assert_eq!((guarded.bits(), guarded.unguarded().bits()), (bits | 0x100, bits));
                assert_eq!(Protection::decode(guarded.encode()), guarded);
            }
        }
        for bits in [0, 3, 6, 0x100, 0x101, 0x204, 0x404, 0x1000_0004, u32::MAX] {
            assert_eq!(Protection::from_bits(bits), Err(NtStatus::INVALID_PAGE_PROTECTION), "{bits:#x}");
        }
    }

    #[test]
    fn views_never_exceed_their_section() {
        let of = Protection::of;
        assert!(of(ReadOnly).admits(of(WriteCopy)) && of(ReadOnly).admits(of(NoAccess)));
        assert!(!of(ReadOnly).admits(of(ReadWrite)) && !of(ReadWrite).admits(of(ExecuteRead)));
        assert!(
            of(ExecuteRead).admits(of(ExecuteWriteCopy)) && !of(ExecuteRead).admits(of(ExecuteReadWrite))
        );
        assert!(!of(WriteCopy).admits(of(ReadWrite)));
        for wanted in Kind::ALL {
            assert!(of(ExecuteReadWrite).admits(of(wanted)));
        }
    }
}
