//! The loader's library against good, spoilt, random and mutated input, a file for each module.
//!
//! `checks` is what the fuzz targets check, too.

mod acpi;
#[path = "../../../../tests/fuzz/checks.rs"]
mod checks;
mod common;
mod corpus;
mod elf;
mod initrd;
mod memory_map;
mod paging;
mod requests;
mod response;
mod start_info;
