//! The layouts of NT's structures as the kernel has them, as text in one static. It is compiled for the bare machine, and never
//! linked: the step `abi` (ci/src/abi.rs) reads it out of the library, and asks a C compiler the same.
//!
//! A line is `S <name> <size, or ? for a part>` or, of the structure before it, `F <first> <last> <offset> <size>`.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
mod table;
#[cfg(any(target_os = "none", test))]
mod text;
