//! The measuring module and what starts it: built from tests/peer/linux, packed as an initramfs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::tool;
use crate::image;

/// What is in the initramfs, in this order: the kernel brings the console's device itself.
const FILES: &str = "init\nmeasure.ko\nproc\n";

/// Builds for `kernel`, below `folder`.
pub(crate) fn initramfs(kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let sources = image::workspace().join("tests/peer/linux");
    let (build, root) = (folder.join("module"), folder.join("initramfs"));
    for fresh in [&build, &root] {
        if fresh.exists() {
            std::fs::remove_dir_all(fresh).with_context(|| format!("removing {}", fresh.display()))?;
        }
        std::fs::create_dir_all(fresh)?;
    }
    // In a copy: the build leaves its files beside the sources.
    for entry in std::fs::read_dir(&sources)? {
        let entry = entry?;
        std::fs::copy(entry.path(), build.join(entry.file_name()))?;
    }

    let mut make = Command::new("make");
    make.arg("-C").arg(&kernel.headers).arg(format!("M={}", build.display()));
    // Its types aren't asked for by anybody, and describing them takes another tool.
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    tool(
        &mut make,
        "the measuring module cannot be built (the headers name their compiler, as gcc-12, in .kernelvariables)",
    )?;
    std::fs::copy(build.join("measure.ko"), root.join("measure.ko")).context("the module that was built")?;

    let mut cc = Command::new("cc");
    cc.args(["-static", "-O2", "-Wall", "-Werror", "-o"]).arg(root.join("init")).arg(build.join("init.c"));
    tool(&mut cc, "the peer's init cannot be built")?;
    std::fs::create_dir(root.join("proc"))?;
    pack(&root, &folder.join("initramfs.cpio"))
}

fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(archive)?)
        .spawn()
        .context("cannot execute cpio (`ci/setup.sh peer`)")?;
    let mut names = cpio.stdin.take().context("cpio's standard input")?;
    names.write_all(FILES.as_bytes())?;
    drop(names);
    let status = cpio.wait()?;
    ensure!(status.success(), "the initramfs cannot be packed: cpio ends with {status}");
    Ok(archive.to_owned())
}
