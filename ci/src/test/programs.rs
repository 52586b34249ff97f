//! Test programs: run, and their tests counted.
//!
//! Many of them have one or two long tests, so several are run at once where it doesn't matter how their lines lie.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use super::{Done, shown};
use crate::process;

/// Runs test programs by one command, and wants status 0 and at least one test to have passed: a run of no test proves nothing.
pub(super) fn run(command: &mut Command) -> Result<Done> {
    let passed = tests_of(command)?;
    ensure!(passed > 0, "{} ran no test", shown(command));
    println!("{passed} tests passed");
    Ok(Done::Passed)
}

/// Builds what `cargo test` would run of `packages`, but for the documentation's tests, and runs it as [`at_once`].
pub(super) fn all_at_once(cargo: &dyn Fn() -> Command, packages: &[&str]) -> Result<Done> {
    let mut build = cargo();
    build.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(packages);
    let output = build.stderr(Stdio::inherit()).output().with_context(|| format!("starting {build:?}"))?;
    ensure!(output.status.success(), "{} ends with {}", shown(&build), output.status);
    let programs: Vec<Artifact> = built(&String::from_utf8(output.stdout)?)?;
    at_once(programs.into_iter().map(|program| {
        let mut command = Command::new(program.executable);
        // As cargo does: a test may read its package's files, and have cargo build something.
        command
            .env("CARGO", build.get_program())
            .env("CARGO_MANIFEST_DIR", &program.folder)
            .current_dir(program.folder);
        process::die_with_us(&mut command, Signal::TERM);
        command
    }))
}

/// Runs as many of the commands at a time as there are processors. The first error of any is told, when all have been run.
pub(super) fn at_once(commands: impl IntoIterator<Item = Command>) -> Result<Done> {
    let commands: Vec<_> = commands.into_iter().map(std::sync::Mutex::new).collect();
    let (next, passed) = (AtomicUsize::new(0), AtomicU64::new(0));
    let lane = || -> Result<()> {
        let mut first = Ok(());
        while let Some(command) = commands.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = command.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match tests_of(&mut command) {
                Ok(tests) => _ = passed.fetch_add(tests, Ordering::Relaxed),
                Err(why) => first = first.and(Err(why)),
            }
        }
        first
    };
    let lanes = thread::available_parallelism()?.get().min(commands.len());
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let ends = lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // All are joined, whatever the first says.
        ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    let passed = passed.into_inner();
    ensure!(passed > 0, "{} programs ran no test", commands.len());
    println!("{passed} tests passed, in {} programs", commands.len());
    Ok(Done::Passed)
}

/// A test program, and its package's folder.
#[derive(Debug, PartialEq, Eq)]
struct Artifact {
    executable: PathBuf,
    folder: PathBuf,
}

/// The test programs that cargo's messages, one in JSON on each line, tell of.
fn built(messages: &str) -> Result<Vec<Artifact>> {
    #[derive(Deserialize)]
    struct Message {
        manifest_path: Option<PathBuf>,
        executable: Option<PathBuf>,
        profile: Option<Profile>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("a message of cargo's")?;
        let is_test = message.profile.is_some_and(|profile| profile.test);
        if let (true, Some(executable), Some(manifest)) = (is_test, message.executable, message.manifest_path)
        {
            let folder = manifest.parent().context("a manifest in no folder")?.to_owned();
            programs.push(Artifact { executable, folder });
        }
    }
    Ok(programs)
}

/// How many tests have passed; an error unless all have.
fn tests_of(command: &mut Command) -> Result<u64> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let (mut passed, mut failures) = (0, Failures::default());
    for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
        let line = line?;
        println!("{line}");
        passed += passed_in(&line);
        failures.line(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{} ends with {status}{failures}", shown(command));
    Ok(passed)
}

/// The tests that passed, by the line that ends a test program's output.
pub(crate) fn passed_in(line: &str) -> u64 {
    let count = || line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok();
    count().unwrap_or(0)
}

/// What test programs said of their tests that failed: a step's last words.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    inside: bool,
}

impl Failures {
    /// Of a test with a long message, its beginning.
    const KEPT: usize = 24;

    /// Takes in a line of a test program's output: what stands between `failures:` and the program's last line is kept.
    fn line(&mut self, line: &str) {
        match line {
            "failures:" => self.inside = true,
            _ if line.starts_with("test result: ") => self.inside = false,
            "" => {}
            _ if self.inside && self.lines.len() < Self::KEPT => self.lines.push(line.trim_end().to_owned()),
            _ => {}
        }
    }
}

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
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
    fn what_failed_is_told_with_the_step() {
        let mut failures = Failures::default();
        let output = [
            "running 2 tests",
            "test a ... ok",
            "test b ... FAILED",
            "",
            "failures:",
            "",
            "---- b stdout ----",
            "thread 'b' panicked at c.rs:1:1:",
            "2 instead of 1",
            "",
            "failures:",
            "    b",
            "",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "running 1 test",
        ];
        output.iter().for_each(|line| failures.line(line));
        let told = "\n  ---- b stdout ----\n  thread 'b' panicked at c.rs:1:1:\n  2 instead of 1\n      b";
        assert_eq!(failures.to_string(), told);
    }

    #[test]
    fn programs_are_those_that_cargo_built_for_tests() {
        let messages = [
            r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","profile":{"test":false},"executable":"/t/a"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/b/Cargo.toml","profile":{"test":true},"executable":null}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/c/Cargo.toml","profile":{"test":true},"executable":"/t/c"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let wanted = Artifact { executable: "/t/c".into(), folder: "/c".into() };
        assert_eq!(built(&messages.join("\n")).unwrap(), [wanted]);
        assert!(built("no JSON").is_err());
    }

    #[test]
    fn programs_run_at_once_are_all_heard() {
        let says = |text: &str, status: u8| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo '{text}'; exit {status}")]);
            command
        };
        let good = || says("test result: ok. 2 passed; 0 failed", 0);
        assert!(at_once([good(), good(), good()]).is_ok());
        assert!(at_once([good(), says("", 3), good()]).unwrap_err().to_string().contains("3"));
        assert!(at_once([says("", 0)]).is_err(), "no test");
        assert!(at_once([]).is_err(), "no program");
    }
}
