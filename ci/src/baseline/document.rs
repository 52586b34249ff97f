//! The rows as people read them: the table on the terminal, and what commands write into docs/performance.md.

use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Context, Result};

use super::{Baseline, Counts, Finding, Row, Stored, compare, told};
use crate::bench::Times;
use crate::image;

/// Two lines of docs/performance.md, between which a command writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The one before.
    pub(crate) begins: &'static str,
    /// The one behind.
    pub(crate) ends: &'static str,
}

/// The header of the table beside other kernels, which is written by hand but for the counts in its second column, `46 (memory::page)`.
const BESIDE: &str = "| operation | Kirql | best measured | comparable? |";

/// Around the table of the counts, which is written with the baseline.
pub(crate) const COUNTS: Place =
    Place { begins: "<!-- counts: written by `make bench BLESS=1` -->", ends: "<!-- end of counts -->" };

/// The table that a person reads.
pub(crate) fn table(rows: &[Row], baseline: &Baseline, times: &Times) -> String {
    let header = ["row", "CPUs", "min", "median", "max", "bound", "verdict", "baseline", "change", "time"];
    markdown(
        header,
        1..header.len(),
        rows.iter().map(|row| {
            let [a, b, c, d, e, f, g, h, i] = cells(row, baseline.get(&row.name));
            [
                a,
                b,
                c,
                d,
                e,
                f,
                g,
                h,
                i,
                times.get(&row.name).map_or_else(String::new, |time| format!("{time:.0}")),
            ]
        }),
    )
}

/// The counts alone, for the documentation.
pub(crate) fn counts_table(rows: &[Row]) -> String {
    let header = ["row", "CPUs", "min", "median", "max", "bound"];
    markdown(
        header,
        1..header.len(),
        rows.iter().map(|row| {
            let [name, cpus, min, median, max, bound, ..] = cells(row, None);
            [name, cpus, min, median, max, bound]
        }),
    )
}

/// A table. Columns in `numbers` stand to the right.
pub(crate) fn markdown<const N: usize>(
    header: [&str; N],
    numbers: Range<usize>,
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let lines: Vec<[String; N]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, cells) in lines.iter().enumerate() {
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let _ = if numbers.contains(&column) {
                write!(text, "| {cell:>width$} ")
            } else {
                write!(text, "| {cell:width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let right = numbers.contains(&column);
                let _ = write!(text, "|{}{}", "-".repeat(width + 1), if right { ':' } else { '-' });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Writes `text` into docs/performance.md, in its place.
pub(crate) fn document(place: Place, text: &str) -> Result<()> {
    let path = image::workspace().join("docs/performance.md");
    let before = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let after = inserted(&before, place, text).with_context(|| format!("{}", path.display()))?;
    std::fs::write(&path, after).with_context(|| format!("writing {}", path.display()))
}

/// Writes the medians of the baseline into the table beside other kernels.
pub(crate) fn document_comparison(baseline: &Baseline) -> Result<()> {
    let path = image::workspace().join("docs/performance.md");
    let before = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (after, _) = with_counts(&before, baseline).with_context(|| format!("{}", path.display()))?;
    std::fs::write(&path, after).with_context(|| format!("writing {}", path.display()))
}

/// `document` with the baseline's medians in the table below [`BESIDE`], and how many they are.
fn with_counts(document: &str, baseline: &Baseline) -> Result<(String, usize)> {
    let (before, rest) = document.split_once(BESIDE).with_context(|| format!("no line says {BESIDE}"))?;
    let (table, after) = rest.split_once("\n\n").context("the table has no end")?;
    let (mut text, mut counts) = (format!("{before}{BESIDE}"), 0);
    for line in table.lines() {
        let cells: Vec<&str> = line.split('|').collect();
        let mut told = cells.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
        if let Some(ours) = told.get_mut(2) {
            // Each row stands in brackets behind its count.
            for row in cells[2].split('(').skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
                let stored = baseline.get(row).with_context(|| format!("{row} is no row"))?;
                let (start, end) = ours.split_once(&format!(" ({row})")).context("a row twice")?;
                let start = start.trim_end_matches(|it: char| it.is_ascii_digit());
                *ours = format!("{start}{} ({row}){end}", stored.counts.median);
                counts += 1;
            }
        }
        text += &told.join("|");
        text.push('\n');
    }
    Ok((format!("{text}\n{after}"), counts))
}

/// `document` with `text` between the two lines that mark its place.
pub(crate) fn inserted(document: &str, Place { begins, ends }: Place, text: &str) -> Result<String> {
    let (before, rest) = document.split_once(begins).with_context(|| format!("no line says {begins}"))?;
    let (_, after) = rest.split_once(ends).with_context(|| format!("no line behind it says {ends}"))?;
    Ok(format!("{before}{begins}\n{text}{ends}{after}"))
}

fn cells(row: &Row, stored: Option<&Stored>) -> [String; 9] {
    let Counts { min, median, max } = row.counts;
    let one = std::slice::from_ref(row);
    let baseline = stored.map(|&stored| (row.name.clone(), stored)).into_iter().collect();
    let verdict = match compare(one, &baseline).first() {
        None => "ok",
        Some(Finding::ExceedsBound { .. }) => "BOUND",
        Some(Finding::Grew { .. }) => "GREW",
        Some(Finding::Fell { .. }) => "FELL",
        Some(Finding::OtherBound { .. }) => "bound?",
        Some(_) => "new",
    };
    let change = stored.map_or_else(String::new, |stored| match (stored.counts.median, median) {
        (before, now) if before == now => "0 %".to_owned(),
        (0, _) => "from 0".to_owned(),
        (before, now) => format!("{:+.1} %", 100.0 * (now as f64 / before as f64 - 1.0)),
    });
    let stored = stored.map_or_else(|| "-".to_owned(), |stored| stored.counts.median.to_string());
    [
        row.name.clone(),
        row.processors.to_string(),
        min.to_string(),
        median.to_string(),
        max.to_string(),
        told(row.bound),
        verdict.to_owned(),
        stored,
        change,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{of, tests::measured};
    use super::*;

    #[test]
    fn the_documents_table_is_replaced_and_nothing_else() {
        let Place { begins, ends } = COUNTS;
        let document = format!("a\n{begins}\nold\n{ends}\nb\n");
        let table = counts_table(&[measured("a", 5, 6, Some(7))]);
        let inserted_once = inserted(&document, COUNTS, &table).expect("both marks");
        assert_eq!(inserted_once, format!("a\n{begins}\n{table}{ends}\nb\n"));
        assert_eq!(inserted(&inserted_once, COUNTS, &table).expect("both marks"), inserted_once);
        assert!(inserted("no marks", COUNTS, &table).is_err());
        assert!(inserted(begins, COUNTS, &table).is_err());
    }

    /// The cells of the document's lines that are a table's, trimmed, between two texts.
    fn cells_between<'a>(document: &'a str, begins: &str, ends: &str) -> Vec<Vec<&'a str>> {
        let (_, rest) = document.split_once(begins).expect("the table's begin");
        let (table, _) = rest.split_once(ends).expect("the table's end");
        let cells = |line: &'a str| line.strip_prefix('|').map(|it| it.split('|').map(str::trim).collect());
        table.lines().filter_map(cells).collect()
    }

    fn document() -> String {
        let path = crate::image::workspace().join("docs/performance.md");
        std::fs::read_to_string(path).expect("in the tree")
    }

    /// Two places say the counts: they are written together, and must not be edited apart.
    #[test]
    fn the_documentation_says_what_the_baseline_says() {
        let document = document();
        let table = cells_between(&document, COUNTS.begins, COUNTS.ends);
        let told: Baseline = table
            .into_iter()
            .filter_map(|cells| {
                let [name, processors, min, median, max, bound, ..] = *cells.as_slice() else { return None };
                let counts =
                    Counts { min: min.parse().ok()?, median: median.parse().ok()?, max: max.parse().ok()? };
                let stored =
                    Stored { processors: processors.parse().ok()?, counts, bound: bound.parse().ok() };
                Some((name.to_owned(), stored))
            })
            .collect();
        assert_eq!(told, crate::bench::stored().expect("a baseline"));
    }

    /// The table beside other kernels is written by hand, but for its counts.
    #[test]
    fn the_comparison_says_what_the_baseline_says() {
        let (document, baseline) = (document(), crate::bench::stored().expect("a baseline"));
        let (told, counts) = with_counts(&document, &baseline).expect("rows of the baseline");
        assert_eq!(told, document);
        assert!(counts > 25, "{counts} counts are compared");
    }

    #[test]
    fn counts_of_the_comparison_are_replaced_and_nothing_else() {
        let baseline = of(&[measured("a::b", 5, 6, None), measured("a::c", 7, 7, None)]);
        let document = |b, c| {
            format!("1 (a::b)\n{BESIDE}\n|---|\n| x | {b} (a::b), by y; {c} (a::c) | 1 (z) |\n\n1 (a::b)\n")
        };
        assert_eq!(with_counts(&document(1, 2), &baseline).expect("rows"), (document(5, 7), 2));
        assert!(with_counts(&document(1, 2), &Baseline::new()).is_err(), "no such row");
        assert!(with_counts("no table", &baseline).is_err());
    }

    #[test]
    fn the_table_shows_verdict_and_change() {
        let baseline = of(&[measured("a", 5, 5, None), measured("b", 10, 10, None)]);
        let rows = [measured("a", 5, 5, Some(4)), measured("b", 8, 8, None), measured("c", 1, 1, None)];
        let text = table(&rows, &baseline, &Times::from([("b".to_owned(), 16.4)]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[2].contains("BOUND") && lines[2].contains("0 %"), "{text}");
        assert!(lines[3].contains("FELL") && lines[3].contains("-20.0 % |   16 |"), "{text}");
        assert!(lines[4].contains("new"), "{text}");
    }
}
