//! The self-test image: boots, tests the kernel from inside, and says how it went by its exit status.
//!
//! Each test prints one line: `ok`, `FAIL` with the reason, or `skip` with what it needs. `only=TEXT` on the command line
//! runs those whose name contains it; `crash=NAME` does something fatal instead, for the harness to compare the report.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod everywhere;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod probe;
#[cfg(target_os = "none")]
mod processors;
#[cfg(target_os = "none")]
mod runner;
#[cfg(target_os = "none")]
mod switch;

#[cfg(target_os = "none")]
mod image {
    use kernel::boot::Image;

    static IMAGE: Image = Image { main: crate::runner::main, processor: crate::everywhere::serve };

    kernel::image!(IMAGE);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel image: type `make smp` to boot it");
}
