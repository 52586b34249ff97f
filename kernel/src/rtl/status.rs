//! NTSTATUS: how a routine of the executive ended, as drivers and user mode see it.
//!
//! | bits | |
//! |---|---|
//! | 30–31 | severity: 0 success, 1 information, 2 warning, 3 error |
//! | 29 | customer-defined |
//! | 16–27 | facility |
//! | 0–15 | code |
//!
//! Sources: WDK, "Defining New NTSTATUS Values", "NTSTATUS Values".

use core::fmt;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[must_use = "a status that nobody looks at is an error that nobody sees"]
pub struct NtStatus(pub u32);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl NtStatus {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// NT's name without `STATUS_`, for reports; empty for what has none here.
            pub const fn name(self) -> &'static str {
                match self.0 { $($value => stringify!($name),)* _ => "" }
            }

            /// All that have a name.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

statuses! {
    /// It worked; of a wait: the first object.
    SUCCESS = 0x0000_0000;
    /// A wait ended by a mutant whose owner had died: the first object.
    ABANDONED_WAIT_0 = 0x0000_0080;
    /// A wait ended for a user APC.
    USER_APC = 0x0000_00C0;
    /// A wait ended for a kernel APC. Never seen by whoever waits: the wait goes on.
    KERNEL_APC = 0x0000_0100;
    /// A wait ended by an alert.
    ALERTED = 0x0000_0101;
    /// A wait ended by its timeout.
    TIMEOUT = 0x0000_0102;
    /// It goes on, and will be told of later.
    PENDING = 0x0000_0103;
    /// A guard page was touched, and is one no more.
    GUARD_PAGE_VIOLATION = 0x8000_0001;
    /// The address is not aligned as it must be.
    DATATYPE_MISALIGNMENT = 0x8000_0002;
    /// The buffer holds a part of the answer.
    BUFFER_OVERFLOW = 0x8000_0005;
    /// There is no further one.
    NO_MORE_ENTRIES = 0x8000_001A;
    /// Something failed, without a better word.
    UNSUCCESSFUL = 0xC000_0001;
    /// Not there yet.
    NOT_IMPLEMENTED = 0xC000_0002;
    /// No such class of information.
    INVALID_INFO_CLASS = 0xC000_0003;
    /// The buffer is smaller than the structure.
    INFO_LENGTH_MISMATCH = 0xC000_0004;
    /// An address that may not be reached in this way.
    ACCESS_VIOLATION = 0xC000_0005;
    /// There is none.
    NO_SUCH_DEVICE = 0xC000_000E;
    /// The device doesn't know the function.
    INVALID_DEVICE_REQUEST = 0xC000_0010;
    /// There is nothing behind this place.
    END_OF_FILE = 0xC000_0011;
    /// A completion routine keeps the packet.
    MORE_PROCESSING_REQUIRED = 0xC000_0016;
    /// The device is about to go.
    DELETE_PENDING = 0xC000_0056;
    /// There is one already.
    DEVICE_ALREADY_ATTACHED = 0xC000_0038;
    /// No handle of this process.
    INVALID_HANDLE = 0xC000_0008;
    /// An argument is not one of those allowed.
    INVALID_PARAMETER = 0xC000_000D;
    /// No address space or commit limit left for the process.
    NO_MEMORY = 0xC000_0017;
    /// The range overlaps another.
    CONFLICTING_ADDRESSES = 0xC000_0018;
    /// The memory can't be freed in this way.
    UNABLE_TO_FREE_VM = 0xC000_001A;
    /// No such view.
    NOT_MAPPED_VIEW = 0xC000_0019;
    /// A view that is empty, or reaches beyond its section.
    INVALID_VIEW_SIZE = 0xC000_001F;
    /// The memory is a view of a section: it is unmapped, not freed.
    UNABLE_TO_DELETE_SECTION = 0xC000_001B;
    /// The memory is committed for good, as it is a section's.
    ALREADY_COMMITTED = 0xC000_0021;
    /// A section can't be that large.
    SECTION_TOO_BIG = 0xC000_0040;
    /// The second argument.
    INVALID_PARAMETER_2 = 0xC000_00F0;
    /// The third argument.
    INVALID_PARAMETER_3 = 0xC000_00F1;
    /// The fourth argument.
    INVALID_PARAMETER_4 = 0xC000_00F2;
    /// The fifth argument.
    INVALID_PARAMETER_5 = 0xC000_00F3;
    /// A view's address or place in its section is not aligned to 64 KiB.
    MAPPED_ALIGNMENT = 0xC000_0220;
    /// The rights were not granted.
    ACCESS_DENIED = 0xC000_0022;
    /// A token's owner can't be that.
    INVALID_OWNER = 0xC000_005A;
    /// A group that every user of the token is in.
    CANT_DISABLE_MANDATORY = 0xC000_005D;
    /// A group that counts only where something is denied.
    CANT_ENABLE_DENY_ONLY = 0xC000_02B3;
    /// The privilege is missing, or not enabled.
    PRIVILEGE_NOT_HELD = 0xC000_0061;
    /// Not all that was named could be changed.
    NOT_ALL_ASSIGNED = 0x0000_0106;
    /// Who acts for another may only know who it is.
    BAD_IMPERSONATION_LEVEL = 0xC000_00A5;
    /// No security descriptor.
    INVALID_SECURITY_DESCR = 0xC000_0079;
    /// A list can't be that long.
    ALLOTTED_SPACE_EXCEEDED = 0xC000_0099;
    /// It was deleted, and lives on for those who have it.
    KEY_DELETED = 0xC000_017C;
    /// It can't be deleted, as others need it.
    CANNOT_DELETE = 0xC000_0121;
    /// What was watched has changed; a look will show how.
    NOTIFY_ENUM_DIR = 0x0000_010C;
    /// What was watched is gone.
    NOTIFY_CLEANUP = 0x0000_010B;
    /// A UUID that no other of this machine's is, but perhaps another machine's: RPC_NT_UUID_LOCAL_ONLY.
    UUID_LOCAL_ONLY = 0x4002_0056;
    /// The buffer can't hold the answer.
    BUFFER_TOO_SMALL = 0xC000_0023;
    /// The memory is not committed.
    NOT_COMMITTED = 0xC000_002D;
    /// The object is of another type than was asked for.
    OBJECT_TYPE_MISMATCH = 0xC000_0024;
    /// A name that can't be one.
    OBJECT_NAME_INVALID = 0xC000_0033;
    /// There is no such name, though what leads there exists.
    OBJECT_NAME_NOT_FOUND = 0xC000_0034;
    /// There is such a name already.
    OBJECT_NAME_COLLISION = 0xC000_0035;
    /// What leads to the name doesn't exist.
    OBJECT_PATH_NOT_FOUND = 0xC000_003A;
    /// A path that doesn't begin as it must.
    OBJECT_PATH_SYNTAX_BAD = 0xC000_003B;
    /// A name of more than its counters can count.
    NAME_TOO_LONG = 0xC000_0106;
    /// A semaphore would go over its limit.
    SEMAPHORE_LIMIT_EXCEEDED = 0xC000_0047;
    /// No such protection.
    INVALID_PAGE_PROTECTION = 0xC000_0045;
    /// A mutant is not the caller's.
    MUTANT_NOT_OWNED = 0xC000_0046;
    /// The section can't have a view of that protection.
    SECTION_PROTECTION = 0xC000_004E;
    /// The thread ends already.
    THREAD_IS_TERMINATING = 0xC000_004B;
    /// A suspend count would overflow.
    SUSPEND_COUNT_EXCEEDED = 0xC000_004A;
    /// No memory for the kernel's own needs.
    INSUFFICIENT_RESOURCES = 0xC000_009A;
    /// What was written is protected.
    MEDIA_WRITE_PROTECTED = 0xC000_00A2;
    /// Nobody knows how.
    NOT_SUPPORTED = 0xC000_00BB;
    /// It is gone.
    DEVICE_DOES_NOT_EXIST = 0xC000_00C0;
    /// Not in the state that it is in.
    INVALID_DEVICE_STATE = 0xC000_0184;
    /// The device has failed.
    IO_DEVICE_ERROR = 0xC000_0185;
    /// More than can be moved at once.
    INVALID_BUFFER_SIZE = 0xC000_0206;
    /// What a device says can't be.
    DEVICE_PROTOCOL_ERROR = 0xC000_0186;
    /// It is not there any more, or was never.
    DEVICE_NOT_READY = 0xC000_00A3;
    /// The range is not of one allocation.
    FREE_VM_NOT_AT_BASE = 0xC000_009F;
    /// The memory is not allocated.
    MEMORY_NOT_ALLOCATED = 0xC000_00A0;
    /// The process ends already.
    PROCESS_IS_TERMINATING = 0xC000_010A;
    /// The commit limit is reached.
    COMMITMENT_LIMIT = 0xC000_012D;
    /// No stack space left.
    STACK_OVERFLOW = 0xC000_00FD;
    /// The handle is protected from being closed.
    HANDLE_NOT_CLOSABLE = 0xC000_0235;
    /// It was cancelled.
    CANCELLED = 0xC000_0120;
}

impl NtStatus {
    /// Success or information.
    #[doc(alias = "NT_SUCCESS")]
    #[inline(always)]
    pub const fn is_success(self) -> bool {
        self.0 as i32 >= 0
    }

    /// Neither success, information nor a warning.
    #[doc(alias = "NT_ERROR")]
    #[inline(always)]
    pub const fn is_error(self) -> bool {
        self.0 >> 30 == 3
    }

    /// As a routine that has nothing else to return would say it.
    pub fn result(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "" => write!(f, "{:#010X}", self.0),
            name => write!(f, "STATUS_{name}"),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_macros, reason = "a host test may run out of memory")]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_severity_decides() {
        for (at, status) in NtStatus::ALL.iter().enumerate() {
            assert!(NtStatus::ALL[..at].iter().all(|other| other != status), "{status:?} twice");
            assert_eq!(status.is_success(), status.0 >> 31 == 0);
            assert!(format!("{status:?}").starts_with("STATUS_"));
        }
        assert_eq!(format!("{:?}", NtStatus(0xC0DE_0001)), "0xC0DE0001");
    }
}
