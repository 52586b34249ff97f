//! The loom models, each a process of its own, the longest first, on as many of the host's cores as there are.
//!
//! A model runs on one core, and cargo runs one program of tests after the other: at the end of each program, its longest model has
//! the host for itself. What is run, and within which bounds, is the programs' own list; only the order is this file's.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::image;
use crate::process::{NoteSignals, Owned};

/// Programs and models that take long, the longest first. What is not here comes behind them, so that what is missing, or in a wrong
/// place, costs time alone. To be filled from what a run on an idle host tells.
const LONGEST: &[(&str, &str)] = &[];

/// What `make model` should stay under. A host that does other things as well takes longer, which is no failure.
const AIM: Duration = Duration::from_secs(300);
/// How many of the slowest are told.
const TOLD: usize = 8;
const POLL: Duration = Duration::from_millis(10);

/// One model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    /// The file of tests that it is in.
    file: String,
    test: String,
    program: PathBuf,
    folder: PathBuf,
}

impl Model {
    fn name(&self) -> String {
        format!("{}::{}", self.file, self.test)
    }
}

/// A model under way.
struct Running {
    model: Model,
    child: Owned,
    printed: File,
    started: Instant,
}

impl Running {
    fn start(model: Model) -> Result<Self> {
        let printed = tempfile::tempfile()?;
        let mut command = Command::new(&model.program);
        command.args(["--exact", &model.test]).current_dir(&model.folder).stdin(Stdio::null());
        command.stdout(printed.try_clone()?).stderr(printed.try_clone()?);
        let child = Owned::spawn(&mut command).with_context(|| format!("starting {}", model.name()))?;
        Ok(Self { model, child, printed, started: Instant::now() })
    }

    /// How long it took and what was wrong with it, once it has ended.
    fn ended(&mut self) -> Result<Option<(Duration, Option<String>)>> {
        let Some(status) = self.child.ended()? else { return Ok(None) };
        let took = self.started.elapsed();
        let mut output = String::new();
        self.printed.rewind()?;
        self.printed.read_to_string(&mut output)?;
        let passed = output.lines().map(crate::test::passed_in).sum::<u64>();
        let wrong = match (status.success(), passed) {
            (true, 1) => None,
            (true, n) => Some(format!("{output}\n{n} tests passed, and not one")),
            (false, _) => Some(format!("{output}\nends with {status}")),
        };
        Ok(Some((took, wrong)))
    }
}

/// Builds the programs by `cargo`, which says what and how, and runs all their models. False: a signal asked for an end.
pub(crate) fn run(cargo: &mut Command) -> Result<bool> {
    let mut waiting: VecDeque<Model> = ordered(build(cargo)?).into();
    ensure!(!waiting.is_empty(), "there is no model");
    let (count, cores) = (waiting.len(), thread::available_parallelism()?.get());
    println!("{count} models on {cores} cores");
    let signals = NoteSignals::start();
    let begun = Instant::now();
    let mut running: Vec<Running> = Vec::new();
    let (mut times, mut failed) = (Vec::new(), Vec::new());
    while !waiting.is_empty() || !running.is_empty() {
        if signals.interrupted() {
            return Ok(false);
        }
        while running.len() < cores
            && let Some(model) = waiting.pop_front()
        {
            running.push(Running::start(model)?);
        }
        let mut left = Vec::new();
        for mut one in running.drain(..) {
            let Some((took, wrong)) = one.ended()? else {
                left.push(one);
                continue;
            };
            let name = one.model.name();
            let verdict = if wrong.is_none() { "ok" } else { "FAILED" };
            println!("test {name} ... {verdict} ({:.1} s)", took.as_secs_f64());
            if let Some(wrong) = wrong {
                println!("{wrong}");
                failed.push(name.clone());
            }
            times.push((took, name));
        }
        running = left;
        thread::sleep(POLL);
    }
    summarize(times, begun.elapsed(), cores);
    ensure!(failed.is_empty(), "{} of {count} models: {}", failed.len(), failed.join(", "));
    println!("{count} tests passed");
    Ok(true)
}

fn summarize(mut times: Vec<(Duration, String)>, took: Duration, cores: usize) {
    times.sort_by(|a, b| b.cmp(a));
    println!("the slowest:");
    for (time, name) in times.iter().take(TOLD) {
        println!("  {:6.1} s  {name}", time.as_secs_f64());
    }
    let sum: Duration = times.iter().map(|(time, _)| *time).sum();
    println!("{:.0} s of models in {:.0} s on {cores} cores", sum.as_secs_f64(), took.as_secs_f64());
    if took > AIM {
        println!("note: they should take {} s at most, on two cores with nothing else to do", AIM.as_secs());
    }
}

/// Builds the programs of tests; the models in them.
fn build(cargo: &mut Command) -> Result<Vec<Model>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).stdout(Stdio::piped());
    let mut cargo = cargo.spawn().context("starting cargo")?;
    let messages = cargo.stdout.take().context("cargo's standard output")?;
    let mut programs = Vec::new();
    for line in BufReader::new(messages).lines() {
        programs.extend(image::test_program(&line?));
    }
    let status = cargo.wait()?;
    ensure!(status.success(), "building the models: cargo ends with {status}");
    let mut models = Vec::new();
    for (program, folder) in programs {
        let list = Command::new(&program).args(["--list", "--format", "terse"]).output()?;
        ensure!(list.status.success(), "{} doesn't tell its tests", program.display());
        let file = file_of(&program);
        models.extend(listed(&String::from_utf8(list.stdout)?).map(|test| Model {
            file: file.clone(),
            test: test.to_owned(),
            program: program.clone(),
            folder: folder.clone(),
        }));
    }
    Ok(models)
}

/// The file of tests that cargo made `program` of: its name without the hash.
fn file_of(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.clone(), |(file, _)| file.to_owned())
}

/// The tests in what a program answers to `--list`.
fn listed(answer: &str) -> impl Iterator<Item = &str> {
    answer.lines().filter_map(|line| line.strip_suffix(": test"))
}

/// The longest first, the others as they are.
fn ordered(mut models: Vec<Model>) -> Vec<Model> {
    let place = |model: &Model| LONGEST.iter().position(|known| *known == (&*model.file, &*model.test));
    models.sort_by_key(|model| place(model).unwrap_or(LONGEST.len()));
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_models_exist() {
        let folder = image::workspace().join("tests/models/tests");
        for (file, test) in LONGEST {
            let source = std::fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap_or_default();
            assert!(source.contains(&format!("fn {test}(")), "{file}::{test}");
        }
    }

    #[test]
    fn the_longest_come_first_and_all_come() {
        let model = |file: &str, test: &str| Model {
            file: file.into(),
            test: test.into(),
            program: "p".into(),
            folder: "f".into(),
        };
        let mut models = vec![model("other", "b"), model("other", "a")];
        models.extend(LONGEST.iter().rev().map(|(file, test)| model(file, test)));
        let order = ordered(models);
        let names: Vec<_> = order.iter().map(|model| (&*model.file, &*model.test)).collect();
        assert_eq!(names, [LONGEST, &[("other", "b"), ("other", "a")]].concat());
    }

    #[test]
    fn programs_and_their_lists_are_read() {
        assert_eq!(file_of(Path::new("/t/release/deps/wait_word-0a1b")), "wait_word");
        assert_eq!(
            listed("a: test\nb::c: test\nd: benchmark\n\n3 tests\n").collect::<Vec<_>>(),
            ["a", "b::c"]
        );
    }

    /// What is made of a program that does this.
    fn script(text: &str) -> Option<String> {
        let model = Model { file: "x".into(), test: "y".into(), program: "sh".into(), folder: "/".into() };
        let printed = tempfile::tempfile().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", text]).stdout(printed.try_clone().unwrap());
        let child = Owned::spawn(&mut command).unwrap();
        let mut running = Running { model, child, printed, started: Instant::now() };
        loop {
            if let Some((_, wrong)) = running.ended().unwrap() {
                return wrong;
            }
            thread::sleep(POLL);
        }
    }

    #[test]
    fn a_model_passes_if_exactly_one_test_did() {
        let one = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        assert_eq!(script(one), None);
        assert!(script("echo 'test result: ok. 0 passed; 0 failed; 1 ignored'").unwrap().contains("not one"));
        assert!(script(&format!("{one}; exit 101")).unwrap().contains("101"));
        assert!(script("kill -9 $$").is_some());
    }
}
