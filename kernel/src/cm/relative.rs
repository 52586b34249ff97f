//! Paths from the places in the registry that drivers start from, and what NT's run-time library does there.
//!
//! IRQL:    PASSIVE.
//! Sources: WDK, `RtlQueryRegistryValues` (RelativeTo), `RtlWriteRegistryValue`, `RtlDeleteRegistryValue`, `RtlCheckRegistryKey`,
//!          `RtlCreateRegistryKey`.

use sync::irql::{Irql, Passive};

use super::key::Key;
use super::path::{self as paths, Creation};
use super::value::ValueType;
use crate::ob::{Namespace, ObRef, Path};
use crate::rtl::{NtStatus, WideStr, WideString};
use crate::wide;

/// Where a path starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RelativeTo {
    /// RTL_REGISTRY_ABSOLUTE: at `\`.
    Absolute = 0,
    /// RTL_REGISTRY_SERVICES: at the drivers' keys.
    Services = 1,
    /// RTL_REGISTRY_CONTROL: at what the system itself is told.
    Control = 2,
    /// RTL_REGISTRY_WINDOWS_NT.
    WindowsNt = 3,
    /// RTL_REGISTRY_DEVICEMAP: at what drivers say of their devices.
    DeviceMap = 4,
    /// RTL_REGISTRY_USER: there is one user, the default one.
    User = 5,
}

impl RelativeTo {
    /// By NT's number, whose RTL_REGISTRY_OPTIONAL says nothing here.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: there is no such place; also RTL_REGISTRY_HANDLE, as a handle is no path.
    pub fn of(number: u32) -> Result<Self, NtStatus> {
        const OPTIONAL: u32 = 0x8000_0000;
        let all =
            [Self::Absolute, Self::Services, Self::Control, Self::WindowsNt, Self::DeviceMap, Self::User];
        let number = number & !OPTIONAL;
        all.into_iter().find(|it| *it as u32 == number).ok_or(NtStatus::INVALID_PARAMETER)
    }

    fn prefix(self) -> &'static WideStr {
        match self {
            Self::Absolute => wide!(""),
            Self::Services => wide!("\\Registry\\Machine\\System\\CurrentControlSet\\Services\\"),
            Self::Control => wide!("\\Registry\\Machine\\System\\CurrentControlSet\\Control\\"),
            Self::WindowsNt => {
                wide!("\\Registry\\Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion\\")
            }
            Self::DeviceMap => wide!("\\Registry\\Machine\\Hardware\\DeviceMap\\"),
            Self::User => wide!("\\Registry\\User\\.Default\\"),
        }
    }

    /// From `\`.
    fn name(self, path: &WideStr) -> Result<WideString, NtStatus> {
        WideString::of(&[self.prefix(), path])
    }
}

/// The key there.
///
/// # Errors
/// As [`paths::open`].
#[doc(alias = "RtlCheckRegistryKey")]
pub fn open(
    names: &Namespace,
    relative_to: RelativeTo,
    path: &WideStr,
    at: &mut Irql<Passive>,
) -> Result<ObRef<Key>, NtStatus> {
    paths::open(names, Path::new(&relative_to.name(path)?), at)
}

/// The same, which is made if it isn't there, below a key that is.
///
/// # Errors
/// As [`paths::create`].
#[doc(alias = "RtlCreateRegistryKey")]
pub fn create(
    names: &Namespace,
    relative_to: RelativeTo,
    path: &WideStr,
    at: &mut Irql<Passive>,
) -> Result<ObRef<Key>, NtStatus> {
    paths::create(names, Path::new(&relative_to.name(path)?), &mut Creation::new(), at)
}

/// Sets a value there; the key is made if it isn't there.
///
/// # Errors
/// As [`create`] and [`Key::set_value`].
#[doc(alias = "RtlWriteRegistryValue")]
pub fn write_value(
    names: &Namespace,
    (relative_to, path): (RelativeTo, &WideStr),
    name: &WideStr,
    kind: ValueType,
    bytes: &[u8],
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    create(names, relative_to, path, at)?.set_value(name, kind, bytes, at)
}

/// Deletes a value there.
///
/// # Errors
/// As [`open`] and [`Key::delete_value`].
#[doc(alias = "RtlDeleteRegistryValue")]
pub fn delete_value(
    names: &Namespace,
    (relative_to, path): (RelativeTo, &WideStr),
    name: &WideStr,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    open(names, relative_to, path, at)?.delete_value(name, at)
}
