//! Runs every case of `cases/`: builds `sync` once, then lets rustc check each file both ways against it.
//!
//! The errors are compared in rustc's short form: place, code, message and label of each. `BLESS=1 cargo test -p refuse`
//! writes the expectations anew, after a change of the messages in sync/src/rank.rs or of the compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the libraries that the cases use are.
struct Libraries(PathBuf);

impl Libraries {
    /// Builds them, in a directory of their own: the one of the cargo that runs us may hold them in several shapes.
    fn build() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refuse");
        let status = Command::new(env::var_os("CARGO").expect("cargo runs its tests with CARGO set"))
            .args(["build", "--quiet", "-p", "sync", "-p", "arch", "--target-dir"])
            .arg(&directory)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            // The cases are about the ordinary build, whatever this test was built with.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .status()
            .expect("cargo can be started");
        assert!(status.success(), "the libraries do not build");
        Self(directory.join("debug"))
    }

    /// Lets rustc check `case`, a file name in `cases`.
    fn check(&self, cases: &Path, case: &str, refused: bool) -> Output {
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
        rustc
            .args([
                "--edition=2024",
                "--crate-type=lib",
                "--emit=metadata",
                "--error-format=short",
                "-Awarnings",
            ])
            .arg("--out-dir")
            .arg(&self.0)
            .arg("-L")
            .arg(self.0.join("deps"));
        for library in ["sync", "arch"] {
            let file = self.0.join(format!("lib{library}.rlib"));
            rustc.arg("--extern").arg(format!("{library}={}", file.display()));
        }
        if refused {
            rustc.arg("--cfg=refused");
        }
        rustc.arg(case).current_dir(cases).output().expect("rustc can be started")
    }
}

/// The errors alone, one a line.
fn errors(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors = text.lines().filter(|line| line.contains(": error"));
    errors.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What is wrong with a case, if anything.
fn judge(libraries: &Libraries, cases: &Path, case: &str) -> Result<(), String> {
    let twin = libraries.check(cases, case, false);
    if !twin.status.success() {
        return Err(format!("the twin does not compile:\n{}", String::from_utf8_lossy(&twin.stderr)));
    }
    let refused = libraries.check(cases, case, true);
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

#[test]
fn each_case_is_refused_as_expected_and_its_twin_compiles() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let libraries = Libraries::build();
    let mut failures = String::new();
    let names_of_cases = names(&cases, "rs");
    for name in &names_of_cases {
        if let Err(why) = judge(&libraries, &cases, &format!("{name}.rs")) {
            failures += &format!("{name}: {why}\n");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert_eq!(
        names_of_cases,
        names(&cases, "expected"),
        "each case has an expectation, and none is left over"
    );
}
