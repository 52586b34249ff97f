//! An entry of the last level of the user half's page tables, as a value.
//!
//! | bits | present | not present |
//! |---|---|---|
//! | 0 | 1 | 0 |
//! | 1, 2, 63 | write, user, no execute: follow from the protection | 0 |
//! | 5, 6 | the processor's: accessed, written | as they were |
//! | 9 | the page is a section's | the same |
//! | 10 | 1: committed | the same |
//! | 11 | 0 | 1: not committed, though the descriptor says so of its pages |
//! | 12–51 | the page | the page, or 0 if there is none yet |
//! | 55–58 | the [`Protection`] | the same |
//!
//! Zero is what the descriptor says: so a large reservation needs no tables, nor does a large commit.
//!
//! Invariants: I1 the hardware's rights are made from the protection here and nowhere else: no entry is the supervisor's, or global;
//!                one is both writable and executable only if the protection is PAGE_EXECUTE_READWRITE.
//!             I2 a page of a section is never writable through a protection that copies.
//! Tests:      the unit tests below.
//! Sources:    SDM vol. 3, "4-Level Paging".

use super::protection::{Access, Protection};
use crate::mm::bits::{ACCESSED, ADDRESS, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};

const SHARED: u64 = 1 << 9;
const COMMITTED: u64 = 1 << 10;
const DECOMMITTED: u64 = 1 << 11;
const PROTECTION: u32 = 55;
/// An entry of an upper level: the leaf decides.
pub(super) const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
/// What the processor sets by itself.
const BY_THE_PROCESSOR: u64 = ACCESSED | DIRTY;

/// What an entry says of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// What the descriptor says.
    Default,
    /// Reserved only.
    Decommitted,
    /// Committed, no page yet: zeroes, or the section's page.
    Demand(Protection),
    /// Committed, with a page.
    Page {
        /// Its number.
        number: u32,
        /// What may be done.
        protection: Protection,
        /// A section's, else this address space's alone.
        shared: bool,
    },
}

impl Entry {
    /// As the processor reads it. `written`: the access that it is made for is a write.
    pub(super) const fn encode(self, written: bool) -> u64 {
        match self {
            Self::Default => 0,
            Self::Decommitted => DECOMMITTED,
            Self::Demand(protection) => COMMITTED | protection.encode() << PROTECTION,
            Self::Page { number, protection, shared } => {
                let what = (number as u64) << 12 | COMMITTED | protection.encode() << PROTECTION;
                what | if shared { SHARED } else { 0 } | Self::rights(protection, shared, written)
            }
        }
    }

    const fn rights(protection: Protection, shared: bool, written: bool) -> u64 {
        if protection.guard || !protection.allows(Access::Read) {
            return 0;
        }
        let write = protection.allows(Access::Write) && !(shared && protection.copies());
        let mut bits = PRESENT | USER | ACCESSED;
        if write {
            bits |= WRITABLE;
        }
        if write && written {
            bits |= DIRTY;
        }
        if !protection.allows(Access::Execute) {
            bits |= NO_EXECUTE;
        }
        bits
    }

    /// What the bits say, whether or not they are present.
    pub(super) const fn decode(bits: u64) -> Self {
        let protection = Protection::decode(bits >> PROTECTION);
        let number = ((bits & ADDRESS) >> 12) as u32;
        if bits & DECOMMITTED != 0 {
            Self::Decommitted
        } else if bits & COMMITTED == 0 {
            Self::Default
        } else if number == 0 {
            Self::Demand(protection)
        } else {
            Self::Page { number, protection, shared: bits & SHARED != 0 }
        }
    }

    /// Does the processor let user mode do it, by these bits?
    pub(super) const fn lets(bits: u64, access: Access) -> bool {
        bits & PRESENT != 0
            && match access {
                Access::Read => true,
                Access::Write => bits & WRITABLE != 0,
                Access::Execute => bits & NO_EXECUTE == 0,
            }
    }

    /// Whether a translation made from `old` may allow what `new` doesn't, or lead elsewhere: then it must be forgotten.
    pub(super) const fn narrows(old: u64, new: u64) -> bool {
        let moved = (old ^ new) & (ADDRESS | PRESENT) != 0;
        old & PRESENT != 0 && (moved || old & !new & WRITABLE != 0 || new & !old & NO_EXECUTE != 0)
    }

    /// `new` with what the processor noted in `old` of the same page.
    pub(super) const fn keeping(old: u64, new: u64) -> u64 {
        new | old & BY_THE_PROCESSOR
    }
}

#[cfg(test)]
mod tests {
    use super::super::protection::Kind;
    use super::*;

    const KINDS: [u32; 8] = [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80];

    fn all() -> impl Iterator<Item = Protection> {
        let guarded = KINDS.into_iter().map(|kind| kind | 0x100);
        KINDS.into_iter().chain(guarded).filter_map(|bits| Protection::from_bits(bits).ok())
    }

    #[test]
    fn an_entry_says_what_it_was_made_of() {
        let with = all().flat_map(|protection| {
            let page = |shared| Entry::Page { number: 0x1234_5678, protection, shared };
            [Entry::Demand(protection), page(false), page(true)]
        });
        for entry in [Entry::Default, Entry::Decommitted].into_iter().chain(with) {
            for written in [false, true] {
                assert_eq!(Entry::decode(entry.encode(written)), entry);
                assert_eq!(Entry::decode(entry.encode(written) & !PRESENT), entry);
            }
        }
    }

    #[test]
    fn rights_follow_from_the_protection() {
        for protection in all() {
            for shared in [false, true] {
                let bits = Entry::Page { number: 7, protection, shared }.encode(true);
                for access in [Access::Read, Access::Write, Access::Execute] {
                    let copy = access == Access::Write && shared && protection.copies();
                    let wanted = protection.allows(access) && !protection.guard && !copy;
                    assert_eq!(Entry::lets(bits, access), wanted, "{protection:?} {access:?}");
                }
                assert_eq!(bits & PRESENT != 0, bits & USER != 0);
                assert_eq!(bits & 1 << 8, 0, "global");
                let both = bits & WRITABLE != 0 && bits & NO_EXECUTE == 0;
                let asked = [Kind::ExecuteReadWrite, Kind::ExecuteWriteCopy].contains(&protection.kind);
                assert!(!both || asked, "{protection:?}");
            }
        }
    }

    #[test]
    fn what_was_allowed_and_is_no_more_is_forgotten() {
        let bits =
            |kind| Entry::Page { number: 7, protection: Protection::of(kind), shared: false }.encode(true);
        assert!(!Entry::narrows(bits(Kind::ReadOnly), bits(Kind::ReadWrite)));
        assert!(!Entry::narrows(bits(Kind::NoAccess), bits(Kind::ReadWrite)));
        assert!(Entry::narrows(bits(Kind::ReadWrite), bits(Kind::ReadOnly)));
        assert!(Entry::narrows(bits(Kind::ExecuteRead), bits(Kind::ReadOnly)));
        assert!(Entry::narrows(bits(Kind::ReadOnly), bits(Kind::NoAccess)));
        assert!(Entry::narrows(bits(Kind::ReadOnly), 0));
        let other = Entry::Page { number: 8, protection: Protection::of(Kind::ReadWrite), shared: false };
        assert!(Entry::narrows(bits(Kind::ReadOnly), other.encode(false)));
    }
}
