//! One seed again: shortened until it barely fails, or compared with what was kept of it.

use std::iter;

use anyhow::Result;

use super::kept::{Kept, Told};
use super::{Outcome, Plan, run_all};
use crate::report::{self, Verdict};
use crate::target::Target;

/// A run that is replayed and differs is tried again so often.
pub(super) const TRIES: u32 = 3;

/// What a replay that is not the run which was kept ends with, though it may have passed.
const NOT_THE_SAME: u8 = 1;

/// Runs a seed once; nothing when a signal asked for an end.
pub(super) fn once(target: &Target, seed: u64, rounds: u32) -> Result<Option<Outcome>> {
    let mut found = None;
    run_all(target, iter::once(seed), rounds, |outcome| {
        found = Some(outcome);
        Ok(true)
    })?;
    Ok(found)
}

/// Shows the failure of as few operations as the seed fails with, and whether it comes again.
pub(super) fn minimise(plan: &Plan, target: &Target, failed: Outcome) -> Result<u8> {
    let seed = failed.seed;
    let (mut passes, mut shortest, mut shown) = (0, plan.rounds, failed);
    while shortest - passes > 1 {
        let middle = passes + (shortest - passes) / 2;
        let Some(outcome) = once(target, seed, middle)? else {
            return Ok(Verdict::Interrupted.exit_status());
        };
        if outcome.verdict == Verdict::Passed {
            passes = middle;
        } else {
            (shortest, shown) = (middle, outcome);
        }
    }
    let mut kept = Kept::load(plan, shortest, target)?;
    kept.put(seed, shown.told());
    kept.save()?;
    println!("{}", String::from_utf8_lossy(&shown.run.serial));
    report::print(&shown.run, &shown.verdict, &target.symbols);
    let Some(second) = once(target, seed, shortest)? else {
        return Ok(Verdict::Interrupted.exit_status());
    };
    println!("run again at once, it {}", comparison(&shown.told(), &second.told()));
    let torment = if plan.torment == 8000 { String::new() } else { format!(" TORMENT={}", plan.torment) };
    println!("again: make replay SEED={seed} ROUNDS={shortest} QEMU_CPUS={}{torment}", plan.cpus);
    Ok(shown.verdict.exit_status())
}

/// What a second run did, next to the first.
fn comparison(first: &Told, second: &Told) -> &'static str {
    match (first.is_same(second), &first.failure, &second.failure) {
        (true, ..) if first.digest.is_some() => "gave the same trace, to the byte",
        (true, ..) => "hung in the same place; what hangs has no trace that could be compared",
        (false, Some(_), None) => "PASSED: the failure was NOT REPRODUCED",
        (false, Some(one), Some(other)) if one == other => "failed in the same words, with ANOTHER TRACE",
        (false, Some(_), Some(_)) => "failed in ANOTHER WAY",
        (false, None, Some(_)) => "FAILED, which it had not",
        (false, None, None) => "passed with ANOTHER TRACE",
    }
}

/// A replay's exit status: what the run itself amounts to, but never success for a run that is another one than was kept.
fn status(is_same: bool, verdict: &Verdict) -> u8 {
    match verdict.exit_status() {
        0 if !is_same => NOT_THE_SAME,
        status => status,
    }
}

/// Runs a seed again, and says whether it was the run that was kept; where none was, it runs twice.
pub(crate) fn replay(plan: &Plan, seed: u64) -> Result<u8> {
    let target = plan.target()?;
    let mut kept = Kept::load(plan, plan.rounds, &target)?;
    let known = match kept.get(seed) {
        Some(known) => known.clone(),
        None => {
            println!("no run of this seed, length and image was kept: it runs twice");
            let Some(first) = once(&target, seed, plan.rounds)? else {
                return Ok(Verdict::Interrupted.exit_status());
            };
            let told = first.told();
            kept.put(seed, told.clone());
            kept.save()?;
            told
        }
    };
    let mut attempt = 0;
    let (outcome, told) = loop {
        attempt += 1;
        let Some(outcome) = once(&target, seed, plan.rounds)? else {
            return Ok(Verdict::Interrupted.exit_status());
        };
        let told = outcome.told();
        if known.is_same(&told) {
            break (outcome, told);
        }
        println!("attempt {attempt} of {TRIES} {}", comparison(&known, &told));
        if attempt == TRIES {
            break (outcome, told);
        }
    };
    println!("{}", String::from_utf8_lossy(&outcome.run.serial));
    report::print(&outcome.run, &outcome.verdict, &target.symbols);
    let is_same = known.is_same(&told);
    let others = attempt - u32::from(is_same);
    match told.digest.filter(|_| is_same) {
        Some(digest) => print!("the same run as before, by its trace: {digest:016x}"),
        None if is_same => print!("the run {}", comparison(&known, &told)),
        None => {
            print!("NOT the run that was kept; that one {}", known.failure.as_deref().unwrap_or("passed"))
        }
    }
    println!("; {others} of {attempt} attempts ran otherwise");
    Ok(status(is_same, &outcome.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_run_than_the_one_that_was_kept_is_no_success() {
        let (passed, failed) = (Verdict::Passed, Verdict::Bugcheck("x".into()));
        assert_eq!((status(true, &passed), status(false, &passed)), (0, NOT_THE_SAME));
        assert_eq!((status(true, &failed), status(false, &failed)), (3, 3));
    }

    #[test]
    fn what_differs_is_said() {
        let told = |digest, failure: Option<&str>| Told {
            digest: Some(digest),
            failure: failure.map(str::to_owned),
        };
        let failed = told(1, Some("BUGCHECK: a"));
        for (second, word) in [
            (told(1, Some("BUGCHECK: a")), "to the byte"),
            (told(2, Some("BUGCHECK: a")), "ANOTHER TRACE"),
            (told(2, Some("BUGCHECK: b")), "ANOTHER WAY"),
            (told(2, None), "NOT REPRODUCED"),
        ] {
            assert!(comparison(&failed, &second).contains(word), "{second:?}");
        }
        assert!(comparison(&told(1, None), &told(2, None)).contains("ANOTHER TRACE"));
        let hang = Told { digest: None, failure: Some("HANG: x".into()) };
        assert!(comparison(&hang, &hang.clone()).contains("no trace"));
    }
}
