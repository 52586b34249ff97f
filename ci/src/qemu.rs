//! QEMU: which one, whether it will do, and its command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::disk;

/// The kernel needs an x2APIC, which QEMU emulates from this version on; older ones have it from KVM alone.
const OLDEST: (u32, u32) = (9, 0);

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// Emulation, a host thread for each processor.
    Tcg,
    /// Emulation under the instruction counter: one instruction is one nanosecond, and every run is the same.
    Icount,
    /// The same, several instructions a block: quicker, and as exact where no code reads the timer's count.
    IcountBlocks,
    /// The host's own processor.
    Kvm,
}

/// A QEMU that was found and asked for its version.
#[derive(Debug)]
pub(crate) struct Qemu {
    /// What to execute.
    pub(crate) program: PathBuf,
    /// Major and minor version.
    pub(crate) version: (u32, u32),
}

impl Accel {
    /// Is time the number of instructions?
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Icount | Self::IcountBlocks)
    }
}

impl Qemu {
    /// The QEMU named by the environment variable `QEMU`, or else the one on the path.
    pub(crate) fn find() -> Result<Self> {
        let program = std::env::var_os("QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let program = PathBuf::from(program);
        let output = Command::new(&program).arg("--version").output().with_context(|| {
            format!(
                "cannot execute {}: install QEMU {}.{} or newer (`ci/setup.sh run` does), \
                 or name one in the environment variable QEMU",
                program.display(),
                OLDEST.0,
                OLDEST.1
            )
        })?;
        let said = String::from_utf8_lossy(&output.stdout);
        let Some(version) = parse_version(&said).filter(|_| output.status.success()) else {
            bail!(
                "{} --version ends with {} and tells no version: {}{}",
                program.display(),
                output.status,
                said,
                String::from_utf8_lossy(&output.stderr)
            );
        };
        Ok(Self { program, version })
    }

    /// The accelerator to use: the wanted one if this QEMU is fit for it, or the best that it is fit for.
    pub(crate) fn accel(&self, wanted: Option<Accel>) -> Result<Accel> {
        let new_enough = self.version >= OLDEST;
        match wanted {
            Some(Accel::Kvm) if !kvm_is_usable() => {
                bail!("/dev/kvm is missing or not open to you: use --accel tcg, or join the group kvm")
            }
            Some(accel) if new_enough || accel == Accel::Kvm => Ok(accel),
            None if new_enough => Ok(Accel::Tcg),
            None if kvm_is_usable() => Ok(Accel::Kvm),
            _ => bail!(
                "{} is version {}.{}, and emulating an x2APIC takes {}.{} or newer: \
                 install one (`ci/setup.sh run` does), or use --accel kvm where /dev/kvm is usable",
                self.program.display(),
                self.version.0,
                self.version.1,
                OLDEST.0,
                OLDEST.1
            ),
        }
    }

    /// Whether the self-tests' devices can be plugged into `machine`: this QEMU has them, and the machine a PCI bus.
    pub(crate) fn has_test_devices(&self, machine: &str) -> bool {
        let known = || Command::new(&self.program).args(["-device", "edu,help"]).output();
        !machine.starts_with("microvm") && known().is_ok_and(|output| output.status.success())
    }
}

/// Two of QEMU's teaching devices, whose interrupts software raises and acknowledges. Their slots are four apart, so the chipset
/// leads both to one line.
const TEST_DEVICES: [&str; 4] = ["-device", "edu,addr=0x10", "-device", "edu,addr=0x14"];

fn kvm_is_usable() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A machine to build and what it is to boot.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// What runs the instructions.
    pub(crate) accel: Accel,
    /// Processors.
    pub(crate) cpus: u32,
    /// `sockets=..,cores=..,threads=..`, or QEMU's choice.
    pub(crate) topology: Option<String>,
    /// Memory, with QEMU's suffixes.
    pub(crate) memory: String,
    /// Machine type.
    pub(crate) machine: String,
    /// Processor model.
    pub(crate) cpu: String,
    /// The PVH loader.
    pub(crate) loader: PathBuf,
    /// The kernel or self-test image.
    pub(crate) image: PathBuf,
    /// Plug in the devices that the self-tests of interrupts use.
    pub(crate) test_devices: bool,
    /// The guest's command line.
    pub(crate) command_line: String,
    /// Its memory can be read when it stands still.
    pub(crate) readable: bool,
    /// Its run is recorded or played.
    pub(crate) recording: Option<Recording>,
    /// Where QEMU lists the code that it translates, which is what the guest executes.
    pub(crate) translated: Option<PathBuf>,
}

/// A run under the instruction counter that QEMU writes down, or has written down.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    /// Which of the two.
    pub(crate) direction: Direction,
    /// What came from outside of the processor, and when.
    pub(crate) log: PathBuf,
    /// A disk image for the snapshot of the beginning.
    pub(crate) snapshot: PathBuf,
}

/// See [`Recording`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// It is being recorded.
    Record,
    /// It is played.
    Play,
    /// It is played, and stands at its beginning until QMP has it go on.
    PlayInPieces,
}

/// Where COM1 and QEMU's control connection lead.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wiring<'a> {
    /// COM1 and the monitor share the terminal.
    Terminal,
    /// Inherited descriptors: a file for COM1, a socket for QMP; and where gdb may connect, before anything runs.
    Harness {
        /// An open file that takes COM1's bytes.
        serial: i32,
        /// A connected socket.
        qmp: i32,
        /// A file for the guest's memory.
        memory: Option<i32>,
        /// A file for the self-tests' disk.
        disk: Option<i32>,
        /// The path of gdb's socket.
        gdb: Option<&'a Path>,
    },
}

impl Machine {
    /// Does it have the self-tests' disks? Not where instructions are counted: the host says when a disk's work is over.
    pub(crate) fn has_disks(&self) -> bool {
        self.test_devices && !self.accel.counts() && self.machine.starts_with("q35")
    }

    /// What `-icount` says.
    fn counter(&self) -> String {
        let counter = "shift=0,sleep=off";
        match &self.recording {
            None => counter.to_owned(),
            Some(Recording { direction, log, .. }) => {
                let mode = if *direction == Direction::Record { "record" } else { "replay" };
                format!("{counter},rr={mode},rrfile={},rrsnapshot=beginning", log.display())
            }
        }
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(&self, wiring: Wiring<'_>) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        let smp = match &self.topology {
            Some(topology) => format!("{},{topology}", self.cpus),
            None => self.cpus.to_string(),
        };
        let mut machine = self.machine.clone();
        if let Wiring::Harness { memory: Some(fd), .. } = wiring {
            machine += ",memory-backend=ram";
            let file = format!("size={},share=on,mem-path=/proc/self/fd/{fd}", self.memory);
            add(&["-object", &format!("memory-backend-file,id=ram,{file}")]);
        }
        add(&["-machine", &machine, "-cpu", &self.cpu, "-smp", &smp, "-m", &self.memory]);
        match self.accel {
            Accel::Tcg => add(&["-accel", "tcg"]),
            Accel::Kvm => add(&["-accel", "kvm"]),
            // The clock, the date and QEMU's own random numbers all come from the counter and a fixed seed. QEMU lets
            // only the last instruction of a block read the counter and does not count `wrmsr` and `rdmsr` among
            // those that do, though the x2APIC timer's registers are behind them: so every instruction is a block.
            Accel::Icount | Accel::IcountBlocks => add(&[
                "-accel",
                if self.accel == Accel::Icount {
                    "tcg,thread=single,one-insn-per-tb=on"
                } else {
                    "tcg,thread=single"
                },
                "-icount",
                &self.counter(),
                "-rtc",
                "base=2026-01-01,clock=vm",
                "-seed",
                "1",
            ]),
        }
        // No graphics card: its firmware alone costs a fifth of the way to the kernel.
        add(&["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot"]);
        match &self.recording {
            // Not a disk of the guest's.
            Some(Recording { snapshot, .. }) => {
                add(&["-drive", &format!("file={},format=qcow2,if=none,id=snapshot", snapshot.display())]);
            }
            None => add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]),
        }
        if self.test_devices {
            add(&TEST_DEVICES);
        }
        match wiring {
            Wiring::Terminal => add(&["-serial", "mon:stdio"]),
            Wiring::Harness { serial, qmp, memory: _, disk, gdb } => {
                // A file never makes the guest's UART wait, as a pipe that is full would.
                add(&["-add-fd", &format!("fd={serial},set=1")]);
                add(&["-chardev", "file,id=com1,path=/dev/fdset/1", "-serial", "chardev:com1"]);
                add(&["-chardev", &format!("socket,id=qmp,fd={qmp}"), "-mon", "chardev=qmp,mode=control"]);
                // A reset (so a triple fault, too) leaves the machine standing, to be looked at. That takes a word
                // to QEMU at every end, and a counted run is to be left alone.
                if !self.accel.counts() {
                    add(&["-action", "shutdown=pause"]);
                }
                let in_pieces = |r: &Recording| r.direction == Direction::PlayInPieces;
                if self.recording.as_ref().is_some_and(in_pieces) {
                    add(&["-S"]);
                }
                if let Some(fd) = disk {
                    let words = disk::arguments(fd);
                    add(&words.iter().map(String::as_str).collect::<Vec<_>>());
                }
                if let Some(socket) = gdb {
                    add(&["-S", "-gdb", &format!("unix:{},server=on,wait=off", socket.display())]);
                }
            }
        }
        if let Some(list) = &self.translated {
            add(&["-d", "in_asm", "-D", &list.display().to_string()]);
        }
        add(&["-append", &self.command_line]);
        args.extend(["-kernel".into(), self.loader.clone().into()]);
        args.extend(["-initrd".into(), self.image.clone().into()]);
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accel: Accel) -> Machine {
        Machine {
            accel,
            cpus: 8,
            topology: Some("sockets=2,cores=2,threads=2".into()),
            memory: "512M".into(),
            machine: "q35".into(),
            cpu: "max".into(),
            loader: "boot".into(),
            image: "image".into(),
            test_devices: true,
            readable: false,
            command_line: "seed=1 only=x".into(),
            recording: None,
            translated: None,
        }
    }

    fn joined(accel: Accel, wiring: Wiring<'_>) -> String {
        let words = machine(accel).arguments(wiring);
        words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.9"), Some((7, 2)));
        assert_eq!(parse_version("version x"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn an_old_qemu_is_refused_for_emulation() {
        let old = Qemu { program: "qemu".into(), version: (7, 2) };
        let refusal = old.accel(Some(Accel::Icount)).expect_err("too old").to_string();
        assert!(refusal.contains("7.2") && refusal.contains("setup.sh"), "{refusal}");
        let new = Qemu { program: "qemu".into(), version: (9, 0) };
        assert_eq!(new.accel(None).expect("new enough"), Accel::Tcg);
    }

    #[test]
    fn counted_runs_take_time_and_chance_from_the_counter() {
        let wiring = Wiring::Harness { serial: 5, qmp: 6, memory: None, disk: None, gdb: None };
        let line = joined(Accel::Icount, wiring);
        for part in ["shift=0,sleep=off", "clock=vm", "-seed 1", "-nic none", "-smp 8,sockets=2"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!joined(Accel::Tcg, wiring).contains("icount"));
    }

    #[test]
    fn a_recorded_guest_has_nothing_to_leave_by() {
        let line = |direction| {
            let recording = Recording { direction, log: "dir/log".into(), snapshot: "dir/disk".into() };
            let machine = Machine { recording: Some(recording), ..machine(Accel::IcountBlocks) };
            let words = machine.arguments(Wiring::Terminal);
            words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        let (record, play) = (line(Direction::Record), line(Direction::Play));
        assert!(record.contains("rr=record,rrfile=dir/log,rrsnapshot=") && play.contains("rr=replay,"));
        assert!(record.contains("file=dir/disk,format=qcow2,if=none") && !record.contains("isa-debug-exit"));
        assert!(joined(Accel::IcountBlocks, Wiring::Terminal).contains("isa-debug-exit"));
    }

    #[test]
    fn the_test_devices_share_a_line() {
        let line = joined(Accel::Tcg, Wiring::Terminal);
        assert!(line.contains("-device edu,addr=0x10 -device edu,addr=0x14"), "{line}");
        let without = Machine { test_devices: false, ..machine(Accel::Tcg) }.arguments(Wiring::Terminal);
        assert!(!without.iter().any(|word| word.to_string_lossy().contains("edu")));
    }

    #[test]
    fn a_debugged_guest_waits() {
        let wiring =
            Wiring::Harness { serial: 5, qmp: 6, memory: None, disk: None, gdb: Some(Path::new("dir/gdb")) };
        assert!(joined(Accel::Tcg, wiring).contains("-S -gdb unix:dir/gdb,server=on,wait=off"));
        assert!(!joined(Accel::Tcg, Wiring::Terminal).contains("-S"));
    }
}
