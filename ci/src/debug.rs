//! A person in the loop: gdb attached to a waiting guest, or the guest on the terminal.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use object::Object;

use crate::process::{NoteSignals, Owned};
use crate::qemu::Wiring;
use crate::report::Verdict;
use crate::run::{Guest, Reader};
use crate::target::Target;

/// Between two looks at gdb and the guest.
const POLL: Duration = Duration::from_millis(20);

/// Starts the guest stopped, and gdb on it, with a hardware breakpoint at the image's entry already reached.
///
/// The guest's lines appear between gdb's. When gdb ends, the guest does.
pub(crate) fn with_gdb(target: &Target) -> Result<u8> {
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
    let mut command = gdb_command(&target.machine.image, &target.machine.loader, &socket)?;
    eprintln!("{command:?}");
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

fn gdb_command(image: &Path, loader: &Path, socket: &Path) -> Result<Command> {
    let bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", image.display()))?;
    let mut gdb = Command::new("gdb");
    gdb.arg("--quiet").arg(image).stdin(Stdio::inherit());
    for line in [
        "set pagination off".to_owned(),
        format!("add-symbol-file -readnow {}", loader.display()),
        format!("target remote {}", socket.display()),
        // A software breakpoint would be a byte written before the loader has put the image there.
        format!("hbreak *{:#x}", file.entry()),
        "continue".to_owned(),
    ] {
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
