//! Everything that must hold, cheapest first. A step that fails does not keep the later ones from being tried, so one
//! run tells all that is wrong.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::image::{self, TARGET, workspace};
use crate::qemu::{Accel, Qemu};
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};
use crate::{crash, loops, size, unsafe_count};

/// For one boot of the self-tests; under the instruction counter, for one of two.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// The crates that are compiled for the bare machine.
const IMAGE_CRATES: [&str; 10] = ["-p", "arch", "-p", "boot", "-p", "sync", "-p", "kernel", "-p", "selftest"];

/// How a step that did not fail ended.
enum Done {
    Passed,
    Skipped(String),
    /// A signal asked the harness to end.
    Interrupted,
}

/// One thing that must hold.
struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Done>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", what: "rustfmt leaves everything as it is", run: fmt },
    Step { name: "unsafe", what: "unsafe code of each crate, counted", run: count_unsafe },
    Step { name: "lint-host", what: "clippy, all crates and targets, on the host", run: lint_host },
    Step { name: "lint-images", what: "clippy, as compiled for the bare machine", run: lint_images },
    Step { name: "lint-models", what: "clippy, as compiled for loom", run: lint_models },
    Step { name: "doc-host", what: "rustdoc without warnings, on the host", run: doc_host },
    Step { name: "doc-images", what: "rustdoc without warnings, for the bare machine", run: doc_images },
    Step { name: "host-tests", what: "unit, property, refusal and harness tests", run: host_tests },
    Step { name: "models", what: "loom models", run: models },
    Step { name: "boot-1", what: "self-tests on 1 processor", run: || boot(1) },
    Step { name: "boot-2", what: "self-tests on 2 processors", run: || boot(2) },
    Step { name: "boot-4", what: "self-tests on 4 processors", run: || boot(4) },
    Step { name: "boot-8", what: "self-tests on 8 processors", run: || boot(8) },
    Step {
        name: "replay",
        what: "two runs under the instruction counter, the same to the byte",
        run: replay,
    },
    Step { name: "crash", what: "deliberate bugchecks and their reports", run: crashes },
    Step { name: "size", what: "the stripped kernel's size", run: size_limit },
];

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:12} {}", step.name, step.what);
    }
}

/// Runs the steps whose name contains `only`, in order.
pub(crate) fn all(only: Option<&str>) -> Result<u8> {
    let chosen: Vec<&Step> =
        STEPS.iter().filter(|step| only.is_none_or(|only| step.name.contains(only))).collect();
    ensure!(!chosen.is_empty(), "no step has a name with {:?}", only.unwrap_or_default());
    let begun = Instant::now();
    let mut lines = Vec::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for step in &chosen {
        println!("\n== {}: {}", step.name, step.what);
        let started = Instant::now();
        let result = (step.run)();
        let seconds = started.elapsed().as_secs_f64();
        let outcome = match &result {
            Ok(Done::Passed) => {
                passed += 1;
                "ok".to_owned()
            }
            Ok(Done::Skipped(why)) => {
                skipped += 1;
                format!("skip: {why}")
            }
            Ok(Done::Interrupted) => return Ok(Verdict::Interrupted.exit_status()),
            Err(error) => {
                failed += 1;
                format!("FAIL: {error:#}")
            }
        };
        println!("== {} {seconds:.1} s: {outcome}", step.name);
        lines.push(format!("  {:12} {seconds:>7.1} s  {outcome}", step.name));
    }
    println!("\n{}", lines.join("\n"));
    println!("  {:12} {:>7.1} s", "all", begun.elapsed().as_secs_f64());
    if skipped > 0 {
        println!("{skipped} skipped");
    }
    println!("{passed} passed, {failed} failed");
    Ok(u8::from(failed > 0))
}

/// Runs a command to its end and wants status 0.
fn succeed(command: &mut Command) -> Result<Done> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{} ends with {status}", shown(command));
    Ok(Done::Passed)
}

/// A command as a person would type it.
fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let words = std::iter::once(program.file_name().unwrap_or(program.as_os_str())).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs test programs, and wants status 0 and at least one test to have passed: a run of no test proves nothing.
fn succeed_with_tests(command: &mut Command) -> Result<Done> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let mut passed = 0;
    for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
        let line = line?;
        println!("{line}");
        passed += passed_in(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{} ends with {status}", shown(command));
    ensure!(passed > 0, "{} ran no test", shown(command));
    println!("{passed} tests passed");
    Ok(Done::Passed)
}

/// The tests that passed, by the line that ends a test program's output.
fn passed_in(line: &str) -> u64 {
    let count = || line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok();
    count().unwrap_or(0)
}

/// Turns the exit status of another command of the harness into a step's result.
fn zero(status: u8) -> Result<Done> {
    if status == Verdict::Interrupted.exit_status() {
        return Ok(Done::Interrupted);
    }
    ensure!(status == 0, "status {status}");
    Ok(Done::Passed)
}

fn fmt() -> Result<Done> {
    succeed(image::cargo().args(["fmt", "--all", "--check"]))
}

fn count_unsafe() -> Result<Done> {
    print!("{}", unsafe_count::table(&workspace())?);
    Ok(Done::Passed)
}

fn lint_host() -> Result<Done> {
    succeed(image::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn lint_images() -> Result<Done> {
    succeed(
        image::cargo().args(["clippy", "--target", TARGET]).args(IMAGE_CRATES).args(["--", "-D", "warnings"]),
    )
}

fn lint_models() -> Result<Done> {
    succeed(for_loom(&mut image::cargo()).args([
        "clippy",
        "-p",
        "models",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn doc_host() -> Result<Done> {
    succeed(documented(&mut image::cargo()).args(["--workspace"]))
}

fn doc_images() -> Result<Done> {
    succeed(documented(&mut image::cargo()).args(["--target", TARGET]).args(IMAGE_CRATES))
}

fn documented(cargo: &mut Command) -> &mut Command {
    cargo.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--no-deps", "--document-private-items"])
}

fn host_tests() -> Result<Done> {
    succeed_with_tests(image::cargo().args(["test", "--workspace"]))
}

fn models() -> Result<Done> {
    if !has_tests(&workspace().join("tests/models"))? {
        return Ok(Done::Skipped("tests/models has no test".into()));
    }
    succeed_with_tests(for_loom(&mut image::cargo()).args(["test", "-p", "models", "--release"]))
}

/// Whether a Rust file in `folder` or below has a test.
fn has_tests(folder: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let found = if path.is_dir() {
            has_tests(&path)?
        } else {
            path.extension().is_some_and(|e| e == "rs") && std::fs::read_to_string(&path)?.contains("#[test]")
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loom replaces the primitives by a `cfg`; with a target folder of its own this recompiles nobody else's work.
fn for_loom(cargo: &mut Command) -> &mut Command {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target.join("loom"))
}

fn boot(cpus: u32) -> Result<Done> {
    let args = GuestArgs { cpus, ..GuestArgs::default() };
    let target = Target::prepare(&args, ImageChoice::Selftest)?;
    let (run, verdict) = target.run(BOOT_TIMEOUT, true)?;
    report::print(&run, &verdict);
    if verdict == Verdict::Interrupted {
        return Ok(Done::Interrupted);
    }
    if verdict != Verdict::Passed {
        bail!("{}; again: {}", report::describe(&verdict).unwrap_or_default(), target.again());
    }
    Ok(Done::Passed)
}

fn replay() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::Icount)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    let args = GuestArgs { cpus: 1, accel: Some(Accel::Icount), ..GuestArgs::default() };
    zero(loops::boots(&mut Target::prepare(&args, ImageChoice::Selftest)?, 2, true, BOOT_TIMEOUT)?)
}

fn crashes() -> Result<Done> {
    zero(crash::all(None)?)
}

fn size_limit() -> Result<Done> {
    zero(size::check()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_counted_from_successful_programs_only() {
        assert_eq!(passed_in("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured"), 12);
        assert_eq!(passed_in("test result: FAILED. 12 passed; 1 failed; 0 ignored"), 0);
        assert_eq!(passed_in("test something ... ok"), 0);
    }

    #[test]
    fn commands_are_shown_as_typed() {
        assert_eq!(shown(Command::new("/usr/bin/cargo").args(["fmt", "--all"])), "cargo fmt --all");
    }
}
