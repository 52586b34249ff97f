//! Many boots in a row: until one fails, until one differs, or for their time.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::qemu::{Machine, Qemu};
use crate::report::{self, Expect, Verdict};
use crate::run::{self, End, Watch};
use crate::symbols::Symbols;
use crate::target::Target;

/// How long a boot may take to bring its processors online before it counts as hung.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(30);

/// Boots `count` times, with seeds counting up; stops at the first failure and shows it whole.
///
/// `identical`: one seed for all, and every boot must print what the first one printed.
pub(crate) fn boots(target: &mut Target, count: u32, identical: bool, timeout: Duration) -> Result<u8> {
    let first_seed = target.seed();
    let mut first_output: Option<Vec<u8>> = None;
    for boot in 1..=count {
        if !identical {
            target.set_seed(first_seed.wrapping_add(u64::from(boot - 1)));
        }
        let (run, verdict) = target.run(timeout, false)?;
        if verdict != Verdict::Passed {
            println!("{}", String::from_utf8_lossy(&run.serial));
            report::print(&run, &verdict, &target.symbols);
            println!("boot {boot} of {count} failed; again: {}", target.again());
            return Ok(verdict.exit_status());
        }
        let online = run.online.map_or(0.0, |d| d.as_secs_f64());
        println!(
            "boot {boot} of {count}: {} passed, seed {}, online after {online:.3} s, {:.3} s in all",
            run.transcript.counted().passed,
            target.seed(),
            run.total.as_secs_f64()
        );
        let first = first_output.get_or_insert_with(|| run.serial.clone());
        if identical && let Some(difference) = difference(first, &run.serial) {
            println!("FAILED: boot {boot} of {count} printed something else than boot 1: {difference}");
            return Ok(Verdict::Failed(difference).exit_status());
        }
    }
    Ok(0)
}

/// The first line in which two outputs differ.
fn difference(a: &[u8], b: &[u8]) -> Option<String> {
    if a == b {
        return None;
    }
    let (a, b) = (String::from_utf8_lossy(a), String::from_utf8_lossy(b));
    let (mut a, mut b) = (a.split('\n'), b.split('\n'));
    for line in 1.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (x, y) if x == y => {}
            (x, y) => {
                let show = |side: Option<&str>| side.map_or("nothing".to_owned(), |l| format!("{l:?}"));
                return Some(format!("line {line}: {} and {}", show(x), show(y)));
            }
        }
    }
    Some("bytes that are not text".into())
}

/// Prints the median time from QEMU's start to all processors online.
pub(crate) fn boot_time(target: &Target, runs: u32, below: Option<u64>) -> Result<u8> {
    let times = online_times(&target.qemu, &target.machine, &target.symbols, runs, ONLINE_TIMEOUT)?;
    let mut times = match times {
        ControlFlow::Continue(times) => times,
        ControlFlow::Break(status) => return Ok(status),
    };
    let (fastest, slowest) = (times.iter().min(), times.iter().max());
    let (fastest, slowest) = fastest.zip(slowest).context("no boot was timed")?;
    let (fastest, slowest) = (millis(*fastest), millis(*slowest));
    let median = median(&mut times).context("no boot was timed")?;
    println!(
        "{} processors online: median {:.0} ms of {runs} boots (fastest {fastest:.0}, slowest {slowest:.0})",
        target.machine.cpus,
        millis(median),
    );
    match below {
        Some(limit) if median >= Duration::from_millis(limit) => {
            println!("FAILED: not below {limit} ms");
            Ok(1)
        }
        _ => Ok(0),
    }
}

/// The median of such times, of any guest that says how many processors are online; or the status of a boot that did not come so far.
pub(crate) fn median_boot(
    qemu: &Qemu,
    machine: &Machine,
    symbols: &Symbols,
    runs: u32,
    timeout: Duration,
) -> Result<ControlFlow<u8, Duration>> {
    Ok(match online_times(qemu, machine, symbols, runs, timeout)? {
        ControlFlow::Continue(mut times) => {
            ControlFlow::Continue(median(&mut times).context("no boot was timed")?)
        }
        ControlFlow::Break(status) => ControlFlow::Break(status),
    })
}

/// The time of each boot; or the status of the first that did not come so far, which is shown.
fn online_times(
    qemu: &Qemu,
    machine: &Machine,
    symbols: &Symbols,
    runs: u32,
    timeout: Duration,
) -> Result<ControlFlow<u8, Vec<Duration>>> {
    let watch = Watch { timeout: Some(timeout), live: false, until_online: true };
    let mut times = Vec::new();
    for _ in 0..runs {
        let run = run::guest(qemu, machine, symbols, &watch)?;
        let all_online = run.transcript.online == Some(u64::from(machine.cpus));
        let Some(online) = run.online.filter(|_| all_online) else {
            let verdict = report::judge(&run, Expect { cpus: machine.cpus, tests: false });
            println!("{}", String::from_utf8_lossy(&run.serial));
            report::print(&run, &verdict, symbols);
            return Ok(ControlFlow::Break(verdict.exit_status().max(1)));
        };
        if run.end == End::Interrupted {
            return Ok(ControlFlow::Break(Verdict::Interrupted.exit_status()));
        }
        times.push(online);
    }
    Ok(ControlFlow::Continue(times))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle value, or the mean of the two in the middle.
fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    let upper = *times.get(times.len() / 2)?;
    let lower = *times.get((times.len() - 1) / 2)?;
    Some((lower + upper) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown() {
        assert_eq!(difference(b"a\nb\n", b"a\nb\n"), None);
        assert_eq!(difference(b"a\nb\n", b"a\nc\n").as_deref(), Some(r#"line 2: "b" and "c""#));
        assert_eq!(difference(b"a\n", b"a\nb\n").as_deref(), Some(r#"line 2: "" and "b""#));
        assert!(difference(b"\xff", b"\xfe").is_some());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let mut times = [4, 1, 3, 2].map(Duration::from_millis);
        assert_eq!(median(&mut times), Some(Duration::from_micros(2500)));
        assert_eq!(median(&mut [Duration::from_millis(7)]), Some(Duration::from_millis(7)));
        assert_eq!(median(&mut []), None);
    }
}
