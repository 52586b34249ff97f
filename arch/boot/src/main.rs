//! The loader's image. All thinking is in the library; what touches the machine is here, for the bare target only.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("boot is an image: build it with --target x86_64-unknown-none and give it to QEMU's -kernel");
    std::process::exit(2);
}
