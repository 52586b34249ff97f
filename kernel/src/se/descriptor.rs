//! Security descriptors: an object's owner and group, who may do what with it, and what of that is told.
//!
//! | form | | |
//! |---|---|---|
//! | self-relative | a header of 20 bytes with offsets, what they lead to behind it | [`DescriptorBuffer`], [`Descriptor::parse`] |
//! | absolute | a header of 40 bytes with pointers | [`KSecurityDescriptor`] |
//!
//! Either can be viewed as a [`Descriptor`], and a view be made either.
//!
//! IRQL:       any, where the bytes are nonpaged; what makes a buffer as the pool.
//! Not as NT:  a buffer's parts stand in a fixed order, without gaps.
//! Tests:      tests/props/tests/se_descriptors.rs; `tests/fuzz`, target `descriptors`.
//! Sources:    WDK, SECURITY_DESCRIPTOR, `RtlValidRelativeSecurityDescriptor`, `RtlAbsoluteToSelfRelativeSD`,
//!             `RtlSelfRelativeToAbsoluteSD`, `SeQuerySecurityDescriptorInfo`, `SeSetSecurityDescriptorInfo`, SECURITY_INFORMATION.

extern crate alloc;

use alloc::vec::Vec;
use core::ptr;

use super::acl::{Acl, KAcl};
use super::sid::Sid;
use super::{u16_at, u32_at};
use crate::rtl::{NtStatus, vec};

const REVISION: u8 = 1;
/// Of a self-relative one.
const HEADER: usize = 20;

/// What a descriptor says of itself: SECURITY_DESCRIPTOR_CONTROL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Control(pub u16);

impl Control {
    /// The owner was nobody's choice.
    pub const OWNER_DEFAULTED: Self = Self(0x0001);
    /// The group was nobody's choice.
    pub const GROUP_DEFAULTED: Self = Self(0x0002);
    /// There is a discretionary list, if only a null one.
    pub const DACL_PRESENT: Self = Self(0x0004);
    /// It was nobody's choice.
    pub const DACL_DEFAULTED: Self = Self(0x0008);
    /// There is a system list.
    pub const SACL_PRESENT: Self = Self(0x0010);
    /// It was nobody's choice.
    pub const SACL_DEFAULTED: Self = Self(0x0020);
    /// The discretionary list inherits nothing.
    pub const DACL_PROTECTED: Self = Self(0x1000);
    /// The system list inherits nothing.
    pub const SACL_PROTECTED: Self = Self(0x2000);
    /// The header has offsets.
    pub const SELF_RELATIVE: Self = Self(0x8000);

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

/// Which parts of a descriptor: SECURITY_INFORMATION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Parts(pub u32);

impl Parts {
    /// OWNER_SECURITY_INFORMATION.
    pub const OWNER: Self = Self(1);
    /// GROUP_SECURITY_INFORMATION.
    pub const GROUP: Self = Self(2);
    /// DACL_SECURITY_INFORMATION.
    pub const DACL: Self = Self(4);
    /// SACL_SECURITY_INFORMATION.
    pub const SACL: Self = Self(8);

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is all of `other` in it?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A view of a descriptor, in either form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Without [`Control::SELF_RELATIVE`], which is the form's.
    pub control: Control,
    /// Whose the object is.
    pub owner: Option<&'a Sid>,
    /// Its group.
    pub group: Option<&'a Sid>,
    /// What of its use is told. Nothing, if the control doesn't say that it is present.
    pub sacl: Option<&'a Acl>,
    /// Who may do what. Nothing, though the control says that it is present: everybody may do everything.
    pub dacl: Option<&'a Acl>,
}

impl<'a> Descriptor<'a> {
    /// The self-relative descriptor that `bytes` begin with, from whomever they are.
    ///
    /// # Errors
    /// STATUS_INVALID_SECURITY_DESCR: they don't begin with one.
    #[doc(alias = "RtlValidRelativeSecurityDescriptor")]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NtStatus> {
        Self::parsed(bytes).ok_or(NtStatus::INVALID_SECURITY_DESCR)
    }

    fn parsed(bytes: &'a [u8]) -> Option<Self> {
        let control = Control(u16_at(bytes, 2)?);
        if bytes[0] != REVISION || !control.contains(Control::SELF_RELATIVE) {
            return None;
        }
        // What `parse` makes of what an offset leads to; no offset, nothing.
        fn part<T: ?Sized>(bytes: &[u8], field: usize, parse: fn(&[u8]) -> Option<&T>) -> Option<Option<&T>> {
            match u32_at(bytes, field)? as usize {
                0 => Some(None),
                offset if offset < HEADER || !offset.is_multiple_of(4) => None,
                offset => parse(bytes.get(offset..)?).map(Some),
            }
        }
        let list = |field, flag| match control.contains(flag) {
            true => part(bytes, field, Acl::parse),
            false => Some(None),
        };
        Some(Self {
            control: control.without(Control::SELF_RELATIVE),
            owner: part(bytes, 4, Sid::parse)?,
            group: part(bytes, 8, Sid::parse)?,
            sacl: list(12, Control::SACL_PRESENT)?,
            dacl: list(16, Control::DACL_PRESENT)?,
        })
    }

    /// Has it a discretionary list that isn't null? Else everybody may do everything.
    pub fn effective_dacl(&self) -> Option<&'a Acl> {
        self.dacl.filter(|_| self.control.contains(Control::DACL_PRESENT))
    }

    /// Those `parts` of it.
    #[doc(alias = "SeQuerySecurityDescriptorInfo")]
    pub fn only(self, parts: Parts) -> Self {
        Descriptor::default().with(parts, self)
    }

    /// It with those `parts` of `other` in place of its own.
    #[doc(alias = "SeSetSecurityDescriptorInfo")]
    pub fn with(mut self, parts: Parts, other: Self) -> Self {
        let mut take = |part, flags| {
            let is_taken = parts.contains(part);
            if is_taken {
                self.control = self.control.without(flags).with(Control(other.control.0 & flags.0));
            }
            is_taken
        };
        let of_dacl = Control::DACL_PRESENT.with(Control::DACL_DEFAULTED).with(Control::DACL_PROTECTED);
        let of_sacl = Control::SACL_PRESENT.with(Control::SACL_DEFAULTED).with(Control::SACL_PROTECTED);
        let owner = take(Parts::OWNER, Control::OWNER_DEFAULTED);
        let group = take(Parts::GROUP, Control::GROUP_DEFAULTED);
        let (sacl, dacl) = (take(Parts::SACL, of_sacl), take(Parts::DACL, of_dacl));
        self.owner = if owner { other.owner } else { self.owner };
        self.group = if group { other.group } else { self.group };
        self.sacl = if sacl { other.sacl } else { self.sacl };
        self.dacl = if dacl { other.dacl } else { self.dacl };
        self
    }

    /// The absolute one that leads to the same parts.
    #[doc(alias = "RtlSelfRelativeToAbsoluteSD")]
    pub fn absolute(&self) -> KSecurityDescriptor {
        let sid = |sid: Option<&Sid>| sid.map_or(ptr::null(), |sid| sid.bytes().as_ptr());
        let acl = |acl: Option<&Acl>| acl.map_or(ptr::null(), |acl| acl.bytes().as_ptr());
        KSecurityDescriptor {
            revision: REVISION,
            zero: 0,
            control: self.control,
            owner: sid(self.owner),
            group: sid(self.group),
            sacl: acl(self.sacl),
            dacl: acl(self.dacl),
        }
    }
}

/// A self-relative descriptor in memory of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct DescriptorBuffer {
    /// One, and nothing behind it.
    bytes: Vec<u8>,
}

impl DescriptorBuffer {
    /// A copy.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "RtlAbsoluteToSelfRelativeSD")]
    pub fn of(from: &Descriptor<'_>) -> Result<Self, NtStatus> {
        let parts = [
            from.owner.map(Sid::bytes),
            from.group.map(Sid::bytes),
            from.sacl.map(Acl::bytes),
            from.dacl.map(Acl::bytes),
        ];
        let mut header = [0; HEADER];
        header[0] = REVISION;
        header[2..4].copy_from_slice(&from.control.with(Control::SELF_RELATIVE).0.to_le_bytes());
        let mut end = HEADER;
        for (field, part) in header[4..].chunks_exact_mut(4).zip(&parts) {
            if let Some(part) = part {
                // SIDs and lists are of whole words, and at most 64 KiB each.
                field.copy_from_slice(&(end as u32).to_le_bytes());
                end += part.len();
            }
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(end).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        vec::append(&mut bytes, &header)?;
        parts.into_iter().flatten().try_for_each(|part| vec::append(&mut bytes, part))?;
        Ok(Self { bytes })
    }

    /// Its bytes.
    #[doc(alias = "RtlLengthSecurityDescriptor")]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says.
    pub fn view(&self) -> Descriptor<'_> {
        Descriptor::parsed(&self.bytes).unwrap_or_default()
    }
}

/// NT's SECURITY_DESCRIPTOR, byte for byte: the absolute form.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "SECURITY_DESCRIPTOR")]
pub struct KSecurityDescriptor {
    /// 1.
    pub revision: u8,
    /// Zero, or a resource manager's own.
    pub zero: u8,
    /// What it says of itself.
    pub control: Control,
    /// A SID, or null.
    pub owner: *const u8,
    /// A SID, or null.
    pub group: *const u8,
    /// A list, or null.
    pub sacl: *const u8,
    /// A list, or null.
    pub dacl: *const u8,
}

/// NT's SECURITY_DESCRIPTOR_RELATIVE, byte for byte, without what the offsets lead to.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "SECURITY_DESCRIPTOR_RELATIVE")]
pub struct KRelativeDescriptor {
    /// 1.
    pub revision: u8,
    /// Zero, or a resource manager's own.
    pub zero: u8,
    /// What it says of itself.
    pub control: Control,
    /// Offsets of owner, group, system and discretionary list from here; 0: there is none.
    pub offsets: [u32; 4],
}

const _: () = assert!(size_of::<KRelativeDescriptor>() == HEADER);

sync::nt_layout! {
    [] KSecurityDescriptor = "SECURITY_DESCRIPTOR" {
        revision => "Revision", zero => "Sbz1", control => "Control", owner => "Owner", group => "Group", sacl => "Sacl",
        dacl => "Dacl",
    }
}
sync::nt_layout! {
    [] KRelativeDescriptor = "SECURITY_DESCRIPTOR_RELATIVE" {
        revision => "Revision", zero => "Sbz1", control => "Control", offsets => "Owner" ..= "Dacl",
    }
}

/// The bytes at `start`: as many as a list there says that it has.
///
/// # Safety
/// They are there, and nobody writes to them for `'a`.
unsafe fn list<'a>(start: *const u8) -> &'a [u8] {
    // SAFETY: the caller's.
    unsafe {
        let size = ptr::addr_of!((*start.cast::<KAcl>()).size).read_unaligned();
        core::slice::from_raw_parts(start, usize::from(size))
    }
}

/// The same for a SID.
///
/// # Safety
/// As [`list`].
unsafe fn sid<'a>(start: *const u8) -> &'a [u8] {
    // SAFETY: the caller's; the second byte is the count.
    unsafe { core::slice::from_raw_parts(start, 8 + 4 * usize::from(start.add(1).read())) }
}

impl KSecurityDescriptor {
    /// What it says, in whichever form it is.
    ///
    /// # Errors
    /// STATUS_INVALID_SECURITY_DESCR: a part is none. What is trusted is lengths, not contents.
    ///
    /// # Safety
    /// `from` leads to a header of the form that its control says. Parts that it leads to are as long as they say, and nobody
    /// writes to any of it for `'a`.
    #[doc(alias = "RtlValidSecurityDescriptor")]
    pub unsafe fn view<'a>(from: *const Self) -> Result<Descriptor<'a>, NtStatus> {
        let relative = from.cast::<KRelativeDescriptor>();
        // SAFETY: the caller's. Up to the control both forms are the same; behind it an absolute one has bytes that nobody writes.
        let (revision, control) = unsafe {
            let control = ptr::addr_of!((*from).control).read_unaligned();
            (ptr::addr_of!((*from).revision).read(), control)
        };
        let [owner, group, sacl, dacl] = if control.contains(Control::SELF_RELATIVE) {
            // SAFETY: the caller's: a header with offsets.
            let header = unsafe { relative.read_unaligned() };
            header.offsets.map(|offset| match offset {
                0 => ptr::null(),
                // SAFETY: the caller's: a header with offsets, which lead to parts.
                offset => unsafe { relative.cast::<u8>().add(offset as usize) },
            })
        } else {
            // SAFETY: the caller's: a header with pointers.
            let it = unsafe { from.read_unaligned() };
            [it.owner, it.group, it.sacl, it.dacl]
        };
        let whose = |start: *const u8| match start.is_null() {
            true => Ok(None),
            // SAFETY: the caller's.
            false => Sid::parse(unsafe { sid(start) }).map(Some).ok_or(NtStatus::INVALID_SECURITY_DESCR),
        };
        let lists = |start: *const u8, flag| match start.is_null() || !control.contains(flag) {
            true => Ok(None),
            // SAFETY: the caller's.
            false => Acl::parse(unsafe { list(start) }).map(Some).ok_or(NtStatus::INVALID_SECURITY_DESCR),
        };
        if revision != REVISION {
            return Err(NtStatus::INVALID_SECURITY_DESCR);
        }
        Ok(Descriptor {
            control: control.without(Control::SELF_RELATIVE),
            owner: whose(owner)?,
            group: whose(group)?,
            sacl: lists(sacl, Control::SACL_PRESENT)?,
            dacl: lists(dacl, Control::DACL_PRESENT)?,
        })
    }
}
