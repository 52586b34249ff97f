//! Boots of the peer, and of this kernel for what is no row of the bench: interrupts while idle, and the time to boot.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::account::{Account, Beside};
use super::kernel::Kernel;
use crate::baseline::{self, Row};
use crate::guest;
use crate::loops;
use crate::qemu::{Accel, Machine, Qemu};
use crate::report::{self, Expect, Verdict};
use crate::run::{self, Run, Watch};
use crate::symbols::Symbols;
use crate::target::{GuestArgs, ImageChoice, Target};

/// Processors of each counted boot, as of the bench's first two.
const BOOTS: [u32; 2] = [1, 4];
/// Processors of the boots that are timed, and of those that idle.
const MANY: u32 = 4;
/// A counted boot takes two minutes, longer on a busy host. One that is timed takes seconds: nothing is judged by this.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Boots whose median is the time.
const TIMED: u32 = 5;
/// How long this kernel idles: as long as the peer's init waits.
const IDLE_MS: u64 = 20_000;

/// Preemptible everywhere, as this kernel is; without mitigations and without clearing what is allocated, which this one has none of
/// and doesn't do; and sure of its TSC, which under the counter is right. Stamps are the module's own.
pub(super) const COMMAND_LINE: &str =
    "console=ttyS0 quiet printk.time=0 preempt=full mitigations=off init_on_alloc=0 tsc=reliable";

/// The peer's rows, and what else is compared.
pub(super) fn all(kernel: &Kernel, initramfs: PathBuf) -> Result<ControlFlow<u8, Account>> {
    let qemu = Qemu::find()?;
    let symbols = Symbols::of_each([]);
    let mut rows = Vec::new();
    let mut idle = None;
    for cpus in BOOTS {
        println!("booting Linux with {cpus} processors under the counter; this takes minutes");
        let machine = machine(kernel, initramfs.clone(), cpus, qemu.accel(Some(Accel::Icount))?);
        let watch = Watch { timeout: Some(TIMEOUT), live: false, until_online: false };
        let run = run::guest(&qemu, &machine, &symbols, &watch)?;
        let verdict = report::judge(&run, Expect { cpus, tests: false });
        match (counted(&run, kernel, cpus), &verdict) {
            (Ok((counted, interrupts)), Verdict::Passed) => {
                rows.extend(counted);
                idle = Some(interrupts);
            }
            (counted, _) => {
                println!("{}", String::from_utf8_lossy(&run.serial));
                report::print(&run, &verdict, &symbols);
                if let Err(why) = counted {
                    println!("no counts: {why:#}");
                }
                return Ok(ControlFlow::Break(verdict.exit_status().max(1)));
            }
        }
    }
    let ours = match idle_here()? {
        ControlFlow::Continue(ours) => ours,
        ControlFlow::Break(status) => return Ok(ControlFlow::Break(status)),
    };
    let idle = Beside { ours, theirs: idle.context("no boot idled")? };

    let args = GuestArgs { cpus: MANY, accel: Some(Accel::Tcg), ..GuestArgs::default() };
    let target = Target::prepare(&args, ImageChoice::Kernel)?;
    let peers = machine(kernel, initramfs, MANY, qemu.accel(Some(Accel::Tcg))?);
    println!("timing boots of both");
    let ours = match loops::median_boot(&target.qemu, &target.machine, &target.symbols, TIMED, TIMEOUT)? {
        ControlFlow::Continue(ours) => ours,
        ControlFlow::Break(status) => return Ok(ControlFlow::Break(status)),
    };
    let theirs = match loops::median_boot(&qemu, &peers, &symbols, TIMED, TIMEOUT)? {
        ControlFlow::Continue(theirs) => theirs,
        ControlFlow::Break(status) => return Ok(ControlFlow::Break(status)),
    };
    Ok(ControlFlow::Continue(Account {
        release: kernel.release.clone(),
        version: kernel.version.clone(),
        qemu: format!("{}.{}", qemu.version.0, qemu.version.1),
        command_line: COMMAND_LINE.into(),
        rows: rows.into_iter().map(|row| (row.name, row.counts)).collect(),
        idle,
        boot_ms: Beside { ours: ours.as_millis() as f64, theirs: theirs.as_millis() as f64 },
    }))
}

/// The machine that the bench has, with another kernel.
fn machine(kernel: &Kernel, initramfs: PathBuf, cpus: u32, accel: Accel) -> Machine {
    let GuestArgs { topology, memory, machine, cpu, .. } = GuestArgs::default();
    Machine {
        accel,
        cpus,
        topology,
        memory,
        machine,
        cpu,
        loader: kernel.image.clone(),
        image: initramfs,
        test_devices: false,
        readable: false,
        command_line: COMMAND_LINE.into(),
        recording: None,
        translated: None,
    }
}

/// The rows of a boot, and the interrupts of an idle processor per second. It must be the kernel that the module was built for.
fn counted(run: &Run, kernel: &Kernel, cpus: u32) -> Result<(Vec<Row>, f64)> {
    let text = String::from_utf8_lossy(&run.serial);
    let lines: Vec<&str> = text.lines().filter_map(|line| Some(guest::without_stamp(line)?.trim())).collect();
    let peer = format!("peer: Linux {}", kernel.release);
    ensure!(lines.contains(&peer.as_str()), "no line says {peer}");
    let idle =
        lines.iter().find_map(|line| idle_of_peer(line)).context("no line tells the idle interrupts")?;
    Ok((baseline::rows(&run.serial, cpus)?, idle / f64::from(cpus)))
}

/// Interrupts per second of the whole machine, of `idle: N interrupts in S seconds`.
fn idle_of_peer(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let ["idle:", interrupts, "interrupts", "in", seconds, "seconds"] = words.as_slice() else { return None };
    let (interrupts, seconds): (u32, u32) = (interrupts.parse().ok()?, seconds.parse().ok()?);
    (seconds > 0).then(|| f64::from(interrupts) / f64::from(seconds))
}

/// The same of this kernel, by the self-test that limits it.
fn idle_here() -> Result<ControlFlow<u8, f64>> {
    let args = GuestArgs { cpus: MANY, accel: Some(Accel::Icount), ..GuestArgs::default() };
    let mut target = Target::prepare(&args, ImageChoice::Selftest)?;
    target.append("only=clock::idle_processors_are_left_alone");
    target.append(&format!("idle_ms={IDLE_MS}"));
    let (run, verdict) = target.run(TIMEOUT, false)?;
    if verdict != Verdict::Passed {
        println!("{}", String::from_utf8_lossy(&run.serial));
        report::print(&run, &verdict, &target.symbols);
        return Ok(ControlFlow::Break(verdict.exit_status()));
    }
    let text = String::from_utf8_lossy(&run.serial);
    let rates: Vec<f64> =
        text.lines().filter_map(|line| idle_of_processor(guest::without_stamp(line)?.trim())).collect();
    ensure!(rates.len() == MANY as usize, "{} processors told their idle interrupts", rates.len());
    Ok(ControlFlow::Continue(rates.iter().sum::<f64>() / f64::from(MANY)))
}

/// Interrupts per second of `clock: processor P: N interrupts in M ms idle; ..`.
fn idle_of_processor(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let ["clock:", "processor", _, interrupts, "interrupts", "in", milliseconds, "ms", "idle;", ..] =
        words.as_slice()
    else {
        return None;
    };
    let (interrupts, milliseconds): (u32, u32) = (interrupts.parse().ok()?, milliseconds.parse().ok()?);
    (milliseconds > 0).then(|| f64::from(interrupts) * 1000.0 / f64::from(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_interrupts_are_read_of_both() {
        assert_eq!(idle_of_peer("idle: 50 interrupts in 20 seconds"), Some(2.5));
        assert_eq!(idle_of_peer("idle: 50 interrupts in 0 seconds"), None);
        assert_eq!(idle_of_peer("idle: many interrupts in 20 seconds"), None);
        let line = "clock: processor 3: 5 interrupts in 20000 ms idle; 7 clock interrupts so far";
        assert_eq!(idle_of_processor(line), Some(0.25));
        assert_eq!(idle_of_processor("clock: processor 3: late"), None);
    }

    /// The guests idle for the same time.
    #[test]
    fn both_idle_equally_long() {
        let init = image_text("tests/peer/linux/init.c");
        assert!(
            init.contains(&format!("IDLE_SECONDS = {} ", IDLE_MS / 1000)),
            "init.c waits for another time"
        );
    }

    fn image_text(path: &str) -> String {
        std::fs::read_to_string(crate::image::workspace().join(path)).expect("in the tree")
    }
}
