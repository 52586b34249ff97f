//! The truth about a run: its verdict, the table of its tests, and both as JSON.
//!
//! A run has passed only if four witnesses agree: QEMU's status, the guest's own summary, the result lines counted
//! here, and the number of processors that came online.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::baseline;
use crate::guest::{Interrupts, Operation, Outcome, Stop, Test, Transcript};
use crate::run::{End, Run};
use crate::symbols::Symbols;
use crate::trace::last;

/// QEMU's statuses for what a guest writes to the exit port: twice the value, plus one.
pub(crate) mod status {
    /// Every self-test passed.
    pub(crate) const PASSED: i32 = 0x10 << 1 | 1;
    /// A self-test failed.
    pub(crate) const TEST_FAILED: i32 = 0x11 << 1 | 1;
    /// The kernel stopped itself.
    pub(crate) const BUGCHECK: i32 = 0x12 << 1 | 1;
    /// The loader or the kernel cannot run here.
    pub(crate) const CANNOT_RUN: i32 = 0x13 << 1 | 1;
}

/// What a run amounts to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All that was asked for holds.
    Passed,
    /// A test failed, or the run's own account of itself does not add up.
    Failed(String),
    /// The kernel stopped itself.
    Bugcheck(String),
    /// The guest did not end by itself.
    Hang(String),
    /// The guest says that it cannot run on this machine.
    CannotRun(String),
    /// QEMU ended without a word from the guest.
    QemuDied(String),
    /// The person at the terminal ended it.
    Interrupted,
}

impl Verdict {
    /// The harness's exit status for it. 2 is taken by errors of use and set-up.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed(_) => 1,
            Self::Bugcheck(_) => 3,
            Self::Hang(_) => 4,
            Self::CannotRun(_) => 5,
            Self::QemuDied(_) => 6,
            Self::Interrupted => 130,
        }
    }
}

/// What a run must show to have passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Processors that must come online.
    pub(crate) cpus: u32,
    /// Whether the image runs self-tests.
    pub(crate) tests: bool,
}

/// Judges a run.
pub(crate) fn judge(run: &Run, expect: Expect) -> Verdict {
    let said = &run.transcript;
    match &run.end {
        End::Interrupted => Verdict::Interrupted,
        End::Exited(status::BUGCHECK) => match said.stops.first() {
            Some(stop) => Verdict::Bugcheck(stop_line(stop)),
            None => {
                Verdict::Bugcheck("the guest reported a bugcheck by its exit status but printed none".into())
            }
        },
        End::Exited(status::PASSED) => match complaints(said, expect) {
            None => Verdict::Passed,
            Some(why) => Verdict::Failed(format!("the guest claims success, but {why}")),
        },
        End::Exited(status::TEST_FAILED) => Verdict::Failed(failed_tests(said)),
        End::Exited(status::CANNOT_RUN) => Verdict::CannotRun(said.last_line.clone()),
        End::Online => Verdict::Passed,
        // A bugcheck that could not end the machine is still a bugcheck.
        _ if !said.stops.is_empty() => {
            Verdict::Bugcheck(format!("{}; then {}", stop_line(&said.stops[0]), unexpected_end(run)))
        }
        End::TimedOut(_) | End::Flooded => Verdict::Hang(unexpected_end(run)),
        End::Exited(_) | End::Killed(_) | End::Reset => Verdict::QemuDied(unexpected_end(run)),
    }
}

fn unexpected_end(run: &Run) -> String {
    let mut text = match &run.end {
        End::TimedOut(timeout) => format!("no end after {} s", timeout.as_secs()),
        End::Flooded => "the guest prints without end".into(),
        End::Killed(signal) => format!("QEMU was killed by signal {signal}"),
        End::Reset => "the machine was reset: a triple fault, if nobody asked for it".into(),
        End::Exited(0) => {
            "QEMU ended with status 0: the guest was reset (a triple fault?) or switched off".into()
        }
        End::Exited(code) if run.serial.is_empty() => {
            format!("QEMU ended with status {code} before the guest said anything")
        }
        End::Exited(code) => format!("QEMU ended with status {code}, which no guest of ours asks for"),
        End::Interrupted | End::Online => "the harness ended it".into(),
    };
    if let Some(test) = &run.transcript.running {
        let _ = write!(text, ", in the test {test}");
    } else if !run.transcript.last_line.is_empty() {
        let _ = write!(text, "; its last line: {}", run.transcript.last_line);
    }
    if !run.complaint.trim().is_empty() && matches!(run.end, End::Exited(_) | End::Killed(_)) {
        let _ = write!(text, "\nQEMU said: {}", run.complaint.trim());
    }
    text
}

/// Why a run that claims success is not one.
fn complaints(said: &Transcript, expect: Expect) -> Option<String> {
    if let Some(stop) = said.stops.first() {
        return Some(format!("it printed {}", stop_line(stop)));
    }
    match said.online {
        None => return Some("it never said how many processors are online".into()),
        Some(n) if n != u64::from(expect.cpus) => {
            return Some(format!("{n} processors came online instead of {}", expect.cpus));
        }
        Some(_) => {}
    }
    if !expect.tests {
        return None;
    }
    let counted = said.counted();
    match said.summaries.as_slice() {
        [] => Some("it printed no summary".into()),
        [_, _, ..] => Some("it printed several summaries".into()),
        [summary] if *summary != counted => Some(format!(
            "its summary says {} passed, {} failed, {} skipped, and its lines say {}, {}, {}",
            summary.passed, summary.failed, summary.skipped, counted.passed, counted.failed, counted.skipped
        )),
        [summary] if summary.failed > 0 => Some(failed_tests(said)),
        [summary] if summary.passed == 0 => Some("no test passed".into()),
        [_] => said.running.as_ref().map(|test| format!("the test {test} never ended")),
    }
}

fn failed_tests(said: &Transcript) -> String {
    let failed: Vec<String> =
        said.tests.iter().filter(|t| t.outcome == Outcome::Failed).map(with_reason).collect();
    match failed.len() {
        0 if said.tests.is_empty() => "no self-test ran: is there one of that name?".into(),
        0 if said.counted().passed == 0 => format!("nothing was tested: {} skipped", said.tests.len()),
        0 => "the guest reported a failed test by its exit status but printed none".into(),
        1 => format!("failed: {}", failed[0]),
        n => format!("{n} tests failed: {}", failed.join("; ")),
    }
}

fn with_reason(test: &Test) -> String {
    match &test.reason {
        Some(reason) => format!("{}: {reason}", test.name),
        None => test.name.clone(),
    }
}

/// A stop as its report prints it.
pub(crate) fn stop_line(stop: &Stop) -> String {
    let parameters: Vec<String> = stop.parameters.iter().map(|p| format!("{p:#x}")).collect();
    format!("STOP {:#x} {} ({})", stop.code, stop.name, parameters.join(", "))
}

/// The table of tests.
pub(crate) fn table(tests: &[Test]) -> String {
    let width = tests.iter().map(|test| test.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for test in tests {
        let outcome = match test.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "skip",
        };
        let detail = match (test.us, &test.reason) {
            (Some(us), _) => format!("{:>12} us", us),
            (None, Some(reason)) => format!("  {reason}"),
            (None, None) => String::new(),
        };
        let _ = writeln!(text, "  {:width$}  {outcome:4} {detail}", test.name);
    }
    text
}

/// The table of the mixed phase.
fn operations(operations: &[Operation]) -> String {
    let mut text = format!(
        "  {:16} {:>9} {:>8} {:>12} {:>12} {:>12} {:>12}\n",
        "operation", "count", "a second", "p50 ns", "p90 ns", "p99 ns", "longest ns"
    );
    for o in operations {
        let _ = writeln!(
            text,
            "  {:16} {:>9} {:>8} {:>12} {:>12} {:>12} {:>12}",
            o.kind, o.count, o.per_second, o.p50, o.p90, o.p99, o.max
        );
    }
    text
}

/// The table of interrupts since the start, a column for each processor.
fn interrupts(interrupts: &[Interrupts]) -> String {
    let count = interrupts.iter().map(|row| row.taken.len()).max().unwrap_or(0);
    let mut text = format!("  {:16}", "interrupts");
    for processor in 0..count {
        let _ = write!(text, " {:>9}", format!("cpu {processor}"));
    }
    text.push('\n');
    for row in interrupts {
        // arch/src/lib.rs, `vector`.
        let name = match row.vector {
            0x1F => "APC",
            0x2F => "DISPATCH",
            0xD1 => "clock",
            0xD2 => "clock's owner",
            0xE1 => "IPI",
            0xFF => "spurious",
            _ => "device",
        };
        let _ = write!(text, "  {:16}", format!("{:#04x} {name}", row.vector));
        for taken in &row.taken {
            let _ = write!(text, " {taken:>9}");
        }
        text.push('\n');
    }
    text
}

/// The account of a run that a person reads last.
pub(crate) fn print(run: &Run, verdict: &Verdict, symbols: &Symbols) {
    if let Some(whereabouts) = &run.whereabouts {
        println!("\nwhere each processor was:\n{whereabouts}");
    }
    if let (false, Some(trace)) = (matches!(verdict, Verdict::Passed | Verdict::Interrupted), &run.trace) {
        println!("\nwhat each processor did last:\n{}", last::report(trace, symbols));
    }
    if !run.transcript.tests.is_empty() {
        println!("\n{}", table(&run.transcript.tests));
    }
    if !run.transcript.operations.is_empty() {
        println!("{}", operations(&run.transcript.operations));
    }
    if !run.transcript.interrupts.is_empty() {
        println!("{}", interrupts(&run.transcript.interrupts));
    }
    let counted = run.transcript.counted();
    let online = match run.online {
        Some(time) => format!("all processors online after {:.3} s", time.as_secs_f64()),
        None => "processors never all online".to_owned(),
    };
    println!(
        "{} passed, {} failed, {} skipped; {online}; {:.3} s in all",
        counted.passed,
        counted.failed,
        counted.skipped,
        run.total.as_secs_f64()
    );
    match describe(verdict) {
        Some(text) => println!("{text}"),
        None => println!("PASSED"),
    }
}

/// What is wrong, in a line; none if nothing is.
pub(crate) fn describe(verdict: &Verdict) -> Option<String> {
    Some(match verdict {
        Verdict::Passed => return None,
        Verdict::Failed(why) => format!("FAILED: {why}"),
        Verdict::Bugcheck(why) => format!("BUGCHECK: {why}"),
        Verdict::Hang(why) => format!("HANG: {why}"),
        Verdict::CannotRun(why) => format!("CANNOT RUN HERE: {why}"),
        Verdict::QemuDied(why) => format!("ENDED EARLY: {why}"),
        Verdict::Interrupted => "INTERRUPTED".into(),
    })
}

/// A run as JSON.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    exit_status: u8,
    command_line: &'a str,
    cpus: u32,
    online_seconds: Option<f64>,
    total_seconds: f64,
    tests: &'a [Test],
    operations: &'a [Operation],
    interrupts: &'a [Interrupts],
    stops: &'a [Stop],
}

/// Writes a run's account for a program to read.
pub(crate) fn write_json(
    path: &Path,
    run: &Run,
    verdict: &Verdict,
    cpus: u32,
    command_line: &str,
) -> Result<()> {
    let record = Record {
        verdict,
        exit_status: verdict.exit_status(),
        command_line,
        cpus,
        online_seconds: run.online.map(|d| d.as_secs_f64()),
        total_seconds: run.total.as_secs_f64(),
        tests: &run.transcript.tests,
        operations: &run.transcript.operations,
        interrupts: &run.transcript.interrupts,
        stops: &run.transcript.stops,
    };
    baseline::write_json(path, &record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GOOD: &[&str] = &[
        "online: 4 processors",
        "run  a",
        "ok   a (1 us)",
        "run  b",
        "skip b: needs 8 processors",
        "selftest: 1 passed, 0 failed, 1 skipped",
    ];

    fn run(end: End, lines: &[&str]) -> Run {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.line(&format!("[    0.000001 00] {line}"));
        }
        Run {
            end,
            transcript,
            serial: vec![b'x'],
            online: None,
            total: Duration::from_secs(1),
            whereabouts: None,
            complaint: String::new(),
            trace: None,
        }
    }

    fn verdict(end: End, lines: &[&str]) -> Verdict {
        judge(&run(end, lines), Expect { cpus: 4, tests: true })
    }

    #[test]
    fn four_witnesses_make_a_success() {
        assert_eq!(verdict(End::Exited(33), GOOD), Verdict::Passed);
    }

    #[test]
    fn a_missing_or_contradicting_witness_is_a_failure() {
        let mut cases: Vec<Vec<&str>> = (0..GOOD.len())
            .filter(|&missing| missing != 1)
            .map(|missing| GOOD.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, l)| *l).collect())
            .collect();
        // Without `run  b` the result line still stands; that one is no witness.
        cases.retain(|lines| lines.contains(&"run  b"));
        cases.push([GOOD, &["selftest: 1 passed, 0 failed, 1 skipped"]].concat());
        cases.push([GOOD, &["run  c"]].concat());
        cases.push(vec!["online: 4 processors", "selftest: 0 passed, 0 failed, 0 skipped"]);
        cases.push([&["online: 3 processors"], &GOOD[1..]].concat());
        cases.push([GOOD, &["*** STOP 0xE2 MANUALLY_INITIATED_CRASH (0x0, 0x0, 0x0, 0x0)"]].concat());
        for lines in cases {
            let verdict = verdict(End::Exited(33), &lines);
            assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}: {lines:?}");
        }
    }

    #[test]
    fn each_end_has_its_exit_status() {
        let stop = &["*** STOP 0xE2 MANUALLY_INITIATED_CRASH (0x0, 0x0, 0x0, 0x0)"];
        for (end, lines, status) in [
            (End::Exited(33), GOOD, 0),
            (End::Exited(35), &["FAIL a: x"], 1),
            (End::Exited(37), stop, 3),
            (End::Exited(37), &[], 3),
            (End::TimedOut(Duration::from_secs(1)), stop, 3),
            (End::TimedOut(Duration::from_secs(1)), GOOD, 4),
            (End::Flooded, GOOD, 4),
            (End::Exited(39), &["boot: no module"], 5),
            (End::Exited(0), GOOD, 6),
            (End::Exited(1), &[], 6),
            (End::Killed(11), GOOD, 6),
            (End::Reset, GOOD, 6),
            (End::Interrupted, GOOD, 130),
        ] {
            let verdict = verdict(end, lines);
            assert_eq!(verdict.exit_status(), status, "{verdict:?}");
        }
    }

    #[test]
    fn a_hang_names_the_test_it_hangs_in() {
        let verdict = verdict(End::TimedOut(Duration::from_secs(9)), &["run  slow"]);
        assert_eq!(verdict, Verdict::Hang("no end after 9 s, in the test slow".into()));
    }

    #[test]
    fn the_table_has_a_line_a_test() {
        let text = table(&run(End::Exited(33), GOOD).transcript.tests);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("needs 8 processors"));
    }
}
