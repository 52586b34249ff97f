//! Objects: what the executive counts references to, names, and gives out handles to.
//!
//! Reading order: [`access`] (rights), [`types`] (what objects of a kind share; [`Body`], what can be an object), `header` (what stands in
//! front of a body), `reference` ([`ObRef`], [`create`]), `delete` (the end); then names: [`directory`], [`link`], [`mod@namespace`];
//! and [`handle`]; `dispatcher` (events and their like as objects) and `services` (what kernel code does with handles).
//!
//! An object's body is Rust's value of a type that is [`Body`]; NT's routines and drivers know an object by the address of its body.
//! `here` is what all this needs of the machine; on a host `hosted` stands in for it, and the rest runs there as it ships.

pub mod access;
mod delete;
pub mod directory;
#[cfg(target_os = "none")]
pub mod dispatcher;
pub mod handle;
mod header;
#[cfg(target_os = "none")]
mod here;
#[cfg(not(target_os = "none"))]
pub mod hosted;
pub mod link;
pub mod namespace;
mod reference;
#[cfg(target_os = "none")]
pub mod services;
pub mod types;

#[cfg(target_os = "none")]
use here as machine;
#[cfg(not(target_os = "none"))]
use hosted as machine;

pub use access::{AccessMask, GenericMapping};
pub use directory::Directory;
pub use handle::{Attributes, Caller, Handle, HandleTable};
pub use link::SymbolicLink;
pub(crate) use machine::PushLock;
pub use namespace::{Namespace, Parsed, Path, Permanence, Request};
pub use reference::{ObRef, Object, create, create_with_extra};
pub use types::{Body, ObjectType, Type};

/// This machine's names.
#[cfg(target_os = "none")]
static NAMESPACE: sync::Once<Namespace> = sync::Once::new();

/// This machine's names.
#[cfg(target_os = "none")]
pub fn namespace() -> &'static Namespace {
    NAMESPACE.wait()
}

/// The kernel's handles: good in every process, and never from user mode.
#[cfg(target_os = "none")]
pub fn kernel_handles() -> &'static HandleTable {
    static TABLE: HandleTable = HandleTable::kernel();
    &TABLE
}

/// Makes the first directories, and room for the kernel's first handles.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
#[cfg(target_os = "none")]
pub(crate) fn start(at: &mut sync::irql::Irql<sync::irql::Passive>) -> Result<(), crate::rtl::NtStatus> {
    kernel_handles().grow(at)?;
    let namespace = Namespace::new(at)?;
    let types = [
        dispatcher::EventObject::object_type().any(),
        dispatcher::SemaphoreObject::object_type().any(),
        dispatcher::MutantObject::object_type().any(),
        dispatcher::TimerObject::object_type().any(),
        crate::io::objects::KDeviceObject::object_type().any(),
        crate::io::objects::KDriverObject::object_type().any(),
        crate::io::objects::KFileObject::object_type().any(),
    ];
    for type_ in types {
        namespace.add_type(type_, at)?;
    }
    NAMESPACE.call_once(|| namespace);
    Ok(())
}
