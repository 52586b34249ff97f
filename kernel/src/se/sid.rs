//! Security identifiers: what users and groups are known by.
//!
//! ```text
//! revision 1 │ count of sub-authorities, at most 15 │ authority, 6 bytes, the highest first │ sub-authorities, 4 bytes each
//! ```
//!
//! Owns:       [`Sid`], a view of bytes that are one; [`SidBuffer`], which owns one, in place.
//! IRQL:       any.
//! Tests:      tests/props/tests/se_descriptors.rs; the unit tests.
//! Sources:    WDK, SID, `RtlValidSid`, `RtlEqualSid`, `RtlConvertSidToUnicodeString`; "Well-known SIDs".

use core::borrow::Borrow;
use core::fmt;
use core::ops::Deref;

use super::u32_at;

/// In front of the sub-authorities.
const HEADER: usize = 8;
const REVISION: u8 = 1;

/// Sub-authorities at most.
pub const MOST_SUB_AUTHORITIES: usize = 15;
/// Bytes of the longest.
pub const MOST_BYTES: usize = HEADER + 4 * MOST_SUB_AUTHORITIES;

/// NT's SID with its first sub-authority.
#[derive(Debug)]
#[repr(C)]
pub struct KSid {
    /// 1.
    pub revision: u8,
    /// Sub-authorities.
    pub count: u8,
    /// The highest byte first.
    pub authority: [u8; 6],
    /// The first.
    pub first: u32,
}

const _: () = assert!(core::mem::offset_of!(KSid, first) == HEADER);

sync::nt_layout! {
    [] KSid = "SID" {
        revision => "Revision", count => "SubAuthorityCount", authority => "IdentifierAuthority",
        first => "SubAuthority",
    }
}

/// A SID: exactly its bytes.
#[derive(PartialEq, Eq, Hash)]
#[repr(transparent)]
#[doc(alias = "SID")]
pub struct Sid([u8]);

impl Sid {
    /// The SID that `bytes` begin with. Nothing: they don't begin with one.
    #[doc(alias = "RtlValidSid")]
    pub const fn parse(bytes: &[u8]) -> Option<&Self> {
        let [REVISION, count, ..] = bytes else { return None };
        let length = HEADER + 4 * *count as usize;
        if *count as usize > MOST_SUB_AUTHORITIES || length > bytes.len() {
            return None;
        }
        let (sid, _) = bytes.split_at(length);
        // SAFETY: `repr(transparent)`: the same memory, for the same lifetime.
        Some(unsafe { &*(core::ptr::from_ref(sid) as *const Self) })
    }

    /// Its bytes.
    #[inline]
    #[doc(alias = "RtlLengthSid")]
    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Who gives out the rest.
    pub fn authority(&self) -> u64 {
        self.0[2..HEADER].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// What it gave out.
    pub fn sub_authorities(&self) -> impl DoubleEndedIterator<Item = u32> {
        (HEADER..self.0.len()).step_by(4).filter_map(|at| u32_at(&self.0, at))
    }
}

/// As `S-1-5-18`; an authority of more than 32 bits in hexadecimal.
impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.authority() {
            large @ 0x1_0000_0000.. => write!(f, "S-1-{large:#X}")?,
            small => write!(f, "S-1-{small}")?,
        }
        self.sub_authorities().try_for_each(|it| write!(f, "-{it}"))
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A SID in memory of its own.
#[derive(Clone, Copy)]
pub struct SidBuffer {
    /// One, and zeros.
    bytes: [u8; MOST_BYTES],
}

impl SidBuffer {
    /// The SID of `authority`, of which 48 bits are taken.
    ///
    /// # Panics
    /// For more than 15 sub-authorities.
    pub const fn new(authority: u64, sub_authorities: &[u32]) -> Self {
        assert!(sub_authorities.len() <= MOST_SUB_AUTHORITIES);
        let mut bytes = [0; MOST_BYTES];
        (bytes[0], bytes[1]) = (REVISION, sub_authorities.len() as u8);
        let (from, mut at) = (authority.to_be_bytes(), 2);
        while at < HEADER {
            bytes[at] = from[at];
            at += 1;
        }
        while at < HEADER + 4 * sub_authorities.len() {
            bytes[at] = sub_authorities[(at - HEADER) / 4].to_le_bytes()[at % 4];
            at += 1;
        }
        Self { bytes }
    }

    /// A copy.
    pub fn of(sid: &Sid) -> Self {
        let mut bytes = [0; MOST_BYTES];
        bytes[..sid.0.len()].copy_from_slice(&sid.0);
        Self { bytes }
    }
}

impl Deref for SidBuffer {
    type Target = Sid;

    fn deref(&self) -> &Sid {
        Sid::parse(&self.bytes).expect("made as one")
    }
}

impl Borrow<Sid> for SidBuffer {
    fn borrow(&self) -> &Sid {
        self
    }
}

impl PartialEq for SidBuffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SidBuffer {}

impl fmt::Debug for SidBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

/// Those that mean the same everywhere.
pub mod known {
    use super::SidBuffer;

    /// SECURITY_NT_AUTHORITY.
    const NT: u64 = 5;
    /// SECURITY_BUILTIN_DOMAIN_RID.
    const BUILTIN: u32 = 32;

    /// Nobody: S-1-0-0.
    pub static NULL: SidBuffer = SidBuffer::new(0, &[0]);
    /// Everybody: S-1-1-0.
    pub static WORLD: SidBuffer = SidBuffer::new(1, &[0]);
    /// In what is inherited: the new object's owner.
    pub static CREATOR_OWNER: SidBuffer = SidBuffer::new(3, &[0]);
    /// In what is inherited: the new object's group.
    pub static CREATOR_GROUP: SidBuffer = SidBuffer::new(3, &[1]);
    /// Whoever is the object's owner; an ACE for it replaces what an owner may by itself.
    pub static OWNER_RIGHTS: SidBuffer = SidBuffer::new(3, &[4]);
    /// Who didn't say who it is.
    pub static ANONYMOUS: SidBuffer = SidBuffer::new(NT, &[7]);
    /// Who did.
    pub static AUTHENTICATED_USERS: SidBuffer = SidBuffer::new(NT, &[11]);
    /// What restricted tokens are restricted to.
    pub static RESTRICTED: SidBuffer = SidBuffer::new(NT, &[12]);
    /// The system itself.
    pub static LOCAL_SYSTEM: SidBuffer = SidBuffer::new(NT, &[18]);
    /// Services with few rights.
    pub static LOCAL_SERVICE: SidBuffer = SidBuffer::new(NT, &[19]);
    /// The same, on a network.
    pub static NETWORK_SERVICE: SidBuffer = SidBuffer::new(NT, &[20]);
    /// Administrators.
    pub static ADMINISTRATORS: SidBuffer = SidBuffer::new(NT, &[BUILTIN, 544]);
    /// Users.
    pub static USERS: SidBuffer = SidBuffer::new(NT, &[BUILTIN, 545]);
    /// The integrity of the system.
    pub static SYSTEM_INTEGRITY: SidBuffer = SidBuffer::new(16, &[0x4000]);
}

#[cfg(test)]
#[expect(clippy::disallowed_macros, reason = "a host test may run out of memory")]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn bytes_are_a_sid_or_not() {
        let bytes: &[u8] = &[1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x20, 2, 0, 0, 0xEE];
        let sid = Sid::parse(bytes).expect("one");
        assert_eq!(sid.bytes(), &bytes[..16]);
        assert_eq!((sid, format!("{sid}")), (&*known::ADMINISTRATORS, "S-1-5-32-544".into()));
        for length in 0..16 {
            assert_eq!(Sid::parse(&bytes[..length]), None);
        }
        assert!(
            Sid::parse(&[2, 0, 0, 0, 0, 0, 0, 5]).is_none()
                && Sid::parse(&[1, 16, 0, 0].repeat(30)).is_none()
        );
        assert!(Sid::parse(&[1, 0, 0, 0, 0, 0, 0, 5]).is_some());
    }

    #[test]
    fn text_is_the_numbers() {
        assert_eq!(
            format!("{:?}", SidBuffer::new(0x1234_5678_9ABC, &[u32::MAX])),
            "S-1-0x123456789ABC-4294967295"
        );
        assert_eq!(format!("{:?}", known::WORLD), "S-1-1-0");
        assert!(SidBuffer::of(&known::USERS) == known::USERS && known::USERS != known::ADMINISTRATORS);
    }
}
