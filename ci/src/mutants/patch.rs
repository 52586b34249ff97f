//! A mutant's patch: a unified diff under a head of comment lines.
//!
//! ```text
//! # class: the kind of bug, in a few words
//! # breaks: what no longer holds
//! # caught by: a check, as `catcher` reads it
//! # fails with: a text in that check's output | another
//! # open hole: why nothing catches it yet; then the check above must pass
//! --- a/sync/src/spin.rs
//! ```
//!
//! The last line of the head is for holes only. `git apply` passes over what comes before the first file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::catcher::Catcher;
use super::name_of;

/// A seeded bug.
#[derive(Debug)]
pub(super) struct Mutant {
    /// Area and name, as `irql/eoi_missing`.
    pub(super) name: String,
    /// The kind of bug.
    pub(super) class: String,
    /// The check that must catch it.
    pub(super) catcher: Catcher,
    /// Of these texts one must be in the check's output.
    pub(super) fails_with: Vec<String>,
    /// Why nothing catches it yet.
    pub(super) open: Option<String>,
    /// The patch.
    pub(super) file: PathBuf,
}

/// Every patch in `folder` and below, by name.
pub(super) fn read_all(folder: &Path) -> Result<Vec<Mutant>> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "patch") {
                let name = name_of(folder, &path).with_context(|| format!("{}", path.display()))?;
                let text = std::fs::read_to_string(&path)?;
                all.push(parse(name.clone(), &text, path).with_context(|| format!("mutant {name}"))?);
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn parse(name: String, text: &str, file: PathBuf) -> Result<Mutant> {
    let (mut class, mut breaks, mut catcher, mut fails_with, mut open) = (None, None, None, None, None);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next_if(|line| line.starts_with('#')) {
        let (key, value) = line[1..].split_once(':').with_context(|| format!("no key in {line:?}"))?;
        let value = value.trim();
        ensure!(!value.is_empty(), "nothing behind {key:?}");
        let slot = match key.trim() {
            "class" => &mut class,
            "breaks" => &mut breaks,
            "caught by" => &mut catcher,
            "fails with" => &mut fails_with,
            "open hole" => &mut open,
            other => bail!("the head has no line {other:?}"),
        };
        ensure!(slot.replace(value.to_owned()).is_none(), "{key:?} twice");
    }
    ensure!(lines.peek().is_some_and(|line| line.starts_with("--- a/")), "no diff behind the head");
    breaks.context("the head has no `breaks`")?;
    let fails_with = fails_with.context("the head has no `fails with`")?;
    let texts: Vec<String> = fails_with.split(" | ").map(|text| text.trim().to_owned()).collect();
    ensure!(texts.iter().all(|text| text.len() > 3), "an expected text that any output may have");
    Ok(Mutant {
        name,
        class: class.context("the head has no `class`")?,
        catcher: catcher.context("the head has no `caught by`")?.parse()?,
        fails_with: texts,
        open,
        file,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [&str; 4] = [
        "# class: lost wakeup",
        "# breaks: work pending => a look is ahead",
        "# caught by: selftest dpc::storm on 2",
        "# fails with: FAIL dpc::storm | no end after",
    ];
    const DIFF: &str = "--- a/x.rs\n+++ b/x.rs\n";

    fn parsed(head: &[&str]) -> Result<Mutant> {
        parse("irql/x".into(), &format!("{}\n{DIFF}", head.join("\n")), "x".into())
    }

    #[test]
    fn a_whole_head_is_understood() {
        let mutant = parsed(&HEAD).unwrap();
        assert_eq!((mutant.name.as_str(), mutant.class.as_str()), ("irql/x", "lost wakeup"));
        assert_eq!(mutant.catcher.to_string(), "selftest dpc::storm on 2");
        assert_eq!(mutant.fails_with, ["FAIL dpc::storm", "no end after"]);
        assert!(mutant.open.is_none());
        let hole = parsed(&[&HEAD[..], &["# open hole: nobody looks"]].concat()).unwrap();
        assert_eq!(hole.open.as_deref(), Some("nobody looks"));
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        for left_out in HEAD {
            let rest: Vec<&str> = HEAD.into_iter().filter(|line| *line != left_out).collect();
            assert!(parsed(&rest).is_err(), "without {left_out}");
        }
        for more in ["# class: again", "# caugth by: x", "# just words", "# class:"] {
            assert!(parsed(&[&HEAD[..], &[more]].concat()).is_err(), "{more}");
        }
        assert!(parse("x".into(), &HEAD.join("\n"), "x".into()).is_err(), "no diff");
        let vague = [HEAD[0], HEAD[1], HEAD[2], "# fails with: a | b"];
        assert!(parsed(&vague).is_err(), "texts that are in everything");
    }
}
