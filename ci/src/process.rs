//! Children that never outlive the harness, and signals that reach it.
//!
//! Three nets, each for what the one before misses: the owner of a `Child` kills it when dropped; SIGINT, SIGTERM
//! and SIGHUP are noticed between two polls, so that drops run; and the kernel kills the child when the harness
//! itself is killed (the parent-death signal, which is armed for the *thread* that forks: so only the main thread,
//! which lives as long as the process, may spawn, or one that waits for what it spawned).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::CpuSet;

/// Makes the child of `command` die with `signal` when this process does, in whatever way that happens.
pub(crate) fn die_with_us(command: &mut Command, signal: Signal) -> &mut Command {
    let parent = rustix::process::getpid();
    let arm = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // Killed between the fork and the line above: nobody will send that signal any more.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only the forking thread exists, so the closure may neither allocate nor take a
    // lock: it makes two system calls on values copied into it, and its errors are bare error numbers.
    unsafe { command.pre_exec(arm) }
}

/// Lets the child of `command` inherit `fds` under the same numbers, and leaves them closed-on-exec here.
pub(crate) fn inherit(command: &mut Command, fds: Vec<OwnedFd>) -> &mut Command {
    let keep_open = move || {
        for fd in &fds {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: only system calls on descriptors that the closure owns, so nothing allocates or locks in the child.
    unsafe { command.pre_exec(keep_open) }
}

/// The number that `fd` has in a child that inherits it.
pub(crate) fn number(fd: &impl AsRawFd) -> i32 {
    fd.as_raw_fd()
}

/// A second descriptor for the same open file, to give to `inherit`.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().context("duplicating a file descriptor")
}

/// One of the host's processors, on which this process has a guest.
pub(crate) struct Core(usize);

/// Guests on each.
static GUESTS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

impl Core {
    /// The one with the fewest guests, for all threads of a QEMU that counts instructions; see [`yield_to_others`].
    pub(crate) fn for_all_of(child: &Child) -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let mut cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
        // Another process begins with another one.
        let first = std::process::id() as usize % cores.len().max(1);
        cores.rotate_left(first);
        let core = {
            let mut guests = GUESTS.lock().unwrap_or_else(PoisonError::into_inner);
            guests.resize(CpuSet::MAX_CPU, 0);
            let core = cores.into_iter().min_by_key(|&core| guests[core]).unwrap_or(0);
            guests[core] += 1;
            core
        };
        let mut set = CpuSet::new();
        set.set(core);
        // What can't be had is done without: runs differ a little more often then.
        let _ = rustix::thread::sched_setaffinity(Pid::from_raw(child.id() as i32), &set);
        Self(core)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        GUESTS.lock().unwrap_or_else(PoisonError::into_inner)[self.0] -= 1;
    }
}

/// Has the first thread of such a QEMU run when the others have nothing to do.
///
/// Where all of the guest's processors are idle, whichever thread sees it first moves the clock on to the next timer. Between a processor's
/// halt and the counting of its last instructions the first thread would do so by too few: the interrupt comes late by as many
/// instructions, and it is another run.
pub(crate) fn yield_to_others(child: &Child) {
    let _ = rustix::process::setpriority_process(Pid::from_raw(child.id() as i32), 19);
    // Where there is util-linux, behind even that.
    let id = child.id().to_string();
    let _ = Command::new("chrt").args(["--idle", "--pid", "0", &id]).stderr(Stdio::null()).status();
}

/// A child that is killed when this value goes.
pub(crate) struct Owned {
    child: Child,
}

impl Owned {
    /// Starts `command`, bound to this process's life.
    ///
    /// Call it from the main thread, or from one that outlives the child (see the module's header).
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        die_with_us(command, Signal::KILL).spawn().map(|child| Self { child })
    }

    /// The child, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its status, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("waiting for a child process")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if the child has been waited for already, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// True: a signal takes its default course. False: a guest is running, and the first signal only sets this.
static SIGNALLED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn signalled() -> &'static Arc<AtomicBool> {
    SIGNALLED.get_or_init(|| Arc::new(AtomicBool::new(true)))
}

/// Takes over the signals that ask for an end. Call once, first thing.
pub(crate) fn install_signal_handlers() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The order counts: a second signal, or one that nobody would look at, ends the process at once.
        signal_hook::flag::register_conditional_default(signal, signalled().clone())?;
        signal_hook::flag::register(signal, signalled().clone())?;
    }
    Ok(())
}

/// While this lives, the first signal is only noted, for `interrupted` to tell.
pub(crate) struct NoteSignals(());

impl NoteSignals {
    /// Starts noting.
    pub(crate) fn start() -> Self {
        signalled().store(false, Ordering::SeqCst);
        Self(())
    }

    /// Whether a signal has asked for an end.
    pub(crate) fn interrupted(&self) -> bool {
        signalled().load(Ordering::SeqCst)
    }
}

impl Drop for NoteSignals {
    fn drop(&mut self) {
        signalled().store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_count_get_a_core_each_while_there_are_some() {
        let mut sleeper = Owned::spawn(Command::new("sleep").arg("60")).expect("sleep");
        let allowed = rustix::thread::sched_getaffinity(None).expect("own affinity").count();
        let cores: Vec<Core> = (0..allowed).map(|_| Core::for_all_of(sleeper.child())).collect();
        let different: std::collections::BTreeSet<usize> = cores.iter().map(|core| core.0).collect();
        assert_eq!(different.len(), allowed as usize);
        let pid = Pid::from_raw(sleeper.child().id() as i32);
        let set = rustix::thread::sched_getaffinity(pid).expect("its affinity");
        assert!(set.count() == 1 && cores.last().is_some_and(|core| set.is_set(core.0)));
        yield_to_others(sleeper.child());
        assert_eq!(rustix::process::getpriority_process(pid).expect("its priority"), 19);
        drop(cores);
        assert!(GUESTS.lock().expect("no test panics with it").iter().all(|&guests| guests == 0));
    }
}
