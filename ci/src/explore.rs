//! Exploration: many short boots under QEMU's instruction counter, each a function of its seed; and any of them again.
//!
//! The self-test image does its mixed phase alone (`stress_rounds=`), under clock interrupts that the seed puts between any two
//! instructions (`torment=`). Several guests run at once, each on one host thread, COM1 and the guest's memory in files: nobody talks to
//! a QEMU that counts. Of each run the digest of its trace is kept (`kept`), so that a replay (`again`) can say whether it was the same run.

mod again;
mod aims;
mod code;
mod coverage;
mod in_gdb;
mod kept;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

pub(crate) use again::replay;
use aims::Aims;
pub(crate) use in_gdb::{check_gdb, check_reverse, replay_in_gdb};
use kept::{Kept, Sameness};

use crate::process::NoteSignals;
use crate::qemu::Accel;
use crate::report::{self, Verdict};
use crate::run::{End, Follow, POLL, Run, Watch};
use crate::target::{GuestArgs, ImageChoice, Target};
use crate::trace::decode::Coverage;

/// A run takes two seconds on a quiet host.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a run is a function of, besides the image.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// Processors.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,
    /// Operations of each thread.
    #[arg(long, default_value_t = 40)]
    pub(crate) rounds: u32,
    /// A clock interrupt after at most so many instructions.
    #[arg(long, default_value_t = 8000)]
    pub(crate) torment: u32,
    /// Another self-test image than this tree's.
    #[arg(long)]
    pub(crate) image: Option<PathBuf>,
}

impl Default for Plan {
    /// What the command line gives when it says nothing.
    fn default() -> Self {
        /// A command with these options alone.
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            plan: Plan,
        }
        <Alone as clap::Parser>::parse_from(["plan"]).plan
    }
}

impl Plan {
    fn target(&self) -> Result<Target> {
        let args = GuestArgs {
            cpus: self.cpus,
            accel: Some(Accel::IcountBlocks),
            append: vec![format!("torment={} coverage", self.torment)],
            image: self.image.clone().map(ImageChoice::File),
            ..GuestArgs::default()
        };
        Target::prepare(&args, ImageChoice::Selftest)
    }
}

/// What to do with a seed that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    /// Stop, find how short it can be, and show it.
    Shorten,
    /// Stop.
    Stop,
    /// Say so, and go on with the others.
    Count,
}

/// A target's machine with a seed, what that aims at, and a length.
fn with_seed(target: &Target, aims: &Aims, seed: u64, rounds: u32) -> crate::qemu::Machine {
    let mut machine = target.machine.clone();
    let mine = |word: &&str| ["seed=", "stress_rounds=", "aim="].iter().any(|start| word.starts_with(start));
    let words: Vec<&str> = machine.command_line.split(' ').filter(|word| !mine(word)).collect();
    machine.command_line =
        format!("seed={seed} stress_rounds={rounds} {} {}", words.join(" "), aims.word(seed));
    machine
}

/// What came of a seed.
struct Outcome {
    seed: u64,
    run: Run,
    verdict: Verdict,
}

impl Outcome {
    /// What is kept of it.
    fn told(&self) -> kept::Told {
        // Where the harness ended a guest is a matter of the host's time.
        let by_itself = matches!(self.run.end, End::Exited(_));
        kept::Told {
            digest: self.run.trace.as_ref().filter(|_| by_itself).map(|trace| trace.digest),
            failure: report::describe(&self.verdict),
        }
    }
}

/// Runs seeds `first..first + count`, several at once; `each` is told in the order in which they end. Ends early if it says so.
fn run_all(
    target: &Target,
    seeds: impl Iterator<Item = u64>,
    rounds: u32,
    mut each: impl FnMut(Outcome) -> Result<bool>,
) -> Result<bool> {
    let Some(aims) = Aims::of(target)? else { return Ok(false) };
    let signals = NoteSignals::start();
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let watch = Watch { timeout: Some(TIMEOUT), live: false, until_online: false };
    let mut seeds = seeds.fuse();
    let mut running: Vec<(u64, Follow<'_>)> = Vec::new();
    loop {
        while running.len() < at_once
            && let Some(seed) = seeds.next()
        {
            let machine = with_seed(target, &aims, seed, rounds);
            running.push((seed, Follow::start(&target.qemu, &machine, &target.symbols, &watch)?));
        }
        if running.is_empty() {
            return Ok(true);
        }
        let mut at = 0;
        while at < running.len() {
            let Some(end) = running[at].1.poll(&signals)? else {
                at += 1;
                continue;
            };
            let (seed, follow) = running.swap_remove(at);
            let run = follow.finish(end)?;
            let verdict = report::judge(&run, target.expect());
            if verdict == Verdict::Interrupted || !each(Outcome { seed, run, verdict })? {
                return Ok(false);
            }
        }
        thread::sleep(POLL);
    }
}

/// Runs `count` seeds from `first`. The first that fails is shortened, and the command printed that repeats it, unless `on_failure` says otherwise.
///
/// `twice`: each seed twice, and its two traces must be the same to the byte, for all but so many of them.
pub(crate) fn explore(
    plan: &Plan,
    first: u64,
    count: u32,
    twice: Option<u32>,
    on_failure: OnFailure,
) -> Result<u8> {
    let target = plan.target()?;
    let mut kept = Kept::load(plan, plan.rounds, &target)?;
    let begun = Instant::now();
    let mut hits: Option<Coverage> = None;
    let mut done = 0_u32;
    let (mut fresh, mut repeated, mut earlier) = (Kept::default(), Sameness::default(), Sameness::default());
    let (mut failures, mut failed) = (0_u32, None);
    let (mut stops, mut missed) = (0, 0);
    let repeats = if twice.is_some() { 2 } else { 1 };
    let seeds = (first..first + u64::from(count)).flat_map(|seed| std::iter::repeat_n(seed, repeats));
    let complete = run_all(&target, seeds, plan.rounds, |outcome| {
        done += 1;
        let told = outcome.told();
        match fresh.get(outcome.seed) {
            Some(other) => repeated.count(outcome.seed, other, &told),
            None => earlier.count_if(outcome.seed, kept.get(outcome.seed), &told),
        }
        fresh.put(outcome.seed, told.clone());
        kept.put(outcome.seed, told);
        if outcome.verdict != Verdict::Passed {
            println!(
                "seed {}, run {done}, failed after {:.1} s: {}",
                outcome.seed,
                begun.elapsed().as_secs_f64(),
                report::describe(&outcome.verdict).unwrap_or_default()
            );
            failures += 1;
            failed.get_or_insert(outcome);
            return Ok(on_failure == OnFailure::Count);
        }
        let stopped =
            aims::stops(&outcome.run.serial).context("a run does not say how often it was stopped")?;
        if stopped == 0 {
            println!("seed {}: no processor was stopped where it was aimed at", outcome.seed);
            missed += 1;
        }
        stops += stopped;
        let trace = outcome.run.trace.as_ref().context("a run left no trace")?;
        merge(&mut hits, trace.coverage.as_ref());
        if done.is_multiple_of(20) {
            println!(
                "{done} runs in {:.0} s, the last: seed {}",
                begun.elapsed().as_secs_f64(),
                outcome.seed
            );
        }
        Ok(true)
    })?;
    kept.save()?;
    let seconds = begun.elapsed().as_secs_f64();
    if earlier.compared() > 0 {
        println!("{earlier} as when they were last explored");
    }
    let failure = failed.as_ref().map(|outcome| outcome.verdict.exit_status());
    match (failed, failure) {
        (Some(outcome), _) if on_failure == OnFailure::Shorten => {
            return again::minimise(plan, &target, outcome);
        }
        (_, Some(status)) if on_failure == OnFailure::Stop => return Ok(status),
        _ => {}
    }
    if !complete {
        return Ok(Verdict::Interrupted.exit_status());
    }
    println!(
        "{done} runs, {failures} failures, in {seconds:.1} s, {:.2} s each; {stops} stops at instructions that were aimed at",
        seconds / f64::from(done.max(1))
    );
    match &hits {
        Some(hits) => {
            println!(
                "of seeds {first} to {} on {} processors, {} operations a thread, a clock interrupt within {} instructions:",
                first + u64::from(count) - 1,
                plan.cpus,
                plan.rounds,
                plan.torment
            );
            coverage::write(&target.machine.image, hits, &target.symbols)?;
        }
        None => println!("the guests have not noted which instructions were interrupted"),
    }
    if let Some(allowed) = twice {
        println!("{repeated} the same to the byte of their traces, run twice");
        let differs =
            missed != 0 || repeated.different() > allowed as usize || repeated.compared() != count as usize;
        return Ok(failure.unwrap_or(u8::from(differs)));
    }
    Ok(failure.unwrap_or(u8::from(missed != 0)))
}

fn merge(all: &mut Option<Coverage>, one: Option<&Coverage>) {
    match (all.as_mut(), one) {
        (Some(all), Some(one)) => all.hit.iter_mut().zip(&one.hit).for_each(|(all, one)| *all |= one),
        (None, Some(one)) => *all = Some(one.clone()),
        (_, None) => {}
    }
}
