//! A person in the loop: gdb attached to a waiting guest, or the guest on the terminal.

use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use object::Object;

use crate::image::workspace;
use crate::process::{NoteSignals, Owned};
use crate::qemu::Wiring;
use crate::report::Verdict;
use crate::run::{Guest, Reader};
use crate::target::Target;

/// Between two looks at gdb and the guest.
const POLL: Duration = Duration::from_millis(20);

/// Where gdb has the guest when its commands begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Before the first instruction.
    Untouched,
    /// At the image's entry, for which it has been stopped once.
    AtEntry,
}

/// Starts the guest stopped, and gdb on it.
///
/// `then` are more commands for gdb. The guest's lines appear between gdb's. When gdb ends, the guest does.
pub(crate) fn with_gdb(target: &Target, start: Start, then: &[String]) -> Result<u8> {
    session(target, start, then, Stdio::inherit(), Stdio::inherit())
}

/// The same, from before the first instruction, with nobody at gdb, which ends behind the commands: what it said. Nothing when QEMU or gdb
/// failed.
pub(crate) fn in_batch(target: &Target, then: &[String]) -> Result<Option<String>> {
    let mut said = tempfile::tempfile().context("a file for what gdb says")?;
    let commands = [then, &["kill".to_owned(), "quit".to_owned()]].concat();
    let status = session(target, Start::Untouched, &commands, Stdio::null(), said.try_clone()?.into())?;
    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    Ok((status == 0).then_some(text))
}

/// Whether there is a gdb.
pub(crate) fn has_gdb() -> bool {
    Command::new("gdb").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok()
}

fn session(target: &Target, start: Start, then: &[String], input: Stdio, output: Stdio) -> Result<u8> {
    let folder = tempfile::tempdir().context("a folder for gdb's socket")?;
    let socket = folder.path().join("gdb");
    // Ctrl-C belongs to gdb here.
    let _signals = NoteSignals::start();
    let mut guest = Guest::start(&target.qemu, &target.machine, Some(&socket))?;
    while !socket.exists() {
        if let Some(status) = guest.ended()? {
            eprintln!("QEMU ended at once, with {status}:\n{}", guest.complaint());
            return Ok(Verdict::QemuDied(String::new()).exit_status());
        }
        thread::sleep(POLL);
    }
    let mut command = gdb_command(&target.machine.image, &target.machine.loader, &socket, start)?;
    // A file, as what spans lines cannot be an argument.
    let script = folder.path().join("commands");
    std::fs::write(&script, then.join("\n") + "\n").context("writing gdb's commands")?;
    command.arg("-x").arg(&script);
    command.stdin(input).stdout(output);
    let mut gdb = Owned::spawn(&mut command).context("cannot start gdb (`ci/setup.sh debug` installs it)")?;
    let mut reader = Reader::new(&target.symbols, true);
    let started = Instant::now();
    while gdb.ended()?.is_none() {
        while reader.take(&guest.printed()?, started) {}
        thread::sleep(POLL);
    }
    while reader.take(&guest.printed()?, started) {}
    reader.finish();
    Ok(0)
}

fn gdb_command(image: &Path, loader: &Path, socket: &Path, start: Start) -> Result<Command> {
    let bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", image.display()))?;
    let mut gdb = Command::new("gdb");
    gdb.arg("--quiet").arg(image);
    let connected = [
        "set pagination off".to_owned(),
        // The source's paths are relative to the workspace.
        format!("directory {}", workspace().display()),
        // No question to whoever is there.
        "set confirm off".to_owned(),
        format!("add-symbol-file -readnow {}", loader.display()),
        format!("target remote {}", socket.display()),
    ];
    let at_entry = [
        // A software breakpoint would be a byte written before the loader has put the image there.
        format!("hbreak *{:#x}", file.entry()),
        "continue".to_owned(),
        // To go on from a breakpoint that stays, gdb has its processor make a step alone.
        "delete".to_owned(),
    ];
    for line in connected.into_iter().chain(at_entry.into_iter().filter(|_| start == Start::AtEntry)) {
        gdb.arg("-ex").arg(line);
    }
    Ok(gdb)
}

/// Boots with COM1 and QEMU's monitor on the terminal.
pub(crate) fn interactive(target: &Target) -> Result<u8> {
    eprintln!("Ctrl-A x ends QEMU, Ctrl-A c is its monitor");
    let _signals = NoteSignals::start();
    let mut command = Command::new(&target.qemu.program);
    command.args(target.machine.arguments(Wiring::Terminal));
    let mut qemu = Owned::spawn(&mut command)
        .with_context(|| format!("cannot start {}", target.qemu.program.display()))?;
    let status = qemu.child().wait()?;
    println!("QEMU ended with {status}");
    Ok(0)
}
