//! Runs the kernel under QEMU and tells the truth about every run.
//!
//! A tour: `qemu` makes the command line and `process` a child that cannot outlive us; `run` follows a guest and
//! `guest` understands what it prints; `qmp` and `hang` ask QEMU where a stuck processor is, `symbols` says what
//! code that is; `memory` is the guest's, and `trace` what
//! its processors did last; `report` judges. On top: `loops` (many boots), `crash` (deliberate bugchecks), `debug` (gdb),
//! `bochs` (another emulator), `size`, `unsafe_count`, `bench` (instructions, kept in `baseline`), `peer` (the same of another kernel), `codegen` (what the compiler made of them), `mutants` (the checks' own check), and `test`, which is everything that must hold.
//!
//! Exit status: 0 all passed, 1 a test failed, 2 wrong use or set-up, 3 bugcheck, 4 hang, 5 the guest cannot run
//! here, 6 QEMU ended early, 130 interrupted.

mod abi;
mod baseline;
mod bench;
mod bochs;
#[cfg(test)]
mod claims;
mod codegen;
mod console;
mod crash;
mod debug;
mod disk;
mod dump;
mod explore;
mod guest;
mod hang;
mod image;
mod large;
mod lines;
mod loops;
mod memory;
mod models;
mod mutants;
mod peer;
mod process;
mod profile;
mod qemu;
mod qmp;
mod recording;
mod refusals;
mod report;
mod run;
mod size;
mod skips;
mod symbols;
mod target;
mod test;
mod trace;
mod unsafe_count;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::report::Verdict;
use crate::target::{GuestArgs, ImageChoice, Target};

/// The exit status for a harness that could not do what it was asked.
const WRONG_USE_OR_SETUP: u8 = 2;

/// Builds, boots and checks Kirql.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 all passed, 1 a test failed, 2 wrong use or set-up, 3 bugcheck, \
    4 hang, 5 the guest cannot run here, 6 QEMU ended early, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot an image (by default the self-tests) and judge the run.
    Smp(SmpArgs),
    /// Boot the release kernel on this terminal (Ctrl-A x ends QEMU).
    Run(GuestArgs),
    /// Boot the deliberate bugchecks and compare their reports.
    Crash {
        /// Only those whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Run every check that must hold.
    Test {
        /// Only the steps whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// List the steps.
        #[arg(long)]
        list: bool,
    },
    /// Boot the self-tests, and write what their processors did last: for Perfetto, for a browser, as text.
    Trace {
        #[command(flatten)]
        guest: GuestArgs,
        /// Run only the self-tests whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Where to [default: the target folder's `trace`].
        #[arg(long)]
        folder: Option<PathBuf>,
        /// Seconds after which a guest that has not ended is a hang.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        timeout: u64,
    },
    /// Many short boots under the instruction counter, each a function of its seed.
    Explore {
        #[command(flatten)]
        plan: explore::Plan,
        /// How many seeds.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        seeds: u32,
        /// The first.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Each twice: all but so many must give the same trace, to the byte.
        #[arg(long)]
        twice: Option<u32>,
        /// What to do with a seed that fails.
        #[arg(long, value_enum, default_value_t = explore::OnFailure::Shorten)]
        on_failure: explore::OnFailure,
    },
    /// One of them again.
    Replay {
        #[command(flatten)]
        plan: explore::Plan,
        /// Which.
        #[arg(long)]
        seed: u64,
        /// In gdb, to the failure.
        #[arg(long)]
        gdb: bool,
        /// In gdb, to an event of the trace: CPU:NUMBER.
        #[arg(long)]
        at: Option<String>,
        /// In gdb, recorded before, so that it can go back: with one processor.
        #[arg(long)]
        reverse: bool,
    },
    /// Time from QEMU's start to all processors online: the median of several boots.
    BootTime {
        #[command(flatten)]
        guest: GuestArgs,
        /// Boots.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// Fail if the median is not below this many milliseconds.
        #[arg(long)]
        below: Option<u64>,
    },
    /// Count the instructions of the bench's operations.
    Bench {
        /// Fail if a row exceeds its bound, has grown over the baseline, is new or missing.
        #[arg(long, conflicts_with = "bless")]
        check: bool,
        /// Make the counts the baseline; fail if a row exceeds its bound. With --peer: keep the peer's.
        #[arg(long)]
        bless: bool,
        /// Count those of another kernel, too, and print both (takes downloads and several minutes).
        #[arg(long, value_enum, conflicts_with = "check")]
        peer: Option<peer::Peer>,
        /// The peer's release, or `newest` [default: the stored one].
        #[arg(long, requires = "peer")]
        release: Option<String>,
    },
    /// Where a run's instructions go: a flame graph, of samples at exact distances.
    Profile(profile::Plan),
    /// Boot the self-tests under Bochs, which has the timer by the TSC's deadline, and PCIDs; from a CD with Limine.
    Bochs(bochs::Args),
    /// Boot once for each allocation of bring-up, which is refused: the guest must say so and end.
    Refusals,
    /// Disassemble operations that must be a few given instructions.
    Codegen,
    /// Follow pairs of threads, each bound to a processor: no cache line that one writes may be touched by another.
    Lines,
    /// Try seeded bugs: each must be caught by the check that its patch names.
    Mutants {
        /// Only those whose name contains this, or one of several texts with commas between.
        #[arg(long)]
        only: Option<String>,
        /// A few, chosen by the commit.
        #[arg(long, conflicts_with = "only")]
        sample: bool,
        /// List them.
        #[arg(long)]
        list: bool,
    },
    /// Size of the stripped release kernel; fails if it is not below its limit.
    Size,
    /// Count the unsafe blocks, functions and impls of each crate.
    UnsafeCount,
}

#[derive(Args)]
struct SmpArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Run only the self-tests whose name contains this, or one of several texts with commas between.
    #[arg(long)]
    only: Option<String>,
    /// Seconds after which a guest that has not ended is a hang.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Minutes of everything at once, behind the self-tests [default: five seconds; none with --only, --loops or --gdb].
    #[arg(long, conflicts_with_all = ["gdb", "loops"])]
    minutes: Option<u64>,
    /// Boot this many times in a row, with seeds that count up; stop at the first failure.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["gdb", "json", "log"])]
    loops: Option<u32>,
    /// With --loops: one seed for all, and every boot must print the same bytes.
    #[arg(long, requires = "loops")]
    identical: bool,
    /// Attach gdb, stopped at the image's entry, symbols loaded.
    #[arg(long, conflicts_with_all = ["json", "log"])]
    gdb: bool,
    /// Write the run's account as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write all that the guest printed.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = process::install_signal_handlers().and_then(|()| execute(cli.command));
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(WRONG_USE_OR_SETUP)
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Smp(args) => smp(&args),
        Command::Run(guest) => debug::interactive(&Target::prepare(&guest, ImageChoice::Kernel)?),
        Command::Crash { only } => crash::all(only.as_deref()),
        Command::Test { list: true, .. } => {
            test::list();
            Ok(0)
        }
        Command::Test { only, .. } => test::all(only.as_deref()),
        Command::Trace { guest, only, folder, timeout } => {
            trace::run(&guest, only.as_deref(), folder.as_deref(), Duration::from_secs(timeout))
        }
        Command::Explore { plan, seeds, first, twice, on_failure } => {
            explore::explore(&plan, first, seeds, twice, on_failure)
        }
        Command::Replay { plan, seed, gdb, at, reverse } if gdb || at.is_some() || reverse => {
            explore::replay_in_gdb(&plan, seed, at.as_deref(), reverse)
        }
        Command::Replay { plan, seed, .. } => explore::replay(&plan, seed),
        Command::BootTime { guest, runs, below } => {
            loops::boot_time(&Target::prepare(&guest, ImageChoice::Kernel)?, runs, below)
        }
        Command::Bench { peer: Some(peer), bless, release, .. } => peer::run(peer, release.as_deref(), bless),
        Command::Bench { bless: true, .. } => bench::run(bench::Mode::Bless),
        Command::Bench { check, .. } => {
            bench::run(if check { bench::Mode::Check } else { bench::Mode::Show })
        }
        Command::Profile(plan) => profile::run(&plan),
        Command::Bochs(args) => bochs::run(&args),
        Command::Refusals => refusals::check(true),
        Command::Codegen => codegen::check(),
        Command::Lines => lines::check(),
        Command::Mutants { list: true, .. } => mutants::list(),
        Command::Mutants { sample: true, .. } => mutants::run(mutants::Choice::Sample),
        Command::Mutants { only, .. } => mutants::run(mutants::Choice::Named(only.as_deref())),
        Command::Size => size::check(),
        Command::UnsafeCount => {
            print!("{}", unsafe_count::table(&image::workspace())?);
            Ok(0)
        }
    }
}

fn smp(args: &SmpArgs) -> Result<u8> {
    let mut target = Target::prepare(&args.guest, ImageChoice::Selftest)?;
    if let Some(only) = &args.only {
        ensure!(!only.contains(char::is_whitespace), "--only takes one word of the guest's command line");
        target.append(&format!("only={only}"));
    }
    let stress = match args.minutes {
        _ if !target.has_stress() => Duration::ZERO,
        Some(minutes) => Duration::from_secs(minutes * 60),
        None if args.only.is_some() || args.gdb || args.loops.is_some() => Duration::ZERO,
        None => Duration::from_secs(5),
    };
    if !stress.is_zero() {
        target.append(&format!("stress_ms={}", stress.as_millis()));
    }
    let timeout = Duration::from_secs(args.timeout) + stress;
    if args.gdb {
        // A guest that stands at a breakpoint is not slow.
        target.append("debug");
        return debug::with_gdb(&target, debug::Start::AtEntry, &[]);
    }
    if let Some(loops) = args.loops {
        return loops::boots(&mut target, loops, args.identical, timeout);
    }
    let (run, verdict) = target.run(timeout, true)?;
    report::print(&run, &verdict, &target.symbols);
    if let Some(path) = &args.log {
        std::fs::write(path, &run.serial).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        report::write_json(path, &run, &verdict, target.machine.cpus, &target.machine.command_line)?;
    }
    if let (Verdict::Bugcheck(_), Some(trace)) = (&verdict, &run.trace) {
        let core = image::target_dir().join("crash.core");
        match dump::write(&core, trace, &String::from_utf8_lossy(&run.serial)) {
            Ok(waiting) => println!(
                "gdb {} {}\n  there: LWP 1 and up, the processors; {}",
                target.machine.image.display(),
                core.display(),
                dump::described(&waiting)
            ),
            Err(why) => eprintln!("warning: no core file: {why:#}"),
        }
    }
    if verdict != Verdict::Passed {
        eprintln!("again: {}", target.again());
    }
    Ok(verdict.exit_status())
}
