//! The executive.
//!
//! Reading order: `boot` (from the loader's jump to all processors online), `ke` (processors, exceptions, bugcheck,
//! inter-processor requests, interrupt objects), `mm` (pages, pool), `ex` (the locks that threads sleep on), `ob` (objects), `se`
//! (security), `cm` (the registry), `kd` (the console), `rtl` (status codes, strings, what else everybody needs).
//!
//! An image is a small binary that calls `image!` with what it wants to run; the kernel's own is `main.rs`, the self-tests'
//! is tests/selftest. On a host target the crate compiles to what can be tested there.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(
    not(target_os = "none"),
    allow(
        clippy::disallowed_methods,
        reason = "tests and ke/hosted have a host's memory; the image is linted, too"
    )
)]

pub mod boot;
pub mod cm;
#[cfg(target_os = "none")]
pub mod ex;
pub mod io;
#[cfg(target_os = "none")]
pub mod kd;
pub mod ke;
pub mod mm;
pub mod ob;
pub mod rtl;
pub mod se;
