//! Process address spaces: what user mode's memory is, and how it comes and goes.
//!
//! Reading order: [`protection`] (PAGE_*), [`entry`] (a page-table entry as a value), `tables` (the tables), [`machine`] (what is
//! needed of a machine), [`space`] (an address space, its lock and its invariants), `change` (how translations end),
//! [`virtual_memory`] (allocate, free, protect, query), [`fault`] (what a page fault means, and what is done), [`hold`] (pages
//! that stay for I/O), [`section`] (memory that several spaces see); last `here`, this machine's, with attach.

pub mod change;
pub mod entry;
pub mod fault;
#[cfg(target_os = "none")]
pub mod here;
pub mod hold;
pub mod machine;
pub mod protection;
pub mod section;
pub mod space;
mod tables;
pub mod virtual_memory;
