//! Access control lists, and the entries (ACEs) that they consist of.
//!
//! ```text
//! list   revision 2 to 4 │ 0 │ bytes of the list │ count of entries │ 0 │ entries, one behind the other
//! entry  kind │ flags │ bytes of the entry │ rights │ SID │ what else the kind has
//! ```
//!
//! Owns:       [`Acl`], a view of bytes that are one; [`AclBuffer`], which owns one; [`Ace`]. Not: what a list allows (access.rs).
//! IRQL:       any, where the bytes are nonpaged; what makes or lengthens a buffer as the pool.
//! Invariants: C1 the bytes of an `Acl` are as many as it says, its entries lie within, are as long as they say, and those of a kind with a SID
//!                behind the rights have one.
//! Not as NT:  what NT's lists may have behind the last entry is kept out of a buffer.
//! Tests:      tests/props/tests/se_descriptors.rs.
//! Sources:    WDK, ACL, ACE_HEADER, ACCESS_ALLOWED_ACE, `RtlValidAcl`, `RtlCreateAcl`, `RtlAddAccessAllowedAceEx`, `RtlGetAce`.

extern crate alloc;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use super::sid::Sid;
use super::{u16_at, u32_at};
use crate::ob::AccessMask;
use crate::rtl::{NtStatus, vec};

/// In front of the entries.
const HEADER: usize = 8;
/// In front of an entry's SID.
const ACE_HEADER: usize = 8;
/// What a new list has: no entries of object types.
const REVISION: u8 = 2;

/// NT's ACL, without the entries.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "ACL")]
pub struct KAcl {
    /// 2 to 4.
    pub revision: u8,
    /// Zero.
    pub zero1: u8,
    /// Bytes of the list.
    pub size: u16,
    /// Entries.
    pub count: u16,
    /// Zero.
    pub zero2: u16,
}

/// NT's ACCESS_ALLOWED_ACE, and those like it, without the SID.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "ACE_HEADER")]
pub struct KAce {
    /// Of the entry.
    pub kind: u8,
    /// Of the entry.
    pub flags: u8,
    /// Bytes of the entry.
    pub size: u16,
    /// What it is about.
    pub mask: AccessMask,
    /// The SID begins here.
    pub sid_start: u32,
}

const _: () = assert!(size_of::<KAcl>() == HEADER && core::mem::offset_of!(KAce, sid_start) == ACE_HEADER);

sync::nt_layout! {
    [] KAcl = "ACL" {
        revision => "AclRevision", zero1 => "Sbz1", size => "AclSize", count => "AceCount", zero2 => "Sbz2",
    }
}
sync::nt_layout! {
    [] KAce = "ACCESS_ALLOWED_ACE" {
        kind => "Header.AceType", flags => "Header.AceFlags", size => "Header.AceSize", mask => "Mask",
        sid_start => "SidStart",
    }
}

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AceKind {
    /// Gives the rights.
    Allow,
    /// Takes them away.
    Deny,
    /// Has the use of them told.
    Audit,
    /// How trustworthy one must be.
    Label,
    /// Another one, which is carried and not judged.
    Other(u8),
}

impl AceKind {
    const fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Allow,
            1 => Self::Deny,
            2 => Self::Audit,
            0x11 => Self::Label,
            other => Self::Other(other),
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Deny => 1,
            Self::Audit => 2,
            Self::Label => 0x11,
            Self::Other(byte) => byte,
        }
    }

    /// Has it rights, and a SID right behind them?
    const fn has_sid(self) -> bool {
        // SYSTEM_ALARM_ACE_TYPE, and those with a condition behind the SID.
        !matches!(self, Self::Other(kind) if !matches!(kind, 3 | 9 | 0xA | 0xD | 0xE))
    }
}

/// For what of an object's offspring an entry is meant; and which uses are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AceFlags(pub u8);

impl AceFlags {
    /// For this object alone.
    pub const NONE: Self = Self(0);
    /// OBJECT_INHERIT_ACE: new objects within that aren't containers get it.
    pub const OBJECT_INHERIT: Self = Self(1);
    /// CONTAINER_INHERIT_ACE: new containers get it.
    pub const CONTAINER_INHERIT: Self = Self(2);
    /// NO_PROPAGATE_INHERIT_ACE: they don't hand it on.
    pub const NO_PROPAGATE: Self = Self(4);
    /// INHERIT_ONLY_ACE: it isn't meant for this object.
    pub const INHERIT_ONLY: Self = Self(8);
    /// INHERITED_ACE: it came from the container.
    pub const INHERITED: Self = Self(0x10);
    /// All that are about inheritance.
    pub const INHERITANCE: Self = Self(0x1F);

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Is all of `other` in it?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// An entry of an [`Acl`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ace<'a> {
    bytes: &'a [u8],
}

impl<'a> Ace<'a> {
    /// The entry that `bytes` begin with (C1).
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let size = usize::from(u16_at(bytes, 2)?);
        if size < 4 || !size.is_multiple_of(4) {
            return None;
        }
        let ace = Self { bytes: bytes.get(..size)? };
        (!ace.kind().has_sid() || ace.sid().is_some()).then_some(ace)
    }

    /// What it does.
    pub fn kind(&self) -> AceKind {
        AceKind::of(self.bytes[0])
    }

    /// Its flags.
    pub fn flags(&self) -> AceFlags {
        AceFlags(self.bytes[1])
    }

    /// What it is about; nothing of a kind that has no rights there.
    pub fn mask(&self) -> AccessMask {
        AccessMask(u32_at(self.bytes, 4).filter(|_| self.kind().has_sid()).unwrap_or(0))
    }

    /// For whom it is; nobody, of a kind that says it elsewhere.
    pub fn sid(&self) -> Option<&'a Sid> {
        if !self.kind().has_sid() {
            return None;
        }
        Sid::parse(self.bytes.get(ACE_HEADER..)?)
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Ace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:#x} {:?} {:?}", self.kind(), self.flags().0, self.mask(), self.sid())
    }
}

/// A list: exactly its bytes (C1).
#[derive(PartialEq, Eq)]
#[repr(transparent)]
pub struct Acl([u8]);

impl Acl {
    const fn new(bytes: &[u8]) -> &Self {
        // SAFETY: `repr(transparent)`: the same memory, for the same lifetime.
        unsafe { &*(core::ptr::from_ref(bytes) as *const Self) }
    }

    /// The list that `bytes` begin with. Nothing: they don't begin with one.
    #[doc(alias = "RtlValidAcl")]
    pub fn parse(bytes: &[u8]) -> Option<&Self> {
        let (size, count) = (usize::from(u16_at(bytes, 2)?), u16_at(bytes, 4)?);
        if !(2..=4).contains(bytes.first()?) || size < HEADER || !size.is_multiple_of(4) {
            return None;
        }
        let bytes = bytes.get(..size)?;
        let mut rest = &bytes[HEADER..];
        for _ in 0..count {
            rest = &rest[Ace::parse(rest)?.bytes.len()..];
        }
        Some(Self::new(bytes))
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many entries it has.
    pub fn count(&self) -> u16 {
        u16_at(&self.0, 4).unwrap_or(0)
    }

    /// Its entries, in their order.
    #[doc(alias = "RtlGetAce")]
    pub fn aces(&self) -> impl Iterator<Item = Ace<'_>> {
        let mut rest = &self.0[HEADER..];
        (0..self.count()).map_while(move |_| {
            let ace = Ace::parse(rest)?;
            rest = &rest[ace.bytes.len()..];
            Some(ace)
        })
    }
}

impl fmt::Debug for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.aces()).finish()
    }
}

/// A list in memory of its own.
pub struct AclBuffer {
    /// C1.
    bytes: Vec<u8>,
}

impl AclBuffer {
    /// An empty one.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "RtlCreateAcl")]
    pub fn new() -> Result<Self, NtStatus> {
        Ok(Self { bytes: vec::copy(&[REVISION, 0, HEADER as u8, 0, 0, 0, 0, 0])? })
    }

    /// A copy.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn of(acl: &Acl) -> Result<Self, NtStatus> {
        let mut new = Self::new()?;
        acl.aces().try_for_each(|ace| new.push_copy(ace))?;
        new.raise_revision(acl);
        Ok(new)
    }

    /// Adds an entry at the end.
    ///
    /// # Errors
    /// STATUS_ALLOTTED_SPACE_EXCEEDED: a list can't be that long; STATUS_INVALID_PARAMETER: the kind has more than that;
    /// STATUS_INSUFFICIENT_RESOURCES. Nothing is changed.
    #[doc(alias = "RtlAddAccessAllowedAceEx")]
    #[doc(alias = "RtlAddAccessDeniedAceEx")]
    #[doc(alias = "RtlAddAuditAccessAceEx")]
    pub fn push(
        &mut self,
        kind: AceKind,
        flags: AceFlags,
        mask: AccessMask,
        sid: &Sid,
    ) -> Result<(), NtStatus> {
        if matches!(kind, AceKind::Other(_)) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let mut entry = [0; ACE_HEADER + super::sid::MOST_BYTES];
        let size = ACE_HEADER + sid.bytes().len();
        (entry[0], entry[1]) = (kind.byte(), flags.0);
        entry[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        entry[4..ACE_HEADER].copy_from_slice(&mask.0.to_le_bytes());
        entry[ACE_HEADER..size].copy_from_slice(sid.bytes());
        self.push_bytes(&entry[..size])
    }

    /// Adds a copy of an entry at the end.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    #[doc(alias = "RtlAddAce")]
    pub fn push_copy(&mut self, ace: Ace<'_>) -> Result<(), NtStatus> {
        self.push_bytes(ace.bytes)
    }

    /// The same with other flags.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(super) fn push_with(&mut self, ace: Ace<'_>, flags: AceFlags) -> Result<(), NtStatus> {
        let at = self.bytes.len();
        self.push_bytes(ace.bytes)?;
        self.bytes[at + 1] = flags.0;
        Ok(())
    }

    /// The same with another mask and for another SID, too; of a kind that has none it stays as it is.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(super) fn push_changed(
        &mut self,
        ace: Ace<'_>,
        flags: AceFlags,
        mask: AccessMask,
        sid: &Sid,
    ) -> Result<(), NtStatus> {
        match ace.kind() {
            AceKind::Other(_) => self.push_with(ace, flags),
            kind => self.push(kind, flags, mask, sid),
        }
    }

    fn push_bytes(&mut self, entry: &[u8]) -> Result<(), NtStatus> {
        // Both counters: an entry has more than one byte.
        let size = u16::try_from(self.bytes.len() + entry.len());
        let size = size.map_err(|_| NtStatus::ALLOTTED_SPACE_EXCEEDED)?;
        let count = self.count() + 1;
        vec::append(&mut self.bytes, entry)?;
        self.bytes[2..4].copy_from_slice(&size.to_le_bytes());
        self.bytes[4..6].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    /// At least the revision of `other`, whose kinds of entries it has.
    pub(super) fn raise_revision(&mut self, other: &Acl) {
        self.bytes[0] = self.bytes[0].max(other.0[0]);
    }
}

impl Deref for AclBuffer {
    type Target = Acl;

    fn deref(&self) -> &Acl {
        Acl::new(&self.bytes)
    }
}

impl fmt::Debug for AclBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
