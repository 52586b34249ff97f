//! Samples every row and prints a line for each.
//!
//! What the harness reads, behind the log's stamp:
//!
//! ```text
//! known NAME wanted W read R                          a calibration: both equal, or the run has failed
//! row NAME samples N min A median B max C bound D     D is `-` where there is none
//! bench: N rows
//! ```
//!
//! With the word `ticks` on the command line the TSC is no instruction counter: rows are in its ticks, and in place of the calibrations there
//! is what a loop of known length takes. With four processors only the wakes are such rows: the others' sums need turns.
//!
//! ```text
//! loop L takes T                                      L instructions in T ticks
//! ```

use core::fmt;

use arch::exit::Outcome;
use kernel::boot::command_line::CommandLine;
use kernel::boot::facts;
use kernel::ke::{clock, prcb};
use sync::irql::{Dispatch, Irql, Passive};

use crate::rows::{self, Probe, Row};
use crate::{calibrate, lines, measure, park};

/// Samples of a row.
const SAMPLES: usize = 1024;
/// Runs before the first sample.
const WARM_UP: usize = 32;

pub(crate) fn main(at: &mut Irql<Passive>) -> Outcome {
    if CommandLine::new(facts().info.command_line).has("lines") {
        return lines::run(at);
    }
    measure::learn_cost();
    let count = prcb::count();
    let alone = count == 1;
    if park::stay_on_the_first(at).is_err() {
        return Outcome::Failed;
    }
    let ticks = CommandLine::new(facts().info.command_line).has("ticks");
    if ticks {
        calibrate::tell_ticks();
    }
    let mut printed = 0;
    if !alone {
        if count == 4 {
            printed += run(rows::IDLE, at);
            if ticks {
                kernel::info!("bench: {printed} rows");
                return Outcome::Passed;
            }
        }
        if park::prepare(at).is_err() {
            return Outcome::Failed;
        }
        park::wait_for_all();
    }
    if !ticks && !(if alone { calibrate::local(at) } else { calibrate::between_processors(at) }) {
        return Outcome::Failed;
    }
    let areas = match count {
        1 => rows::LOCAL,
        2 => rows::TWO,
        4 => rows::BETWEEN,
        _ => rows::MANY,
    };
    printed += run(areas, at);
    kernel::info!("bench: {printed} rows");
    Outcome::Passed
}

/// Samples the rows of `areas`; how many.
fn run(areas: &[rows::Area], at: &mut Irql<Passive>) -> usize {
    let mut printed = 0;
    for area in areas {
        (area.prepare)(at);
        for row in area.rows {
            report(row, &mut sample(row, at));
            printed += 1;
        }
    }
    printed
}

fn sample(row: &Row, at: &mut Irql<Passive>) -> [u32; SAMPLES] {
    let mut samples = [0; SAMPLES];
    match row.probe {
        Probe::Passive(probe) => fill(&mut samples, row, || probe(at)),
        Probe::Dispatch(probe) => {
            let mut raised = at.raise::<Dispatch>();
            fill(&mut samples, row, || probe(&mut raised));
        }
    }
    samples
}

/// A busy processor takes a clock interrupt each 15 ms for the shared time. It belongs to no operation, so a sample that it
/// fell into is taken again; and so is one whose own clock interrupt found the shared time due as well, and the first behind an
/// interrupt, which may have ended a quantum that is then armed anew.
///
/// Of these, `measure::undisturbed` needs only the first where more than one processor counts.
fn fill(samples: &mut [u32], row: &Row, mut once: impl FnMut() -> u32) {
    measure::has_failed();
    let mut last = clock_interrupts();
    let mut undisturbed = || {
        loop {
            let before = (clock_interrupts(), clock::interrupt_time());
            if row.clocks == 0 && before.0 != last {
                last = before.0;
                once();
                continue;
            }
            let counted = once();
            let sample = if measure::has_failed() { u32::MAX } else { counted };
            let clocks = clock_interrupts().wrapping_sub(before.0);
            if clocks == row.clocks && (row.idles || clock::interrupt_time() == before.1) {
                return sample;
            }
        }
    };
    for _ in 0..WARM_UP {
        undisturbed();
    }
    samples.fill_with(undisturbed);
}

/// Clock interrupts of the processor that measures, the first.
fn clock_interrupts() -> u32 {
    measure::clocks(prcb::get(0).into_iter())
}

fn report(row: &Row, samples: &mut [u32]) {
    samples.sort_unstable();
    let (min, median, max) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
    let (name, count, bound) = (row.name, samples.len(), Bound(row.bound));
    kernel::info!("row {name} samples {count} min {min} median {median} max {max} bound {bound}");
}

struct Bound(Option<u32>);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bound) => bound.fmt(f),
            None => f.write_str("-"),
        }
    }
}
