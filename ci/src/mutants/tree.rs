//! The copies of the workspace in which mutants live, one for each that is tried at once: what git tracks or would track, as it stands in
//! the working folder.
//!
//! What it is to be is read once, at the start, so that who edits the workspace meanwhile doesn't disturb a run. A file is written
//! only where it differs, so that cargo rebuilds what a mutant changed and no more; restoring is the same comparison once
//! more, whatever a patch or a build did. One run at a time has the copies, by a lock on a file beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::Mutant;
use crate::image::{self, workspace};

/// See the module.
pub(super) struct Tree {
    root: PathBuf,
    build: PathBuf,
    files: Arc<BTreeMap<PathBuf, Vec<u8>>>,
    /// Held for its lock.
    _lock: Arc<File>,
}

impl Tree {
    /// Brings so many copies up to date.
    pub(super) fn prepare(count: usize) -> Result<Vec<Self>> {
        let place = image::target_dir().join("mutants");
        std::fs::create_dir_all(&place)?;
        let lock = File::create(place.join("lock"))?;
        lock.try_lock().context("another run of the mutants has the copies")?;
        let (place, files, lock) = (place.canonicalize()?, Arc::new(files()?), Arc::new(lock));
        let tree = |number: usize| {
            let suffix = if number == 0 { String::new() } else { format!("-{number}") };
            let (root, build) = (place.join(format!("tree{suffix}")), place.join(format!("build{suffix}")));
            std::fs::create_dir_all(&root)?;
            let tree = Self { root, build, files: files.clone(), _lock: lock.clone() };
            tree.restore()?;
            Ok(tree)
        };
        (0..count).map(tree).collect()
    }

    /// Where the copy is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where it is built.
    pub(super) fn build(&self) -> &Path {
        &self.build
    }

    /// Makes the copy what the workspace was.
    pub(super) fn restore(&self) -> Result<()> {
        for (file, wanted) in &*self.files {
            let to = self.root.join(file);
            if std::fs::read(&to).is_ok_and(|is| is == *wanted) {
                continue;
            }
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            // With the time of now, by which cargo goes.
            std::fs::write(&to, wanted).with_context(|| format!("writing {}", to.display()))?;
        }
        remove_others(&self.root, &self.root, &self.files)
    }

    /// Fails if `mutant`'s patch doesn't apply to the workspace as it is.
    pub(super) fn check(&self, mutant: &Mutant) -> Result<()> {
        self.git_apply(mutant, true)
    }

    /// Seeds the bug.
    pub(super) fn apply(&self, mutant: &Mutant) -> Result<()> {
        self.git_apply(mutant, false)
    }

    fn git_apply(&self, mutant: &Mutant, only_check: bool) -> Result<()> {
        let output = Command::new("git")
            .arg("apply")
            .args(only_check.then_some("--check"))
            .arg(&mutant.file)
            .current_dir(&self.root)
            // Not the repository that the copy may lie in: there git would pass over files that are ignored.
            .env("GIT_CEILING_DIRECTORIES", self.root.parent().unwrap_or(&self.root))
            .output()
            .context("starting git")?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the patch of {} no longer applies:\n{why}", mutant.name);
        Ok(())
    }
}

/// What git has, and what is new and not ignored; not what is deleted.
fn files() -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let listed = git(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let files = listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from);
    let there = files.filter(|path| workspace().join(path).is_file());
    there
        .map(|path| {
            let bytes = std::fs::read(workspace().join(&path));
            let bytes = bytes.with_context(|| format!("reading {}", path.display()))?;
            Ok((path, bytes))
        })
        .collect()
}

/// The commit that the workspace is at.
pub(super) fn commit() -> Result<String> {
    Ok(git(&["rev-parse", "HEAD"])?.trim().to_owned())
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(workspace()).output();
    let output = output.context("starting git")?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), why.trim());
    String::from_utf8(output.stdout).context("a path that is not UTF-8")
}

/// Removes what is below `folder` and not of `files`, which are relative to `root`.
fn remove_others(root: &Path, folder: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(root, &path, files)?;
            // Only an empty one can be removed.
            let _ = std::fs::remove_dir(&path);
        } else if !path.strip_prefix(root).is_ok_and(|relative| files.contains_key(relative)) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A copy of nothing, in `folder`.
#[cfg(test)]
pub(super) fn empty(folder: &Path) -> Tree {
    let lock = Arc::new(tempfile::tempfile().expect("a file"));
    Tree { root: folder.to_owned(), build: folder.to_owned(), files: Arc::default(), _lock: lock }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_undoes_whatever_was_done_and_leaves_the_rest_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (root, build) = (folder.path().join("tree"), folder.path().join("build"));
        let lock = Arc::new(tempfile::tempfile().unwrap());
        let files = ["Cargo.toml", "ci/setup.sh"].map(|file| (PathBuf::from(file), file.as_bytes().to_vec()));
        let files = Arc::new(files.into());
        let tree = Tree { root: root.clone(), build, files, _lock: lock };
        std::fs::create_dir(&root).unwrap();
        tree.restore().unwrap();
        let time = |file: &str| std::fs::metadata(root.join(file)).unwrap().modified().unwrap();
        let untouched = time("ci/setup.sh");
        std::fs::write(root.join("Cargo.toml"), "mutated").unwrap();
        std::fs::create_dir(root.join("new")).unwrap();
        std::fs::write(root.join("new/file"), "left over").unwrap();
        tree.restore().unwrap();
        for file in ["Cargo.toml", "ci/setup.sh"] {
            assert_eq!(std::fs::read_to_string(root.join(file)).unwrap(), file);
        }
        assert!(!root.join("new").exists());
        assert_eq!(time("ci/setup.sh"), untouched);
    }

    #[test]
    fn a_patch_that_does_not_fit_is_an_error_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), "one\n").unwrap();
        let patch = |from: &str| {
            let file = folder.path().join("x.patch");
            let text = format!("# class: c\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-{from}\n+two\n");
            std::fs::write(&file, text).unwrap();
            let catcher = "codegen".parse().unwrap();
            Mutant {
                name: "a/b".into(),
                class: "c".into(),
                catcher,
                fails_with: Vec::new(),
                open: None,
                file,
            }
        };
        let tree = empty(folder.path());
        let why = tree.check(&patch("three")).unwrap_err().to_string();
        assert!(why.contains("a/b no longer applies"), "{why}");
        let right = patch("one");
        tree.check(&right).unwrap();
        assert_eq!(
            std::fs::read_to_string(folder.path().join("x")).unwrap(),
            "one\n",
            "a check writes nothing"
        );
        tree.apply(&right).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("x")).unwrap(), "two\n");
    }
}
