//! Boots the bench image under the instruction counter, and compares what it counted with the bounds and the baseline; then without it, for
//! what the counter doesn't see.

mod chart;
mod ticks;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::baseline::{self, Baseline, Finding, Row};
use crate::image;
use crate::peer;
use crate::qemu::Accel;
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};

/// Processors of each boot: alone for the local rows, four for those between processors, each number for what all do at once.
const BOOTS: [u32; 4] = [1, 2, 4, 8];
/// A boot takes a few seconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What to do with the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Show them.
    Show,
    /// And fail if one is above its bound, has grown, is new or missing.
    Check,
    /// Make them the baseline.
    Bless,
}

/// Measures, prints the table, writes the JSON.
pub(crate) fn run(mode: Mode) -> Result<u8> {
    let rows = match counted()? {
        ControlFlow::Continue(rows) => rows,
        ControlFlow::Break(status) => return Ok(status),
    };
    if mode == Mode::Bless {
        let blessed = baseline::of(&rows);
        baseline::write_json(&stored_at(), &blessed)?;
        // The documentation's table follows.
        baseline::document(baseline::COUNTS, &baseline::counts_table(&rows))?;
        baseline::document_comparison(&blessed)?;
        // The peer's table has a column of these counts.
        peer::document(&peer::Account::stored()?, &blessed)?;
    }
    let stored = stored()?;
    let findings = baseline::compare(&rows, &stored);
    // No verdict depends on them, as they differ from run to run.
    let times = if mode == Mode::Check { BTreeMap::new() } else { ticks::measure()? };
    print!("{}", baseline::table(&rows, &stored, &times));
    let account = image::target_dir().join("bench.json");
    let timed = |row| Timed { row, time: times.get(&row.name).copied() };
    baseline::write_json(&account, &rows.iter().map(timed).collect::<Vec<_>>())?;
    println!("instructions; as JSON in {}", account.display());
    if mode != Mode::Check {
        let picture = image::target_dir().join("bench.svg");
        chart::draw(&picture, &rows, &times)?;
        println!(
            "time: without the counter, in instructions of a plain loop; as a chart in {}",
            picture.display()
        );
    }
    Ok(judge(mode, &rows, &findings))
}

/// The rows of all boots; or the status of the one that counted nothing, which has been reported.
pub(crate) fn counted() -> Result<ControlFlow<u8, Vec<Row>>> {
    let mut rows = Vec::new();
    for cpus in BOOTS {
        let args = GuestArgs { cpus, accel: Some(Accel::Icount), ..GuestArgs::default() };
        let target = Target::prepare(&args, ImageChoice::Bench)?;
        let (run, verdict) = target.run(TIMEOUT, false)?;
        if verdict == Verdict::Interrupted {
            return Ok(ControlFlow::Break(verdict.exit_status()));
        }
        // Looked at in any case: of a calibration that is off, the guest's lines tell more than its exit status.
        match (baseline::rows(&run.serial, cpus), &verdict) {
            (Ok(counted), Verdict::Passed) => rows.extend(counted),
            (counted, _) => {
                println!("{}", String::from_utf8_lossy(&run.serial));
                report::print(&run, &verdict, &target.symbols);
                if let Err(why) = counted {
                    println!("no counts: {why:#}");
                }
                println!("again: {}", target.again());
                return Ok(ControlFlow::Break(verdict.exit_status().max(1)));
            }
        }
    }
    Ok(ControlFlow::Continue(rows))
}

/// A row of the JSON.
#[derive(serde::Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    row: &'a Row,
    /// As [`ticks::measure`] says.
    time: Option<f64>,
}

/// By row: how many instructions of a plain loop take as long, without the instruction counter.
pub(crate) type Times = BTreeMap<String, f64>;

/// Prints the findings, and says whether they count. A baseline can excuse growth, but not a bound.
fn judge(mode: Mode, rows: &[Row], findings: &[Finding]) -> u8 {
    for finding in findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => println!("{} rows, each within its bound and its baseline", rows.len()),
        n => println!(
            "findings: {n}; `make bench BLESS=1` makes these counts the baseline, and leaves the bounds"
        ),
    }
    u8::from(mode != Mode::Show && !findings.is_empty())
}

fn stored_at() -> PathBuf {
    image::workspace().join("tests/bench/baseline.json")
}

/// The counts in the tree.
pub(crate) fn stored() -> Result<Baseline> {
    let path = stored_at();
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a baseline", path.display()))
}
