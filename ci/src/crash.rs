//! Deliberate fatal ends: each must be reported as it is, once, with the right stop code, name and parameters.
//!
//! The self-test image, given `crash=NAME`, does something fatal instead of running its tests.

mod list;

use std::time::Duration;

use anyhow::{Result, ensure};

use Parameter::{Any, At, In, Is, Paged, Told};
use list::CRASHES;

use crate::dump;
use crate::guest::Stop;
use crate::image::workspace;
use crate::report::{self, Verdict};
use crate::run::{End, Run};
use crate::symbols::Symbols;
use crate::target::{GuestArgs, ImageChoice, Target};

/// A boot to the report and out takes about a second.
const TIMEOUT: Duration = Duration::from_secs(60);
/// By then a guest is at the place where it is to hang, even on a busy host.
const HANG_AFTER: Duration = Duration::from_secs(8);

/// Where paged pool begins.
const PAGED_POOL: u64 = 0xFFFF_E800_0000_0000;

/// A deliberate end and what must be told of it.
struct Crash {
    /// What `crash=` names.
    name: &'static str,
    /// Processors it takes to show.
    cpus: u32,
    /// More words for the command line.
    words: &'static [&'static str],
    wanted: Wanted,
}

/// How the run must end.
enum Wanted {
    /// One report, complete.
    Report(Headline),
    /// The same, and the log says this.
    Saying(Headline, &'static str),
    /// A report whose callback, the last thing before the exit, fails in turn: and a short report of that.
    FailedAgain(Headline),
    /// Nothing from the guest: the harness tells where each processor is.
    Hang,
}

/// The first line of a report.
struct Headline {
    code: u64,
    name: &'static str,
    parameters: [Parameter; 4],
}

/// What a parameter must be.
#[derive(Clone, Copy)]
enum Parameter {
    /// It differs from run to run or from build to build.
    Any,
    Is(u64),
    /// An address in the function of this name.
    In(&'static str),
    /// A place in the source: the log names it, and the line there contains this.
    At(&'static str),
    /// An address in paged pool, this far behind a page's start.
    Paged(u64),
    /// This much more than the number behind this word in the log, the last such line's.
    Told(&'static str, u64),
}

/// What `crash=` may name.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CRASHES.iter().map(|crash| crash.name)
}

/// Boots every crash whose name contains `only`; status 1 if one is not as it must be.
pub(crate) fn all(only: Option<&str>) -> Result<u8> {
    let chosen: Vec<&Crash> =
        CRASHES.iter().filter(|crash| only.is_none_or(|only| crash.name.contains(only))).collect();
    ensure!(!chosen.is_empty(), "no crash has a name with {:?}", only.unwrap_or_default());
    let mut failed = 0;
    for crash in &chosen {
        let words = crash.words.iter().map(|&word| word.to_owned());
        let args = GuestArgs {
            cpus: crash.cpus,
            append: words.chain([format!("crash={}", crash.name)]).collect(),
            ..GuestArgs::default()
        };
        let target = Target::prepare(&args, ImageChoice::Selftest)?;
        let timeout = if matches!(crash.wanted, Wanted::Hang) { HANG_AFTER } else { TIMEOUT };
        let (run, verdict) = target.run(timeout, false)?;
        if verdict == Verdict::Interrupted {
            return Ok(verdict.exit_status());
        }
        let told = crash
            .compare(&run, &verdict, &target.symbols)
            .and_then(|()| located(&run, &target.symbols))
            .and_then(|()| traced(&run, crash.cpus))
            .and_then(|()| dumped(crash, &run, &target));
        match told {
            Ok(()) => println!("ok   {} ({} ms)", crash.name, run.total.as_millis()),
            Err(why) => {
                failed += 1;
                println!("{}", String::from_utf8_lossy(&run.serial));
                report::print(&run, &verdict, &target.symbols);
                println!("FAIL {}: {why}; again: {}", crash.name, target.again());
            }
        }
    }
    println!("crashes: {} as they must be, {failed} not", chosen.len() - failed);
    Ok(u8::from(failed > 0))
}

/// Whether somewhere in the account there is a code address that the symbols know: a backtrace of nothing helps nobody.
fn located(run: &Run, symbols: &Symbols) -> Result<(), String> {
    let serial = String::from_utf8_lossy(&run.serial);
    let whereabouts = run.whereabouts.as_deref().unwrap_or_default();
    let known = serial.lines().chain(whereabouts.lines()).any(|line| !symbols.mentioned(line).is_empty());
    if known { Ok(()) } else { Err("no address in the account is one of the image's code".into()) }
}

/// Whether the trace tells what every processor did last, and, after a report, of the bugcheck.
fn traced(run: &Run, cpus: u32) -> Result<(), String> {
    let trace = run.trace.as_ref().ok_or("the guest's memory has no trace")?;
    let silent = trace.processors.iter().position(|processor| processor.events.is_empty());
    if trace.processors.len() != cpus as usize || silent.is_some() {
        return Err(format!("a trace of {} processors, {silent:?} without events", trace.processors.len()));
    }
    let told = |kind| {
        let mut events = trace.processors.iter().flat_map(|processor| &processor.events);
        events.any(|event| trace.name(event) == kind)
    };
    if run.transcript.stops.is_empty() || told("bugcheck") {
        Ok(())
    } else {
        Err("the trace has no bugcheck".into())
    }
}

/// Whether a core of the guest can be written: of one crash, since it takes a second.
fn dumped(crash: &Crash, run: &Run, target: &Target) -> Result<(), String> {
    let Some(trace) = run.trace.as_ref().filter(|_| crash.name == "manual") else { return Ok(()) };
    let write = || {
        let folder = tempfile::tempdir()?;
        let core = folder.path().join("core");
        let waiting = dump::write(&core, trace, &String::from_utf8_lossy(&run.serial))?;
        dump::check(&core, &target.machine.image, crash.cpus, &waiting)
    };
    write().map_err(|why: anyhow::Error| format!("its core: {why:#}"))
}

impl Crash {
    /// Whether the run ended as it must; else, in which way it did not.
    fn compare(&self, run: &Run, verdict: &Verdict, symbols: &Symbols) -> Result<(), String> {
        let said = &run.transcript;
        let counts = (said.stops.len(), said.whole_reports, said.failed_again);
        let (headline, wanted) = match &self.wanted {
            Wanted::Report(headline) | Wanted::Saying(headline, _) => (headline, (1, 1, 0)),
            Wanted::FailedAgain(headline) => (headline, (2, 1, 1)),
            Wanted::Hang => return self.compare_hang(run, verdict),
        };
        if counts != wanted {
            return Err(format!(
                "(stop lines, whole reports, failures in one) are {counts:?} instead of {wanted:?}"
            ));
        }
        headline.compare(&said.stops[0], symbols, &String::from_utf8_lossy(&run.serial))?;
        if let Wanted::Saying(_, text) = self.wanted
            && !String::from_utf8_lossy(&run.serial).contains(text)
        {
            return Err(format!("the log does not say {text:?}"));
        }
        match run.end {
            End::Exited(status) if status == report::status::BUGCHECK => Ok(()),
            ref end => Err(format!("the report is right, but the run ended otherwise: {end:?}")),
        }
    }

    fn compare_hang(&self, run: &Run, verdict: &Verdict) -> Result<(), String> {
        let Verdict::Hang(_) = verdict else {
            return Err(format!("judged {verdict:?} instead of a hang"));
        };
        let online = run.transcript.online;
        if online != Some(u64::from(self.cpus)) {
            return Err(format!("{online:?} processors were online before the hang"));
        }
        let whereabouts = run.whereabouts.as_deref().unwrap_or_default();
        match (0..self.cpus).find(|cpu| !whereabouts.contains(&format!("cpu {cpu}: "))) {
            Some(cpu) => Err(format!("nothing tells where processor {cpu} was")),
            None => Ok(()),
        }
    }
}

impl Headline {
    fn compare(
        &self,
        Stop { code, name, parameters }: &Stop,
        symbols: &Symbols,
        log: &str,
    ) -> Result<(), String> {
        if *code != self.code || name != self.name {
            return Err(format!("{code:#x} {name} instead of {:#x} {}", self.code, self.name));
        }
        for (number, (&is, wanted)) in (1..).zip(parameters.iter().zip(self.parameters)) {
            match wanted {
                Paged(offset) if is >> 32 != PAGED_POOL >> 32 || is % 4096 != offset => {
                    return Err(format!(
                        "parameter {number} is {is:#x}, not {offset:#x} into a page of paged pool"
                    ));
                }
                Is(wanted) if wanted != is => {
                    return Err(format!("parameter {number} is {is:#x} instead of {wanted:#x}"));
                }
                In(function) if !symbols.at(is).iter().any(|place| place.is_in(function)) => {
                    let found: Vec<String> = symbols.at(is).iter().map(ToString::to_string).collect();
                    return Err(format!("parameter {number}, {is:#x}, is in {found:?}, not in {function}"));
                }
                At(text) => {
                    let line =
                        place(log, number).ok_or_else(|| format!("parameter {number} has no place"))?;
                    if !line.contains(text) {
                        return Err(format!("parameter {number} is the place {line:?}, not {text:?}"));
                    }
                }
                Told(what, offset) => {
                    let base = told(log, what).ok_or_else(|| format!("the log tells of no {what}"))?;
                    if is != base + offset {
                        return Err(format!(
                            "parameter {number} is {is:#x}, not {offset:#x} behind {base:#x}"
                        ));
                    }
                }
                Any | Is(_) | In(_) | Paged(_) => {}
            }
        }
        Ok(())
    }
}

/// The number in the last line of the log that is nothing but it and `what`.
fn told(log: &str, what: &str) -> Option<u64> {
    let number = |line: &str| {
        line.split_once("] ")?.1.strip_prefix(what)?.trim().strip_prefix("0x").map(str::to_owned)
    };
    let digits = log.lines().filter_map(number).next_back()?;
    u64::from_str_radix(&digits, 16).ok()
}

/// The line of source that the log names for a parameter.
fn place(log: &str, number: u32) -> Option<String> {
    let (_, told) = log.split_once(&format!("bugcheck parameter {number}: "))?;
    let (file, line) = told.lines().next()?.rsplit_once(':')?;
    let text = std::fs::read_to_string(workspace().join(file)).ok()?;
    Some(text.lines().nth(line.trim().parse::<usize>().ok()?.checked_sub(1)?)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Transcript;
    use crate::report::Expect;

    const TRAP: Headline = Headline { code: 0x7F, name: "TRAP", parameters: [Is(8), Any, Any, Any] };
    const RIGHT: &str = "*** STOP 0x7F TRAP (0x8, 0x1, 0x2, 0x3)";
    const END: &str = "*** end of report";
    const AGAIN: &str = "*** failed again while reporting:";

    fn compared(wanted: Wanted, end: End, whereabouts: Option<&str>, lines: &[&str]) -> Result<(), String> {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.line(line);
        }
        let run = Run {
            end,
            transcript,
            serial: Vec::new(),
            online: None,
            total: Duration::ZERO,
            whereabouts: whereabouts.map(str::to_owned),
            complaint: String::new(),
            trace: None,
        };
        let verdict = report::judge(&run, Expect { cpus: 2, tests: true });
        Crash { name: "x", cpus: 2, words: &[], wanted }.compare(&run, &verdict, &Symbols::default())
    }

    #[test]
    fn a_place_is_the_line_that_the_log_names() {
        let log = format!("x\n[    0.1 00] bugcheck parameter 3: ci/src/crash.rs:{}\n", line!());
        assert!(place(&log, 3).is_some_and(|line| line.contains("let log = format!")));
        assert_eq!(place(&log, 2), None);
        assert_eq!(place("bugcheck parameter 3: ci/src/crash.rs:0", 3), None);
        assert_eq!(place("bugcheck parameter 3: no/such/file:7", 3), None);
    }

    #[test]
    fn a_number_is_the_last_that_the_log_tells() {
        let log = "[    0.1 00] block 0x12\r\n[    0.2 00] block 0xff00\r\n[    0.3 00] blocks 0x1\r\n";
        assert_eq!(told(log, "block"), Some(0xFF00));
        assert_eq!(told(log, "page"), None);
        let headline = |offset| Headline { parameters: [Told("block", offset), Any, Any, Any], ..TRAP };
        let stop = Stop { code: 0x7F, name: "TRAP".into(), parameters: [0xFF08, 1, 2, 3] };
        assert_eq!(headline(8).compare(&stop, &Symbols::default(), log), Ok(()));
        assert!(headline(0).compare(&stop, &Symbols::default(), log).is_err());
        assert!(headline(8).compare(&stop, &Symbols::default(), "").is_err());
    }

    #[test]
    fn one_whole_report_with_the_right_words_is_wanted() {
        let compared =
            |status, lines: &[&str]| compared(Wanted::Report(TRAP), End::Exited(status), None, lines);
        assert_eq!(compared(37, &[RIGHT, END]), Ok(()));
        for (status, lines) in [
            (33, &[RIGHT, END][..]),
            (37, &[]),
            (37, &[RIGHT]),
            (37, &[RIGHT, END, END]),
            (37, &[RIGHT, RIGHT, END]),
            (37, &[RIGHT, AGAIN, END]),
            (37, &["*** STOP 0x7E TRAP (0x8, 0x1, 0x2, 0x3)", END]),
            (37, &["*** STOP 0x7F OTHER (0x8, 0x1, 0x2, 0x3)", END]),
            (37, &["*** STOP 0x7F TRAP (0x9, 0x1, 0x2, 0x3)", END]),
        ] {
            assert!(compared(status, lines).is_err(), "{status} {lines:?}");
        }
    }

    #[test]
    fn a_failure_after_the_report_gets_a_short_one() {
        let compared = |lines: &[&str]| compared(Wanted::FailedAgain(TRAP), End::Exited(37), None, lines);
        let second = "*** STOP 0x50 FAULT (0x1, 0x2, 0x3, 0x4)";
        assert_eq!(compared(&[RIGHT, END, AGAIN, second]), Ok(()));
        for lines in [
            &[RIGHT, END][..],
            &[RIGHT, AGAIN, second],
            &[RIGHT, END, AGAIN],
            &[second, END, AGAIN, RIGHT],
            &[RIGHT, END, AGAIN, second, END],
        ] {
            assert!(compared(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_hang_is_told_for_every_processor() {
        let online = "[    0.1 00] online: 2 processors";
        let compared = |end, whereabouts, lines: &[&str]| compared(Wanted::Hang, end, whereabouts, lines);
        let late = || End::TimedOut(Duration::from_secs(1));
        assert_eq!(compared(late(), Some("cpu 0: CR8=0\ncpu 1: CR8=0\n"), &[online]), Ok(()));
        assert!(compared(late(), Some("cpu 0: CR8=0\n"), &[online]).is_err());
        assert!(compared(late(), None, &[online]).is_err());
        assert!(compared(late(), Some("cpu 0: CR8=0\ncpu 1: CR8=0\n"), &[]).is_err());
        assert!(compared(End::Exited(37), Some("cpu 0: CR8=0\ncpu 1: CR8=0\n"), &[online]).is_err());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = names().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CRASHES.len());
    }
}
