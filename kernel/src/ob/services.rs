//! What kernel code does with handles: NT's `Zw` calls for objects that are made, waited for and closed by them.
//!
//! IRQL:       PASSIVE.
//! Not as NT:  until processes have tables of their own, every handle is one of the kernel's table.
//! Tests:      selftest `ob_dispatcher::*`.
//! Sources:    WDK, `ZwCreateEvent`, `ZwOpenEvent`, `ZwSetEvent`, `ZwWaitForSingleObject`, `ZwClose`, `ZwDuplicateObject`, OBJECT_ATTRIBUTES.

use sync::irql::{Irql, Passive};

use super::access::AccessMask;
use super::dispatcher::{EventObject, MODIFY_STATE};
use super::handle::{Attributes, Handle};
use super::namespace::{Path, Permanence};
use super::reference::{ObRef, create};
use super::types::Body;
use super::{kernel_handles, namespace};
use crate::ke::apc::ProcessorMode;
use crate::ke::event::EventKind;
use crate::ke::timer::Due;
use crate::ke::wait;
use crate::rtl::NtStatus;

/// What OBJECT_ATTRIBUTES says of an object that is made or opened.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// Where it is; none: it has no name.
    pub path: Option<Path<'a>>,
    /// OBJ_PERMANENT.
    pub permanence: Permanence,
    /// OBJ_OPENIF: if there is one of that name already, that one is opened.
    pub open_if: bool,
    /// Of the handle.
    pub attributes: Attributes,
}

impl<'a> Named<'a> {
    /// Without a name.
    pub const NOT: Self = Self {
        path: None,
        permanence: Permanence::Temporary,
        open_if: false,
        attributes: Attributes { inherit: false, protect_from_close: false },
    };

    /// By a path, for as long as there is a handle.
    pub const fn at(path: Path<'a>) -> Self {
        Self { path: Some(path), ..Self::NOT }
    }
}

/// How an object with a handle came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is new.
    New(Handle),
    /// It was there, and was opened: NT's STATUS_OBJECT_NAME_EXISTS.
    Opened(Handle),
}

impl Made {
    /// The handle.
    pub const fn handle(self) -> Handle {
        match self {
            Self::New(handle) | Self::Opened(handle) => handle,
        }
    }
}

/// A handle to a new object with `body` for its body, named as `named` says; both or neither.
///
/// # Errors
/// As [`HandleTable::insert`](super::HandleTable::insert), or [`HandleTable::open`](super::HandleTable::open) without a name.
pub fn create_handle<T: Body>(
    body: T,
    named: &Named<'_>,
    access: AccessMask,
    at: &mut Irql<Passive>,
) -> Result<Made, NtStatus> {
    let object: ObRef = create(body, at)?.upcast();
    let Some(path) = named.path else {
        return kernel_handles().open(object, access, named.attributes, at).map(Made::New);
    };
    let table = kernel_handles();
    let made = table.insert(namespace(), path, named.permanence, object, access, named.attributes, at);
    match made {
        Err(NtStatus::OBJECT_NAME_COLLISION) if named.open_if => {
            open_handle::<T>(path, named.attributes, access, at).map(Made::Opened)
        }
        made => made.map(Made::New),
    }
}

/// A handle to what is at `path`, which is a `T`.
///
/// # Errors
/// As [`HandleTable::open_by_name`](super::HandleTable::open_by_name).
pub fn open_handle<T: Body>(
    path: Path<'_>,
    attributes: Attributes,
    access: AccessMask,
    at: &mut Irql<Passive>,
) -> Result<Handle, NtStatus> {
    kernel_handles().open_by_name(namespace(), path, Some(T::object_type().any()), access, attributes, at)
}

/// Closes a handle.
///
/// # Errors
/// STATUS_INVALID_HANDLE; STATUS_HANDLE_NOT_CLOSABLE.
#[doc(alias = "ZwClose")]
pub fn close(handle: Handle, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    kernel_handles().close(handle, ProcessorMode::Kernel, at)
}

/// One more handle to the same object, with the same rights or others.
///
/// # Errors
/// As [`HandleTable::duplicate`](super::HandleTable::duplicate).
#[doc(alias = "ZwDuplicateObject")]
pub fn duplicate(
    handle: Handle,
    access: Option<AccessMask>,
    attributes: Attributes,
    at: &mut Irql<Passive>,
) -> Result<Handle, NtStatus> {
    let table = kernel_handles();
    table.duplicate(handle, table, access, attributes, ProcessorMode::Kernel, at)
}

/// Waits for what a handle leads to, no longer than until `due`: STATUS_SUCCESS, STATUS_ABANDONED_WAIT_0, STATUS_TIMEOUT.
///
/// # Errors
/// STATUS_INVALID_HANDLE; STATUS_OBJECT_TYPE_MISMATCH: it is nothing that is waited for.
#[doc(alias = "ZwWaitForSingleObject")]
pub fn wait_for(handle: Handle, due: Option<Due>, at: &mut Irql<Passive>) -> Result<NtStatus, NtStatus> {
    let access = AccessMask::SYNCHRONIZE;
    let object = kernel_handles().reference_any(handle, access, None, ProcessorMode::Kernel, at)?;
    let header = object.dispatcher().ok_or(NtStatus::OBJECT_TYPE_MISMATCH)?;
    Ok(wait::for_single(header, due, at))
}

/// A handle to an event.
///
/// # Errors
/// As [`create_handle`].
#[doc(alias = "ZwCreateEvent")]
pub fn create_event(
    kind: EventKind,
    signalled: bool,
    named: &Named<'_>,
    access: AccessMask,
    at: &mut Irql<Passive>,
) -> Result<Made, NtStatus> {
    create_handle(EventObject::new(kind, signalled), named, access, at)
}

/// Signals an event; true: it was signalled before.
///
/// # Errors
/// STATUS_INVALID_HANDLE; STATUS_OBJECT_TYPE_MISMATCH.
#[doc(alias = "ZwSetEvent")]
pub fn set_event(handle: Handle, at: &mut Irql<Passive>) -> Result<bool, NtStatus> {
    /// NT's EVENT_INCREMENT.
    const INCREMENT: u8 = 1;
    Ok(event(handle, at)?.set(INCREMENT, at))
}

/// Makes an event not signalled; true: it was.
///
/// # Errors
/// As [`set_event`].
#[doc(alias = "ZwResetEvent")]
#[doc(alias = "ZwClearEvent")]
pub fn reset_event(handle: Handle, at: &mut Irql<Passive>) -> Result<bool, NtStatus> {
    Ok(event(handle, at)?.reset(at))
}

fn event(handle: Handle, at: &mut Irql<Passive>) -> Result<ObRef<EventObject>, NtStatus> {
    kernel_handles().reference(handle, MODIFY_STATE, ProcessorMode::Kernel, at)
}
