//! The self-tests under Bochs, which emulates what QEMU's TCG has not: the TSC-deadline timer, PCIDs, INVPCID.
//!
//! Bochs boots no kernel by itself, so the image comes from a CD with Limine, whose binaries are the user's. There is no device by which
//! a guest tells its status: its last line does, and then Bochs is ended. Processors take turns on one thread of the host, and
//! time is what they execute, so a busy host makes a run slower and changes nothing in it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::Transcript;
use crate::image::{self, workspace};
use crate::process::{NoteSignals, Owned};
use crate::report::{self, Expect, Verdict, status};
use crate::run::{End, Reader, Run};
use crate::symbols::Symbols;

/// Names the folder with Limine's binaries, in the environment.
pub(crate) const LIMINE_DIR: &str = "LIMINE_DIR";
/// What a run is for, as the kernel's line of features names it.
const FEATURES: [&str; 4] = ["tsc-deadline", "pcid", "invpcid", "invariant-tsc"];
/// The self-tests of it.
const GROUPS: &str = "dpc::,timers::,clock::,memory_tlb::,process";
/// Bochs is looked at so often.
const POLL: Duration = Duration::from_millis(50);

/// What to run there.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder with a binary release of Limine, 8 or later [default: the environment variable `LIMINE_DIR`].
    #[arg(long)]
    pub(crate) limine: Option<PathBuf>,
    /// Processors.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    /// Bochs' processor model.
    #[arg(long, default_value = "corei7_haswell_4770")]
    pub(crate) model: String,
    /// Run only the self-tests whose name contains this, or one of several texts with commas between.
    #[arg(long, default_value = GROUPS)]
    pub(crate) only: String,
    /// Instructions that are a second, of all processors together, in millions. The self-test of ten thousand timers takes 200.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(8..))]
    pub(crate) mips: u32,
    /// Seconds after which a guest that has not ended is a hang.
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
}

impl Default for Args {
    /// What the command line gives when it says nothing.
    fn default() -> Self {
        /// A command with these options alone, so that the defaults are written in one place.
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            args: Args,
        }
        <Alone as clap::Parser>::parse_from(["bochs"]).args
    }
}

/// Why it cannot run here, if it cannot.
pub(crate) fn missing(limine: Option<&Path>) -> Option<String> {
    let is_there = |program: &str, option: &str| {
        let mut command = Command::new(program);
        command.arg(option).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if limine.is_none() {
        return Some(format!("{LIMINE_DIR} names no folder with Limine's binaries"));
    }
    if !is_there("bochs", "--help") || !is_there("xorriso", "-version") {
        return Some("no bochs or no xorriso; `ci/setup.sh bochs` installs them".into());
    }
    None
}

/// The folder that the environment names.
pub(crate) fn limine_dir() -> Option<PathBuf> {
    std::env::var_os(LIMINE_DIR).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Boots, and judges the run.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let limine = args.limine.clone().or_else(limine_dir);
    if let Some(why) = missing(limine.as_deref()) {
        bail!("{why}");
    }
    ensure!(!args.only.contains(char::is_whitespace), "--only takes one word of the guest's command line");
    let kernel = image::build(image::SELFTEST)?;
    let symbols = Symbols::of_each([kernel.as_path()]);
    let folder = image::target_dir().join("bochs");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    make_iso(&limine.unwrap_or_default(), &kernel, &folder.join("kirql.iso"), &args.only)?;
    std::fs::write(folder.join("bochsrc"), configuration(args))?;

    let run = boot(&folder, &symbols, Duration::from_secs(args.timeout))?;
    let verdict = match report::judge(&run, Expect { cpus: args.cpus, tests: true }) {
        Verdict::Passed => without_features(&run.serial).map_or(Verdict::Passed, Verdict::Failed),
        verdict => verdict,
    };
    report::print(&run, &verdict, &symbols);
    Ok(verdict.exit_status())
}

fn make_iso(limine: &Path, kernel: &Path, iso: &Path, only: &str) -> Result<()> {
    let output = Command::new(workspace().join("arch/boot/iso.sh"))
        .args([limine, kernel, iso])
        .args(["seed=1", &format!("only={only}")])
        .output()
        .context("starting arch/boot/iso.sh")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Relative paths: Bochs runs in the folder. It has no display that shows nothing, so this one waits for no viewer.
fn configuration(args: &Args) -> String {
    format!(
        "config_interface: textconfig\n\
        display_library: rfb, options=\"timeout=0\"\n\
        cpu: model={}, count={}, ips={}000000, reset_on_triple_fault=0\n\
        memory: guest=512, host=512\n\
        ata0-master: type=cdrom, path=kirql.iso, status=inserted\n\
        boot: cdrom\n\
        com1: enabled=1, mode=file, dev=com1\n\
        clock: sync=none, time0=utc\n\
        log: bochs.log\n\
        panic: action=fatal\n",
        args.model,
        args.cpus,
        args.mips / args.cpus
    )
}

/// One run, to the guest's last line or as long as it may take.
fn boot(folder: &Path, symbols: &Symbols, timeout: Duration) -> Result<Run> {
    let signals = NoteSignals::start();
    let com1 = folder.join("com1");
    std::fs::write(&com1, [])?;
    let serial = File::open(&com1)?;
    let started = Instant::now();
    let mut command = Command::new("bochs");
    command.args(["-q", "-f", "bochsrc"]).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bochs = Owned::spawn(&mut command).context("cannot start bochs")?;
    // Debian's Bochs has a debugger, which waits for this, and ends at the end of its input: so the pipe stays open.
    let mut debugger = bochs.child().stdin.take().context("the pipe to bochs")?;
    debugger.write_all(b"c\n").context("writing to bochs")?;

    let mut reader = Reader::new(symbols, true);
    let mut bytes = Vec::new();
    let end = loop {
        // The order counts: what was printed before the end is read after the end was seen.
        let ended = bochs.ended()?;
        take(&serial, &mut bytes, &mut reader, started)?;
        if let Some(end) = told(reader.transcript()) {
            break end;
        }
        if let Some(status) = ended {
            let log = std::fs::read_to_string(folder.join("bochs.log")).unwrap_or_default();
            bail!("bochs ended by itself, with {status}\n{}", last_lines(&log));
        }
        if signals.interrupted() {
            break End::Interrupted;
        }
        if started.elapsed() >= timeout {
            break End::TimedOut(timeout);
        }
        reader.progress();
        thread::sleep(POLL);
    };
    let total = started.elapsed();
    drop((debugger, bochs));
    let (transcript, online) = reader.finish();
    Ok(Run {
        end,
        transcript,
        serial: bytes,
        online,
        total,
        whereabouts: None,
        complaint: String::new(),
        trace: None,
    })
}

/// What COM1 has printed since `bytes`.
fn take(serial: &File, bytes: &mut Vec<u8>, reader: &mut Reader<'_>, started: Instant) -> Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = serial.read_at(&mut chunk, bytes.len() as u64).context("reading the serial log")?;
        if !reader.take(&chunk[..n], started) {
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
}

/// The end that a guest asks for by its last line: as it would by its exit status.
fn told(said: &Transcript) -> Option<End> {
    if said.whole_reports > 0 || said.failed_again > 0 {
        return Some(End::Exited(status::BUGCHECK));
    }
    let summary = said.summaries.first()?;
    let failed = summary.failed > 0 || summary.passed == 0;
    Some(End::Exited(if failed { status::TEST_FAILED } else { status::PASSED }))
}

/// What the processor lacks of what the run is for, by what the kernel says.
fn without_features(serial: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(serial);
    let said = text.lines().find_map(|line| line.split_once(" features: ")).map_or("", |(_, said)| said);
    let present: Vec<&str> = said.split(';').next().unwrap_or_default().split(' ').collect();
    let absent: Vec<&str> = FEATURES.into_iter().filter(|feature| !present.contains(feature)).collect();
    (!absent.is_empty()).then(|| format!("the processor had no {}, which the run was for", absent.join(", ")))
}

fn last_lines(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_by(lines: &[&str]) -> Option<End> {
        let mut said = Transcript::default();
        for line in lines {
            said.line(line);
        }
        told(&said)
    }

    #[test]
    fn the_last_line_stands_for_the_exit_status() {
        let line = |counts: &str| format!("[    0.000001 00] selftest: {counts} skipped");
        let by = |counts: &str| told_by(&["[    0.000001 00] run  a::b", &line(counts)]);
        assert_eq!(by("3 passed, 0 failed, 1"), Some(End::Exited(status::PASSED)));
        assert_eq!(by("3 passed, 1 failed, 0"), Some(End::Exited(status::TEST_FAILED)));
        assert_eq!(by("0 passed, 0 failed, 4"), Some(End::Exited(status::TEST_FAILED)));
        assert_eq!(told_by(&["[    0.000001 00] ok   a::b (7 us)"]), None);
    }

    #[test]
    fn a_bugcheck_ends_with_its_report_and_not_before() {
        let stop = "*** STOP 0x133 DPC_WATCHDOG_VIOLATION (0x0, 0x1, 0x2, 0x3)";
        assert_eq!(told_by(&[stop]), None);
        assert_eq!(told_by(&[stop, "*** end of report"]), Some(End::Exited(status::BUGCHECK)));
    }

    #[test]
    fn a_processor_without_what_the_run_is_for_is_no_success() {
        let said =
            |text: &str| without_features(format!("boot\n[    0.03 00] features: {text}\n").as_bytes());
        assert_eq!(said("smep pcid invpcid tsc-deadline invariant-tsc; absent: smap"), None);
        let absent = said("smep invariant-tsc; absent: pcid invpcid tsc-deadline").unwrap();
        assert!(absent.contains("tsc-deadline, pcid, invpcid,"), "{absent}");
        assert!(without_features(b"").is_some());
    }
}
