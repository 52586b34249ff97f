//! How big the kernel is without its debug information.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image;

/// The kernel image, stripped, stays below this.
const LIMIT: u64 = 512 * 1024;

/// Prints the stripped size of the release kernel; status 1 if it has reached the limit.
pub(crate) fn check() -> Result<u8> {
    let kernel = image::build(image::KERNEL)?;
    let folder = tempfile::tempdir().context("a folder for the stripped image")?;
    let stripped = folder.path().join("kernel");
    // The toolchain's own tool: it knows the image's format whatever the host's binutils know. It finds the
    // toolchain's libraries only when told where they are, as cargo tells what it runs.
    let libdir = target_libdir()?;
    let host = libdir.parent().context("rustc's folder has no parent")?;
    let libraries = host.ancestors().nth(2).context("rustc's folder is not in a toolchain")?;
    let status = Command::new(host.join("bin/rust-objcopy"))
        .env("LD_LIBRARY_PATH", libraries)
        .arg("--strip-all")
        .args([&kernel, &stripped])
        .status();
    let status = status.context("starting the toolchain's objcopy")?;
    ensure!(status.success(), "stripping {} ends with {status}", kernel.display());
    let size = std::fs::metadata(&stripped)?.len();
    println!(
        "stripped release kernel: {size} bytes ({:.1} KiB), limit {} KiB",
        size as f64 / 1024.0,
        LIMIT / 1024
    );
    Ok(u8::from(size >= LIMIT))
}

/// `lib/rustlib/HOST/lib` of the toolchain.
fn target_libdir() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir"])
        .current_dir(image::workspace())
        .output()
        .context("asking rustc for its folder")?;
    let libdir = String::from_utf8(output.stdout).context("rustc's folder is not text")?;
    Ok(libdir.trim().into())
}
