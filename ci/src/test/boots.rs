//! The steps that boot guests.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{BOOT_TIMEOUT, Done, zero};
use crate::qemu::{Accel, Qemu};
use crate::report::{self, Verdict};
use crate::target::{GuestArgs, ImageChoice, Target};
use crate::{
    bench, bochs, crash, debug, explore, large, lines, loops, mutants, profile, recording, refusals, trace,
};

pub(super) fn boot(cpus: u32) -> Result<Done> {
    judged(&GuestArgs { cpus, append: vec![STRESS.into()], ..GuestArgs::default() })
}

/// Not all tests: those where all processors answer all others take minutes on two of the host's.
pub(super) fn sixteen() -> Result<Done> {
    for group in ["threads::", "waits::"] {
        match judged(&GuestArgs { cpus: 16, append: vec![format!("only={group}")], ..GuestArgs::default() })?
        {
            Done::Passed => {}
            other => return Ok(other),
        }
    }
    Ok(Done::Passed)
}

/// Of all self-tests, one part in so many is tried, another one with each commit, and of a test's many allocations others: `make inject`
/// tries all tests.
const PARTS: u64 = 12;

pub(super) fn inject() -> Result<Done> {
    let turn = mutants::turn()?;
    let (part, turn) = (format!("part={}", turn % PARTS), format!("turn={}", turn / PARTS));
    let parts = format!("parts={PARTS}");
    for (cpus, words) in
        [(2, vec!["inject", "only=paths::", &turn]), (4, vec!["inject", &parts, &part, &turn])]
    {
        let append = words.into_iter().map(str::to_owned).collect();
        let args = GuestArgs { cpus, append, ..GuestArgs::default() };
        match within(&args, 3 * BOOT_TIMEOUT)? {
            Done::Passed => {}
            other => return Ok(other),
        }
    }
    zero(refusals::check(false)?)
}

/// Whoever relies on a page of paged pool that was there a moment ago is found, or never ends.
pub(super) fn trim() -> Result<Done> {
    let words = ["trim", "only=memory_mdl::,memory_paged::,process_locked::"].map(str::to_owned);
    judged(&GuestArgs { cpus: 2, append: words.into(), ..GuestArgs::default() })
}

/// Special pool for every block, with the guard behind it and in front.
pub(super) fn special() -> Result<Done> {
    for words in [&["special=all"][..], &["special=all", "special_before"]] {
        let tests = "only=memory_pool::,memory_mdl::,ob::,ob_handles::,waits::,io::";
        let append = words.iter().copied().chain([tests]).map(str::to_owned).collect();
        match judged(&GuestArgs { cpus: 2, append, ..GuestArgs::default() })? {
            Done::Passed => {}
            other => return Ok(other),
        }
    }
    Ok(Done::Passed)
}

pub(super) fn large() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::Icount)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    Ok(if large::check()?.is_some() { Done::Passed } else { Done::Interrupted })
}

/// Sockets of nine processors have sixteen APIC ids each, so the tenth processor's is in another cluster.
pub(super) fn clusters() -> Result<Done> {
    judged(&GuestArgs {
        cpus: 10,
        topology: Some("sockets=2,cores=9,threads=1,maxcpus=18".into()),
        append: vec!["only=processors::".into()],
        ..GuestArgs::default()
    })
}

pub(super) fn idle() -> Result<Done> {
    let words = ["only=clock::idle", "idle_ms=5000"].map(str::to_owned);
    judged(&GuestArgs { cpus: 8, append: words.into(), ..GuestArgs::default() })
}

/// A short mixed phase behind the tests of each boot.
const STRESS: &str = "stress_ms=1500";

/// One boot of the self-tests, which must pass.
fn judged(args: &GuestArgs) -> Result<Done> {
    within(args, BOOT_TIMEOUT)
}

fn within(args: &GuestArgs, timeout: Duration) -> Result<Done> {
    let target = Target::prepare(args, ImageChoice::Selftest)?;
    let (run, verdict) = target.run(timeout, true)?;
    report::print(&run, &verdict, &target.symbols);
    if verdict == Verdict::Interrupted {
        return Ok(Done::Interrupted);
    }
    if verdict != Verdict::Passed {
        bail!("{}; again: {}", report::describe(&verdict).unwrap_or_default(), target.again());
    }
    Ok(Done::Passed)
}

pub(super) fn replay() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::Icount)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    // Not all tests: some spend seconds of the guest's time by what they test, each of which takes ten seconds of the host's here.
    for group in ["interrupts::", "dpc::", "timers::", "waits::", "trace::", "memory_"] {
        let append = vec![format!("only={group}")];
        let args = GuestArgs { cpus: 1, accel: Some(Accel::Icount), append, ..GuestArgs::default() };
        let mut target = Target::prepare(&args, ImageChoice::Selftest)?;
        match loops::boots(&mut target, 2, true, BOOT_TIMEOUT)? {
            0 => {}
            status => return zero(status),
        }
    }
    Ok(Done::Passed)
}

pub(super) fn under_bochs() -> Result<Done> {
    if let Some(why) = bochs::missing(bochs::limine_dir().as_deref()) {
        return Ok(Done::Skipped(why));
    }
    zero(bochs::run(&bochs::Args::default())?)
}

/// What the scheduler promises in numbers.
pub(super) fn fair() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::IcountBlocks)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    for cpus in [1, 2, 4, 8, 16] {
        let (accel, append) = (Some(Accel::IcountBlocks), vec!["only=fair::".to_owned()]);
        match judged(&GuestArgs { cpus, accel, append, ..GuestArgs::default() })? {
            Done::Passed => {}
            other => return Ok(other),
        }
    }
    Ok(Done::Passed)
}

pub(super) fn traced() -> Result<Done> {
    let args = GuestArgs { cpus: 2, ..GuestArgs::default() };
    zero(trace::run(&args, Some("waits::"), None, BOOT_TIMEOUT)?)
}

pub(super) fn explored() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::IcountBlocks)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    zero(explore::explore(&explore::Plan::default(), 1, 8, Some(0), explore::OnFailure::Shorten)?)
}

pub(super) fn in_gdb() -> Result<Done> {
    match without_gdb()? {
        Some(why) => Ok(Done::Skipped(why)),
        None => zero(explore::check_gdb(1)?),
    }
}

pub(super) fn backwards() -> Result<Done> {
    match without_gdb()? {
        Some(why) => Ok(Done::Skipped(why)),
        None if !recording::is_possible() => {
            Ok(Done::Skipped("no qemu-img; `ci/setup.sh debug` installs it".into()))
        }
        None => zero(explore::check_reverse(1)?),
    }
}

pub(super) fn profiled() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::IcountBlocks)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    if !recording::is_possible() {
        return Ok(Done::Skipped("no qemu-img; `ci/setup.sh debug` installs it".into()));
    }
    zero(profile::check()?)
}

/// What it takes to replay in gdb, and is missing.
fn without_gdb() -> Result<Option<String>> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::IcountBlocks)) {
        return Ok(Some(format!("{why:#}")));
    }
    Ok((!debug::has_gdb()).then(|| "no gdb; `ci/setup.sh debug` installs it".into()))
}

pub(super) fn crashes() -> Result<Done> {
    zero(crash::all(None)?)
}

/// What pairs of threads on different processors share.
pub(super) fn shared_lines() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::Icount)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    zero(lines::check()?)
}

pub(super) fn count_instructions() -> Result<Done> {
    if let Err(why) = Qemu::find()?.accel(Some(Accel::Icount)) {
        return Ok(Done::Skipped(format!("{why:#}")));
    }
    zero(bench::run(bench::Mode::Check)?)
}
