//! The self-tests with an allocation refused (`inject` on the command line): each test once as it is, which counts its allocations, and then
//! once for each of them with that one refused. Whatever the test says of it, nothing may be left behind: no level, no memory, no other
//! affinity or priority of the tests' thread.
//!
//! Where there are more than a few dozen, the later ones are sampled, the further apart the later; tests that take long get fewer.
//! `turn=n` says which: other turns come to others. `parts=n part=k` takes every n-th test.

use arch::exit::Outcome;
use kernel::boot::command_line::CommandLine;
use kernel::boot::facts;
use kernel::ke::clock;
use kernel::mm::zeroing::Pause;
use kernel::mm::{inject, paged, physical, pool, process, system_pte};
use sync::irql::{Irql, Passive};

use crate::runner::{self, Result, Test, Verdict, check, equal};
use crate::{everywhere, held};

/// Allocations that are refused one by one.
const EACH: u64 = 24;
/// How many are, of a test that takes long.
const FEW: u64 = 6;
/// Microseconds of a test above which it takes long.
const LONG: u64 = 300_000;

pub(crate) fn run<'a>(tests: impl Iterator<Item = &'a Test>, at: &mut Irql<Passive>) -> Outcome {
    let (mut passed, mut failed, mut skipped, mut refused) = (0, 0, 0, 0);
    let (part, parts) = part();
    for (_, (name, test)) in (0_u64..).zip(tests).filter(|(number, _)| number % parts == part) {
        kernel::info!("run  {name}");
        match every_failure(name, *test, at) {
            Ok(count) => {
                passed += 1;
                refused += count;
                kernel::info!("ok   {name} ({count} us)");
            }
            Err((n, Verdict::Fail(what, a, b))) => {
                failed += 1;
                kernel::info!("FAIL {name}: allocation {n} refused: {what} ({a:#x}, {b:#x})");
            }
            Err((n, Verdict::Skip(why))) => {
                skipped += 1;
                kernel::info!("skip {name}: {why}, allocation {n}");
            }
        }
    }
    kernel::info!("inject: {refused} allocations refused");
    kernel::info!("selftest: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && refused > 0 { Outcome::Passed } else { Outcome::Failed }
}

/// `part=k` of `parts=n`: every n-th test, from the k-th. All without.
fn part() -> (u64, u64) {
    let parts = number("parts").unwrap_or(1).max(1);
    (number("part").unwrap_or(0) % parts, parts)
}

fn number(name: &str) -> Option<u64> {
    CommandLine::new(facts().info.command_line).number(name).and_then(core::result::Result::ok)
}

/// The allocations, of `count`, that are refused: one of each window, at a place that goes round with the turns.
fn samples(count: u64, is_long: bool, turn: u64) -> impl Iterator<Item = u64> {
    let mut window = 0..0;
    core::iter::from_fn(move || {
        let start = window.end;
        let width = match is_long {
            true => count.div_ceil(FEW),
            false if start < EACH => 1,
            false => start / 2,
        };
        window = start..(start + width).min(count);
        (!window.is_empty()).then(|| 1 + start + turn % (window.end - start))
    })
}

type Run = fn(&mut Irql<Passive>) -> Result;

/// How many allocations were refused; or what was wrong after the n-th.
fn every_failure(name: &str, test: Run, at: &mut Irql<Passive>) -> core::result::Result<u64, (u64, Verdict)> {
    let _pause = runner::counts_pages(name).then(|| Pause::begin(at));
    pool::mark(at);
    paged::mark(at);
    inject::fail_nth(u64::MAX);
    let start = clock::since_start();
    let result = test(at);
    let seen = u64::MAX - inject::left();
    let took = clock::since_start() - start;
    inject::stop();
    result.and_then(|()| runner::left_no_memory(at)).map_err(|verdict| (0, verdict))?;
    let mut refused = 0;
    for n in samples(seen, took > LONG, number("turn").unwrap_or(0)) {
        refused += one_failure(test, n, at).map_err(|verdict| (n, verdict))?;
    }
    Ok(refused)
}

/// The test with its n-th allocation refused: how many were.
fn one_failure(test: Run, n: u64, at: &mut Irql<Passive>) -> core::result::Result<u64, Verdict> {
    let before = memory(at);
    let placed = held::Placed::here(at);
    pool::mark(at);
    paged::mark(at);
    held::note_threads();
    inject::fail_nth(n);
    let result = test(at);
    let refused = inject::stop();
    let threads = held::end_threads(at);
    held::release(at);
    check(threads.stuck == 0, "threads that wait for what the test has kept", threads.stuck.into(), n)?;
    // Where one was refused, what the test says doesn't matter: "no memory" and its consequences read like a wrong result, and no test
    // knows which of its allocations it was. A refusal that does harm shows in what is left, below, or ends the run.
    // Its allocations are not the same in every run; where none was refused, it must pass.
    if refused == 0 {
        check(threads.ended == 0, "threads that a test leaves", threads.ended.into(), n)?;
        match result {
            // Threads that were noted kept their memory, which the test may have missed; nothing keeps it now.
            Err(Verdict::Fail(..)) if threads.noted => test(at)?,
            other => other?,
        }
    }
    runner::left_clean()?;
    check(placed.holds(at), "left with another affinity or priority", n, 0)?;
    runner::left_no_memory(at)?;
    let after = memory(at);
    for ((what, after), (_, before)) in after.into_iter().zip(before) {
        equal(after, before, what)?;
    }
    check(physical::verify(at).is_ok() && paged::verify(at).is_ok(), "damage", 0, 0)?;
    Ok(refused)
}

/// What must be the same behind a test: paged pool's pages, first, so that one that it keeps is named as such; free pages and those that
/// became tables or were retired, which stay; what is promised; addresses.
fn memory(at: &mut Irql<Passive>) -> [(&'static str, u64); 6] {
    // A page that is being cleared is on no list.
    let _pause = Pause::begin(at);
    runner::settle(at);
    paged::drain(at);
    everywhere::run(at, |at, _| pool::drain_everything(at));
    let paged = paged::usage(at);
    let counts = physical::counts(at);
    [
        ("paged pool's addresses in use", paged.addresses.into()),
        ("paged pool's resident pages", paged.resident.into()),
        (
            "pages lost or made",
            (counts.free + counts.zeroed + counts.bad + system_pte::table_pages(at)).into(),
        ),
        ("pages promised", counts.promised.into()),
        ("pages charged", process::here::commit().used()),
        ("system PTEs that are free", system_pte::free(at) as u64),
    ]
}
