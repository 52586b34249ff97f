//! How much `unsafe` each crate has, so that growth is seen.
//!
//! Counted on the token trees, so comments and strings do not count, and code inside macros does.

use std::fmt::Write as _;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One crate's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    blocks: usize,
    functions: usize,
    /// Impls, traits and extern blocks.
    items: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.functions += other.functions;
        self.items += other.items;
    }
}

/// A table of every crate below `root`.
pub(crate) fn table(root: &Path) -> Result<String> {
    let mut text = format!("{:18} {:>7} {:>10} {:>6}\n", "crate", "blocks", "functions", "items");
    let mut total = Counts::default();
    let mut row = |name: &str, c: Counts| {
        let _ = writeln!(text, "{name:18} {:>7} {:>10} {:>6}", c.blocks, c.functions, c.items);
    };
    for (name, folder) in crates(root)? {
        let mut counts = Counts::default();
        // A crate's own folders; a nested crate (arch/boot) has its own row.
        for part in ["src", "tests", "benches", "fuzz_targets"] {
            for file in sources(&folder.join(part))? {
                counts += count_file(&file)?;
            }
        }
        total += counts;
        row(&name, counts);
    }
    row("all", total);
    Ok(text)
}

/// Name and folder of each crate: every folder with a Cargo.toml, the workspace's own aside.
fn crates(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut crates = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder != root && folder.join("Cargo.toml").is_file() {
            let name = folder.strip_prefix(root)?.display().to_string();
            crates.push((name, folder.clone()));
        }
        for entry in entries(&folder)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if entry.is_dir() && !name.starts_with('.') && !matches!(&*name, "target" | "out" | "src") {
                folders.push(entry);
            }
        }
    }
    crates.sort();
    Ok(crates)
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder)? {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                files.push(entry);
            }
        }
    }
    Ok(files)
}

/// What a folder holds; nothing, if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let list = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    list.map(|entry| Ok(entry?.path())).collect()
}

fn count_file(file: &Path) -> Result<Counts> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let tokens = text.parse().map_err(|e| anyhow!("{}: {e}", file.display()))?;
    Ok(count(tokens))
}

fn count(tokens: TokenStream) -> Counts {
    let mut counts = Counts::default();
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => counts += count(group.stream()),
            TokenTree::Ident(word) if word == "unsafe" => counts += classify(&tokens[at + 1..]),
            _ => {}
        }
    }
    counts
}

/// What an `unsafe` is, by what follows it.
fn classify(next: &[TokenTree]) -> Counts {
    let mut counts = Counts::default();
    let is_brace = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace);
    let word = |at: usize| match next.get(at) {
        Some(TokenTree::Ident(word)) => word.to_string(),
        _ => String::new(),
    };
    // `unsafe extern "C" fn`: skip the ABI to see what kind of thing it is.
    let after_abi = match next.get(1) {
        Some(TokenTree::Literal(_)) => 2,
        _ => 1,
    };
    // A function has a name; `unsafe fn(..)` without one is a type, and `unsafe(..)` an attribute.
    let named = |at: usize| word(at) == "fn" && !word(at + 1).is_empty();
    match word(0).as_str() {
        "" if is_brace(next.first()) => counts.blocks = 1,
        "fn" if named(0) => counts.functions = 1,
        "extern" if named(after_abi) => counts.functions = 1,
        "extern" if is_brace(next.get(after_abi)) => counts.items = 1,
        "impl" | "trait" => counts.items = 1,
        _ => {}
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(code: &str) -> (usize, usize, usize) {
        let counts = count(code.parse().expect("Rust tokens"));
        (counts.blocks, counts.functions, counts.items)
    }

    #[test]
    fn each_kind_of_unsafe_is_told_from_the_others() {
        assert_eq!(counted("fn f() { unsafe { g() } }"), (1, 0, 0));
        assert_eq!(counted("unsafe fn f() { unsafe { unsafe { g() } } }"), (2, 1, 0));
        assert_eq!(counted(r#"pub unsafe extern "sysv64" fn f() {}"#), (0, 1, 0));
        assert_eq!(counted(r#"unsafe extern "C" { fn f(); }"#), (0, 0, 1));
        assert_eq!(counted("unsafe impl Send for X {} unsafe trait T {}"), (0, 0, 2));
    }

    #[test]
    fn types_attributes_comments_and_strings_do_not_count() {
        assert_eq!(counted("#[unsafe(naked)] fn f(g: unsafe fn(u8)) {} // unsafe { }"), (0, 0, 0));
        assert_eq!(counted(r#"const S: &str = "unsafe { }"; type T = unsafe extern "C" fn();"#), (0, 0, 0));
    }

    #[test]
    fn macros_are_looked_into() {
        assert_eq!(counted("macro_rules! m { () => { unsafe { f() } } } m!(unsafe { g() });"), (2, 0, 0));
    }

    #[test]
    fn this_workspace_has_its_crates_in_the_table() {
        let text = table(&crate::image::workspace()).expect("a table");
        for name in ["arch ", "arch/boot ", "ci ", "kernel ", "sync ", "all "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}\n{text}");
        }
    }
}
