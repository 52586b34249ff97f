//! Deliberate fatal ends: each must be reported as it is, once, with the right stop code, name and parameters.
//!
//! The self-test image, given `crash=NAME`, does something fatal instead of running its tests.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::Stop;
use crate::report::{self, Verdict};
use crate::run::{End, Run};
use crate::symbols::Symbols;
use crate::target::{GuestArgs, ImageChoice, Target};

/// A boot to the report and out takes about a second.
const TIMEOUT: Duration = Duration::from_secs(60);
/// By then a guest is at the place where it is to hang, even on a busy host.
const HANG_AFTER: Duration = Duration::from_secs(8);

/// A deliberate end and what must be told of it.
struct Crash {
    /// What `crash=` names.
    name: &'static str,
    /// Processors it takes to show.
    cpus: u32,
    wanted: Wanted,
}

/// How the run must end.
enum Wanted {
    /// One report, complete.
    Report(Headline),
    /// A report whose callback, the last thing before the exit, fails in turn: and a short report of that.
    FailedAgain(Headline),
    /// Nothing from the guest: the harness tells where each processor is.
    Hang,
}

/// The first line of a report.
struct Headline {
    code: u64,
    name: &'static str,
    /// `None`: differs from run to run or from build to build.
    parameters: [Option<u64>; 4],
}

const ANY: Option<u64> = None;

/// Every deliberate end that the self-test image knows.
const CRASHES: &[Crash] = &[
    Crash { name: "manual", cpus: 4, wanted: Wanted::Report(manual([Some(1), Some(2), Some(3), Some(4)])) },
    Crash {
        // The page below the stack takes the first fault, and its frame cannot be pushed: a double fault.
        name: "stack_overflow",
        cpus: 2,
        wanted: Wanted::Report(Headline {
            code: 0x7F,
            name: "UNEXPECTED_KERNEL_MODE_TRAP",
            parameters: [Some(8), ANY, ANY, ANY],
        }),
    },
    Crash {
        // A Rust panic counts as an exception that nothing handles, with a status of its own.
        name: "panic",
        cpus: 2,
        wanted: Wanted::Report(Headline {
            code: 0x1E,
            name: "KMODE_EXCEPTION_NOT_HANDLED",
            parameters: [Some(0xE000_0001), ANY, ANY, Some(0)],
        }),
    },
    Crash {
        name: "recursion",
        cpus: 2,
        wanted: Wanted::FailedAgain(manual([Some(5), Some(0), Some(0), Some(0)])),
    },
    Crash {
        // Whichever processor is first reports, and names itself in the second parameter.
        name: "two_at_once",
        cpus: 4,
        wanted: Wanted::Report(manual([Some(6), ANY, Some(0), Some(0)])),
    },
    Crash {
        name: "unannounced_nmi",
        cpus: 2,
        wanted: Wanted::Report(Headline { code: 0x80, name: "NMI_HARDWARE_FAILURE", parameters: [ANY; 4] }),
    },
    Crash {
        name: "forgotten_raise",
        cpus: 1,
        wanted: Wanted::Report(Headline {
            code: 0xC8,
            name: "IRQL_UNEXPECTED_VALUE",
            // Found DISPATCH where PASSIVE is the least.
            parameters: [Some(2), Some(0), ANY, ANY],
        }),
    },
    Crash {
        // Error code 3: a write, and the page is there.
        name: "write_text",
        cpus: 1,
        wanted: Wanted::Report(Headline {
            code: 0xBE,
            name: "ATTEMPTED_WRITE_TO_READONLY_MEMORY",
            parameters: [ANY, Some(3), ANY, Some(0)],
        }),
    },
    Crash {
        // A read of address 16 at DISPATCH, which is 2.
        name: "fault_at_dispatch",
        cpus: 1,
        wanted: Wanted::Report(Headline {
            code: 0x0A,
            name: "IRQL_NOT_LESS_OR_EQUAL",
            parameters: [Some(16), Some(2), Some(0), ANY],
        }),
    },
    Crash { name: "hang", cpus: 2, wanted: Wanted::Hang },
];

/// The report of a bugcheck that the image asked for, with parameters of its own.
const fn manual(parameters: [Option<u64>; 4]) -> Headline {
    Headline { code: 0xE2, name: "MANUALLY_INITIATED_CRASH", parameters }
}

/// Boots every crash whose name contains `only`; status 1 if one is not as it must be.
pub(crate) fn all(only: Option<&str>) -> Result<u8> {
    let chosen: Vec<&Crash> =
        CRASHES.iter().filter(|crash| only.is_none_or(|only| crash.name.contains(only))).collect();
    ensure!(!chosen.is_empty(), "no crash has a name with {:?}", only.unwrap_or_default());
    let mut failed = 0;
    for crash in &chosen {
        let args = GuestArgs {
            cpus: crash.cpus,
            append: vec![format!("crash={}", crash.name)],
            ..GuestArgs::default()
        };
        let target = Target::prepare(&args, ImageChoice::Selftest)?;
        let timeout = if matches!(crash.wanted, Wanted::Hang) { HANG_AFTER } else { TIMEOUT };
        let (run, verdict) = target.run(timeout, false)?;
        if verdict == Verdict::Interrupted {
            return Ok(verdict.exit_status());
        }
        let told = crash.compare(&run, &verdict).and_then(|()| located(&run, &target.symbols));
        match told {
            Ok(()) => println!("ok   {} ({} ms)", crash.name, run.total.as_millis()),
            Err(why) => {
                failed += 1;
                println!("{}", String::from_utf8_lossy(&run.serial));
                report::print(&run, &verdict);
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

impl Crash {
    /// Whether the run ended as it must; else, in which way it did not.
    fn compare(&self, run: &Run, verdict: &Verdict) -> Result<(), String> {
        let said = &run.transcript;
        let counts = (said.stops.len(), said.whole_reports, said.failed_again);
        let (headline, wanted) = match &self.wanted {
            Wanted::Report(headline) => (headline, (1, 1, 0)),
            Wanted::FailedAgain(headline) => (headline, (2, 1, 1)),
            Wanted::Hang => return self.compare_hang(run, verdict),
        };
        if counts != wanted {
            return Err(format!(
                "(stop lines, whole reports, failures in one) are {counts:?} instead of {wanted:?}"
            ));
        }
        headline.compare(&said.stops[0])?;
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
    fn compare(&self, Stop { code, name, parameters }: &Stop) -> Result<(), String> {
        if *code != self.code || name != self.name {
            return Err(format!("{code:#x} {name} instead of {:#x} {}", self.code, self.name));
        }
        for (number, (&is, wanted)) in (1..).zip(parameters.iter().zip(self.parameters)) {
            if let Some(wanted) = wanted.filter(|&wanted| wanted != is) {
                return Err(format!("parameter {number} is {is:#x} instead of {wanted:#x}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Transcript;
    use crate::report::Expect;

    const TRAP: Headline = Headline { code: 0x7F, name: "TRAP", parameters: [Some(8), ANY, ANY, ANY] };
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
        };
        let verdict = report::judge(&run, Expect { cpus: 2, tests: true });
        Crash { name: "x", cpus: 2, wanted }.compare(&run, &verdict)
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
        let mut names: Vec<_> = CRASHES.iter().map(|crash| crash.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CRASHES.len());
    }
}
