//! One seed again in gdb: at its failure, at its end, or where an event of its trace has just been recorded; with one processor, if asked,
//! out of a recording, in which gdb can go back.
//!
//! To stay the run that was explored, it is left alone until it stops: gdb has its one breakpoint set before the first instruction,
//! and the event to stop at is told to the guest by its image (kernel/src/kd/trace.rs), not on the way.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::again::{TRIES, once};
use super::aims::Aims;
use super::{Outcome, Plan, TIMEOUT, with_seed};
use crate::debug::{self, Start};
use crate::qemu::Direction;
use crate::report::Verdict;
use crate::target::Target;
use crate::{recording, symbols};

/// Runs a seed again in gdb: to its failure or its end, or to the event of a processor that is written as in the trace, `CPU:NUMBER`.
pub(crate) fn replay_in_gdb(plan: &Plan, seed: u64, at: Option<&str>, reverse: bool) -> Result<u8> {
    ensure!(
        !reverse || plan.cpus == 1,
        "QEMU records a machine of one processor: REVERSE=1 takes QEMU_CPUS=1"
    );
    let mut target = plan.target()?;
    let Some(aims) = Aims::of(&target)? else { return Ok(Verdict::Interrupted.exit_status()) };
    let folder = tempfile::tempdir().context("a folder for what the replay needs")?;
    let known = match at.is_some() || reverse {
        true => match once(&target, seed, plan.rounds)? {
            Some(outcome) => Some(outcome),
            None => return Ok(Verdict::Interrupted.exit_status()),
        },
        false => None,
    };
    let stops = match (at, &known) {
        (Some(at), Some(outcome)) => {
            let (cpu, number) = at.split_once(':').context("AT= is CPU:NUMBER, as in the trace")?;
            let (cpu, number): (usize, u64) = (cpu.parse()?, number.parse()?);
            event(&mut target, outcome, cpu, number, folder.path())?
        }
        _ => {
            println!(
                "gdb stops at a bugcheck, and at the end of the run; a guest that hangs is stopped with Ctrl-C"
            );
            ends(&target)?
        }
    };
    target.machine = with_seed(&target, &aims, seed, plan.rounds);
    if let (true, Some(outcome)) = (reverse, &known) {
        let Some(recorded) = recording::make(&mut target, folder.path(), Direction::Play, TIMEOUT)? else {
            return Ok(Verdict::Interrupted.exit_status());
        };
        let digest = recorded.digest.context("the recorded run left no trace")?;
        if outcome.run.trace.as_ref().is_some_and(|trace| trace.digest == digest) {
            println!("recorded: the same run as without a recording, by its trace: {digest:016x}");
        } else {
            println!("recorded: ANOTHER RUN than without a recording, by its trace: {digest:016x}");
        }
        println!("reverse-stepi, reverse-continue and the like work, each in as long as the run takes");
    }
    debug::with_gdb(&target, Start::Untouched, &stops)
}

/// Commands that stop gdb where the kernel gives up, or where the run ends.
fn ends(target: &Target) -> Result<Vec<String>> {
    Ok(vec![stop(target)?, "continue".to_owned(), "bt".to_owned()])
}

/// The command that has gdb stop at whatever it can wait for (arch/src/x86_64/debugger.rs).
fn stop(target: &Target) -> Result<String> {
    // By address: gdb does not find all of the image's functions by their names.
    let place = symbols::address_of(&target.machine.image, "kirql_debugger_stops_here")?;
    Ok(format!("hbreak *{place:#x}"))
}

/// Commands that stop gdb where that event has just been recorded, for an image in `folder` that knows of it.
fn event(
    target: &mut Target,
    outcome: &Outcome,
    cpu: usize,
    number: u64,
    folder: &Path,
) -> Result<Vec<String>> {
    let trace = outcome.run.trace.as_ref().context("the run left no trace")?;
    let Some(processor) = trace.processors.get(cpu) else { bail!("there is no processor {cpu}") };
    ensure!(number < processor.total, "processor {cpu} has {} events in all", processor.total);
    let image = &target.machine.image;
    let place = symbols::place_of(image, "kernel::kd::trace::STOP_AT")?;
    let mut bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let words = [cpu as u64, number].map(u64::to_le_bytes);
    bytes.get_mut(place..place + 16).context("the image is too short")?.copy_from_slice(words.as_flattened());
    let copy = folder.join("image");
    std::fs::write(&copy, bytes).context("writing the image's copy")?;
    target.machine.image = copy;
    let stamp = format!("*(unsigned long *){:#x}", processor.place_of(number) - 8);
    let mut commands: Vec<String> =
        [&stop(target)?, "continue", "delete", "set language c"].map(str::to_owned).into();
    match processor.events.iter().find(|event| event.index == number) {
        Some(event) => commands.push(format!(
            "if {stamp} == {0}\nprintf \"event {cpu}:{number}, at {0} as in the run before\\n\"\nelse\n\
             printf \"event {cpu}:{number} of ANOTHER RUN: at %lu, not {0} (quit, and try again)\\n\", {stamp}\nend",
            event.stamp
        )),
        None => commands.push(format!(
            "printf \"event {cpu}:{number}, at %lu; the run before kept no event so early to compare it with\\n\", {stamp}"
        )),
    }
    commands.extend(["set language auto", "bt"].map(str::to_owned));
    Ok(commands)
}

/// Has gdb run those commands, and wants that text.
fn says(target: &Target, commands: &[String], text: &str) -> Result<()> {
    let said = debug::in_batch(target, commands)?.context("gdb or QEMU ended early")?;
    ensure!(said.contains(text), "gdb does not say {text:?}, but:\n{said}");
    println!("gdb says {text:?}");
    Ok(())
}

/// Operations of a thread, for a check.
const SHORT: u32 = 2;

/// A short run with so many processors.
fn short(cpus: u32, seed: u64) -> Result<Target> {
    let plan = Plan { cpus, rounds: SHORT, ..Plan::default() };
    let mut target = plan.target()?;
    let aims = Aims::of(&target)?.context("a signal asked for an end")?;
    target.machine = with_seed(&target, &aims, seed, plan.rounds);
    Ok(target)
}

/// Whether gdb stops at an event of the very run that was traced, with so many processors. Nothing when a signal asked for an end.
fn check_event(cpus: u32, seed: u64) -> Result<Option<()>> {
    let mut target = short(cpus, seed)?;
    let folder = tempfile::tempdir().context("a folder for the image")?;
    let Some(outcome) = once(&target, seed, SHORT)? else { return Ok(None) };
    let trace = outcome.run.trace.as_ref().context("the run left no trace")?;
    let cpu = trace.processors.len() - 1;
    let last = trace.processors[cpu].events.last().context("the trace is empty")?.index;
    let commands = event(&mut target, &outcome, cpu, last.saturating_sub(100), folder.path())?;
    says(&target, &commands, "as in the run before").map(Some)
}

/// Whether gdb stops where it is told to: at an event of the run that was traced, and at the end.
pub(crate) fn check_gdb(seed: u64) -> Result<u8> {
    let interrupted = Ok(Verdict::Interrupted.exit_status());
    for cpus in [1, 4] {
        // Now and then a run is another one, as without gdb.
        let mut attempts = (0..TRIES).map(|attempt| check_event(cpus, seed + u64::from(attempt)));
        if attempts.find(Result::is_ok).context("never the run that was traced")??.is_none() {
            return interrupted;
        }
    }
    let target = short(1, seed)?;
    says(&target, &ends(&target)?, "leave () at arch/")?;
    Ok(0)
}

/// Whether gdb goes back and forth at the end of a recorded run.
pub(crate) fn check_reverse(seed: u64) -> Result<u8> {
    let mut target = short(1, seed)?;
    let to_end = ends(&target)?;
    let folder = tempfile::tempdir().context("a folder for the recording")?;
    if recording::make(&mut target, folder.path(), Direction::Play, TIMEOUT)?.is_none() {
        return Ok(Verdict::Interrupted.exit_status());
    }
    let back = [
        "delete",
        "set $end = $rip",
        "reverse-stepi",
        "set $before = $rip",
        "stepi",
        "printf \"back: %d, forth: %d\\n\", $before != $end, $rip == $end",
    ];
    let commands = [to_end, back.map(str::to_owned).into()].concat();
    says(&target, &commands, "back: 1, forth: 1")?;
    Ok(0)
}
