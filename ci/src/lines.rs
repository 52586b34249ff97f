//! Pairs of threads that signal each other, each pair bound to a processor: which cache lines do they share?
//!
//! The bench image, which is the kernel as it ships, runs them under the instruction counter (tests/bench/src/lines.rs), and QEMU logs
//! each instruction with the registers before it. From those and the image's bytes follows what each one reads and writes. No line that
//! one processor writes may be touched by another: neither the kernel's, nor by the chance of two things lying side by side.
//!
//! A clock interrupt is no part of a pair's round trip: a log with one in it is taken again.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, Register};
use object::{Object, ObjectSegment};
use serde_json::json;

use crate::process::NoteSignals;
use crate::qemu::Accel;
use crate::report::Verdict;
use crate::run::Guest;
use crate::symbols::Symbols;
use crate::target::{GuestArgs, ImageChoice, Target};

/// A boot with single instructions as blocks takes ten seconds of an idle host; a log of this size, one.
const TIMEOUT: Duration = Duration::from_secs(300);
const LOG_BYTES: u64 = 24 << 20;
/// Processors, each with its pair.
const CPUS: u32 = 4;
/// A clock interrupt comes every 15 ms, and a log is less than a tenth of that.
const TRIES: u32 = 5;
/// Each processor's instructions in a log, at least: some ten round trips.
const LEAST: usize = 4000;
const LINE: u64 = 64;
/// What the guest says when the pairs run.
const RUN: &str = "lines: the pairs run";

/// Boots, logs, judges; prints what is shared.
pub(crate) fn check() -> Result<u8> {
    let args = GuestArgs {
        cpus: CPUS,
        accel: Some(Accel::Icount),
        append: vec!["lines".to_owned()],
        ..GuestArgs::default()
    };
    let target = Target::prepare(&args, ImageChoice::Bench)?;
    let code = Image::read(&target.machine.image)?;
    let folder = tempfile::tempdir().context("a folder for the log")?;
    let log = folder.path().join("log");
    let signals = NoteSignals::start();
    let mut guest = Guest::start(&target.qemu, &target.machine, None)?;
    if !until_they_run(&mut guest, &signals)? {
        return Ok(Verdict::Interrupted.exit_status());
    }
    let (qmp, _) = guest.parts();
    qmp.negotiate()?;
    for _ in 0..TRIES {
        qmp.monitor(0, &format!("logfile {}", log.display()))?;
        qmp.monitor(0, "log exec,cpu,nochain")?;
        let deadline = Instant::now() + TIMEOUT;
        while std::fs::metadata(&log).map_or(0, |it| it.len()) < LOG_BYTES {
            ensure!(Instant::now() < deadline, "QEMU logs no instructions");
            std::thread::sleep(Duration::from_millis(20));
        }
        qmp.monitor(0, "log none")?;
        let mut touched = Touched::default();
        let whole = read(BufReader::new(std::fs::File::open(&log).context("opening QEMU's log")?), |step| {
            touched.note(step, &code)
        })?;
        if whole {
            let _ = qmp.send("quit", &json!({}));
            return judge(&touched, &target.symbols);
        }
        std::fs::remove_file(&log).context("removing QEMU's log")?;
    }
    bail!("each of {TRIES} logs has an interrupt in it")
}

/// False: a signal asked for an end.
fn until_they_run(guest: &mut Guest, signals: &NoteSignals) -> Result<bool> {
    let (mut said, deadline) = (String::new(), Instant::now() + TIMEOUT);
    while !said.contains(RUN) {
        if signals.interrupted() {
            return Ok(false);
        }
        ensure!(guest.ended()?.is_none() && Instant::now() < deadline, "the pairs do not run:\n{said}");
        said.push_str(&String::from_utf8_lossy(&guest.printed()?));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

fn judge(touched: &Touched, symbols: &Symbols) -> Result<u8> {
    for (cpu, it) in touched.processors.iter().enumerate() {
        ensure!(it.steps >= LEAST, "processor {cpu} made {} instructions: too few to tell", it.steps);
    }
    ensure!(touched.processors.len() == CPUS as usize, "not all processors are in the log");
    let shared = touched.shared();
    for it in &shared {
        let place = |at| symbols.at(at).into_iter().next().map_or("?".to_owned(), |it| it.to_string());
        println!("FAIL {it}\n       {}\n       {}", place(it.written_at), place(it.touched_at));
    }
    let steps: usize = touched.processors.iter().map(|it| it.steps).sum();
    let lines: usize = touched.processors.iter().map(|it| it.written.len()).sum();
    println!("{steps} instructions of {CPUS} processors; {lines} lines written, {} shared", shared.len());
    Ok(u8::from(!shared.is_empty()))
}

/// An instruction that a processor is about to execute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Step {
    cpu: usize,
    rip: u64,
    /// In the order of their encoding.
    registers: [u64; 16],
    fs_base: u64,
    gs_base: u64,
}

impl Step {
    fn register(&self, register: Register) -> Option<u64> {
        match register {
            // The displacement is the address.
            Register::RIP => Some(0),
            Register::FS => Some(self.fs_base),
            Register::GS => Some(self.gs_base),
            it if it.is_segment_register() => Some(0),
            it if it.is_gpr64() => Some(self.registers[it.number()]),
            it if it.is_gpr32() => Some(self.registers[it.number()] & 0xFFFF_FFFF),
            _ => None,
        }
    }
}

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// Hands each complete step of the log to `note`, until that says no: false then.
fn read(log: impl BufRead, mut note: impl FnMut(&Step) -> Result<bool>) -> Result<bool> {
    let mut step: Option<Step> = None;
    for line in log.split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading QEMU's log")?).into_owned();
        if let Some(rest) = line.strip_prefix("Trace ") {
            let cpu = rest.split(':').next().and_then(|it| it.trim().parse().ok());
            step = cpu.map(|cpu| Step { cpu, ..Step::default() });
        } else if let Some(it) = &mut step {
            if let Some(base) = line.strip_prefix("FS =") {
                it.fs_base = base_of(base)?;
            } else if let Some(base) = line.strip_prefix("GS =") {
                // Behind all that is needed.
                it.gs_base = base_of(base)?;
                if !note(it)? {
                    return Ok(false);
                }
                step = None;
            } else {
                registers(&line, it);
            }
        }
    }
    Ok(true)
}

/// `RAX=0000000000000001 R8 =0000000000000002 ...`.
fn registers(line: &str, step: &mut Step) {
    let line = line.replace(" =", "=");
    for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
        let Ok(value) = u64::from_str_radix(value, 16) else { continue };
        if name == "RIP" {
            step.rip = value;
        } else if let Some(number) = NAMES.iter().position(|it| *it == name) {
            step.registers[number] = value;
        }
    }
}

/// The second word of a segment register's line.
fn base_of(line: &str) -> Result<u64> {
    let word = line.split_whitespace().nth(1).with_context(|| format!("no base in {line:?}"))?;
    u64::from_str_radix(word, 16).with_context(|| format!("the base {word:?}"))
}

/// The image's bytes, by address.
struct Image(Vec<(u64, Vec<u8>)>);

impl Image {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", path.display()))?;
        let segments = file.segments().map(|it| Ok((it.address(), it.data()?.to_vec())));
        Ok(Self(segments.collect::<Result<_>>()?))
    }

    fn instruction(&self, rip: u64) -> Option<Instruction> {
        let (start, bytes) =
            self.0.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&rip))?;
        let mut decoder = Decoder::with_ip(64, &bytes[(rip - start) as usize..], rip, DecoderOptions::NONE);
        Some(decoder.decode())
    }
}

/// What a processor touched: lines, with the first instruction that did.
#[derive(Default)]
struct Processor {
    steps: usize,
    written: HashMap<u64, u64>,
    read: HashMap<u64, u64>,
}

#[derive(Default)]
struct Touched {
    processors: Vec<Processor>,
}

/// A line that one processor writes and another one touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shared {
    line: u64,
    writer: usize,
    other: usize,
    written_at: u64,
    touched_at: u64,
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, writer, other, .. } = self;
        write!(f, "the line at {line:#x} is written by processor {writer} and touched by {other}")
    }
}

impl Touched {
    /// False: it is the end of an interrupt.
    fn note(&mut self, step: &Step, image: &Image) -> Result<bool> {
        let Some(instruction) = image.instruction(step.rip) else {
            bail!("processor {} is at {:#x}, outside of the image", step.cpu, step.rip);
        };
        if instruction.code() == Code::Iretq {
            return Ok(false);
        }
        if self.processors.len() <= step.cpu {
            self.processors.resize_with(step.cpu + 1, Processor::default);
        }
        let it = &mut self.processors[step.cpu];
        it.steps += 1;
        for used in InstructionInfoFactory::new().info(&instruction).used_memory() {
            let (reads, writes) = match used.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => continue,
            };
            let address = used.virtual_address(0, |register, _, _| step.register(register));
            let address = address.with_context(|| format!("what {:#x} touches", step.rip))?;
            let size = (used.memory_size().size() as u64).max(1);
            for line in (address / LINE..=(address + size - 1) / LINE).map(|line| line * LINE) {
                if writes {
                    it.written.entry(line).or_insert(step.rip);
                }
                if reads {
                    it.read.entry(line).or_insert(step.rip);
                }
            }
        }
        Ok(true)
    }

    fn shared(&self) -> Vec<Shared> {
        let mut found = Vec::new();
        for (writer, one) in self.processors.iter().enumerate() {
            for (&line, &written_at) in &one.written {
                for (other, two) in self.processors.iter().enumerate().filter(|(other, _)| *other != writer) {
                    if let Some(&touched_at) = two.written.get(&line).or_else(|| two.read.get(&line)) {
                        found.push(Shared { line, writer, other, written_at, touched_at });
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 10 writes it.
    const LOG: &str = "Trace 1: 0x7f33ec94d880 [00000000/ffffffff80007fd0/18c0cab0/ff022201] \n\
        RAX=0000000000000010 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000\n\
        RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=0000000000001000\n\
        R8 =0000000000000008 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000000\n\
        R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000000000\n\
        RIP=0000000000004000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
        ES =0000 0000000000000000 00000000 00000000\n\
        FS =0000 0000000000000000 00000000 00000000\n\
        GS =0000 ffff800000002000 00000000 00000000\n";

    fn step() -> Step {
        let mut steps = Vec::new();
        let whole = read(LOG.as_bytes(), |step| {
            steps.push(*step);
            Ok(true)
        });
        assert!(whole.expect("it is no log"));
        assert_eq!(steps.len(), 1);
        steps[0]
    }

    #[test]
    fn a_step_is_read_with_its_registers() {
        let step = step();
        assert_eq!((step.cpu, step.rip, step.gs_base), (1, 0x4000, 0xFFFF_8000_0000_2000));
        assert_eq!((step.registers[0], step.registers[4], step.registers[8]), (0x10, 0x1000, 8));
    }

    fn touched(code: &[u8]) -> Processor {
        let mut touched = Touched::default();
        let image = Image(vec![(0x4000, code.to_vec())]);
        assert!(touched.note(&step(), &image).expect("an instruction"));
        touched.processors.pop().expect("a processor")
    }

    #[test]
    fn what_an_instruction_touches_is_found() {
        let lines = |of: &HashMap<u64, u64>| of.keys().copied().collect::<Vec<_>>();
        // push rax; mov gs:[0x20], rax; lock inc dword ptr [rip + 0xF9]; mov rcx, [rax + r8 * 8]; lea rcx, [rax]; mov [rax + 0x2C], rax
        for (code, written, read) in [
            (&[0x50][..], vec![0xFC0], vec![]),
            (&[0x65, 0x48, 0x89, 0x04, 0x25, 0x20, 0, 0, 0], vec![0xFFFF_8000_0000_2000], vec![]),
            (&[0xF0, 0xFF, 0x05, 0xF9, 0, 0, 0], vec![0x4100], vec![0x4100]),
            (&[0x4A, 0x8B, 0x0C, 0xC0], vec![], vec![0x40]),
            (&[0x48, 0x8D, 0x08], vec![], vec![]),
        ] {
            let it = touched(code);
            assert_eq!((lines(&it.written), lines(&it.read)), (written, read), "{code:x?}");
        }
        assert_eq!(touched(&[0x48, 0x89, 0x40, 0x2C]).written.len(), 2, "it lies across two lines");
    }

    #[test]
    fn a_line_is_shared_if_who_writes_it_is_not_alone() {
        let processor = |written: &[u64], read: &[u64]| Processor {
            steps: 1,
            written: written.iter().map(|&line| (line, 1)).collect(),
            read: read.iter().map(|&line| (line, 2)).collect(),
        };
        let both = |one, two| Touched { processors: vec![one, two] }.shared().len();
        assert_eq!(both(processor(&[64], &[0]), processor(&[128], &[0])), 0);
        assert_eq!(both(processor(&[64], &[]), processor(&[], &[64])), 1);
        assert_eq!(both(processor(&[64], &[]), processor(&[64], &[])), 2);
    }
}
