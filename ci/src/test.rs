//! Everything that must hold, cheapest first. A step that fails does not keep the later ones from being tried, so one
//! run tells all that is wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::image::{self, TARGET, workspace};
use crate::report::Verdict;
use crate::{abi, codegen, models, mutants, process, size, skips, unsafe_count};

mod boots;
mod programs;

pub(crate) use programs::passed_in;

/// For one boot of the self-tests; under the instruction counter, for one of two.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// The crates that are compiled for the bare machine.
const IMAGE_CRATES: [&str; 14] =
    ["-p", "arch", "-p", "boot", "-p", "sync", "-p", "kernel", "-p", "selftest", "-p", "bench", "-p", "abi"];

/// How a step that did not fail ended.
#[derive(Debug)]
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
    Step {
        name: "host-tests",
        what: "unit, property, refusal and harness tests; the locks' as shipped, too",
        run: host_tests,
    },
    Step { name: "abi", what: "layouts of NT's structures, against mingw-w64's headers", run: layouts },
    Step { name: "models", what: "loom models", run: run_models },
    Step {
        name: "miri",
        what: "unit tests of sync and arch, property tests of memory, objects, security, under Miri, where nightly has it",
        run: miri,
    },
    Step { name: "boot-1", what: "self-tests on 1 processor", run: || boots::boot(1) },
    Step { name: "boot-2", what: "self-tests on 2 processors", run: || boots::boot(2) },
    Step { name: "boot-4", what: "self-tests on 4 processors", run: || boots::boot(4) },
    Step { name: "boot-8", what: "self-tests on 8 processors", run: || boots::boot(8) },
    Step { name: "sixteen", what: "threads and waits on 16 processors", run: boots::sixteen },
    Step {
        name: "inject",
        what: "each allocation of each path refused, of a part of the tests, and of bring-up",
        run: boots::inject,
    },
    Step {
        name: "special",
        what: "pool, objects and threads with a guard page at each block",
        run: boots::special,
    },
    Step {
        name: "trim",
        what: "paged pool and lists of pages, paged pool trimmed at each raise",
        run: boots::trim,
    },
    Step {
        name: "large",
        what: "bring-up with 16 GiB against 1 GiB, by the instruction counter",
        run: boots::large,
    },
    Step { name: "clusters", what: "calls between 10 processors in two APIC clusters", run: boots::clusters },
    Step { name: "idle", what: "8 idle processors are left alone for 5 seconds", run: boots::idle },
    Step {
        name: "replay",
        what: "two runs under the instruction counter, the same to the byte",
        run: boots::replay,
    },
    Step {
        name: "bochs",
        what: "the clock by the TSC's deadline, and PCIDs, under Bochs, where Limine's binaries are given",
        run: boots::under_bochs,
    },
    Step {
        name: "fair",
        what: "equal shares, and soon preempted, by the instruction counter",
        run: boots::fair,
    },
    Step { name: "trace", what: "a trace is read and written", run: boots::traced },
    Step { name: "explore", what: "seeds explored, each twice with the same trace", run: boots::explored },
    Step {
        name: "gdb",
        what: "a replay stops in gdb at an event of the trace, and at the end",
        run: boots::in_gdb,
    },
    Step { name: "reverse", what: "a recorded run is played backwards in gdb", run: boots::backwards },
    Step { name: "profile", what: "a recorded run is sampled, twice the same", run: boots::profiled },
    Step { name: "crash", what: "deliberate bugchecks and their reports", run: boots::crashes },
    Step { name: "codegen", what: "operations that must be a few given instructions", run: generated_code },
    Step {
        name: "lines",
        what: "pairs on different processors share no written cache line",
        run: boots::shared_lines,
    },
    Step {
        name: "bench",
        what: "instructions per operation, against bounds and baseline",
        run: boots::count_instructions,
    },
    Step {
        name: "mutants",
        what: "a few seeded bugs, each caught; another commit tries others",
        run: sample_mutants,
    },
    Step { name: "size", what: "the stripped kernel's size", run: size_limit },
];

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:12} {}", step.name, step.what);
    }
}

/// Whether a step has this name.
#[cfg(test)]
pub(crate) fn has_step(name: &str) -> bool {
    STEPS.iter().any(|step| step.name == name)
}

/// Runs the steps whose name contains `only`, in order.
pub(crate) fn all(only: Option<&str>) -> Result<u8> {
    let chosen: Vec<&Step> =
        STEPS.iter().filter(|step| only.is_none_or(|only| step.name.contains(only))).collect();
    ensure!(!chosen.is_empty(), "no step has a name with {:?}", only.unwrap_or_default());
    let begun = Instant::now();
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let (mut passed, mut skipped) = (0, 0);
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
                failures.push(format!("FAILED {}: {error:#}", step.name));
                format!("FAIL: {error:#}")
            }
        };
        println!("== {} {seconds:.1} s: {outcome}", step.name);
        lines.push(format!("  {:12} {seconds:>7.1} s  {outcome}", step.name));
    }
    println!("\n{}", lines.join("\n"));
    println!("  {:12} {:>7.1} s", "all", begun.elapsed().as_secs_f64());
    for test in skips::everywhere() {
        println!("  skipped in every boot: {test}");
    }
    // At the end, too: of a long log, often no more than the end is kept.
    for failure in &failures {
        println!("{failure}");
    }
    let failed = failures.len();
    println!("{}", ending(passed, failed, skipped));
    Ok(u8::from(failed > 0 || passed == 0))
}

/// The last line. What was skipped is not what passed, and where all was skipped, nothing holds.
fn ending(passed: usize, failed: usize, skipped: usize) -> String {
    let skips = if skipped > 0 { format!(", {skipped} SKIPPED") } else { String::new() };
    let nothing = if passed + failed == 0 { ": nothing was checked" } else { "" };
    format!("{passed} passed, {failed} failed{skips}{nothing}")
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

/// The workspace's tests are of the checked build, as one package that asks for it has it for all. The locks' run as shipped,
/// too: the word of a spin lock is another there, and so is what an interrupt finds at each of its points.
fn host_tests() -> Result<Done> {
    programs::all_at_once(&image::cargo, &["--workspace"])?;
    programs::run(image::cargo().args(["test", "--workspace", "--doc"]))?;
    let locks = ["injection", "nested", "locks"].map(|name| ["--test", name]);
    let mut shipped = image::cargo();
    shipped.args(["test", "-p", "sync", "-p", "props", "--no-default-features", "--lib"]);
    programs::run(shipped.args(locks.as_flattened()))
}

fn layouts() -> Result<Done> {
    if let Some(why) = abi::missing() {
        return Ok(Done::Skipped(why));
    }
    abi::check()?;
    Ok(Done::Passed)
}

fn run_models() -> Result<Done> {
    if !has_tests(&workspace().join("tests/models"))? {
        return Ok(Done::Skipped("tests/models has no test".into()));
    }
    let whole =
        models::run(for_loom(&mut image::cargo()).args(["test", "-p", "models", "--profile", "models"]))?;
    Ok(if whole { Done::Passed } else { Done::Interrupted })
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
    cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target_folder().join("loom"))
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The unit tests, as shipped and of the checked build, interpreted: undefined behaviour on a path that they take is an error.
fn miri() -> Result<Done> {
    if let Err(why) = miri_ready() {
        return Ok(Done::Skipped(format!(
            "{why:#}; `rustup toolchain install nightly -c miri,rust-src` makes it run"
        )));
    }
    let miri = || {
        let mut cargo = nightly("cargo");
        cargo.arg("miri").env("CARGO_TARGET_DIR", target_folder().join("miri"));
        cargo
    };
    let units = |features: &[&str]| {
        let mut cargo = miri();
        cargo.args(["test", "-p", "sync", "-p", "arch", "--lib"]).args(features);
        cargo
    };
    programs::at_once([units(&[]), units(&["--features", "sync/verifier"])])?;
    // Memory's, objects' and what they rest on, shortened so that each takes some tens of seconds (docs/verification.md). Cargo knows how
    // to run what it has built for Miri, so each is a command of its own; they are built once, before.
    let tests = [
        "mm_process",
        "mm_pages",
        "mm_paging",
        "mm_pool",
        "mm_paged",
        "mm_mdl",
        "mm_vad",
        "mm_space",
        "ob_references",
        "ob_names",
        "rtl_bitmap",
        "rtl_tables",
        "cm_info",
        "cm_query",
        "se_objects",
        "se_tokens",
    ];
    succeed(
        miri()
            .args(["test", "-p", "props", "--no-run"])
            .args(tests.map(|name| ["--test", name]).as_flattened()),
    )?;
    programs::at_once(tests.map(|name| {
        let mut cargo = miri();
        cargo.args(["test", "-p", "props", "--test", name]);
        cargo
    }))
}

/// Whether nightly has Miri, and the standard library can be built for it.
pub(crate) fn miri_ready() -> Result<()> {
    let answer = |command: &mut Command| -> Result<String> {
        let output = command.stdin(Stdio::null()).output().context("no rustup here")?;
        let first = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
        ensure!(output.status.success(), "`{}`: {first}", shown(command));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    answer(nightly("cargo").args(["miri", "--version"]))?;
    // Looked for here, because `cargo miri setup` would install it unasked.
    let sysroot = answer(nightly("rustc").args(["--print", "sysroot"]))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/Cargo.lock");
    ensure!(source.exists(), "nightly has no rust-src");
    answer(nightly("cargo").args(["miri", "setup"]))?;
    Ok(())
}

/// `program` of the nightly toolchain, in the workspace.
pub(crate) fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).current_dir(workspace());
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::die_with_us(&mut command, Signal::TERM);
    command
}

fn generated_code() -> Result<Done> {
    zero(codegen::check()?)
}

fn sample_mutants() -> Result<Done> {
    if !workspace().join(".git").exists() {
        return Ok(Done::Skipped("not a git checkout: what to copy and which to try is asked of git".into()));
    }
    zero(mutants::run(mutants::Choice::Sample)?)
}

fn size_limit() -> Result<Done> {
    zero(size::check()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_are_in_the_last_line() {
        assert_eq!(ending(3, 0, 0), "3 passed, 0 failed");
        assert_eq!(ending(3, 1, 2), "3 passed, 1 failed, 2 SKIPPED");
        assert_eq!(ending(0, 0, 1), "0 passed, 0 failed, 1 SKIPPED: nothing was checked");
    }

    #[test]
    fn commands_are_shown_as_typed() {
        assert_eq!(shown(Command::new("/usr/bin/cargo").args(["fmt", "--all"])), "cargo fmt --all");
    }
}
