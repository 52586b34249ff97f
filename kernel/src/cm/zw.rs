//! The registry by handles: what drivers and user mode call, with the rights that their handles have.
//!
//! Each function is a key's own ([`Key`]) behind the look at a handle and its rights; those that ask for answers in NT's structures are reached by
//! [`key`](fn@key), with the right that they take.
//!
//! IRQL:       PASSIVE.
//! Not as NT:  names and buffers are the kernel's, already copied from wherever they came.
//! Tests:      tests/props/tests/cm_registry.rs; selftest `cm::*`.
//! Sources:    WDK, `ZwCreateKey`, `ZwOpenKeyEx`, `ZwDeleteKey`, `ZwSetValueKey`, `ZwDeleteValueKey`, `ZwNotifyChangeKey`, `ZwRenameKey`.

use sync::irql::{Irql, Passive};

use super::key::{self, KEY_CREATE_LINK, KEY_NOTIFY, KEY_SET_VALUE, Key};
use super::notify::{Change, Filter};
use super::path::{self as paths, Creation, Disposition};
use super::value::ValueType;
use crate::ob::{AccessMask, Attributes, Caller, Handle, HandleTable, Namespace, ObRef, Path};
use crate::rtl::{NtStatus, WideStr};
use crate::se::token::Subject;

/// The key of `handle`, which has the rights `access`.
///
/// # Errors
/// STATUS_INVALID_HANDLE; STATUS_OBJECT_TYPE_MISMATCH; STATUS_ACCESS_DENIED.
pub fn key(
    caller: &Caller<'_>,
    handle: Handle,
    access: AccessMask,
    at: &mut Irql<Passive>,
) -> Result<ObRef<Key>, NtStatus> {
    caller.reference(handle, access, at)
}

/// A handle in `table` to the key at the end of `path`, with the rights `access`, if `who` may have them; nobody is the kernel.
///
/// # Errors
/// As [`paths::open`] and [`HandleTable::open_for`].
#[doc(alias = "ZwOpenKey")]
pub fn open(
    table: &HandleTable,
    names: &Namespace,
    path: Path<'_>,
    access: AccessMask,
    attributes: Attributes,
    who: Option<&Subject<'_>>,
    at: &mut Irql<Passive>,
) -> Result<Handle, NtStatus> {
    let key = paths::open(names, path, at)?;
    table.open_for(key.upcast(), access, attributes, who, at)
}

/// The same, to a key that is made if it isn't there, and whether it was.
///
/// # Errors
/// As [`paths::create`] and [`HandleTable::open_for`]; a key that was made is gone again then.
#[doc(alias = "ZwCreateKey")]
pub fn create(
    table: &HandleTable,
    names: &Namespace,
    path: Path<'_>,
    creation: &mut Creation,
    access: AccessMask,
    attributes: Attributes,
    at: &mut Irql<Passive>,
) -> Result<Handle, NtStatus> {
    let access = if creation.is_link { access.with(KEY_CREATE_LINK) } else { access };
    let key = paths::create(names, path, creation, at)?;
    let opened = match creation.disposition {
        // Its creator may do everything with what it has just made.
        Disposition::Created => table.open(key.clone().upcast(), access, attributes, at),
        Disposition::Opened => {
            table.open_for(key.clone().upcast(), access, attributes, creation.who().as_ref(), at)
        }
    };
    if opened.is_err() && creation.disposition == Disposition::Created {
        // Not if somebody has made keys below it meanwhile: then it is theirs.
        let _ = Key::delete(&key, at);
    }
    opened
}

/// Deletes the key of `handle`, which stays open.
///
/// # Errors
/// As [`key`](fn@key) and [`Key::delete`].
#[doc(alias = "ZwDeleteKey")]
pub fn delete(caller: &Caller<'_>, handle: Handle, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let key = key(caller, handle, AccessMask::DELETE, at)?;
    Key::delete(&key, at)
}

/// Gives the key of `handle` another name.
///
/// # Errors
/// As [`key`](fn@key) and [`Key::rename`].
#[doc(alias = "ZwRenameKey")]
pub fn rename(
    caller: &Caller<'_>,
    handle: Handle,
    name: &WideStr,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    let key = key(caller, handle, key::KEY_WRITE, at)?;
    Key::rename(&key, name, at)
}

/// Sets a value of the key of `handle`.
///
/// # Errors
/// As [`key`](fn@key) and [`Key::set_value`].
#[doc(alias = "ZwSetValueKey")]
pub fn set_value(
    caller: &Caller<'_>,
    handle: Handle,
    name: &WideStr,
    kind: ValueType,
    bytes: &[u8],
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    key(caller, handle, KEY_SET_VALUE, at)?.set_value(name, kind, bytes, at)
}

/// Deletes a value of the key of `handle`.
///
/// # Errors
/// As [`key`](fn@key) and [`Key::delete_value`].
#[doc(alias = "ZwDeleteValueKey")]
pub fn delete_value(
    caller: &Caller<'_>,
    handle: Handle,
    name: &WideStr,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    key(caller, handle, KEY_SET_VALUE, at)?.delete_value(name, at)
}

/// Watches the key of `handle` until a change, or until the last handle to it is closed.
///
/// # Errors
/// As [`key`](fn@key) and [`Key::watch`].
#[doc(alias = "ZwNotifyChangeKey")]
pub fn watch(
    caller: &Caller<'_>,
    handle: Handle,
    change: &ObRef<Change>,
    filter: Filter,
    is_deep: bool,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    key(caller, handle, KEY_NOTIFY, at)?.add_watch(change, filter, is_deep, true, at)
}
