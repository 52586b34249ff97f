//! Programs that must not compile, each with a near twin that does.
//!
//! A case is one file of `cases/`: with `--cfg refused` it must be refused, with exactly the errors in the `.expected` file
//! beside it; without, it must compile. So a case cannot rot into being refused for another reason than the one it is about,
//! and the twin is the way to do it right. `tests/cases.rs` runs them: for the host, or, where the case says `#![no_std]`, for the
//! bare machine with the kernel's library as an image links it.

/// The snippets of docs/irql.md that run on the host; `tests/cases.rs` compiles the others.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/irql.md")]
pub struct Documentation;
