//! Runs the list, prints a line a test, and sums up.

use arch::exit::Outcome;
use kernel::boot::command_line::CommandLine;
use kernel::boot::facts;
use kernel::ke::{clock, prcb};
use sync::irql::{Irql, Passive};

use crate::{crash, exceptions, interrupts, memory, processors, switch};

/// How a test ended short of passing.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// What was found, and two numbers that tell more.
    Fail(&'static str, u64, u64),
    /// What it would need.
    Skip(&'static str),
}

pub(crate) type Result = core::result::Result<(), Verdict>;

/// Fails the test unless `holds`.
pub(crate) fn check(holds: bool, what: &'static str, a: u64, b: u64) -> Result {
    if holds { Ok(()) } else { Err(Verdict::Fail(what, a, b)) }
}

/// Fails the test unless both are equal, showing both.
pub(crate) fn equal(found: u64, wanted: u64, what: &'static str) -> Result {
    check(found == wanted, what, found, wanted)
}

/// Skips the test on fewer processors.
pub(crate) fn need_processors(least: u32) -> Result {
    if prcb::count() >= least { Ok(()) } else { Err(Verdict::Skip("needs 2 processors")) }
}

pub(crate) type Test = (&'static str, fn(&mut Irql<Passive>) -> Result);

const SUITES: &[&[Test]] =
    &[processors::TESTS, memory::TESTS, exceptions::TESTS, interrupts::TESTS, switch::TESTS];

pub(crate) fn main(at: &mut Irql<Passive>) -> Outcome {
    let line = CommandLine::new(facts().info.command_line);
    if let Some(name) = line.value("crash") {
        crash::run(name, at);
    }
    let only = line.value("only").unwrap_or("");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for &(name, test) in SUITES.iter().copied().flatten().filter(|(name, _)| name.contains(only)) {
        kernel::info!("run  {name}");
        let start = clock::since_start();
        let result = test(at).and_then(|()| left_clean());
        let micro = clock::since_start() - start;
        match result {
            Ok(()) => {
                passed += 1;
                kernel::info!("ok   {name} ({micro} us)");
            }
            Err(Verdict::Fail(what, a, b)) => {
                failed += 1;
                kernel::info!("FAIL {name}: {what} ({a:#x}, {b:#x})");
            }
            Err(Verdict::Skip(why)) => {
                skipped += 1;
                kernel::info!("skip {name}: {why}");
            }
        }
    }
    kernel::info!("selftest: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed > 0 { Outcome::Passed } else { Outcome::Failed }
}

/// What every test must leave behind on this processor: PASSIVE, interrupts on, nothing in service, no line of the log lost.
fn left_clean() -> Result {
    equal(arch::irql::current().into(), 0, "left at another IRQL")?;
    check(arch::cpu::interrupts_enabled(), "left with interrupts off", 0, 0)?;
    let in_service = arch::apic::in_service();
    check(
        in_service == [0; 8],
        "left with an interrupt in service",
        in_service[0].into(),
        in_service[6].into(),
    )?;
    equal(kernel::kd::log::lost() as u64, 0, "log lines lost")
}
