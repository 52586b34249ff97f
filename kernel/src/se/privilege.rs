//! Privileges: what somebody may do whatever an object says. Each is known by a LUID.
//!
//! IRQL:       any.
//! Sources:    WDK, LUID, LUID_AND_ATTRIBUTES, PRIVILEGE_SET, `SeSinglePrivilegeCheck`; "Privilege Constants".

use core::ops::BitOr;
use core::sync::atomic::{AtomicU64, Ordering};

/// A number that is given out once until the machine restarts. NT's LUID, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
#[doc(alias = "LUID")]
pub struct Luid {
    /// The lower half.
    pub low: u32,
    /// The upper half.
    pub high: i32,
}

impl Luid {
    /// SYSTEM_LUID: the system's own logon.
    pub const SYSTEM: Self = Self { low: 0x3E7, high: 0 };
    /// The first 1000 have meanings.
    const FIRST: u64 = 1001;

    /// One that nobody has had.
    #[doc(alias = "ExAllocateLocallyUniqueId")]
    #[doc(alias = "ZwAllocateLocallyUniqueId")]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(Luid::FIRST);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { low: number as u32, high: (number >> 32) as i32 }
    }
}

/// A privilege or its state in a set. NT's LUID_AND_ATTRIBUTES, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "LUID_AND_ATTRIBUTES")]
pub struct LuidAndAttributes {
    /// Which.
    pub luid: Luid,
    /// SE_PRIVILEGE_ENABLED and so on.
    pub attributes: u32,
}

/// NT's PRIVILEGE_SET with its first privilege, byte for byte.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[doc(alias = "PRIVILEGE_SET")]
pub struct KPrivilegeSet {
    /// How many there are.
    pub count: u32,
    /// PRIVILEGE_SET_ALL_NECESSARY, or any of them.
    pub control: u32,
    /// The first.
    pub first: LuidAndAttributes,
}

sync::nt_layout! { [] Luid = "LUID" { low => "LowPart", high => "HighPart", } }
sync::nt_layout! { [] LuidAndAttributes = "LUID_AND_ATTRIBUTES" { luid => "Luid", attributes => "Attributes", } }
sync::nt_layout! {
    [] KPrivilegeSet = "PRIVILEGE_SET" { count => "PrivilegeCount", control => "Control", first => "Privilege", }
}

macro_rules! privileges {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// A privilege, by its number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "NT's names, which say it")]
        pub enum Privilege { $($(#[$doc])* $name = $value,)* }

        impl Privilege {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

privileges! {
    CreateToken = 2,
    AssignPrimaryToken = 3,
    LockMemory = 4,
    IncreaseQuota = 5,
    MachineAccount = 6,
    Tcb = 7,
    Security = 8,
    TakeOwnership = 9,
    LoadDriver = 10,
    SystemProfile = 11,
    Systemtime = 12,
    ProfileSingleProcess = 13,
    IncreaseBasePriority = 14,
    CreatePagefile = 15,
    CreatePermanent = 16,
    Backup = 17,
    Restore = 18,
    Shutdown = 19,
    Debug = 20,
    Audit = 21,
    SystemEnvironment = 22,
    ChangeNotify = 23,
    RemoteShutdown = 24,
    Undock = 25,
    SyncAgent = 26,
    EnableDelegation = 27,
    ManageVolume = 28,
    Impersonate = 29,
    CreateGlobal = 30,
    TrustedCredManAccess = 31,
    Relabel = 32,
    IncreaseWorkingSet = 33,
    TimeZone = 34,
    CreateSymbolicLink = 35,
}

impl Privilege {
    /// Its LUID.
    pub const fn luid(self) -> Luid {
        Luid { low: self as u32, high: 0 }
    }

    /// The one of a LUID.
    pub fn of(luid: Luid) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.luid() == luid)
    }
}

/// A set of privileges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privileges(pub(super) u64);

impl Privileges {
    /// None.
    pub const NONE: Self = Self(0);

    /// All that there are.
    pub const ALL: Self = {
        let (mut set, mut at) = (0, 0);
        while at < Privilege::ALL.len() {
            set |= 1 << Privilege::ALL[at] as u8;
            at += 1;
        }
        Self(set)
    };

    /// These.
    pub const fn of(privileges: &[Privilege]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < privileges.len() {
            set |= 1 << privileges[at] as u8;
            at += 1;
        }
        Self(set)
    }

    /// Is it in the set?
    pub const fn has(self, privilege: Privilege) -> bool {
        self.0 >> privilege as u8 & 1 != 0
    }

    /// Are all of `other`?
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// What is in this set and not in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Is there none?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Privileges {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
