//! The bench's rows: read from what the guest prints, compared with their bounds and with the baseline in the tree.
//!
//! The guest's lines, behind the log's stamp:
//!
//! | text | meaning |
//! |---|---|
//! | `known NAME wanted W read R` | a calibration: code of known length, and what it read |
//! | `row NAME samples N min A median B max C bound D` | a row; `-` where there is no bound |
//! | `bench: N rows` | all have been printed |

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::guest;

pub(crate) mod document;

pub(crate) use document::{COUNTS, Place, counts_table, document, document_comparison, markdown, table};

/// A row may grow or fall by this much against the baseline, in percent. Counts are exact: this is no tolerance for noise, but lets
/// unrelated code move a large row by an instruction or two.
const CHANGE_PERCENT: u64 = 3;

/// What a row must have at least.
const LEAST_SAMPLES: u64 = 1000;

/// What an operation may take more, in percent, where eight processors do it at once, each with its own things.
const SCALING_PERCENT: u64 = 10;

/// The same of rows that go by the machine's lists of free pages: blocks are split and merged there as their neighbours happen to be
/// free.
const SHARED_PERCENT: u64 = 20;
const SHARED: &[&str] = &["memory::page_by_40"];

/// Two rows of one operation, the second beside so many things that its number must not matter: they differ by this at most, in percent
/// of the first.
const ALIKE_PERCENT: u64 = 10;
const ALIKE: &[(&str, &str)] = &[
    ("timer::set_cancel", "timer::set_cancel_with_10000_armed"),
    ("threads::yield_switch", "threads::yield_switch_of_2000"),
    ("waits::set_event_without_waiter", "waits::set_event_without_waiter_of_2000"),
    ("waits::set_event_to_higher_thread", "waits::set_event_to_higher_thread_of_2000"),
    ("waits::wait_for_signalled_event", "waits::wait_for_signalled_event_of_2000"),
    ("waits::event_round_trip", "waits::event_round_trip_of_2000"),
];

/// One row as measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// `area::operation`.
    pub(crate) name: String,
    /// Processors of the boot that it was measured in.
    pub(crate) processors: u32,
    /// How often it was measured.
    pub(crate) samples: u64,
    /// Instructions.
    #[serde(flatten)]
    pub(crate) counts: Counts,
    /// What no sample may exceed.
    pub(crate) bound: Option<u64>,
}

/// Instructions of a row's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// The least.
    pub(crate) min: u64,
    /// Half of the samples have no more.
    pub(crate) median: u64,
    /// The most.
    pub(crate) max: u64,
}

/// What is stored of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// As in [`Row`].
    pub(crate) processors: u32,
    /// As in [`Row`].
    #[serde(flatten)]
    pub(crate) counts: Counts,
    /// As in [`Row`].
    pub(crate) bound: Option<u64>,
}

/// The stored rows, by name.
pub(crate) type Baseline = BTreeMap<String, Stored>;

/// The rows of one boot's output. A guest whose calibration is off, or whose lines don't add up, has measured nothing.
pub(crate) fn rows(serial: &[u8], processors: u32) -> Result<Vec<Row>> {
    let text = String::from_utf8_lossy(serial);
    let (mut rows, mut known, mut announced) = (Vec::new(), 0, None);
    for line in text.lines().filter_map(|line| Some(guest::without_stamp(line)?.trim())) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["known", name, "wanted", wanted, "read", read] => {
                ensure!(wanted == read, "calibration {name}: {wanted} instructions read {read}");
                known += 1;
            }
            ["row", fields @ ..] => {
                rows.push(row(fields, processors).with_context(|| format!("not a row: {line}"))?);
            }
            ["known", ..] => bail!("not a calibration: {line}"),
            ["bench:", count, "rows"] => announced = count.parse::<usize>().ok(),
            _ => {}
        }
    }
    ensure!(known > 0, "no calibration was printed");
    ensure!(announced == Some(rows.len()), "{announced:?} rows were announced, {} printed", rows.len());
    ensure!(!rows.is_empty(), "no row was printed");
    Ok(rows)
}

/// The line of one row.
pub(crate) fn row(fields: &[&str], processors: u32) -> Result<Row> {
    let ["samples", samples, "min", min, "median", median, "max", max, "bound", bound] =
        fields.get(1..).unwrap_or_default()
    else {
        bail!("fields other than expected");
    };
    let counts = Counts { min: min.parse()?, median: median.parse()?, max: max.parse()? };
    ensure!(counts.min <= counts.median && counts.median <= counts.max, "out of order");
    let samples = samples.parse()?;
    ensure!(samples >= LEAST_SAMPLES, "fewer than {LEAST_SAMPLES} samples");
    let bound = if *bound == "-" { None } else { Some(bound.parse()?) };
    Ok(Row { name: fields[0].to_owned(), processors, samples, counts, bound })
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A sample is above the bound.
    ExceedsBound { row: String, max: u64, bound: u64 },
    /// Median or maximum has grown.
    Grew { row: String, from: Counts, to: Counts },
    /// Or fallen: as long as the baseline doesn't say so, it could grow back unseen.
    Fell { row: String, from: Counts, to: Counts },
    /// The image's bound is not the baseline's.
    OtherBound { row: String, from: Option<u64>, to: Option<u64> },
    /// More work for an operation where more processors do it.
    Scales { row: String, alone: u64, together: u64 },
    /// The number of other things has a part in what the operation takes.
    Differs { row: String, few: u64, many: u64 },
    /// Not in the baseline.
    New(String),
    /// In the baseline, but not measured.
    Missing(String),
    /// Measured twice under one name.
    Twice(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExceedsBound { row, max, bound } => write!(f, "{row}: {max} instructions, bound {bound}"),
            Self::Grew { row, from, to } => write!(
                f,
                "{row}: grew by more than {CHANGE_PERCENT} % (median {} to {}, max {} to {})",
                from.median, to.median, from.max, to.max
            ),
            Self::Fell { row, from, to } => write!(
                f,
                "{row}: fell by more than {CHANGE_PERCENT} % (median {} to {}, max {} to {}): bless it",
                from.median, to.median, from.max, to.max
            ),
            Self::OtherBound { row, from, to } => {
                write!(f, "{row}: its bound is {}, in the baseline {}", told(*to), told(*from))
            }
            Self::Scales { row, alone, together } => write!(
                f,
                "{row}: {alone} instructions alone, {together} where eight processors do it: more than {} %",
                scaling_percent(row)
            ),
            Self::Differs { row, few, many } => write!(
                f,
                "{row}: {many} instructions, {few} with few others: more than {ALIKE_PERCENT} % apart"
            ),
            Self::New(row) => write!(f, "{row}: not in the baseline"),
            Self::Missing(row) => write!(f, "{row}: in the baseline, but not measured"),
            Self::Twice(row) => write!(f, "{row}: two rows have this name"),
        }
    }
}

/// All that is wrong.
pub(crate) fn compare(rows: &[Row], baseline: &Baseline) -> Vec<Finding> {
    let mut findings: Vec<Finding> = rows.iter().filter_map(exceeds).collect();
    let mut seen = BTreeMap::new();
    for row in rows {
        if seen.insert(row.name.as_str(), ()).is_some() {
            findings.push(Finding::Twice(row.name.clone()));
        }
        match baseline.get(&row.name) {
            None => findings.push(Finding::New(row.name.clone())),
            Some(stored) => findings.extend(changed(row, stored)),
        }
    }
    findings.extend(rows.iter().filter_map(|row| scales(row, rows)));
    findings.extend(ALIKE.iter().filter_map(|names| differs(names, rows)));
    let gone = baseline.keys().filter(|name| !seen.contains_key(name.as_str()));
    findings.extend(gone.cloned().map(Finding::Missing));
    findings
}

/// What differs from what is stored of the row: its counts, its bound.
fn changed(row: &Row, stored: &Stored) -> impl Iterator<Item = Finding> {
    let (from, to, name) = (stored.counts, row.counts, || row.name.clone());
    let counts = if exceeds_by_more(from.median, to.median)
        || (has_steady_max(row) && exceeds_by_more(from.max, to.max))
    {
        Some(Finding::Grew { row: name(), from, to })
    } else if falls_by_more(from.median, to.median)
        || (has_steady_max(row) && falls_by_more(from.max, to.max))
    {
        Some(Finding::Fell { row: name(), from, to })
    } else {
        None
    };
    let bound = (stored.bound != row.bound).then(|| Finding::OtherBound {
        row: name(),
        from: stored.bound,
        to: row.bound,
    });
    counts.into_iter().chain(bound)
}

/// What an operation by this name may take more on eight processors.
fn scaling_percent(name: &str) -> u64 {
    if SHARED.contains(&name) { SHARED_PERCENT } else { SCALING_PERCENT }
}

/// Compares what one processor takes, by the name, with what each of eight does.
fn scales(one: &Row, rows: &[Row]) -> Option<Finding> {
    let name = one.name.strip_suffix("_on_1")?;
    let eight = rows.iter().find(|row| row.name.strip_suffix("_on_each_of_8") == Some(name))?;
    let (alone, together) = (one.counts.median, eight.counts.median);
    let row = name.to_owned();
    (together * 100 > alone * (100 + scaling_percent(name))).then_some(Finding::Scales {
        row,
        alone,
        together,
    })
}

/// Compares two rows that are to be alike, where both were measured.
fn differs(&(few, many): &(&str, &str), rows: &[Row]) -> Option<Finding> {
    let median = |name| rows.iter().find(|row| row.name == name).map(|row| row.counts.median);
    let (few, row, many) = (median(few)?, many.to_owned(), median(many)?);
    (few.abs_diff(many) * 100 > few * ALIKE_PERCENT).then_some(Finding::Differs { row, few, many })
}

fn exceeds(row: &Row) -> Option<Finding> {
    let max = row.counts.max;
    row.bound.filter(|&bound| max > bound).map(|bound| Finding::ExceedsBound {
        row: row.name.clone(),
        max,
        bound,
    })
}

/// Where several processors do the same at once, what their worst sample meets is as their steps happen to fall, which any change of the
/// image moves, a path in it for one: there the median counts, and the bound.
fn has_steady_max(row: &Row) -> bool {
    !row.name.contains("_on_each_of_")
}

fn exceeds_by_more(from: u64, to: u64) -> bool {
    to * 100 > from * (100 + CHANGE_PERCENT)
}

fn falls_by_more(from: u64, to: u64) -> bool {
    to * 100 < from * (100 - CHANGE_PERCENT)
}

/// A bound as tables show it.
fn told(bound: Option<u64>) -> String {
    bound.map_or_else(|| "-".to_owned(), |bound| bound.to_string())
}

/// The rows as a baseline.
pub(crate) fn of(rows: &[Row]) -> Baseline {
    let stored = |row: &Row| Stored { processors: row.processors, counts: row.counts, bound: row.bound };
    rows.iter().map(|row| (row.name.clone(), stored(row))).collect()
}

/// Writes a value as JSON, for people to read as well.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "known loop wanted 2001 read 2001";
    const ROW: &str = "row locks::spin samples 1024 min 7 median 7 max 8 bound 10";
    const NO_BOUND: &str = "row a::b samples 1024 min 1 median 2 max 3 bound -";

    fn parsed(lines: &[&str]) -> Result<Vec<Row>> {
        let text: String = lines.iter().map(|line| format!("[    0.1 00] {line}\r\n")).collect();
        rows(text.as_bytes(), 1)
    }

    pub(super) fn measured(name: &str, median: u64, max: u64, bound: Option<u64>) -> Row {
        let counts = Counts { min: 1, median, max };
        Row { name: name.into(), processors: 1, samples: 1024, counts, bound }
    }

    #[test]
    fn rows_are_read() {
        let rows = parsed(&["online: 1 processors", KNOWN, ROW, NO_BOUND, "bench: 2 rows"]).expect("rows");
        let spin = Row {
            name: "locks::spin".into(),
            processors: 1,
            samples: 1024,
            counts: Counts { min: 7, median: 7, max: 8 },
            bound: Some(10),
        };
        assert_eq!(rows[0], spin);
        assert_eq!((rows[1].counts.max, rows[1].bound), (3, None));
    }

    #[test]
    fn a_boot_that_does_not_add_up_has_no_rows() {
        for lines in [
            &[ROW, "bench: 1 rows"][..],
            &["known loop wanted 2001 read 2002", ROW, "bench: 1 rows"],
            &["known loop wanted 2001", ROW, "bench: 1 rows"],
            &[KNOWN, ROW],
            &[KNOWN, ROW, "bench: 2 rows"],
            &[KNOWN, "bench: 0 rows"],
            &[KNOWN, "row a samples 999 min 1 median 1 max 1 bound -", "bench: 1 rows"],
            &[KNOWN, "row a samples 1024 min 2 median 1 max 1 bound -", "bench: 1 rows"],
            &[KNOWN, "row a samples 1024 min 1 median x max 1 bound -", "bench: 1 rows"],
            &[KNOWN, "row a samples 1024 min 1 median 1 max 1", "bench: 1 rows"],
            &[KNOWN, "row", "bench: 1 rows"],
        ] {
            assert!(parsed(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn lines_without_a_stamp_are_not_the_benchs() {
        assert!(rows(format!("{KNOWN}\n{ROW}\nbench: 1 rows\n").as_bytes(), 1).is_err());
    }

    #[test]
    fn what_equals_its_baseline_is_fine() {
        let rows = [measured("a", 5, 6, Some(6)), measured("b", 7, 7, None)];
        assert_eq!(compare(&rows, &of(&rows)), []);
    }

    #[test]
    fn a_sample_above_the_bound_is_found_though_the_median_is_below() {
        let rows = [measured("a", 5, 7, Some(6))];
        let finding = Finding::ExceedsBound { row: "a".into(), max: 7, bound: 6 };
        assert_eq!(compare(&rows, &of(&rows)), [finding]);
    }

    #[test]
    fn growth_counts_from_more_than_three_percent() {
        let before = of(&[measured("a", 100, 200, None)]);
        let found = |median, max| compare(&[measured("a", median, max, None)], &before).len();
        assert_eq!((found(103, 206), found(104, 200), found(100, 207)), (0, 1, 1));
        let before = of(&[measured("a_on_each_of_4", 100, 200, None)]);
        let found = |median, max| compare(&[measured("a_on_each_of_4", median, max, None)], &before).len();
        assert_eq!((found(103, 300), found(104, 200)), (0, 1));
        assert_eq!((found(97, 90), found(96, 200)), (0, 1));
        let zero = of(&[measured("a", 0, 0, None)]);
        assert_eq!(compare(&[measured("a", 1, 1, None)], &zero).len(), 1);
    }

    /// What was won could be lost again without a word, up to the old count.
    #[test]
    fn a_fall_is_found_until_it_is_blessed() {
        let before = of(&[measured("a", 100, 200, None)]);
        let found = |median, max| compare(&[measured("a", median, max, None)], &before);
        let (from, to) = (Counts { min: 1, median: 100, max: 200 }, Counts { min: 1, median: 96, max: 200 });
        assert_eq!(found(97, 194), []);
        assert_eq!(found(96, 200), [Finding::Fell { row: "a".into(), from, to }]);
        assert_eq!(found(100, 193).len(), 1);
    }

    #[test]
    fn a_bound_that_is_not_the_baselines_is_found() {
        let before = of(&[measured("a", 5, 6, Some(6))]);
        let found = |bound| compare(&[measured("a", 5, 6, bound)], &before);
        assert_eq!(found(Some(6)), []);
        for to in [Some(7), None] {
            assert_eq!(found(to), [Finding::OtherBound { row: "a".into(), from: Some(6), to }]);
        }
    }

    #[test]
    fn what_takes_more_with_more_processors_is_found() {
        let found = |name: &str, alone, together| {
            let [one, eight] = ["_on_1", "_on_each_of_8"].map(|end| format!("{name}{end}"));
            let rows = [measured(&one, alone, 200, None), measured(&eight, together, 200, None)];
            compare(&rows, &of(&rows))
        };
        assert_eq!(found("a", 100, 110), []);
        assert_eq!(found("a", 100, 111), [Finding::Scales { row: "a".into(), alone: 100, together: 111 }]);
        assert_eq!(found(SHARED[0], 100, 120), []);
        assert_eq!(found(SHARED[0], 100, 121).len(), 1);
    }

    #[test]
    fn what_takes_other_than_with_few_others_is_found() {
        let (few_name, many_name) = ALIKE[0];
        let found = |few, many| {
            let rows = [measured(few_name, few, 200, None), measured(many_name, many, 200, None)];
            compare(&rows, &of(&rows))
        };
        let differs = |few, many| [Finding::Differs { row: many_name.into(), few, many }];
        assert_eq!((found(100, 110), found(100, 90)), (vec![], vec![]));
        assert_eq!(found(100, 111), differs(100, 111));
        assert_eq!(found(100, 89), differs(100, 89));
    }

    /// A relation of rows that don't exist would hold for ever.
    #[test]
    fn rows_that_are_to_be_alike_or_are_excused_exist() {
        let baseline = crate::bench::stored().expect("a baseline");
        for (few, many) in ALIKE {
            assert!(baseline.contains_key(*few) && baseline.contains_key(*many), "{few}, {many}");
        }
        for name in SHARED {
            for end in ["_on_1", "_on_each_of_8"] {
                assert!(baseline.contains_key(&format!("{name}{end}")), "{name}{end}");
            }
        }
    }

    #[test]
    fn rows_and_baseline_must_name_the_same() {
        let (a, b) = (measured("a", 5, 5, None), measured("b", 5, 5, None));
        let only_a = of(std::slice::from_ref(&a));
        let found = compare(&[a.clone(), b.clone()], &only_a);
        assert_eq!(found, [Finding::New("b".into())]);
        assert_eq!(compare(&[b], &only_a), [Finding::New("b".into()), Finding::Missing("a".into())]);
        assert_eq!(compare(&[a.clone(), a], &only_a), [Finding::Twice("a".into())]);
    }
}
