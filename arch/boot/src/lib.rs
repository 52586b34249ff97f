//! The loader's thinking: what it reads, checks and plans. What it does to the machine is in the binary.
//!
//! In the order in which a boot uses them:
//!
//! 1. [`memory`]: physical memory as bytes that may or may not be readable
//! 2. [`start_info`]: what QEMU passes by PVH
//! 3. [`memory_map`]: the firmware's ranges become a map that memory is taken from
//! 4. [`initrd`]: the kernel's file, alone or in an archive with modules
//! 5. [`elf`]: the kernel's segments, checked and copied
//! 6. [`requests`]: what the kernel asks for
//! 7. [`acpi`]: the processors
//! 8. [`paging`]: the direct map and the kernel's mapping
//! 9. [`response`] in an [`arena`]: the answers; [`date`] is one of them
//!
//! Every failure is a variant of [`error::Error`], and prints as one line.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod arena;
pub mod date;
pub mod elf;
pub mod error;
pub mod initrd;
pub mod memory;
pub mod memory_map;
pub mod paging;
pub mod requests;
pub mod response;
pub mod start_info;
