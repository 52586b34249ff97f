//! What was measured of the peer: kept in the tree beside the baseline, and written into the documentation with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::pairs::{Medians, PAIRS, Pair};
use crate::baseline::{self, Baseline, Counts, Place};
use crate::image;

/// Where docs/performance.md has the section.
pub(crate) const PLACE: Place = Place {
    begins: "<!-- peer: written by `make bench PEER=linux BLESS=1` -->",
    ends: "<!-- end of peer -->",
};

/// Two numbers that are no row's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beside {
    /// This kernel's.
    pub(crate) ours: f64,
    /// The peer's.
    pub(crate) theirs: f64,
}

/// All of one measurement, but this kernel's rows, which are the bench's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// Which kernel it was.
    pub(crate) release: String,
    /// In which version of its package.
    pub(crate) version: String,
    /// Which QEMU.
    pub(crate) qemu: String,
    /// How it was booted.
    pub(crate) command_line: String,
    /// Its counts.
    pub(crate) rows: BTreeMap<String, Counts>,
    /// Interrupts of an idle processor, per second of the guest, of four processors.
    pub(crate) idle: Beside,
    /// Milliseconds from QEMU's start to the line with the number of processors, of four.
    pub(crate) boot_ms: Beside,
}

/// One line of the JSON for whoever reads both columns.
#[derive(Serialize)]
struct Line<'a> {
    ours: &'a str,
    theirs: &'a str,
    median_ours: u64,
    median_theirs: u64,
    ratio: f64,
    note: &'a str,
}

impl Account {
    /// The one in the tree.
    pub(crate) fn stored() -> Result<Self> {
        let path = stored_at();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no account of a peer", path.display()))
    }

    /// Makes this the one in the tree.
    pub(super) fn store(&self) -> Result<()> {
        baseline::write_json(&stored_at(), self)
    }

    /// The table, of both columns and what is to be said beside them.
    pub(super) fn table(&self, ours: &Baseline) -> Result<String> {
        let mut rows = Vec::new();
        for (pair, Medians { ours, theirs, ratio }) in self.pairs(ours)? {
            let note = if pair.note.is_empty() { "-" } else { pair.note };
            rows.push([
                pair.ours.to_owned(),
                ours.to_string(),
                theirs.to_string(),
                format!("{ratio:.1}"),
                pair.theirs.to_owned(),
                note.to_owned(),
            ]);
        }
        let header = ["Kirql's row", "Kirql", "Linux", "ratio", "Linux's row", "what differs"];
        Ok(baseline::markdown(header, 1..4, rows.into_iter()))
    }

    /// The section of the documentation.
    pub(crate) fn section(&self, ours: &Baseline) -> Result<String> {
        let Self { release, version, qemu, command_line, .. } = self;
        let table = self.table(ours)?;
        Ok(format!(
            "Linux {release} (Debian's package, {version}), QEMU {qemu}, booted with\n`{command_line}`.\n\
             Medians of 1,024 samples, in instructions; the ratio is Linux's count by Kirql's.\n\n\
             {table}\n{}\n",
            self.uncounted()
        ))
    }

    /// What is compared beside the rows.
    pub(super) fn uncounted(&self) -> String {
        let Self { idle, boot_ms, .. } = self;
        format!(
            "Not in instructions, with 4 processors: interrupts of an idle one per second, Kirql {:.2}, Linux {:.2}; from QEMU's start\n\
             to the line that says how many are online, under plain TCG, Kirql {:.0} ms, Linux {:.0} ms.",
            idle.ours, idle.theirs, boot_ms.ours, boot_ms.theirs
        )
    }

    /// Both columns as JSON.
    pub(super) fn write_with(&self, ours: &Baseline, path: &Path) -> Result<()> {
        let pairs = self.pairs(ours)?;
        let lines: Vec<Line<'_>> = pairs
            .iter()
            .map(|(pair, medians)| Line {
                ours: pair.ours,
                theirs: pair.theirs,
                median_ours: medians.ours,
                median_theirs: medians.theirs,
                ratio: medians.ratio,
                note: pair.note,
            })
            .collect();
        baseline::write_json(path, &serde_json::json!({ "peer": self, "pairs": lines }))
    }

    /// The pairs with their medians. None may be missing.
    fn pairs(&self, ours: &Baseline) -> Result<Vec<(&'static Pair, Medians)>> {
        let medians = |pair: &'static Pair| {
            let medians = pair.medians(ours, &self.rows);
            Ok((pair, medians.with_context(|| format!("{} or {} was not counted", pair.ours, pair.theirs))?))
        };
        PAIRS.iter().map(medians).collect()
    }
}

fn stored_at() -> PathBuf {
    image::workspace().join("tests/peer/linux.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench;

    /// Three places say the counts: they are written together, and must not be edited apart.
    #[test]
    fn the_documentation_says_what_baseline_and_account_say() {
        let document =
            std::fs::read_to_string(image::workspace().join("docs/performance.md")).expect("in the tree");
        let section = Account::stored().and_then(|it| it.section(&bench::stored()?)).expect("both are whole");
        assert_eq!(baseline::document::inserted(&document, PLACE, &section).expect("both marks"), document);
    }

    #[test]
    fn a_row_that_was_not_counted_is_named() {
        let mut account = Account::stored().expect("in the tree");
        let ours = bench::stored().expect("in the tree");
        account.rows.remove("locks::mutex").expect("a row");
        let why = account.table(&ours).expect_err("a row is missing").to_string();
        assert!(why.contains("locks::mutex"), "{why}");
    }
}
