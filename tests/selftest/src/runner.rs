//! Runs the list, prints a line a test, and sums up.

use arch::exit::Outcome;
use kernel::boot::command_line::CommandLine;
use kernel::boot::facts;
use kernel::ex::work;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ke::{clock as time, prcb, thread};
use kernel::mm::pool::sites::Live;
use kernel::mm::zeroing::Pause;
use kernel::mm::{paged, pool, zeroing};
use sync::irql::{Irql, Passive};

use crate::stress::Plan;
use crate::{crash, everywhere, inject, random, stress};

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

/// Skips the test where paged pool is trimmed at each raise: with flushes that it has to count, or thousands of faults.
pub(crate) fn need_no_trims() -> Result {
    let trims = CommandLine::new(facts().info.command_line).has("trim");
    if trims { Err(Verdict::Skip("needs a boot without `trim`")) } else { Ok(()) }
}

pub(crate) type Test = (&'static str, fn(&mut Irql<Passive>) -> Result);

const SUITES: &[&[Test]] = &[
    crate::processors::TESTS,
    crate::memory::TESTS,
    crate::memory_pages::TESTS,
    crate::memory_pool::TESTS,
    crate::exceptions::TESTS,
    crate::interrupts::TESTS,
    crate::user_mode::TESTS,
    crate::user_time::TESTS,
    crate::switch::TESTS,
    crate::dpc::TESTS,
    crate::timers::TESTS,
    crate::threads::TESTS,
    crate::threads_races::TESTS,
    crate::fairness::TESTS,
    crate::extended::TESTS,
    crate::waits::TESTS,
    crate::ex::TESTS,
    crate::ex_guarded::TESTS,
    crate::idle::TESTS,
    crate::late::TESTS,
    crate::apcs::TESTS,
    crate::suspension::TESTS,
    crate::work_queues::TESTS,
    crate::clock::TESTS,
    crate::memory_space::TESTS,
    crate::memory_tlb::TESTS,
    crate::memory_io::TESTS,
    crate::memory_mdl::TESTS,
    crate::process::TESTS,
    crate::process_locked::TESTS,
    crate::process_smp::TESTS,
    crate::memory_user::TESTS,
    crate::memory_paged::TESTS,
    crate::memory_pager::TESTS,
    crate::memory_contiguous::TESTS,
    crate::memory_executable::TESTS,
    crate::memory_pressure::TESTS,
    crate::ob::TESTS,
    crate::ob_handles::TESTS,
    crate::ob_names::TESTS,
    crate::cm::TESTS,
    crate::ex_callbacks::TESTS,
    crate::ob_dispatcher::TESTS,
    crate::paths::TESTS,
    crate::io::TESTS,
    crate::io_async::TESTS,
    crate::io_buffers::TESTS,
    crate::io_start::TESTS,
    crate::io_work::TESTS,
    crate::pci::TESTS,
    crate::disk::TESTS,
    crate::interrupts_objects::TESTS,
    crate::interrupts_lines::TESTS,
    crate::interrupts_moved::TESTS,
    crate::trace::TESTS,
    crate::stack_use::NESTED,
    crate::stack_use::LAST,
];

pub(crate) fn main(at: &mut Irql<Passive>) -> Outcome {
    let line = CommandLine::new(facts().info.command_line);
    if everywhere::prepare(at).and_then(|()| zeroing::start(at)).is_err() {
        kernel::info!("FAIL no memory for the tests' threads");
        return Outcome::Failed;
    }
    if let Some(name) = line.value("crash") {
        crash::run(name, at);
    }
    if let Some(Ok(seed)) = line.number("seed") {
        random::set_seed(seed);
    }
    crate::interrupts::reserve(at);
    crate::stack_use::paint_all(at);
    let only = line.value("only").unwrap_or("");
    let is_chosen = |name: &str| only.split(',').any(|text| name.contains(text));
    if line.has("inject") {
        return inject::run(SUITES.iter().copied().flatten().filter(|(name, _)| is_chosen(name)), at);
    }
    let plan = Plan::of(&line);
    let suites = if plan.as_ref().is_some_and(Plan::is_alone) { &[][..] } else { SUITES };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for &(name, test) in suites.iter().copied().flatten().filter(|(name, _)| is_chosen(name)) {
        kernel::info!("run  {name}");
        arch::trace::mark(name, 0);
        pool::mark(at);
        paged::mark(at);
        let _pause = counts_pages(name).then(|| Pause::begin(at));
        let start = time::since_start();
        let result = test(at).and_then(|()| left_clean()).and_then(|()| left_no_memory(at));
        let micro = time::since_start() - start;
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
    // The mixed phase below, or another text's tests, must not pass in their stead.
    for text in only.split(',').filter(|_| !only.is_empty() && !suites.is_empty()) {
        if !suites.iter().copied().flatten().any(|(name, _)| name.contains(text)) {
            failed += 1;
            kernel::info!("FAIL {text}: no self-test has this in its name");
        }
    }
    if let Some(plan) = plan {
        const NAME: &str = "stress::everything_at_once";
        kernel::info!("run  {NAME}");
        let start = time::since_start();
        match stress::run(&plan, at) {
            Ok(()) => {
                passed += 1;
                kernel::info!("ok   {NAME} ({} us)", time::since_start() - start);
            }
            Err(Verdict::Fail(what, a, b)) => {
                failed += 1;
                kernel::info!("FAIL {NAME}: {what} ({a:#x}, {b:#x})");
            }
            Err(Verdict::Skip(why)) => {
                skipped += 1;
                kernel::info!("skip {NAME}: {why}");
            }
        }
    }
    // Else its silence says nothing of the tests.
    let unwatched = sync::lock_order::unwatched();
    if unwatched != 0 {
        failed += 1;
        kernel::info!(
            "FAIL lock_order: its tables were too small for that many acquires ({unwatched:#x}, 0x0)"
        );
    }
    kernel::info!("selftest: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed > 0 { Outcome::Passed } else { Outcome::Failed }
}

/// Whether a test counts pages, so that none is to be cleared meanwhile.
pub(crate) fn counts_pages(name: &str) -> bool {
    let suites = ["memory_pages", "memory_pool", "memory_paged", "memory_contiguous", "memory_executable"];
    suites.iter().any(|suite| name.starts_with(suite))
}

/// Frees the memory of all threads that have ended. One that was joined may still be on its way off its stack, and an idle processor may
/// be about to keep one for the next: whoever counts memory would find it missing, and too much of it later. Threads that work queues were
/// given meanwhile, as an item stood for two looks of their manager, go when they have had nothing to do for one: however long that takes
/// on a busy host, none is there behind this.
pub(crate) fn settle(at: &mut Irql<Passive>) {
    // In this order: a worker is counted as on its way before it isn't any more as one of its queue.
    while work::are_there_later_workers(at) || thread::are_any_on_their_way() {
        let _ = delay(Due::In(10_000), at);
    }
    thread::trim(at);
    // What a file's end in a work queue's thread has sent comes back to the lists, as late as that.
    kernel::io::allocate::trim(at);
}

/// Whatever a test allocates it frees: tells tag, place and size of what it did not. An item of a work queue
/// that frees something, as orphaned requests and objects, may be yet to run: memory has a second to come back.
pub(crate) fn left_no_memory(at: &mut Irql<Passive>) -> Result {
    let mut found = Leaks::new();
    for _ in 0..100 {
        settle(at);
        found = Leaks::look(at);
        if found.count == 0 {
            break;
        }
        let _ = delay(Due::In(100_000), at);
    }
    for leak in found.first.iter().flatten() {
        let (file, line) = (leak.site.file(), leak.site.line());
        kernel::info!("leak: {} blocks, {} bytes, tag {}, {file}:{line}", leak.blocks, leak.bytes, leak.tag);
    }
    equal(found.count, 0, "places that kept memory")
}

/// Not logged from where they are found: that is under the account's lock.
struct Leaks {
    first: [Option<Live>; 8],
    count: u64,
}

impl Leaks {
    fn new() -> Self {
        Self { first: [None; 8], count: 0 }
    }

    fn look(at: &mut Irql<Passive>) -> Self {
        let mut found = Self::new();
        let mut tell = |leak: &Live| {
            if let Some(slot) = found.first.get_mut(found.count as usize) {
                *slot = Some(*leak);
            }
            found.count += 1;
        };
        pool::leaks(at, &mut tell);
        paged::leaks(at, &mut tell);
        found
    }
}

/// What every test must leave behind on this processor: PASSIVE, interrupts on, nothing in service, no line of the log lost.
pub(crate) fn left_clean() -> Result {
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
