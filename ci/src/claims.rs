//! docs/verification.md against the tree: every check that it names must exist.
//!
//! Looked at are the last cells of its tables. A text in backquotes is
//! - with a slash, a file or folder of the tree (`{a,b}` stands for both), of a crate's sources, or a mutant;
//! - with `::`, self-tests, a row of the bench, or a module;
//! - behind the word `crash`, a deliberate bugcheck, behind `step`, a step of `make test`: up to the next semicolon.
//!
//! A `*` at an end stands for anything there. Other texts (commands, words of the command line) are nobody's name.

use std::path::Path;

use anyhow::{Context, Result};

use crate::image::workspace;
use crate::{crash, test};

/// The names in the file that lead nowhere.
fn unknown(document: &str, root: &Path) -> Result<Vec<String>> {
    let selftests = sources(&root.join("tests/selftest/src"))?;
    let bench = std::fs::read_to_string(root.join("tests/bench/baseline.json"))?;
    let mut unknown = Vec::new();
    let mut in_tables = 0;
    for line in document.lines().filter(|line| line.starts_with("| ")) {
        let Some(cell) = line.trim_end_matches([' ', '|']).rsplit(" | ").next() else { continue };
        for segment in cell.split(';') {
            let mut kind = "";
            for (at, piece) in segment.split('`').enumerate() {
                if at % 2 == 0 {
                    for word in piece.split(|c: char| !c.is_ascii_alphabetic()) {
                        match word {
                            "crash" | "crashes" => kind = "crash",
                            "step" | "steps" => kind = "step",
                            "selftest" | "bench" | "loom" | "unit" => kind = "",
                            _ => {}
                        }
                    }
                    continue;
                }
                in_tables += 1;
                let name = piece.trim_matches('*');
                let (before, after) = (piece.starts_with('*'), piece.ends_with('*'));
                let quoted = |lead: &str| {
                    let start = if before { String::new() } else { format!("{lead}\"") };
                    format!("{start}{name}{}", if after { "" } else { "\"" })
                };
                let exists = if piece.contains('/') {
                    expanded(piece).iter().all(|path| has_path(root, path))
                } else if piece.contains("::") {
                    selftests.contains(&quoted("(")) || bench.contains(&quoted("")) || is_module(root, piece)
                } else {
                    match kind {
                        "crash" => crash::names().any(|known| format!("\"{known}\"").contains(&quoted(""))),
                        "step" => test::has_step(name),
                        _ => true,
                    }
                };
                if !exists {
                    unknown.push(format!("{piece} in: {line}"));
                }
            }
        }
    }
    anyhow::ensure!(in_tables > 50, "the tables name {in_tables} checks: they are not what this looks for");
    Ok(unknown)
}

/// All Rust files of a folder, one behind the other.
fn sources(folder: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text += &std::fs::read_to_string(&path)?;
        }
    }
    Ok(text)
}

/// `a{b,c}d` as `abd` and `acd`.
fn expanded(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (choices, after))) => {
            choices.split(',').map(|choice| format!("{before}{}{after}", choice.trim())).collect()
        }
        None => vec![path.to_owned()],
    }
}

fn has_path(root: &Path, path: &str) -> bool {
    let places = ["", "kernel/src/", "arch/src/", "sync/src/", "ci/src/", "tests/mutants/"];
    places.iter().any(|place| {
        let whole = format!("{place}{path}");
        root.join(&whole).exists() || root.join(format!("{whole}.patch")).exists()
    })
}

/// `krate::a::b` as a file or folder of that crate.
fn is_module(root: &Path, path: &str) -> bool {
    let Some((package, rest)) = path.split_once("::") else { return false };
    let file = root.join(package).join("src").join(rest.replace("::", "/"));
    file.is_dir() || file.with_extension("rs").exists()
}

#[test]
fn verification_md_names_only_checks_that_exist() {
    let root = workspace();
    let document = std::fs::read_to_string(root.join("docs/verification.md")).expect("the document");
    let unknown = unknown(&document, &root).expect("readable");
    assert!(
        unknown.is_empty(),
        "docs/verification.md names checks that don't exist:\n{}",
        unknown.join("\n")
    );
}

#[test]
fn a_check_that_does_not_exist_is_found() {
    let root = workspace();
    let rows = |last: &str| {
        let good = "| x | selftest `waits::*`, `sync::raw`; crash `manual`; step `crash` |\n".repeat(20);
        unknown(&format!("{good}| x | {last} |\n"), &root).expect("readable").len()
    };
    assert_eq!(rows("loom `tests/models/tests/{ipi,spin}.rs`"), 0);
    for wrong in [
        "selftest `waits::no_such_test`",
        "loom `tests/models/tests/{ipi,no_such}.rs`",
        "crash `no_such_crash`",
        "selftest `waits::*`; step `no_such_step`",
        "unit tests of `sync::no_such`",
    ] {
        assert_eq!(rows(wrong), 1, "{wrong}");
    }
}
