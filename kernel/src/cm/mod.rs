//! The configuration manager: the registry, in memory.
//!
//! ```text
//! \Registry ─ Machine ─ System ─ ControlSet001 ─ Services ─ a driver's ─ values
//!     │           │         └─ CurrentControlSet, a link to it
//!     └─ User     └─ Hardware, Software
//! ```
//!
//! Reading order: [`key`] (the tree), [`path`] (ways through it), `value` (what keys have), [`notify`] (who is told of changes), [`info`] (answers in
//! NT's structures), [`zw`] (the same by handles), [`relative`] and [`query`] (NT's run-time library's own
//! ways in).
//!
//! A key is an object of type `Key` with the rest of the namespace in front of it: `\Registry` is a name, and what is behind it is a key's to
//! parse. Each has a push lock of its own.
//!
//! Not as NT:  nothing is read from or written to files: all keys are as volatile as memory. There are no
//!             transactions, callbacks or views for 32-bit programs. All who open a key have the same object, with rights of their own.

#[cfg(target_os = "none")]
mod here;
#[cfg(not(target_os = "none"))]
pub mod hosted;
pub mod info;
pub mod key;
pub mod notify;
pub mod path;
pub mod query;
pub mod relative;
mod standard;
mod value;
pub mod zw;

#[cfg(target_os = "none")]
use here as machine;
#[cfg(not(target_os = "none"))]
use hosted as machine;

pub use key::Key;
pub use notify::{Change, Filter};
pub use path::{Creation, Disposition};
pub use standard::create_standard;
pub use value::ValueType;

/// Makes this machine's registry.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
#[cfg(target_os = "none")]
pub(crate) fn start(at: &mut sync::irql::Irql<sync::irql::Passive>) -> Result<(), crate::rtl::NtStatus> {
    create_standard(crate::ob::namespace(), at)
}
