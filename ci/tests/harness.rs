//! The harness against guests and QEMUs that end in every way there is, good and bad.
//!
//! The guest is `guest.s`, which prints its module and then ends as the module says; so a test writes what the guest
//! is to print. QEMU is the real one, or a script where the test is about a QEMU that will not do.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What a guest prints that has nothing to be ashamed of.
const GOOD: &str = "[    0.000001 00] online: 2 processors\n\
    [    0.000002 00] run  first\n[    0.000003 00] ok   first (1 us)\n\
    [    0.000004 01] run  second\n[    0.000005 01] skip second: needs 4 processors\n\
    [    0.000006 00] selftest: 1 passed, 0 failed, 1 skipped\n";
const STOP: &str = "[    0.000007 01] *** STOP 0x000000E2 MANUALLY_INITIATED_CRASH (0x1, 0x0, 0x0, 0x0)\n";

/// Long enough for a guest to reach its end on a busy machine; only tests of a hang wait it out.
const HANG_SECONDS: &str = "8";

/// The assembled guest, once for all tests.
static GUEST: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let guest = folder.path().join("guest");
    let status = Command::new("cc")
        .args(["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none", "-o"])
        .arg(&guest)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest.s"))
        .status();
    assert!(status.expect("cc").success(), "the guest does not assemble");
    (folder, guest)
});

/// The harness about to boot a guest that prints `text` and then does `end`.
struct Boot {
    folder: TempDir,
    command: Command,
}

impl Boot {
    fn new(text: impl AsRef<[u8]>, end: u8) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let module = folder.path().join("module");
        fs::write(&module, [text.as_ref(), &[0, end]].concat()).expect("the module");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ci"));
        command.args(["smp", "--cpus", "2", "--memory", "128M"]);
        command.arg("--image").arg(module).arg("--loader").arg(&GUEST.1);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { folder, command }
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Uses a shell script for QEMU. It is asked for its version first.
    fn qemu(mut self, version: &str, otherwise: &str) -> Self {
        let script = self.folder.path().join("qemu");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version {version}' && exit\n{otherwise}\n"
        );
        fs::write(&script, text).expect("the script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
        self.command.env("QEMU", script);
        self
    }

    fn end(mut self) -> (i32, String) {
        described(&self.command.output().expect("the harness"))
    }

    fn start(mut self) -> (TempDir, Child) {
        let child = self.command.spawn().expect("the harness");
        (self.folder, child)
    }
}

fn described(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn expect(boot: Boot, status: i32, words: &[&str]) {
    let (is, text) = boot.end();
    assert_eq!(is, status, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// The processes whose parent is `parent`.
fn children(parent: u32) -> Vec<u32> {
    let parent_of = |process: &Path| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // The name stands in parentheses and may hold anything; state and parent follow it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter(|process| parent_of(&process.path()) == Some(parent))
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// Waits until `ready` gives something.
#[track_caller]
fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if let Some(value) = ready() {
            return value;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within 30 s");
}

fn is_running_qemu(id: u32) -> bool {
    // A zombie has no command line any more.
    fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains("isa-debug-exit"))
}

/// The harness's QEMU, once it is one (before its exec it is a copy of the harness).
fn qemu_of(harness: &Child) -> u32 {
    wait_for("a QEMU", || children(harness.id()).into_iter().find(|&id| is_running_qemu(id)))
}

#[track_caller]
fn send(process: u32, signal: Signal) {
    let id = Pid::from_raw(process.cast_signed()).expect("a process id");
    kill_process(id, signal).expect("the process is there");
}

#[test]
fn a_good_guest_passes() {
    expect(
        Boot::new(GOOD, 0x10),
        0,
        &["PASSED", "first", "needs 4 processors", "1 passed, 0 failed, 1 skipped"],
    );
}

#[test]
fn success_that_is_only_claimed_is_a_failure() {
    expect(Boot::new("", 0x10), 1, &["claims success"]);
    expect(Boot::new(GOOD.replace("1 passed", "2 passed"), 0x10), 1, &["2 passed", "its lines say 1"]);
    expect(Boot::new(GOOD.replace("online: 2", "online: 1"), 0x10), 1, &["1 processors came online"]);
}

#[test]
fn each_verdict_of_the_guest_has_its_status() {
    let failed = GOOD.replace("skip second", "FAIL second");
    expect(Boot::new(failed, 0x11), 1, &["failed: second"]);
    expect(Boot::new([GOOD, STOP].concat(), 0x12), 3, &["BUGCHECK: STOP 0xe2 MANUALLY_INITIATED_CRASH"]);
    expect(Boot::new("boot: no module\n", 0x13), 5, &["CANNOT RUN HERE: boot: no module"]);
}

#[test]
fn a_hang_shows_where_each_processor_is() {
    let text = [GOOD, "[    0.000008 00] run  third\n"].concat();
    let words =
        ["HANG: no end after 8 s, in the test third", "cpu 0: CR8=0 IF=0, halted", "  stuck", "cpu 1: "];
    expect(Boot::new(text, b'H').args(&["--timeout", HANG_SECONDS]), 4, &words);
}

#[test]
fn a_triple_fault_shows_where_it_happened() {
    expect(Boot::new(GOOD, b'T'), 6, &["the machine was reset", "  tripped"]);
}

#[test]
fn a_guest_that_prints_anything_at_all_breaks_nothing() {
    let bytes: Vec<u8> = (1..=255).cycle().take(100_000).collect();
    let (status, text) = Boot::new(bytes, 0x10).end();
    assert_eq!(status, 1, "{text}");
    assert!(!text.contains('\u{1b}'), "an escape character got through");
}

#[test]
fn code_addresses_are_named() {
    let text = [STOP, "  #0 0x0000000000100003\n"].concat();
    expect(Boot::new(text, 0x12), 3, &["#0 0x0000000000100003  _start"]);
}

#[test]
fn counted_runs_are_the_same_to_the_byte() {
    let args = ["--accel", "icount", "--loops", "2", "--identical"];
    expect(Boot::new(GOOD, 0x10).args(&args), 0, &["boot 2 of 2: 1 passed"]);
}

#[test]
fn a_missing_qemu_is_named_with_a_remedy() {
    let mut boot = Boot::new(GOOD, 0x10);
    boot.command.env("QEMU", "/nonexistent/qemu");
    expect(boot, 2, &["cannot execute /nonexistent/qemu", "ci/setup.sh run"]);
}

#[test]
fn a_qemu_that_is_too_old_is_named_with_a_remedy() {
    // Left to itself, the harness would take KVM where there is one.
    let boot = Boot::new(GOOD, 0x10).qemu("7.2.9", "exit 1").args(&["--accel", "tcg"]);
    expect(boot, 2, &["version 7.2", "ci/setup.sh run"]);
}

#[test]
fn a_qemu_that_dies_at_its_start_is_quoted() {
    expect(
        Boot::new(GOOD, 0x10).args(&["--machine", "nonsense"]),
        6,
        &["before the guest said anything", "nonsense"],
    );
    let killed = Boot::new(GOOD, 0x10).qemu("10.0.0", "echo out of luck >&2; kill -SEGV $$");
    expect(killed, 6, &["killed by signal 11", "out of luck"]);
}

#[test]
fn a_qemu_that_answers_nothing_is_still_ended() {
    let boot = Boot::new(GOOD, 0x10).qemu("10.0.0", "exec sleep 1000").args(&["--timeout", "1"]);
    expect(boot, 4, &["HANG", "QEMU cannot be asked"]);
}

#[test]
fn no_qemu_survives_a_harness_that_is_killed() {
    let (_folder, mut harness) = Boot::new("hello\n", b'H').start();
    let qemu = qemu_of(&harness);
    send(harness.id(), Signal::KILL);
    harness.wait().expect("its end");
    wait_for("QEMU's end", || (!is_running_qemu(qemu)).then_some(()));
}

#[test]
fn an_interrupted_harness_says_where_the_guest_was_and_ends_it() {
    let (_folder, mut harness) = Boot::new("hello\n", b'H').start();
    let qemu = qemu_of(&harness);
    let mut stdout = harness.stdout.take().expect("its output");
    // The guest's first line is there, so the harness is looking at signals.
    let mut text = vec![0; 6];
    stdout.read_exact(&mut text).expect("the guest's line");
    send(harness.id(), Signal::INT);
    stdout.read_to_end(&mut text).expect("the rest");
    let status = harness.wait().expect("its end");
    let text = String::from_utf8_lossy(&text);
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("INTERRUPTED") && text.contains("cpu 0: "), "{text}");
    assert!(!is_running_qemu(qemu));
}

#[test]
#[ignore = "takes gdb, which only `make debug` installs"]
fn gdb_stops_at_the_entry_with_symbols() {
    let output = Command::new(env!("CARGO_BIN_EXE_ci"))
        .args(["smp", "--gdb", "--cpus", "1", "--memory", "128M", "--image"])
        // The guest is its own module: an image needs an entry to stop at.
        .arg(&GUEST.1)
        .arg("--loader")
        .arg(&GUEST.1)
        .stdin(Stdio::null())
        .output()
        .expect("the harness");
    let (status, text) = described(&output);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("Breakpoint 1, ") && text.contains("_start"), "{text}");
}
