//! A run recorded by QEMU, which plays it back in either direction, or piece by piece: one processor only.
//!
//! The recording has a snapshot of its beginning. A debugger's step back loads that, and plays the run up to the instruction before.
//! QEMU plays nothing behind the last thing that it has recorded from outside of the processor, and its exit device ends it before that
//! is written. So a recorded machine has no such device: the guest halts, and is told to end then.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::NoteSignals;
use crate::qemu::{Direction, Recording};
use crate::run::{Follow, Watch};
use crate::target::Target;

/// Between two looks at a guest that is about to halt.
const POLL: Duration = Duration::from_millis(50);

/// What is known of a run that was recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded {
    /// Of its trace, if its image has one.
    pub(crate) digest: Option<u64>,
    /// How many were executed.
    pub(crate) instructions: u64,
}

/// Whether there is what makes the file for the snapshot.
pub(crate) fn is_possible() -> bool {
    Command::new("qemu-img").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok()
}

/// Records the target's run into `folder`, and has it played from then on, that way. Nothing when a signal asked for an end.
pub(crate) fn make(
    target: &mut Target,
    folder: &Path,
    play: Direction,
    timeout: Duration,
) -> Result<Option<Recorded>> {
    ensure!(is_possible(), "recording takes qemu-img (`ci/setup.sh debug` installs it)");
    let (log, snapshot) = (folder.join("log"), folder.join("snapshot"));
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&snapshot).arg("1M").status();
    ensure!(made.context("starting qemu-img")?.success(), "qemu-img cannot make {}", snapshot.display());
    let recording =
        |direction| Some(Recording { direction, log: PathBuf::clone(&log), snapshot: snapshot.clone() });
    target.machine.recording = recording(Direction::Record);
    let signals = NoteSignals::start();
    let watch = Watch { timeout: Some(timeout), live: false, until_online: false };
    let mut follow = Follow::start(&target.qemu, &target.machine, &target.symbols, &watch)?;
    let started = Instant::now();
    loop {
        if signals.interrupted() {
            return Ok(None);
        }
        let end = follow.poll(&signals)?;
        ensure!(end.is_none(), "the recording ended early: {end:?}\n{}", follow.complaint());
        if follow.has_said_all() && follow.has_halted()? {
            break;
        }
        ensure!(started.elapsed() < timeout, "the run does not end, so there is no end to go back from");
        thread::sleep(POLL);
    }
    let instructions = follow.instructions()?;
    let digest = follow.quit()?.map(|trace| trace.digest);
    target.machine.recording = recording(play);
    Ok(Some(Recorded { digest, instructions }))
}
