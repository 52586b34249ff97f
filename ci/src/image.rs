//! Building the images, and finding what cargo built.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::process;

/// Where every image runs.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// Names another workspace than [`workspace`] would, in the environment: the copy that mutants are tried in.
pub(crate) const WORKSPACE: &str = "KIRQL_WORKSPACE";

/// The workspace that this program was built from, and that it builds.
pub(crate) fn workspace() -> PathBuf {
    if let Some(other) = std::env::var_os(WORKSPACE) {
        return other.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// A cargo of the same toolchain, in the workspace, that ends when the harness does.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Flags from the environment would replace those in .cargo/config.toml, and with them the images' code model.
    command.current_dir(workspace()).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::die_with_us(&mut command, Signal::TERM);
    command
}

/// A bootable program of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    name: &'static str,
    profile: &'static str,
}

/// The PVH loader.
pub(crate) const LOADER: Package = Package { name: "boot", profile: "release" };
/// The kernel as it ships.
pub(crate) const KERNEL: Package = Package { name: "kernel", profile: "release" };
/// The self-tests, with every assertion on.
pub(crate) const SELFTEST: Package = Package { name: "selftest", profile: "checked" };

/// What the bench measures: the kernel as it ships.
pub(crate) const BENCH: Package = Package { name: "bench", profile: "release" };

/// Where cargo puts what it builds, and the harness its accounts.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Builds `package` and returns the path of its ELF file.
pub(crate) fn build(package: Package) -> Result<PathBuf> {
    let mut cargo = cargo()
        .args(["build", "--message-format=json-render-diagnostics", "--target", TARGET])
        .args(["--package", package.name, "--bin", package.name, "--profile", package.profile])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let messages = cargo.stdout.take().context("cargo's standard output")?;
    let mut found = None;
    for line in BufReader::new(messages).lines() {
        found = executable(&line?, package.name).or(found);
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("building the image {} failed: cargo ends with {status}", package.name);
    }
    found.with_context(|| format!("cargo built {} but names no executable", package.name))
}

/// The test program that a message of cargo announces, and its package's folder.
pub(crate) fn test_program(message: &str) -> Option<(PathBuf, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let program = message["executable"].as_str().filter(|_| is_test)?;
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some((program.into(), manifest.parent()?.to_owned()))
}

/// The executable that a message of cargo announces, if it is that of `name`.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let matches = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
    let path = message["executable"].as_str().filter(|_| matches)?;
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_executable_is_taken() {
        let artifact = |name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        assert_eq!(executable(&artifact("boot", r#""/t/boot""#), "boot"), Some("/t/boot".into()));
        assert_eq!(executable(&artifact("boot", "null"), "boot"), None);
        assert_eq!(executable(&artifact("arch", r#""/t/arch""#), "boot"), None);
        assert_eq!(executable("not json", "boot"), None);
    }

    #[test]
    fn only_test_programs_are_run() {
        let message = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/sync/Cargo.toml","profile":{{"test":{test}}},"executable":"/t/sync-1"}}"#
            )
        };
        assert_eq!(test_program(&message(true)), Some(("/t/sync-1".into(), "/w/sync".into())));
        assert_eq!(test_program(&message(false)), None);
        assert_eq!(test_program("   Compiling sync"), None);
    }
}
