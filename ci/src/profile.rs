//! Where a guest's instructions go: a flame graph of a run that QEMU has recorded.
//!
//! The run is recorded, then played with a stop at every so many instructions, exactly, where the registers and the chain of frames are
//! read. The guest executes what it executes without a profile, so the picture has nothing of the sampling in it, and two profiles of one
//! run are the same. One processor, as QEMU records no more.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use inferno::flamegraph;
use serde_json::json;
use tempfile::TempDir;

use crate::hang;
use crate::image;
use crate::process::NoteSignals;
use crate::qemu::{Accel, Direction};
use crate::recording::{self, Recorded};
use crate::report::Verdict;
use crate::run::Guest;
use crate::symbols::Symbols;
use crate::target::{GuestArgs, ImageChoice, Target};

/// A recorded run of one processor takes some seconds.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Functions in the table.
const SHOWN: usize = 25;

/// What to profile.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// The self-tests whose names have one of these texts in them, with commas between.
    #[arg(long, conflicts_with_all = ["bench", "rounds"])]
    only: Option<String>,
    /// The bench image, which is the kernel as it ships.
    #[arg(long)]
    bench: bool,
    /// The mixed phase alone, so many operations of each thread [default: 2000].
    #[arg(long)]
    rounds: Option<u64>,
    /// Instructions from one sample to the next. A prime falls into step with no loop.
    #[arg(long, default_value_t = 20_011, value_parser = clap::value_parser!(u64).range(100..))]
    every: u64,
    /// Begin with this instruction; firmware and loader are in front.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// The guest's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Plan {
    /// The self-tests with `only` in their names.
    pub(crate) fn of_tests(only: &str, every: u64) -> Self {
        Self { only: Some(only.to_owned()), bench: false, rounds: None, every, first: 0, seed: 1 }
    }

    fn target(&self) -> Result<Target> {
        let words = match &self.only {
            _ if self.bench => Vec::new(),
            Some(only) => vec![format!("only={only}")],
            None => vec![format!("stress_rounds={}", self.rounds.unwrap_or(2000))],
        };
        // The bench reads the timer's count, for which each instruction has to be a block of its own.
        let (accel, choice) = match self.bench {
            true => (Accel::Icount, ImageChoice::Bench),
            false => (Accel::IcountBlocks, ImageChoice::Selftest),
        };
        let args =
            GuestArgs { cpus: 1, accel: Some(accel), append: words, seed: self.seed, ..GuestArgs::default() };
        let mut target = Target::prepare(&args, choice)?;
        target.machine.readable = true;
        target.machine.test_devices = false;
        Ok(target)
    }
}

/// How often each stack was met: its functions, the outermost first, with `;` between.
type Stacks = BTreeMap<String, u64>;

/// Takes a profile, prints its table and writes the picture.
pub(crate) fn run(plan: &Plan) -> Result<u8> {
    let Some(run) = Recording::make(plan)? else { return Ok(Verdict::Interrupted.exit_status()) };
    let Some(stacks) = run.sample(plan)? else { return Ok(Verdict::Interrupted.exit_status()) };
    let samples: u64 = stacks.values().sum();
    ensure!(samples > 0, "no sample between instruction {} and {}", plan.first, run.instructions);
    print!("{}", table(&stacks));
    println!("{samples} samples, each {} instructions, of {} executed", plan.every, run.instructions);
    let (picture, folded) = write(&stacks, &image::target_dir().join("profile"))?;
    println!("flame graph: {}\nstacks: {}", picture.display(), folded.display());
    Ok(0)
}

/// A recorded run.
struct Recording {
    target: Target,
    instructions: u64,
    /// Where it is, until the last use.
    _folder: TempDir,
}

impl Recording {
    /// Nothing when a signal asked for an end.
    fn make(plan: &Plan) -> Result<Option<Self>> {
        let mut target = plan.target()?;
        let folder = tempfile::tempdir().context("a folder for the recording")?;
        let recorded = recording::make(&mut target, folder.path(), Direction::PlayInPieces, TIMEOUT)?;
        let of = |recorded: Recorded| Self { target, instructions: recorded.instructions, _folder: folder };
        Ok(recorded.map(of))
    }

    /// Plays the run, and looks where it is each time. Nothing when a signal asked for an end.
    fn sample(&self, plan: &Plan) -> Result<Option<Stacks>> {
        let target = &self.target;
        let signals = NoteSignals::start();
        let mut guest = Guest::start(&target.qemu, &target.machine, None)?;
        let mut stacks = Stacks::new();
        let mut names = BTreeMap::new();
        let (qmp, memory) = guest.parts();
        let memory = memory.context("the guest's memory is no file here")?;
        qmp.negotiate()?;
        for at in (plan.first.max(plan.every)..self.instructions).step_by(usize::try_from(plan.every)?) {
            if signals.interrupted() {
                return Ok(None);
            }
            qmp.command("replay-break", &json!({ "icount": at }))?;
            qmp.command("cont", &json!({}))?;
            qmp.await_event("STOP").with_context(|| format!("playing up to instruction {at}"))?;
            let stack = hang::stack(qmp, memory)?;
            *stacks.entry(folded(&stack, &target.symbols, &mut names)).or_default() += 1;
        }
        Ok(Some(stacks))
    }
}

/// The functions of a stack, inlined ones, too; what is known of each address is kept in `names`.
fn folded(stack: &[u64], symbols: &Symbols, names: &mut BTreeMap<(bool, u64), String>) -> String {
    let mut text = String::new();
    for (depth, &address) in stack.iter().enumerate().rev() {
        let called = depth > 0;
        let name = names.entry((called, address)).or_insert_with(|| {
            let places = if called { symbols.before(address) } else { symbols.at(address) };
            let functions = places.iter().rev().map(|place| named(place.function(), place.file()));
            let name = functions.collect::<Vec<_>>().join(";");
            if name.is_empty() { "(firmware)".to_owned() } else { name }
        });
        let _ = write!(text, "{}{name}", if text.is_empty() { "" } else { ";" });
    }
    text
}

/// A function's name with its module. Line tables name inlined functions without one: their file tells it.
fn named(function: &str, file: Option<&str>) -> String {
    let name = without_hash(function);
    // As in `<T as core::fmt::Debug>::fmt::<u8>`: what stands in brackets is no module of the function's.
    let qualified = name.split('<').next().is_some_and(|start| start.contains("::")) || name.starts_with('<');
    match file.and_then(module) {
        Some(module) if !qualified => format!("{module}::{name}"),
        _ => name,
    }
}

/// `kernel/src/ke/tick.rs` is `kernel::ke::tick`.
fn module(file: &str) -> Option<String> {
    let (before, inside) = file.rsplit_once("/src/")?;
    let package = before.rsplit('/').next()?;
    let inside = inside.strip_suffix(".rs")?;
    let inside =
        ["/mod", "lib", "main"].iter().fold(inside, |path, end| path.strip_suffix(end).unwrap_or(path));
    let parts = std::iter::once(package).chain(inside.split('/')).filter(|part| !part.is_empty());
    Some(parts.collect::<Vec<_>>().join("::"))
}

/// A demangled name as it is written, without what the compiler adds to tell it from others. `;` parts functions.
fn without_hash(name: &str) -> String {
    let cut = name.rfind("::h").filter(|&at| {
        let hash = &name[at + 3..];
        hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit())
    });
    cut.map_or(name, |at| &name[..at]).replace(';', ",")
}

/// The functions that were met most often as the innermost, and how often they were on the stack at all.
fn table(stacks: &Stacks) -> String {
    let total: u64 = stacks.values().sum();
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (stack, &count) in stacks {
        let mut functions: Vec<&str> = stack.split(';').collect();
        if let Some(innermost) = functions.last() {
            counts.entry(innermost).or_default().0 += count;
        }
        functions.sort_unstable();
        functions.dedup();
        for function in functions {
            counts.entry(function).or_default().1 += count;
        }
    }
    let mut rows: Vec<(&str, (u64, u64))> = counts.into_iter().collect();
    rows.sort_by_key(|&(name, (own, all))| (std::cmp::Reverse((own, all)), name));
    let mut text = String::from("  itself  with what it calls\n");
    let percent = |count: u64| 100.0 * count as f64 / total as f64;
    for (name, (own, all)) in rows.into_iter().take(SHOWN) {
        let _ = writeln!(text, "{:6.1} % {:6.1} %  {name}", percent(own), percent(all));
    }
    text
}

/// Writes the picture and what it is made from.
fn write(stacks: &Stacks, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let lines: Vec<String> = stacks.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
    let (picture, folded) = (folder.join("flame.svg"), folder.join("stacks.txt"));
    std::fs::write(&folded, lines.join("\n") + "\n")
        .with_context(|| format!("writing {}", folded.display()))?;
    let mut options = flamegraph::Options::default();
    options.title = "Kirql: instructions".into();
    options.count_name = "samples".into();
    let mut svg = Vec::new();
    if let Err(why) = flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg) {
        bail!("no flame graph: {why}");
    }
    std::fs::write(&picture, svg).with_context(|| format!("writing {}", picture.display()))?;
    Ok((picture, folded))
}

/// Whether a profile tells where a run was: of some self-tests and of the bench, in the kernel, in functions that have names, and in what was
/// run.
pub(crate) fn check() -> Result<u8> {
    for (plan, ran) in [
        (Plan::of_tests("waits::", 100_003), "selftest::waits::"),
        (Plan { only: None, bench: true, ..Plan::of_tests("", 1_000_003) }, "bench::"),
    ] {
        let status = check_one(&plan, ran)?;
        if status != 0 {
            return Ok(status);
        }
    }
    Ok(0)
}

fn check_one(plan: &Plan, ran: &str) -> Result<u8> {
    let Some(run) = Recording::make(plan)? else { return Ok(Verdict::Interrupted.exit_status()) };
    let (Some(once), Some(again)) = (run.sample(plan)?, run.sample(plan)?) else {
        return Ok(Verdict::Interrupted.exit_status());
    };
    print!("{}", table(&once));
    let with = |text: &str| {
        once.iter().filter(|(stack, _)| stack.contains(text)).map(|(_, count)| count).sum::<u64>()
    };
    let total: u64 = once.values().sum();
    ensure!(total >= 100, "{total} samples of {} instructions", run.instructions);
    ensure!(with(ran) > 0, "what ran, {ran}, is not in its profile");
    ensure!(with("(no symbol") == 0, "{} samples in code without a name", with("(no symbol"));
    ensure!(once == again, "two profiles of one run differ");
    println!("{total} samples of {} instructions, twice the same", run.instructions);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacks(lines: &[(&str, u64)]) -> Stacks {
        lines.iter().map(|&(stack, count)| (stack.to_owned(), count)).collect()
    }

    #[test]
    fn a_function_counts_once_for_a_stack_that_has_it_twice() {
        let text = table(&stacks(&[("a;b;a", 3), ("a;c", 1)]));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[1], "75.0 %  100.0 %  a");
        assert_eq!(lines[2], "25.0 %   25.0 %  c");
        assert_eq!(lines[3], "0.0 %   75.0 %  b");
    }

    #[test]
    fn names_lose_their_hashes_and_nothing_else() {
        assert_eq!(without_hash("kernel::ke::wait::h0123456789abcdef"), "kernel::ke::wait");
        assert_eq!(without_hash("kernel::ke::hot"), "kernel::ke::hot");
        assert_eq!(without_hash("<[u8; 4] as T>::f"), "<[u8, 4] as T>::f");
    }

    #[test]
    fn inlined_functions_are_told_from_others_by_their_files() {
        assert_eq!(named("arm", Some("kernel/src/ke/tick.rs")), "kernel::ke::tick::arm");
        assert_eq!(named("swap<u8>", Some("/rust/library/core/src/mem/mod.rs")), "core::mem::swap<u8>");
        assert_eq!(named("leave", Some("arch/src/lib.rs")), "arch::leave");
        assert_eq!(named("kernel::ke::tick::arm", Some("arch/src/lib.rs")), "kernel::ke::tick::arm");
        assert_eq!(named("<T as A>::f", Some("arch/src/lib.rs")), "<T as A>::f");
        assert_eq!(named("f", None), "f");
    }

    #[test]
    fn the_picture_has_the_functions() {
        let folder = tempfile::tempdir().expect("a folder");
        let (picture, folded) =
            write(&stacks(&[("main;wait", 3), ("main", 1)]), folder.path()).expect("written");
        let read = |path| std::fs::read_to_string(path).expect("readable");
        assert_eq!(read(folded), "main 1\nmain;wait 3\n");
        let svg = read(picture);
        assert!(svg.contains("main (4 samples") && svg.contains("wait (3 samples"), "{svg}");
    }
}
