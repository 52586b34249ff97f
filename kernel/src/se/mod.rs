//! Security: who somebody is, what an object says of who may do what with it, and whether the one may do what it asks of the other.
//!
//! Reading order: [`sid`] (names of users and groups), [`acl`] (lists of what is allowed and denied to them), [`descriptor`] (what an object
//! says), [`privilege`], [`token`] (who somebody is), [`access`] (the decision), [`assign`] (what a new object says),
//! [`object`] (what of all this is in an object).
//!
//! What comes from outside is bytes until it was parsed: a [`Sid`] or an [`Acl`] is a view of bytes that are one, so that nothing behind
//! the parsers can read beyond them. Descriptors are kept self-relative, in one block.
//!
//! Not as NT:  there is no audit, no mandatory label is judged, and ACEs of object types, of conditions and compound ones are carried and
//!             not judged.

pub mod access;
pub mod acl;
pub mod assign;
pub mod descriptor;
pub mod object;
pub mod privilege;
pub mod sid;
pub mod token;

pub use access::access_check;
pub use acl::{Acl, AclBuffer};
pub use descriptor::{Descriptor, DescriptorBuffer};
pub use object::Security;
pub use privilege::{Luid, Privilege, Privileges};
pub use sid::{Sid, SidBuffer};
pub use token::Token;

/// Two bytes at `at`; nothing: there aren't.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes at `at`; nothing: there aren't.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
