//! A check that is to catch a mutant, by the words that name it in a patch:
//!
//! | words | what runs |
//! |---|---|
//! | `host PACKAGE[/FILE] TEST` | tests on the host whose name contains TEST: the library's, or those of tests/FILE.rs. As shipped, but of `props`, whose default is the checked build |
//! | `checked-host PACKAGE[/FILE] TEST` | the same with the feature `verifier` |
//! | `model FILE TEST` | one loom model of tests/models/tests/FILE.rs |
//! | `miri PACKAGE TEST` | unit tests of the library whose name contains TEST, as shipped, under Miri |
//! | `selftest TEXT on CPUS` | the self-tests whose name contains TEXT, on a machine of CPUS processors |
//! | `counted TEXT on CPUS` | the same under the instruction counter |
//! | `explore SEEDS on CPUS` | so many seeds of the mixed phase, under the instruction counter: one has to fail, and as many to pass without the mutant |
//! | `crash NAME` | a deliberate bugcheck |
//! | `codegen` | the instructions that the bench's operations must be |
//! | `bench` | the counts of the bench: bounds, the baseline, scaling |
//! | `lines` | the cache lines that pairs of threads on different processors share |
//! | `compiler PACKAGE` | the compiler, for the bare machine: the mutant must not get past it |
//!
//! Building comes first and apart: only the last kind takes a failure of it for a catch. All but `codegen`, `bench` and `lines` build with less effort than what
//! ships: optimised, but without joining the crates, and only the parts that changed. That is a sixteenth of the work. A mutant that escapes
//! a boot of such an image is tried again in one that is built as usual.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};

use super::tree::Tree;
use crate::crash;
use crate::guest::{self, Transcript};
use crate::image::{self, TARGET, WORKSPACE};
use crate::process::{NoteSignals, Owned};

/// Seconds for a boot of a few self-tests, which takes two.
const BOOT_SECONDS: &str = "40";
/// Of a profile's settings, what makes a changed crate quick to build.
const QUICK: [(&str, &str); 3] = [("LTO", "off"), ("CODEGEN_UNITS", "256"), ("INCREMENTAL", "true")];
/// Seconds for a seed, which takes two on a quiet host.
const SEED_SECONDS: u64 = 10;
/// The harness's statuses for a run that failed, as opposed to one that it could not make.
const FAILED_RUN: [i32; 4] = [1, 3, 4, 6];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Catcher {
    /// Tests on the host.
    Host { checked: bool, package: String, file: Option<String>, test: String },
    /// A loom model.
    Model { file: String, test: String },
    /// Unit tests under Miri.
    Miri { package: String, test: String },
    /// Self-tests on the emulated machine.
    Selftest { text: String, cpus: u32, counted: bool },
    /// Seeds under the instruction counter.
    Explore { seeds: u32, cpus: u32 },
    /// A deliberate bugcheck.
    Crash { name: String },
    /// What the compiler makes of the bench's operations.
    Codegen,
    /// What the bench counts.
    Bench,
    /// What cache lines pairs share.
    Lines,
    /// The compiler itself.
    Compiler { package: String },
}

/// How a check is built and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The self-tests' image as everybody else builds it.
    pub(super) whole: bool,
    /// For its building, and for what is built and run in one; a boot has a limit of its own within.
    pub(super) all: Duration,
    /// For a test program that was built.
    pub(super) tests: Duration,
}

/// What a check did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed.
    Passed,
    /// It failed, having printed this.
    Failed(String),
    /// It could not be built; why.
    Unbuilt(String),
    /// It was built, and this of it was not tried: it has said nothing of the mutant.
    Skipped(String),
}

impl FromStr for Catcher {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match *words.as_slice() {
            [kind @ ("host" | "checked-host"), place, test] => {
                let (package, file) = match place.split_once('/') {
                    Some((package, file)) => (package, Some(file.to_owned())),
                    None => (place, None),
                };
                let (package, test) = (package.to_owned(), test.to_owned());
                Self::Host { checked: kind == "checked-host", package, file, test }
            }
            ["model", file, test] => Self::Model { file: file.into(), test: test.into() },
            ["miri", package, test] => Self::Miri { package: package.into(), test: test.into() },
            [kind @ ("selftest" | "counted"), text, "on", cpus] => {
                let cpus = cpus.parse().with_context(|| format!("processors: {cpus:?}"))?;
                ensure!(cpus > 0, "a machine without a processor");
                Self::Selftest { text: text.into(), cpus, counted: kind == "counted" }
            }
            ["explore", seeds, "on", cpus] => Self::Explore { seeds: seeds.parse()?, cpus: cpus.parse()? },
            ["crash", name] => Self::Crash { name: name.into() },
            ["codegen"] => Self::Codegen,
            ["bench"] => Self::Bench,
            ["lines"] => Self::Lines,
            ["compiler", package] => Self::Compiler { package: package.into() },
            _ => bail!("no check is called {text:?}"),
        })
    }
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { checked, package, file, test } => {
                let file = file.iter().map(|file| format!("/{file}")).collect::<String>();
                write!(f, "{}host {package}{file} {test}", if *checked { "checked-" } else { "" })
            }
            Self::Model { file, test } => write!(f, "model {file} {test}"),
            Self::Miri { package, test } => write!(f, "miri {package} {test}"),
            Self::Selftest { text, cpus, counted } => {
                write!(f, "{} {text} on {cpus}", if *counted { "counted" } else { "selftest" })
            }
            Self::Explore { seeds, cpus } => write!(f, "explore {seeds} on {cpus}"),
            Self::Crash { name } => write!(f, "crash {name}"),
            Self::Codegen => f.write_str("codegen"),
            Self::Bench => f.write_str("bench"),
            Self::Lines => f.write_str("lines"),
            Self::Compiler { package } => write!(f, "compiler {package}"),
        }
    }
}

impl Catcher {
    /// Is there such a check? By the sources' text: nothing is built.
    pub(super) fn exists(&self, workspace: &Path) -> Result<bool> {
        let function = |test: &str| format!("fn {}(", test.rsplit("::").next().unwrap_or(test));
        match self {
            Self::Host { package, file, test, .. } => {
                let folder = match package.as_str() {
                    "props" | "refuse" | "models" => workspace.join("tests").join(package),
                    _ => workspace.join(package),
                };
                let file = file.as_ref().map(|file| folder.join("tests").join(format!("{file}.rs")));
                mentions(&file.unwrap_or_else(|| folder.join("src")), &function(test))
            }
            Self::Model { file, test } => {
                let file = workspace.join("tests/models/tests").join(format!("{file}.rs"));
                mentions(&file, &function(test))
            }
            Self::Miri { package, test } => mentions(&workspace.join(package).join("src"), &function(test)),
            Self::Selftest { text, .. } => {
                mentions(&workspace.join("tests/selftest/src"), &format!("(\"{text}"))
            }
            Self::Crash { name } => Ok(crash::names().any(|known| known == name)),
            Self::Codegen | Self::Bench | Self::Lines | Self::Explore { .. } => Ok(true),
            Self::Compiler { package } => Ok(workspace.join(package).join("Cargo.toml").exists()),
        }
    }

    /// What this machine lacks to run it, if anything.
    pub(super) fn missing(&self) -> Option<String> {
        match self {
            Self::Miri { .. } => crate::test::miri_ready().err().map(|why| format!("{why:#}")),
            _ => None,
        }
    }

    /// Whether there is no telling beforehand how much of it a mutant takes: what must pass without one is then [`as_far`](Self::as_far).
    pub(super) fn is_search(&self) -> bool {
        matches!(self, Self::Explore { .. })
    }

    /// Whether it boots the self-tests' image, which is another one if it is built with less effort.
    pub(super) fn is_boot(&self) -> bool {
        matches!(self, Self::Selftest { .. } | Self::Crash { .. })
    }

    /// As much of it as it took to fail with that output.
    pub(super) fn as_far(&self, output: &str) -> Option<Self> {
        let Self::Explore { cpus, .. } = *self else { return None };
        let line = output.lines().find(|line| line.contains("failed after"))?;
        let seeds = line.strip_prefix("seed ")?.split(',').next()?.parse().ok()?;
        Some(Self::Explore { seeds, cpus })
    }

    /// Runs the check on the copy; nothing when a signal asked for an end.
    pub(super) fn run(&self, tree: &Tree, limits: Limits, signals: &NoteSignals) -> Result<Option<Outcome>> {
        let until = Until { limit: limits.all, whole: limits.whole, signals };
        match self {
            Self::Host { checked, package, file, test } => {
                let mut cargo = cargo(tree);
                cargo.args(["test", "--package", package]);
                match file {
                    Some(file) => cargo.args(["--test", file]),
                    None => cargo.arg("--lib"),
                };
                cargo.args(checked.then_some("--features=verifier"));
                run_tests(cargo, test, limits, signals)
            }
            Self::Model { file, test } => {
                let mut cargo = cargo(tree);
                cargo.args(["test", "--package", "models", "--profile", "models", "--test", file]);
                // As the step `models`: a target folder of its own, or every change between the two recompiles all.
                cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", tree.build().join("loom"));
                run_tests(cargo, test, limits, signals)
            }
            Self::Miri { package, test } => {
                let mut cargo = crate::test::nightly("cargo");
                cargo.args(["miri", "test", "--package", package, "--lib", "--", test]);
                cargo.current_dir(tree.root()).env("CARGO_TARGET_DIR", tree.build().join("miri"));
                Ok(finish(&mut cargo, &until)?.map(|end| interpreted(end, test)))
            }
            Self::Selftest { text, cpus, counted } => {
                let cpus = cpus.to_string();
                let mut words = vec!["smp", "--cpus", &cpus, "--only", text, "--timeout", BOOT_SECONDS];
                if *counted {
                    words.extend(["--accel", "icount-blocks"]);
                }
                Ok(harness(tree, &words, &until)?.map(booted))
            }
            Self::Explore { seeds, cpus } => {
                let limit = limits.all + Duration::from_secs(u64::from(*seeds) * SEED_SECONDS);
                let (seeds, cpus, until) =
                    (seeds.to_string(), cpus.to_string(), Until { limit, whole: limits.whole, signals });
                let words = ["explore", "--seeds", &seeds, "--cpus", &cpus, "--on-failure", "stop"];
                Ok(harness(tree, &words, &until)?.map(judged))
            }
            Self::Crash { name } => Ok(harness(tree, &["crash", "--only", name], &until)?.map(judged)),
            Self::Codegen => Ok(harness(tree, &["codegen"], &until)?.map(judged)),
            Self::Bench => Ok(harness(tree, &["bench", "--check"], &until)?.map(judged)),
            Self::Lines => Ok(harness(tree, &["lines"], &until)?.map(judged)),
            Self::Compiler { package } => {
                let mut cargo = cargo(tree);
                cargo.args(["check", "--package", package, "--target", TARGET]);
                Ok(finish(&mut cargo, &until)?.map(|end| match end.status {
                    Some(0) => Outcome::Passed,
                    _ => Outcome::Failed(end.output),
                }))
            }
        }
    }
}

/// Whether `text` is in the file `place`, or in a Rust file of the folder `place`.
fn mentions(place: &Path, text: &str) -> Result<bool> {
    if place.is_dir() {
        for entry in std::fs::read_dir(place)? {
            let path = entry?.path();
            let source = path.is_dir() || path.extension().is_some_and(|ending| ending == "rs");
            if source && mentions(&path, text)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    Ok(place.exists() && std::fs::read_to_string(place)?.contains(text))
}

/// Has the cargo in `command` or below it spare effort where it builds `profile`.
fn quickly(command: &mut Command, profile: &str) {
    command.envs(QUICK.map(|(setting, value)| (format!("CARGO_PROFILE_{profile}_{setting}"), value)));
}

/// A cargo that builds the copy.
fn cargo(tree: &Tree) -> Command {
    let mut cargo = image::cargo();
    cargo.current_dir(tree.root()).env("CARGO_TARGET_DIR", tree.build());
    cargo
}

/// This very program, at work on the copy.
fn harness(tree: &Tree, arguments: &[&str], until: &Until<'_>) -> Result<Option<End>> {
    // Not by its path: a build of the workspace may have put another file there since this program began.
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).env(WORKSPACE, tree.root()).env("CARGO_TARGET_DIR", tree.build());
    if until.whole {
        command.env("CARGO_TARGET_DIR", tree.build().join("whole"));
    } else {
        // The self-tests' profile.
        quickly(&mut command, "CHECKED");
    }
    finish(&mut command, until)
}

/// The outcome of a command of the harness.
fn judged(end: End) -> Outcome {
    match end.status {
        Some(0) => Outcome::Passed,
        Some(status) if FAILED_RUN.contains(&status) => Outcome::Failed(end.output),
        _ => Outcome::Unbuilt(end.output),
    }
}

/// The outcome of a boot of the self-tests: one that skipped some, and found nothing in the others, has not tried what it was to try.
fn booted(end: End) -> Outcome {
    let mut transcript = Transcript::default();
    end.output.lines().for_each(|line| drop(transcript.line(line)));
    let failed = transcript.counted().failed;
    match transcript.tests.into_iter().find(|test| test.outcome == guest::Outcome::Skipped) {
        Some(test) if failed == 0 && matches!(end.status, Some(0 | 1)) => {
            Outcome::Skipped(format!("{}: {}", test.name, test.reason.unwrap_or_default()))
        }
        _ => judged(end),
    }
}

/// The outcome of tests that cargo built and ran in one: what failed before the first one began was the building.
fn interpreted(end: End, test: &str) -> Outcome {
    let passed: u64 = end.output.lines().map(crate::test::passed_in).sum();
    match end.status {
        Some(0) if passed == 0 => Outcome::Skipped(format!("no test's name contains {test:?}")),
        Some(0) => Outcome::Passed,
        _ if end.output.lines().any(|line| line.starts_with("running ")) => Outcome::Failed(end.output),
        _ => Outcome::Unbuilt(end.output),
    }
}

/// Builds test programs by `cargo`, then runs the tests in them whose name contains `test`.
fn run_tests(
    mut cargo: Command,
    test: &str,
    limits: Limits,
    signals: &NoteSignals,
) -> Result<Option<Outcome>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let Some(built) = finish(&mut cargo, &Until { limit: limits.all, whole: false, signals })? else {
        return Ok(None);
    };
    if built.status != Some(0) {
        return Ok(Some(Outcome::Unbuilt(built.output)));
    }
    let mut passed = 0;
    for (program, folder) in built.output.lines().filter_map(image::test_program) {
        let mut command = Command::new(program);
        // What cargo would give it.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        command.arg(test).current_dir(&folder).env("CARGO", cargo).env("CARGO_MANIFEST_DIR", &folder);
        let Some(end) = finish(&mut command, &Until { limit: limits.tests, whole: false, signals })? else {
            return Ok(None);
        };
        if end.status != Some(0) {
            return Ok(Some(Outcome::Failed(end.output)));
        }
        passed += end.output.lines().map(crate::test::passed_in).sum::<u64>();
    }
    if passed == 0 {
        return Ok(Some(Outcome::Skipped(format!("no test's name contains {test:?}"))));
    }
    Ok(Some(Outcome::Passed))
}

/// How a command ended, and all that it printed.
struct End {
    /// Nothing: killed, by a signal or at the end of its time.
    status: Option<i32>,
    output: String,
}

/// When not to wait any longer, and what for.
struct Until<'a> {
    limit: Duration,
    /// As in [`Limits`].
    whole: bool,
    signals: &'a NoteSignals,
}

/// Runs `command` to its end or to the limit; nothing when a signal asked for an end.
fn finish(command: &mut Command, until: &Until<'_>) -> Result<Option<End>> {
    let mut printed: File = tempfile::tempfile()?;
    let (out, err) = (printed.try_clone()?, printed.try_clone()?);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let started = Instant::now();
    let mut child = Owned::spawn(command).with_context(|| format!("starting {command:?}"))?;
    let mut late = false;
    let status = loop {
        if until.signals.interrupted() {
            return Ok(None);
        }
        if let Some(status) = child.ended()? {
            break status.code();
        }
        if started.elapsed() > until.limit {
            late = true;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(child);
    let mut bytes = Vec::new();
    printed.rewind()?;
    printed.read_to_end(&mut bytes)?;
    let mut output = String::from_utf8_lossy(&bytes).into_owned();
    if late {
        output += &format!("\nno end after {} s\n", until.limit.as_secs());
    }
    Ok(Some(End { status, output }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_they_are_shown() {
        for text in [
            "host sync the_lock_excludes",
            "checked-host sync recursion_is_a_bugcheck",
            "host props/ladder order",
            "model queued three_processors",
            "miri sync processors_exclude",
            "selftest interrupts::masking_matrix on 1",
            "explore 200 on 4",
            "crash slow_dpc",
            "codegen",
            "bench",
            "lines",
            "compiler arch",
        ] {
            assert_eq!(text.parse::<Catcher>().unwrap().to_string(), text);
        }
        for text in
            ["", "loom x y", "selftest x", "selftest x on many", "selftest x on 0", "model x", "crash"]
        {
            assert!(text.parse::<Catcher>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_check_that_is_not_in_the_sources_does_not_exist() {
        let workspace = image::workspace();
        let exists = |text: &str| text.parse::<Catcher>().unwrap().exists(&workspace).unwrap();
        assert!(exists("selftest interrupts::masking on 1") && !exists("selftest interrupts::asking on 1"));
        assert!(
            exists("model spin two_processors_exclude_each_other_twice") && !exists("model spin nothing")
        );
        assert!(exists("crash slow_dpc") && !exists("crash slow"));
        assert!(!exists("model nothing two_processors_exclude_each_other_twice"));
        assert!(exists("compiler kernel") && !exists("compiler nothing"));
    }

    fn ended(script: &str) -> End {
        let mut command = Command::new("sh");
        let (limit, signals) = (Duration::from_secs(300), &NoteSignals::start());
        finish(command.args(["-c", script]), &Until { limit, whole: false, signals }).unwrap().unwrap()
    }

    #[test]
    fn a_command_is_told_by_its_status_and_both_its_outputs() {
        let end = ended("echo one; echo two >&2; exit 3");
        assert_eq!((end.status, end.output.as_str()), (Some(3), "one\ntwo\n"));
        assert_eq!(ended("kill -9 $$").status, None);
    }

    #[test]
    fn interpreted_tests_fail_once_they_run() {
        let outcome = |status, output: &str| interpreted(End { status, output: output.into() }, "x");
        let (built, ran) = ("error[E0308]", "running 1 test\nerror: Undefined Behavior");
        assert_eq!(outcome(Some(101), built), Outcome::Unbuilt(built.into()));
        assert_eq!(outcome(Some(1), ran), Outcome::Failed(ran.into()));
        assert_eq!(outcome(Some(0), "running 1 test\ntest result: ok. 1 passed; 0 failed"), Outcome::Passed);
        assert!(matches!(outcome(Some(0), "running 0 tests"), Outcome::Skipped(_)));
    }

    #[test]
    fn a_boot_that_skips_has_not_tried() {
        let outcome = |status, lines: &[&str]| {
            let stamped: String = lines.iter().map(|line| format!("[    0.1 00] {line}\n")).collect();
            booted(End { status: Some(status), output: stamped })
        };
        let (ok, skip) = ("ok   waits::a (1 us)", "skip waits::b: needs 2 processors");
        assert_eq!(outcome(0, &[ok]), Outcome::Passed);
        assert_eq!(outcome(0, &[ok, skip]), Outcome::Skipped("waits::b: needs 2 processors".into()));
        assert_eq!(outcome(1, &[skip]), Outcome::Skipped("waits::b: needs 2 processors".into()));
        assert!(matches!(outcome(1, &[skip, "FAIL waits::a: x"]), Outcome::Failed(_)));
        assert!(matches!(outcome(3, &[skip]), Outcome::Failed(_)), "a bugcheck");
        assert!(matches!(outcome(2, &[]), Outcome::Unbuilt(_)));
    }

    #[test]
    fn a_search_is_judged_by_as_much_as_it_took() {
        let explore: Catcher = "explore 200 on 4".parse().unwrap();
        let output = "20 runs in 30 s\nseed 31, run 30, failed after 50.1 s: HANG: x\n";
        assert_eq!(explore.as_far(output).unwrap().to_string(), "explore 31 on 4");
        assert!(explore.is_search() && explore.as_far("failed after all").is_none());
        let selftest: Catcher = "selftest x on 4".parse().unwrap();
        assert!(!selftest.is_search() && selftest.as_far(output).is_none());
    }
}
