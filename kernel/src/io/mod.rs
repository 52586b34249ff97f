//! I/O: packets, and the drivers that they travel through.
//!
//! Reading order: `layout` and `objects` (NT's bytes).

pub mod layout;
pub mod objects;
