//! Deliberate bugchecks: each must end in exactly one report, with the right stop code, name and parameters.
//!
//! The self-test image, given `crash=NAME`, does something fatal instead of running its tests.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::Stop;
use crate::report::{self, Verdict};
use crate::run::{End, Run};
use crate::target::{GuestArgs, ImageChoice, Target};

/// A boot to the report and out takes about a second.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A deliberate bugcheck and what its report must say.
struct Crash {
    /// What `crash=` names.
    name: &'static str,
    /// Processors it takes to show.
    cpus: u32,
    code: u64,
    stop_name: &'static str,
    /// `None`: differs from run to run or from build to build.
    parameters: [Option<u64>; 4],
}

const ANY: Option<u64> = None;

/// Every deliberate bugcheck that the self-test image knows.
const CRASHES: &[Crash] = &[
    Crash {
        name: "manual",
        cpus: 4,
        code: 0xE2,
        stop_name: "MANUALLY_INITIATED_CRASH",
        parameters: [ANY; 4],
    },
    Crash {
        // The page below the stack takes the first fault, and its frame cannot be pushed: a double fault.
        name: "stack_overflow",
        cpus: 2,
        code: 0x7F,
        stop_name: "UNEXPECTED_KERNEL_MODE_TRAP",
        parameters: [Some(8), ANY, ANY, ANY],
    },
];

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
        let (run, verdict) = target.run(TIMEOUT, false)?;
        if verdict == Verdict::Interrupted {
            return Ok(verdict.exit_status());
        }
        match crash.compare(&run) {
            Ok(()) => println!("ok   {} ({} ms)", crash.name, run.total.as_millis()),
            Err(why) => {
                failed += 1;
                println!("{}", String::from_utf8_lossy(&run.serial));
                report::print(&run, &verdict);
                println!("FAIL {}: {why}", crash.name);
            }
        }
    }
    println!("crashes: {} as they must be, {failed} not", chosen.len() - failed);
    Ok(u8::from(failed > 0))
}

impl Crash {
    /// Whether the run ended as it must; else, in which way it did not.
    fn compare(&self, run: &Run) -> Result<(), String> {
        let stop = match run.transcript.stops.as_slice() {
            [stop] => stop,
            stops => return Err(format!("{} reports instead of one", stops.len())),
        };
        let Stop { code, name, parameters } = stop;
        if *code != self.code || name != self.stop_name {
            return Err(format!("{code:#x} {name} instead of {:#x} {}", self.code, self.stop_name));
        }
        for (number, (&is, wanted)) in (1..).zip(parameters.iter().zip(self.parameters)) {
            if wanted.is_some_and(|wanted| wanted != is) {
                return Err(format!("parameter {number} is {is:#x} instead of {:#x}", wanted.unwrap_or(0)));
            }
        }
        match run.end {
            End::Exited(status) if status == report::status::BUGCHECK => Ok(()),
            ref end => Err(format!("the report is right, but the run ended otherwise: {end:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Transcript;

    const CRASH: Crash =
        Crash { name: "x", cpus: 1, code: 0x7F, stop_name: "TRAP", parameters: [Some(8), ANY, ANY, ANY] };

    fn compared(status: i32, lines: &[&str]) -> Result<(), String> {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.line(line);
        }
        CRASH.compare(&Run {
            end: End::Exited(status),
            transcript,
            serial: Vec::new(),
            online: None,
            total: Duration::ZERO,
            whereabouts: None,
            complaint: String::new(),
        })
    }

    #[test]
    fn one_report_with_the_right_words_is_wanted() {
        let right = "*** STOP 0x7F TRAP (0x8, 0x1, 0x2, 0x3)";
        assert_eq!(compared(37, &[right]), Ok(()));
        for (status, lines) in [
            (33, &[right][..]),
            (37, &[]),
            (37, &[right, right]),
            (37, &["*** STOP 0x7E TRAP (0x8, 0x1, 0x2, 0x3)"]),
            (37, &["*** STOP 0x7F OTHER (0x8, 0x1, 0x2, 0x3)"]),
            (37, &["*** STOP 0x7F TRAP (0x9, 0x1, 0x2, 0x3)"]),
        ] {
            assert!(compared(status, lines).is_err(), "{status} {lines:?}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CRASHES.iter().map(|crash| crash.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CRASHES.len());
    }
}
