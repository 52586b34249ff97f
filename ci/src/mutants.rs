//! The checks of the checks: seeded bugs, each of which a named check must catch, in the way that its patch says.
//!
//! A mutant is a patch in tests/mutants (its head: `mutants/patch.rs`; who can catch it: `mutants/catcher.rs`), tried in a copy of
//! the workspace with a target folder of its own (`mutants/tree.rs`), several at once. Before any of them, every catcher must pass on
//! what is not mutated: a check that fails anyway catches nothing, and its mutants are void. A search has to pass afterwards, as far as it
//! went. Every patch must apply, also one that isn't tried.

mod catcher;
mod patch;
mod tree;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::image::workspace;
use crate::process::NoteSignals;
use crate::report::Verdict;
use catcher::{Catcher, Limits, Outcome};
use patch::Mutant;
use tree::Tree;

/// Mutants of one run of `make test`: with their baselines about a minute when the copy is built.
const SAMPLE: usize = 3;

/// So many mutants for each copy: a second one is built from nothing first.
const WORTH_A_COPY: usize = 12;

/// Which mutants to try.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice<'a> {
    /// All, or those whose name contains the text, or one of several with commas between.
    Named(Option<&'a str>),
    /// A few, which others by the commit.
    Sample,
}

/// What became of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The expected check failed in the expected way: this text was in its output.
    Caught(String),
    /// The check passed.
    Escaped,
    /// As above, and the patch says that it is an open hole.
    Open,
    /// An open hole is none any more: the patch has to say so.
    Closed,
    /// The check failed, with none of the expected texts.
    OtherWay,
    /// It was not tried: the mutant doesn't compile.
    Broken,
    /// It was not tried: the check skipped what it was to do.
    Untried(String),
}

impl Fate {
    fn judge(mutant: &Mutant, outcome: &Outcome) -> Self {
        let text = match outcome {
            Outcome::Unbuilt(_) => return Self::Broken,
            Outcome::Skipped(what) => return Self::Untried(what.clone()),
            Outcome::Passed if mutant.open.is_some() => return Self::Open,
            Outcome::Passed => return Self::Escaped,
            Outcome::Failed(text) => text,
        };
        if mutant.open.is_some() {
            return Self::Closed;
        }
        match mutant.fails_with.iter().find(|wanted| text.contains(wanted.as_str())) {
            Some(found) => Self::Caught(found.clone()),
            None => Self::OtherWay,
        }
    }

    fn is_right(&self) -> bool {
        matches!(self, Self::Caught(_) | Self::Open)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(text) => write!(f, "caught: {text}"),
            Self::Escaped => f.write_str("ESCAPED"),
            Self::Open => f.write_str("escaped, a known hole"),
            Self::Closed => f.write_str("CAUGHT, but its patch calls it a hole"),
            Self::OtherWay => f.write_str("FAILED IN ANOTHER WAY"),
            Self::Broken => f.write_str("DOES NOT BUILD"),
            Self::Untried(what) => write!(f, "NOT TRIED: skipped {what}"),
        }
    }
}

/// Tries the chosen mutants; status 1 if one is not caught as it must be.
pub(crate) fn run(choice: Choice<'_>) -> Result<u8> {
    let signals = NoteSignals::start();
    let all = patch::read_all(&workspace().join("tests/mutants"))?;
    for mutant in &all {
        let known = mutant.catcher.exists(&workspace())?;
        ensure!(known, "mutant {}: there is no {}", mutant.name, mutant.catcher);
    }
    let (mut chosen, mut skipped) = (Vec::new(), Vec::new());
    for mutant in choose(&all, choice)? {
        match mutant.catcher.missing() {
            None => chosen.push(mutant),
            Some(why) => skipped.push((mutant, why)),
        }
    }
    let begun = Instant::now();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let trees = Tree::prepare((chosen.len() / WORTH_A_COPY).clamp(1, cores))?;
    for mutant in &all {
        trees[0].check(mutant)?;
    }
    println!("{} mutants apply; {} to try, {} at once", all.len(), chosen.len(), trees.len());
    for (mutant, why) in &skipped {
        println!("{:<36} skip: {why}", mutant.name);
    }
    ensure!(!chosen.is_empty(), "none of the chosen mutants can be tried here");

    let Some(sound) = sound(&trees, &chosen, &signals)? else {
        return Ok(Verdict::Interrupted.exit_status());
    };
    let judged = spread(&trees, &chosen, |tree, mutant| judge(tree, mutant, &sound, &signals))?;
    let Some(judged) = judged else {
        return Ok(Verdict::Interrupted.exit_status());
    };
    let right = judged.into_iter().filter(|&right| right).count();
    let wrong = chosen.len() - right;
    println!(
        "mutants: {right} as they must be, {wrong} not, {} skipped, in {:.0} s",
        skipped.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(u8::from(wrong > 0))
}

/// The checks of `chosen` that pass without a mutant, and how long each took; nothing when a signal asked for an end.
fn sound<'a>(
    trees: &[Tree],
    chosen: &[&'a Mutant],
    signals: &NoteSignals,
) -> Result<Option<HashMap<&'a Catcher, Duration>>> {
    let mut catchers: Vec<&Catcher> = Vec::new();
    for mutant in chosen.iter().filter(|mutant| !mutant.catcher.is_search()) {
        if !catchers.contains(&&mutant.catcher) {
            catchers.push(&mutant.catcher);
        }
    }
    // The first of a kind builds all that it needs.
    let limits = Limits { whole: false, all: LIMIT * 3, tests: LIMIT };
    let tried = spread(trees, &catchers, |tree, &catcher| {
        let Some((outcome, took)) = tried(tree, catcher, limits, signals)? else { return Ok(None) };
        Ok(Some(passes(catcher, &outcome, took).then_some((catcher, took))))
    })?;
    Ok(tried.map(|tried| tried.into_iter().flatten().collect()))
}

/// Tells what a check did without a mutant; whether it passed.
fn passes(catcher: &Catcher, outcome: &Outcome, took: Duration) -> bool {
    let seconds = took.as_secs_f64();
    match outcome {
        Outcome::Passed => println!("sound    {seconds:>6.1} s  {catcher}"),
        Outcome::Failed(text) | Outcome::Unbuilt(text) => {
            println!("FAILS    {seconds:>6.1} s  {catcher}, without a mutant\n{}", tail(text));
        }
        Outcome::Skipped(what) => println!("SKIPS    {seconds:>6.1} s  {catcher}: {what}"),
    }
    *outcome == Outcome::Passed
}

/// Tries a mutant and tells what became of it; whether that is as it must be. Nothing when a signal asked for an end.
fn judge(
    tree: &Tree,
    mutant: &Mutant,
    sound: &HashMap<&Catcher, Duration>,
    signals: &NoteSignals,
) -> Result<Option<bool>> {
    let void = || {
        println!("{:<36} void: its check fails or skips anyway", mutant.name);
        Ok(Some(false))
    };
    let usual = sound.get(&mutant.catcher).copied();
    if usual.is_none() && !mutant.catcher.is_search() {
        return void();
    }
    // What takes so much longer than it did doesn't end.
    let tests = (Duration::from_secs(60) + usual.unwrap_or(LIMIT) * 20).min(LIMIT);
    let limits = Limits { whole: false, all: LIMIT, tests };
    let Some((mut outcome, mut took)) = mutated(tree, mutant, limits, signals)? else { return Ok(None) };
    if mutant.catcher.is_boot() && !Fate::judge(mutant, &outcome).is_right() {
        // Timing may hide it in an image that is built with less effort.
        let limits = Limits { whole: true, all: LIMIT * 3, tests };
        println!("{:<36} not caught in {:.1} s; again, built as usual", mutant.name, took.as_secs_f64());
        let Some((usual, took_usual)) = tried(tree, &mutant.catcher, limits, signals)? else {
            return Ok(None);
        };
        if !passes(&mutant.catcher, &usual, took_usual) {
            return void();
        }
        let Some(again) = mutated(tree, mutant, limits, signals)? else { return Ok(None) };
        (outcome, took) = again;
    }
    let fate = Fate::judge(mutant, &outcome);
    if let (Fate::Caught(_), Outcome::Failed(text)) = (&fate, &outcome)
        && let Some(search) = mutant.catcher.as_far(text)
    {
        let Some((outcome, took)) = tried(tree, &search, limits, signals)? else { return Ok(None) };
        if !passes(&search, &outcome, took) {
            return void();
        }
    }
    let seconds = took.as_secs_f64();
    let mut told = format!("{:<36} {seconds:>6.1} s  {:<58} {fate}", mutant.name, mutant.catcher.to_string());
    if let (false, Outcome::Failed(text) | Outcome::Unbuilt(text)) = (fate.is_right(), &outcome) {
        told += &format!("\n{}", tail(text));
    }
    println!("{told}");
    Ok(Some(fate.is_right()))
}

/// The outcome of a mutant's check with the mutant, and how long it took; nothing when a signal asked for an end.
fn mutated(
    tree: &Tree,
    mutant: &Mutant,
    limits: Limits,
    signals: &NoteSignals,
) -> Result<Option<(Outcome, Duration)>> {
    tree.apply(mutant)?;
    let result = tried(tree, &mutant.catcher, limits, signals);
    tree.restore()?;
    result
}

/// `each` of `items`, as many at once as there are copies; nothing when one of them gave nothing.
///
/// A thread here waits for whatever it starts, so its end ends no child too early (`process`).
fn spread<T: Sync, R: Send>(
    trees: &[Tree],
    items: &[T],
    each: impl Fn(&Tree, &T) -> Result<Option<R>> + Sync,
) -> Result<Option<Vec<R>>> {
    let next = AtomicUsize::new(0);
    let work = |tree: &Tree| {
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = each(tree, item);
            if !matches!(result, Ok(Some(_))) {
                // The others go no further.
                next.store(items.len(), Ordering::Relaxed);
            }
            match result? {
                Some(result) => done.push(result),
                None => return Ok(None),
            }
        }
        Ok(Some(done))
    };
    let work = &work;
    thread::scope(|scope| {
        let workers: Vec<_> = trees.iter().map(|tree| scope.spawn(move || work(tree))).collect();
        let results: Vec<Result<Option<Vec<R>>>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        let done: Option<Vec<Vec<R>>> = results.into_iter().collect::<Result<_>>()?;
        Ok(done.map(|done| done.into_iter().flatten().collect()))
    })
}

/// Lists the mutants.
pub(crate) fn list() -> Result<u8> {
    for mutant in patch::read_all(&workspace().join("tests/mutants"))? {
        let hole = if mutant.open.is_some() { " (a hole)" } else { "" };
        println!("{:<36} {:<58} {}{hole}", mutant.name, mutant.catcher.to_string(), mutant.class);
    }
    Ok(0)
}

/// The outcome of one check of the copy as it is, and how long it took; nothing when a signal asked for an end.
fn tried(
    tree: &Tree,
    catcher: &Catcher,
    limits: Limits,
    signals: &NoteSignals,
) -> Result<Option<(Outcome, Duration)>> {
    let started = Instant::now();
    let outcome = catcher.run(tree, limits, signals).with_context(|| catcher.to_string())?;
    Ok(outcome.map(|outcome| (outcome, started.elapsed())))
}

fn choose<'a>(all: &'a [Mutant], choice: Choice<'_>) -> Result<Vec<&'a Mutant>> {
    match choice {
        Choice::Sample => Ok(sample(all, &tree::commit()?)),
        Choice::Named(only) => {
            let texts: Vec<&str> = only.unwrap_or_default().split(',').collect();
            for text in &texts {
                let known = all.iter().any(|mutant| mutant.name.contains(text));
                ensure!(known, "no mutant has a name with {text:?}");
            }
            Ok(all.iter().filter(|mutant| texts.iter().any(|text| mutant.name.contains(text))).collect())
        }
    }
}

/// A few mutants, spread over the list, that another commit moves on by some.
fn sample<'a>(all: &'a [Mutant], commit: &str) -> Vec<&'a Mutant> {
    let start = usize::try_from(number_of(commit)).unwrap_or(0);
    let count = SAMPLE.min(all.len());
    let stride = all.len().div_ceil(count.max(1));
    let picked: std::collections::BTreeSet<usize> =
        (0..count).map(|nth| (start + nth * stride) % all.len()).collect();
    picked.into_iter().map(|index| &all[index]).collect()
}

/// Where a sample begins, with this commit: the last digits are as good as random, and few enough for a number.
fn number_of(commit: &str) -> u64 {
    let digits = commit.get(commit.len().saturating_sub(8)..).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or(0)
}

/// The same for the checks of another kind that are tried in turn; without a git checkout, always the first.
pub(crate) fn turn() -> Result<u64> {
    if !workspace().join(".git").exists() {
        return Ok(0);
    }
    Ok(number_of(&tree::commit()?))
}

/// The end of what a check printed.
fn tail(text: &str) -> String {
    const LINES: usize = 25;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("    | {line}\n")).collect()
}

/// A mutant's name: the path of its patch below the folder of all, without its ending.
fn name_of(folder: &Path, file: &Path) -> Option<String> {
    Some(file.strip_prefix(folder).ok()?.with_extension("").to_str()?.to_owned())
}

/// How long building may take, and a check that is not a boot, which has a limit of its own.
const LIMIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn mutant(name: &str, open: bool) -> Mutant {
        Mutant {
            name: name.into(),
            class: "lost wakeup".into(),
            catcher: "selftest dpc::storm on 2".parse().unwrap(),
            fails_with: vec!["FAIL dpc::storm".into(), "no end after".into()],
            open: open.then(|| "nobody looks".into()),
            file: "x.patch".into(),
        }
    }

    #[test]
    fn only_the_expected_failure_of_the_expected_check_is_a_catch() {
        let judged = |outcome| Fate::judge(&mutant("a", false), &outcome);
        let text = |text: &str| Outcome::Failed(text.into());
        assert_eq!(judged(Outcome::Passed), Fate::Escaped);
        assert_eq!(judged(text("so: no end after 40 s")), Fate::Caught("no end after".into()));
        assert_eq!(judged(text("FAIL dpc::order")), Fate::OtherWay);
        assert_eq!(judged(Outcome::Unbuilt("error[E0308]: FAIL dpc::storm".into())), Fate::Broken);
        assert_eq!(judged(Outcome::Skipped("b: x".into())), Fate::Untried("b: x".into()));
        let untried = Fate::Untried(String::new());
        for fate in [Fate::Escaped, Fate::OtherWay, Fate::Broken, Fate::Closed, untried] {
            assert!(!fate.is_right(), "{fate}");
        }
        assert!(Fate::Caught(String::new()).is_right() && Fate::Open.is_right());
    }

    #[test]
    fn all_is_done_once_and_an_error_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let trees = [0; 3].map(|_| tree::empty(folder.path()));
        let items: Vec<u32> = (0..100).collect();
        let mut done = spread(&trees, &items, |_, &item| Ok(Some(item))).unwrap().unwrap();
        done.sort_unstable();
        assert_eq!(done, items);
        assert!(spread(&trees, &items, |_, &item| Ok((item != 7).then_some(()))).unwrap().is_none());
        let failing =
            spread(&trees, &items, |_, &item| if item == 7 { bail!("seven") } else { Ok(Some(())) });
        assert_eq!(failing.unwrap_err().to_string(), "seven");
    }

    #[test]
    fn a_hole_that_is_closed_is_told() {
        let judged = |outcome| Fate::judge(&mutant("a", true), &outcome);
        assert_eq!(judged(Outcome::Passed), Fate::Open);
        assert_eq!(judged(Outcome::Failed("FAIL dpc::storm".into())), Fate::Closed);
        assert_eq!(judged(Outcome::Failed("anything".into())), Fate::Closed);
    }

    #[test]
    fn every_text_must_be_in_a_name() {
        let all = [mutant("arch/eoi", false), mutant("ke/dpc", false)];
        let count = |only| choose(&all, Choice::Named(only)).map(|chosen| chosen.len()).ok();
        assert_eq!((count(None), count(Some("eoi")), count(Some("eoi,dpc"))), (Some(2), Some(1), Some(2)));
        assert_eq!((count(Some("eoi,dcp")), count(Some("x"))), (None, None));
        assert!(choose(&[], Choice::Named(None)).is_err());
    }

    #[test]
    fn commits_rotate_the_sample_over_all() {
        let all: Vec<Mutant> = (0..10).map(|n| mutant(&n.to_string(), false)).collect();
        let mut seen = std::collections::BTreeSet::new();
        for commit in 0..10_u32 {
            let picked = sample(&all, &format!("00ff{commit:08x}"));
            assert_eq!(picked.len(), SAMPLE);
            seen.extend(picked.iter().map(|mutant| mutant.name.clone()));
        }
        assert_eq!(seen.len(), all.len());
        assert_eq!(sample(&all[..2], "0123456789abcdef").len(), 2);
        assert!(sample(&[], "abc").is_empty());
    }

    /// The patches of the project: each has a whole head, and names a check that exists.
    #[test]
    fn every_patch_names_a_check_that_exists() {
        let folder = workspace().join("tests/mutants");
        let all = patch::read_all(&folder).unwrap();
        assert!(!all.is_empty());
        for mutant in &all {
            let known = mutant.catcher.exists(&workspace()).unwrap();
            assert!(known, "{}: there is no {}", mutant.name, mutant.catcher);
        }
        let text = std::fs::read_to_string(workspace().join("docs/verification.md")).unwrap();
        for hole in all.iter().filter(|mutant| mutant.open.is_some()) {
            assert!(
                text.contains(&format!("| `{}` |", hole.name)),
                "{} is no hole in the documentation",
                hole.name
            );
        }
    }
}
