//! Bring-up with an allocation refused: it must say that memory is out, and end, or that it does with less, and work; no hang, no panic,
//! nothing half started.
//!
//! The guest counts them, from the first page of bring-up to the image's main (`fail_boot_at=`, kernel/src/mm/inject.rs).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::mutants;
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};

/// Of one boot, which ends in bring-up.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of a machine with so many processors, as each has memory of its own.
const CPUS: u32 = 2;
/// What is said.
const SAID: &str = "cannot run: out of memory during bring-up";
/// What is said by what goes on.
const LESS: &str = "PFN database: no 2 MiB in a row, so by small pages";
/// Tests for a boot that comes so far.
const TESTS: &str = "only=exceptions::,memory_pages::every_page_is_somewhere";

/// Boots once for each allocation of bring-up, or once for some of them, which others by the commit.
pub(crate) fn check(all: bool) -> Result<u8> {
    let mut target =
        Target::prepare(&GuestArgs { cpus: CPUS, ..GuestArgs::default() }, ImageChoice::Selftest)?;
    let count = counted(&mut target)?;
    let chosen = if all { (1..=count).collect() } else { sample(count, mutants::turn()?) };
    let mut failed = 0;
    for &n in &chosen {
        target.set_words(vec![format!("fail_boot_at={n}"), TESTS.to_owned()]);
        let (run, verdict) = target.run(TIMEOUT, false)?;
        match &verdict {
            Verdict::CannotRun(line) if line.contains(SAID) => {}
            Verdict::Passed if String::from_utf8_lossy(&run.serial).contains(LESS) => {}
            Verdict::Interrupted => return Ok(verdict.exit_status()),
            _ => {
                failed += 1;
                report::print(&run, &verdict, &target.symbols);
                println!("FAIL bring-up: allocation {n} of {count} refused; again: {}", target.again());
            }
        }
    }
    println!("bring-up: {} of {count} allocations refused, {failed} failures", chosen.len());
    Ok(u8::from(failed > 0))
}

/// How many there are, by a boot in which none fails.
fn counted(target: &mut Target) -> Result<u64> {
    target.set_words(vec!["fail_boot_at=0".to_owned(), TESTS.to_owned()]);
    let (run, verdict) = target.run(TIMEOUT, false)?;
    ensure!(verdict == Verdict::Passed, "a boot without refusals: {verdict:?}");
    let text = String::from_utf8_lossy(&run.serial);
    let count = text.lines().find_map(count_in).context("the guest tells no number of allocations")?;
    if count < 10 {
        bail!("{count} allocations in all of bring-up");
    }
    Ok(count)
}

fn count_in(line: &str) -> Option<u64> {
    line.split_once("bring-up: ")?.1.trim_end().strip_suffix(" allocations")?.parse().ok()
}

/// The first, the last, and some between them that another turn moves on.
fn sample(count: u64, turn: u64) -> Vec<u64> {
    const SOME: u64 = 8;
    let stride = count.div_ceil(SOME).max(1);
    let some = (0..SOME).map(|nth| 1 + (turn + nth * stride) % count);
    let picked: std::collections::BTreeSet<u64> = some.chain([1, count]).collect();
    picked.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read() {
        assert_eq!(count_in("[    0.1 00] bring-up: 123 allocations\r"), Some(123));
        assert_eq!(count_in("[    0.1 00] bring-up: 1 allocations refused"), None);
        assert_eq!(count_in("online: 2 processors"), None);
    }

    #[test]
    fn turns_come_to_every_allocation() {
        let seen: std::collections::BTreeSet<u64> = (0..13).flat_map(|turn| sample(97, turn)).collect();
        assert_eq!(seen, (1..=97).collect());
        assert!(sample(97, 5).len() <= 10);
        assert_eq!(sample(1, 3), [1]);
    }
}
