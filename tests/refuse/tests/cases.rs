//! Runs every case of `cases/`: builds the libraries once for each target, then lets rustc check each file both ways against
//! them.
//!
//! A case that says `#![no_std]` is about what exists on the machine alone (the PRCB by GS, vectors, the context switch): it is
//! compiled for the bare machine, against the kernel as an image links it. The others are compiled for the host.
//!
//! What is compared is what the programmer is told: place, code, message, label and notes of each error. Lines that point into
//! the sources of other crates are left out, since they move with every edit there, and so is the compiler's list of types that
//! would do, since it grows with the ladder. `BLESS=1 cargo test -p refuse` writes the expectations anew, after a change of the
//! messages in sync/src/rank.rs or of the compiler.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// What a case is compiled for.
#[derive(Clone, Copy)]
enum Target {
    Host,
    Machine,
}

impl Target {
    /// What the case itself says.
    fn of(source: &str) -> Self {
        if source.lines().any(|line| line == "#![no_std]") { Self::Machine } else { Self::Host }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[],
            Self::Machine => &["--target", "x86_64-unknown-none"],
        }
    }

    fn libraries(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["sync", "arch"],
            Self::Machine => &["sync", "arch", "kernel"],
        }
    }
}

/// Where the libraries that the cases use are.
struct Libraries(PathBuf);

impl Libraries {
    /// Them, built once.
    fn get() -> &'static Self {
        static BUILT: OnceLock<Libraries> = OnceLock::new();
        BUILT.get_or_init(Self::build)
    }

    /// Builds them, in a directory of their own: the one of the cargo that runs us may hold them in several shapes.
    fn build() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refuse");
        for target in [Target::Host, Target::Machine] {
            let packages = target.libraries().iter().flat_map(|library| ["-p", library]);
            let status = Command::new(env::var_os("CARGO").expect("cargo runs its tests with CARGO set"))
                .args(["build", "--quiet", "--lib"])
                .args(packages)
                .args(target.arguments())
                .arg("--target-dir")
                .arg(&directory)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                // The cases are about the ordinary build, whatever this test was built with.
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_BUILD_TARGET")
                .status()
                .expect("cargo can be started");
            assert!(status.success(), "the libraries do not build");
        }
        Self(directory)
    }

    /// Where cargo put those for `target`.
    fn folder(&self, target: Target) -> PathBuf {
        match target {
            Target::Host => self.0.join("debug"),
            Target::Machine => self.0.join("x86_64-unknown-none").join("debug"),
        }
    }

    /// Lets rustc check `case`, a file name in the folder `cases`.
    fn check(&self, cases: &Path, case: &str, target: Target, refused: bool) -> Output {
        let folder = self.folder(target);
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
        rustc
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json"])
            .arg("-Awarnings")
            .args(target.arguments())
            .arg("--out-dir")
            .arg(&folder)
            .arg("-L")
            .arg(folder.join("deps"))
            // What only a compiler that runs there needs: procedural macros of dependencies.
            .arg("-L")
            .arg(self.folder(Target::Host).join("deps"));
        for library in target.libraries() {
            let file = folder.join(format!("lib{library}.rlib"));
            rustc.arg("--extern").arg(format!("{library}={}", file.display()));
        }
        if refused {
            rustc.arg("--cfg=refused");
        }
        rustc.arg(case).current_dir(cases).output().expect("rustc can be started")
    }
}

/// The errors alone: a line for each with its place, and one for each note and hint that is not about another file.
fn errors(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|error| described(&error))
        .collect()
}

/// One diagnostic of rustc as text, if it is an error with a place.
fn described(error: &Value) -> Option<String> {
    if error["level"] != "error" {
        return None;
    }
    let span = error["spans"].as_array()?.iter().find(|span| span["is_primary"] == true)?;
    let code = error["code"]["code"].as_str().map_or(String::new(), |code| format!("[{code}]"));
    let mut text = format!(
        "{}:{}:{}: error{code}: {}",
        span["file_name"].as_str()?,
        span["line_start"],
        span["column_start"],
        error["message"].as_str()?
    );
    if let Some(label) = span["label"].as_str() {
        text += &format!(": {label}");
    }
    text.push('\n');
    for other in error["spans"].as_array()?.iter().filter(|span| span["is_primary"] == false) {
        if let Some(label) = other["label"].as_str() {
            text += &format!("  {}:{}: {label}\n", other["line_start"], other["column_start"]);
        }
    }
    for child in error["children"].as_array()? {
        let message = child["message"].as_str()?;
        let places = child["spans"].as_array()?;
        let is_about_this_file = places.iter().all(|place| place["file_name"] == span["file_name"]);
        let is_a_list = message.contains("implement trait") || message.contains("implement the trait");
        if is_about_this_file && !is_a_list {
            text += &format!("  {}: {message}\n", child["level"].as_str()?);
        }
    }
    // The compiler writes the path out as soon as anybody has another type of that name.
    Some(text.replace("sync::irql::", ""))
}

/// What is wrong with a case, if anything.
fn judge(libraries: &Libraries, cases: &Path, case: &str) -> Result<(), String> {
    let source = fs::read_to_string(cases.join(case)).map_err(|e| e.to_string())?;
    let target = Target::of(&source);
    let twin = libraries.check(cases, case, target, false);
    if !twin.status.success() {
        return Err(format!("the twin does not compile:\n{}", errors(&twin)));
    }
    let refused = libraries.check(cases, case, target, true);
    if refused.status.success() {
        return Err("compiles, and must not".into());
    }
    let found = errors(&refused);
    if found.is_empty() {
        return Err(format!("rustc failed without an error:\n{}", String::from_utf8_lossy(&refused.stderr)));
    }
    let expectation = cases.join(case).with_extension("expected");
    if env::var_os("BLESS").is_some() {
        fs::write(&expectation, &found).map_err(|e| format!("{}: {e}", expectation.display()))?;
    }
    let expected = fs::read_to_string(&expectation).map_err(|e| format!("{}: {e}", expectation.display()))?;
    if found != expected {
        return Err(format!("other errors than expected\nexpected:\n{expected}found:\n{found}"));
    }
    Ok(())
}

/// The names of the files of `cases` with this extension, without it, in order.
fn names(cases: &Path, extension: &str) -> Vec<String> {
    let files = fs::read_dir(cases).expect("there is a directory of cases");
    let paths = files.map(|file| file.expect("it can be listed").path());
    let mut names: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().expect("it has a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// What is wrong with the cases, a paragraph each. Judged once; whoever reads expectations asks here first, as this may write
/// them.
fn failures() -> &'static str {
    static FAILURES: OnceLock<String> = OnceLock::new();
    FAILURES.get_or_init(|| {
        let judged = names(&folder(), "rs").into_iter().filter_map(|name| {
            let why = judge(Libraries::get(), &folder(), &format!("{name}.rs")).err()?;
            Some(format!("{name}: {why}\n"))
        });
        judged.collect()
    })
}

#[test]
fn each_case_is_refused_as_expected_and_its_twin_compiles() {
    assert!(failures().is_empty(), "\n{}", failures());
    assert_eq!(
        names(&folder(), "rs"),
        names(&folder(), "expected"),
        "each case has an expectation, and none is left over"
    );
}

/// The text of the fenced blocks of a Markdown file that rustdoc is told to leave alone.
fn ignored_snippets(text: &str) -> Vec<String> {
    let mut snippets = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```rust,ignore" {
            let code: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            snippets.push(code.join("\n"));
        }
    }
    snippets
}

#[test]
fn the_documentations_snippets_for_the_machine_compile() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/irql.md");
    let snippets = ignored_snippets(&fs::read_to_string(document).expect("there is docs/irql.md"));
    assert!(!snippets.is_empty(), "no snippet was found");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (number, snippet) in snippets.iter().enumerate() {
        let file = format!("snippet_{number}.rs");
        fs::write(folder.join(&file), format!("#![no_std]\n{snippet}\n")).expect("it can be written");
        let output = Libraries::get().check(folder, &file, Target::Machine, false);
        assert!(output.status.success(), "{snippet}\n\n{}", errors(&output));
    }
}

/// The codes in an expectation; an error of the borrow checker about lifetimes has none.
fn codes(expectation: &str) -> impl Iterator<Item = &str> {
    let errors = expectation.lines().filter_map(|line| line.split_once(": error")).map(|(_, rest)| rest);
    errors.map(|rest| rest.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or("lifetime"))
}

/// Whether `name` is `pattern`, in which one `*` may stand for any beginning or end.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((beginning, end)) => name.starts_with(beginning) && name.ends_with(end),
        None => name == pattern,
    }
}

#[test]
fn the_documentations_table_has_each_case_with_its_errors() {
    failures();
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/irql.md");
    let document = fs::read_to_string(document).expect("there is docs/irql.md");
    let (_, section) = document.split_once("## What the compiler refuses").expect("the section");
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let mut left = names(&folder(), "rs");
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let &[_, errors, _, patterns] = cells.as_slice() else { panic!("four cells: {row}") };
        let mut found = BTreeSet::new();
        for pattern in patterns.split(", ").map(|pattern| pattern.trim_matches('`')) {
            let (here, others): (Vec<_>, _) = left.into_iter().partition(|name| matches(pattern, name));
            assert!(!here.is_empty(), "{pattern}: no such case, or in a line above already");
            for name in here {
                let expectation = fs::read_to_string(folder().join(name).with_extension("expected")).unwrap();
                found.extend(codes(&expectation).map(str::to_owned));
            }
            left = others;
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>().join(", "), errors, "{row}");
    }
    assert!(left.is_empty(), "not in the table: {left:?}");
}
