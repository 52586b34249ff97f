//! One guest's life: start QEMU, follow what it prints, and see it end, by itself or by us.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;
use serde_json::json;

use crate::console::Console;
use crate::disk;
use crate::guest::{self, Event, Lines, Transcript};
use crate::hang;
use crate::memory::{self, Memory};
use crate::process::{self, Core, NoteSignals, Owned};
use crate::qemu::{Machine, Qemu, Wiring};
use crate::qmp::Qmp;
use crate::symbols::Symbols;
use crate::trace::decode::{self, Trace};

/// Between two looks at the guest. A boot is timed to within this.
pub(crate) const POLL: Duration = Duration::from_millis(2);
/// No run prints this much: one that does would fill the memory.
const MOST_OUTPUT: usize = 256 << 20;

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// QEMU ended with this status.
    Exited(i32),
    /// QEMU was killed by this signal.
    Killed(i32),
    /// The machine was reset, which a triple fault does.
    Reset,
    /// It had not ended in time.
    TimedOut(Duration),
    /// It printed without end.
    Flooded,
    /// A signal asked the harness to end.
    Interrupted,
    /// All processors were online, which was all that was asked.
    Online,
}

/// How to follow a guest.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    /// When to give up.
    pub(crate) timeout: Option<Duration>,
    /// Show its lines as they come.
    pub(crate) live: bool,
    /// End it as soon as all processors are online.
    pub(crate) until_online: bool,
}

/// All that is known of a guest that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// How it ended.
    pub(crate) end: End,
    /// What its lines meant.
    pub(crate) transcript: Transcript,
    /// Every byte of COM1.
    pub(crate) serial: Vec<u8>,
    /// From QEMU's start to the `online:` line.
    pub(crate) online: Option<Duration>,
    /// From QEMU's start to the end.
    pub(crate) total: Duration,
    /// Where each processor was, if the end was not the guest's own wish.
    pub(crate) whereabouts: Option<String>,
    /// What QEMU itself complained of.
    pub(crate) complaint: String,
    /// What its processors did last, if its memory could be read and had a trace.
    pub(crate) trace: Option<Trace>,
}

/// QEMU and the harness's ends of its wires.
pub(crate) struct Guest {
    qemu: Owned,
    qmp: Qmp,
    serial: File,
    read: u64,
    stderr: File,
    memory: Option<Memory>,
    started: Instant,
    /// It counts instructions, and its threads have not been put in order.
    unordered: bool,
    /// Where it runs, if that is settled.
    _core: Option<Core>,
}

impl Guest {
    /// Starts QEMU. `gdb`: it listens there, and waits for gdb before the first instruction.
    pub(crate) fn start(qemu: &Qemu, machine: &Machine, gdb: Option<&Path>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("a socket pair for QMP")?;
        let serial = memory_file("com1")?;
        let stderr = memory_file("stderr")?;
        // QEMU wants a descriptor that is open for writing only, so it gets a second open file.
        let sink: OwnedFd = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", process::number(&serial)))
            .context("opening the serial log for writing")?
            .into();
        let theirs: OwnedFd = theirs.into();
        let (memory, ram) = if machine.readable { guest_memory(machine)?.unzip() } else { (None, None) };
        let disk = if machine.has_disks() { Some(OwnedFd::from(disk::file()?)) } else { None };
        let wiring = Wiring::Harness {
            serial: process::number(&sink),
            qmp: process::number(&theirs),
            memory: ram.as_ref().map(process::number),
            disk: disk.as_ref().map(process::number),
            gdb,
        };
        let mut command = Command::new(&qemu.program);
        command.args(machine.arguments(wiring)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(process::duplicate(stderr.as_fd())?);
        // Its own process group: a terminal's Ctrl-C is for the harness, which may want to ask QEMU a last question.
        command.process_group(0);
        process::inherit(&mut command, [sink, theirs].into_iter().chain(ram).chain(disk).collect());
        let started = Instant::now();
        let mut child =
            Owned::spawn(&mut command).with_context(|| format!("cannot start {}", qemu.program.display()))?;
        let unordered = machine.accel.counts();
        let qmp = Qmp::new(ours);
        let core = unordered.then(|| Core::for_all_of(child.child()));
        let mut guest =
            Self { qemu: child, qmp, serial, read: 0, stderr, memory, started, unordered, _core: core };
        // Under the instruction counter nobody talks to QEMU while the guest runs.
        if !machine.accel.counts() {
            // A QEMU that has died already is found out by whoever looks at it next.
            let _ = guest.qmp.negotiate();
        }
        Ok(guest)
    }

    /// What COM1 has printed since the last call.
    pub(crate) fn printed(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 64 * 1024];
        let n = self.serial.read_at(&mut bytes, self.read).context("reading the serial log")?;
        self.read += n as u64;
        bytes.truncate(n);
        if n > 0 && std::mem::take(&mut self.unordered) {
            // Its other threads are there by now, and keep theirs.
            process::yield_to_others(self.qemu.child());
        }
        Ok(bytes)
    }

    /// QEMU's status, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.qemu.ended()
    }

    /// What QEMU says of a machine that has stopped (see `Machine::arguments`): a reset is an end, and the state is
    /// kept for questions; a switch-off, the exit device's work, is granted, and QEMU ends with its status.
    fn stopped(&mut self) -> Option<End> {
        let event = self.qmp.event("SHUTDOWN")?;
        match event["data"]["reason"].as_str() {
            Some("guest-reset") => Some(End::Reset),
            _ => {
                // A QEMU that is ending by itself takes no commands any more.
                let _ = self.qmp.send("quit", &json!({}));
                None
            }
        }
    }

    /// What its processors did last, as its memory has it now.
    pub(crate) fn trace(&self) -> Option<Trace> {
        self.memory.as_ref().and_then(|memory| {
            decode::read(memory).unwrap_or_else(|e| {
                eprintln!("warning: the trace cannot be read: {e:#}");
                None
            })
        })
    }

    /// The connection to QEMU, for a guest that stands still; and its memory, where that is a file.
    pub(crate) fn parts(&mut self) -> (&mut Qmp, Option<&Memory>) {
        (&mut self.qmp, self.memory.as_ref())
    }

    /// What QEMU has written to its standard error.
    pub(crate) fn complaint(&self) -> String {
        whole(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// Runs a guest to its end.
pub(crate) fn guest(qemu: &Qemu, machine: &Machine, symbols: &Symbols, watch: &Watch) -> Result<Run> {
    let signals = NoteSignals::start();
    let mut follow = Follow::start(qemu, machine, symbols, watch)?;
    loop {
        if let Some(end) = follow.poll(&signals)? {
            return follow.finish(end);
        }
        thread::sleep(POLL);
    }
}

/// A guest that runs, and what it has said so far.
pub(crate) struct Follow<'a> {
    guest: Guest,
    reader: Reader<'a>,
    symbols: &'a Symbols,
    watch: Watch,
}

impl<'a> Follow<'a> {
    /// Starts it.
    pub(crate) fn start(qemu: &Qemu, machine: &Machine, symbols: &'a Symbols, watch: &Watch) -> Result<Self> {
        let guest = Guest::start(qemu, machine, None)?;
        Ok(Self { guest, reader: Reader::new(symbols, watch.live), symbols, watch: watch.clone() })
    }

    /// Looks at it: how it has ended, if it has, by itself or for a reason to end it.
    pub(crate) fn poll(&mut self, signals: &NoteSignals) -> Result<Option<End>> {
        // The order counts: what was printed before the end is read after the end was seen.
        let ended = self.guest.ended()?;
        while self.reader.take(&self.guest.printed()?, self.guest.started) {}
        if let Some(status) = ended {
            return Ok(Some(end_of(status)));
        }
        if let Some(end) = self.guest.stopped() {
            return Ok(Some(end));
        }
        if self.watch.until_online && self.reader.online.is_some() {
            return Ok(Some(End::Online));
        }
        let given_up = given_up(&self.guest, &self.watch, signals);
        if given_up.is_none() {
            self.reader.progress();
        }
        Ok(given_up)
    }

    /// Whether it has printed what comes last: how its self-tests went, how many rows its bench has, or a bugcheck.
    pub(crate) fn has_said_all(&self) -> bool {
        let transcript = &self.reader.transcript;
        let last = guest::without_stamp(&transcript.last_line).unwrap_or_default();
        !transcript.summaries.is_empty()
            || !transcript.stops.is_empty()
            || last.trim_start().starts_with("bench: ")
    }

    /// How many instructions it has executed: of a run that is recorded.
    pub(crate) fn instructions(&mut self) -> Result<u64> {
        let answer = self.guest.qmp.command("query-replay", &json!({}))?;
        answer["icount"].as_u64().context("QEMU does not say how many instructions were executed")
    }

    /// Whether its one processor has halted for good, which is asked of QEMU.
    pub(crate) fn has_halted(&mut self) -> Result<bool> {
        hang::has_halted(&mut self.guest.qmp)
    }

    /// What QEMU has complained of.
    pub(crate) fn complaint(&self) -> String {
        self.guest.complaint()
    }

    /// Has QEMU end, and takes the trace.
    pub(crate) fn quit(mut self) -> Result<Option<Trace>> {
        self.guest.qmp.command("quit", &json!({})).context("telling QEMU to end")?;
        // By itself: it has files to write.
        self.guest.qemu.child().wait().context("waiting for QEMU")?;
        Ok(self.guest.trace())
    }

    /// All that is known of it, after that end.
    pub(crate) fn finish(self, end: End) -> Result<Run> {
        let Self { mut guest, mut reader, symbols, .. } = self;
        let total = guest.started.elapsed();
        let whereabouts = match end {
            End::Exited(_) | End::Killed(_) | End::Online => None,
            _ => Some(
                hang::report(&mut guest.qmp, symbols)
                    .unwrap_or_else(|e| format!("QEMU cannot be asked: {e:#}\n")),
            ),
        };
        while reader.take(&guest.printed()?, guest.started) {}
        let (transcript, online) = reader.finish();
        let (serial, complaint) = (whole(&guest.serial)?, guest.complaint());
        let trace = guest.trace();
        Ok(Run { end, transcript, serial, online, total, whereabouts, complaint, trace })
    }
}

/// Why not to wait any longer, if there is a reason.
fn given_up(guest: &Guest, watch: &Watch, signals: &NoteSignals) -> Option<End> {
    if signals.interrupted() {
        return Some(End::Interrupted);
    }
    if guest.read > MOST_OUTPUT as u64 {
        return Some(End::Flooded);
    }
    watch.timeout.filter(|&timeout| guest.started.elapsed() >= timeout).map(End::TimedOut)
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Killed(signal.unwrap_or(0)),
    }
}

/// A file for the guest's memory, and a descriptor of it for QEMU.
fn guest_memory(machine: &Machine) -> Result<Option<(Memory, OwnedFd)>> {
    let size = memory::size_of(&machine.memory)?;
    let file = memory_file("ram")?;
    file.set_len(size).context("a file as long as the guest's memory")?;
    let theirs = process::duplicate(file.as_fd())?;
    Ok(Some((Memory::new(file, size, &machine.machine), theirs)))
}

/// A file without a name, which nothing has to clean up.
fn memory_file(name: &str) -> Result<File> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).context("a file in memory")?;
    Ok(fd.into())
}

fn whole(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0).context("reading back a file in memory")?;
    Ok(bytes)
}

/// Turns the guest's bytes into a transcript and, beside it, into what the person at the terminal reads.
pub(crate) struct Reader<'a> {
    lines: Lines,
    transcript: Transcript,
    online: Option<Duration>,
    symbols: &'a Symbols,
    console: Console,
}

impl<'a> Reader<'a> {
    /// A reader at the guest's first byte.
    pub(crate) fn new(symbols: &'a Symbols, live: bool) -> Self {
        Self {
            lines: Lines::default(),
            transcript: Transcript::default(),
            online: None,
            symbols,
            console: Console::new(live),
        }
    }

    /// Takes the bytes in; says whether there were any.
    pub(crate) fn take(&mut self, bytes: &[u8], started: Instant) -> bool {
        let Self { lines, transcript, online, symbols, console } = self;
        lines.feed(bytes, |line| {
            let event = transcript.line(&line);
            if matches!(event, Event::Online(_)) {
                online.get_or_insert(started.elapsed());
            }
            annotate(&line, &event, !transcript.stops.is_empty(), symbols, |line| console.guest(line));
        });
        !bytes.is_empty()
    }

    /// What has been said so far.
    pub(crate) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Shows how far the guest is.
    pub(crate) fn progress(&mut self) {
        let transcript = &self.transcript;
        self.console.progress(|| match (&transcript.running, transcript.online) {
            (Some(test), _) => format!("{} tests done, running {test}", transcript.tests.len()),
            (None, Some(n)) => format!("{n} processors online, {} tests done", transcript.tests.len()),
            (None, None) => "booting".to_owned(),
        });
    }

    /// The transcript, with what a guest that stopped in the middle of a line had printed of it.
    pub(crate) fn finish(mut self) -> (Transcript, Option<Duration>) {
        if let Some(line) = self.lines.finish() {
            self.transcript.line(&line);
            self.console.guest(&line);
        }
        (self.transcript, self.online)
    }
}

/// Hands `line` to `show`, with the places of the code addresses in it: of a frame, or of any line in a report.
fn annotate(line: &str, event: &Event, in_report: bool, symbols: &Symbols, mut show: impl FnMut(&str)) {
    if let Event::Frame { index, address } = *event {
        let mut places = symbols.frame(index, address).into_iter();
        match places.next() {
            Some(place) => show(&format!("{line}  {place}")),
            None => show(line),
        }
        places.for_each(|place| show(&format!("       inlined into  {place}")));
        return;
    }
    let mentioned = if in_report { symbols.mentioned(line) } else { Vec::new() };
    show(line);
    for (address, place) in mentioned {
        show(&format!("       {address:#x} is  {place}"));
    }
}
