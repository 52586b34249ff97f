//! Where every processor is: asked of QEMU when a guest hangs or resets.
//!
//! The state is read with the machine stopped, through commands of the human monitor: QEMU offers registers in no
//! other way. CR8 is the task priority register of the local APIC, whose state also shows what the processor is
//! deaf to (ISR) and what waits (IRR).

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::json;

use crate::guest;
use crate::memory::Memory;
use crate::qmp::Qmp;
use crate::symbols::Symbols;

/// Deep enough for any sane stack; a damaged chain of frames ends sooner, by itself.
const MOST_FRAMES: usize = 32;

/// What one processor was doing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Processor {
    rip: u64,
    rsp: u64,
    rbp: u64,
    rflags: u64,
    cr2: u64,
    cr3: u64,
    halted: bool,
    /// False in real or 32-bit mode, which only firmware and the loader use.
    long_mode: bool,
    task_priority: Option<u64>,
    in_service: String,
    requested: String,
}

/// Stops the machine and tells where each processor is.
pub(crate) fn report(qmp: &mut Qmp, symbols: &Symbols) -> Result<String> {
    qmp.negotiate()?;
    qmp.command("stop", &json!({})).context("stopping the machine")?;
    let processors = qmp.command("query-cpus-fast", &json!({}))?;
    let indices = processors.as_array().into_iter().flatten().filter_map(|p| p["cpu-index"].as_u64());
    let mut text = String::new();
    for index in indices {
        let registers = qmp.monitor(index, "info registers")?;
        let apic = qmp.monitor(index, "info lapic")?;
        let processor = parse(&registers, &apic);
        let frames = walk(&processor, |address| read_pair(qmp, index, address));
        describe(&mut text, index, &processor, &frames, symbols);
    }
    Ok(text)
}

/// Whether processor 0 has halted for good: with interrupts off.
pub(crate) fn has_halted(qmp: &mut Qmp) -> Result<bool> {
    const IF: u64 = 1 << 9;
    qmp.negotiate()?;
    let processor = parse(&qmp.monitor(0, "info registers")?, "");
    Ok(processor.halted && processor.rflags & IF == 0)
}

/// The code that processor 0 of a machine that stands still is in: where it is, then where each call returns to.
pub(crate) fn stack(qmp: &mut Qmp, memory: &Memory) -> Result<Vec<u64>> {
    let processor = parse(&qmp.monitor(0, "info registers")?, "");
    let pair = |address| {
        let bytes = memory.mapped(processor.cr3, address, 16).ok()?;
        let (first, second) = bytes.split_at(8);
        Some([u64::from_le_bytes(first.try_into().ok()?), u64::from_le_bytes(second.try_into().ok()?)])
    };
    let frames = walk(&processor, pair);
    Ok(std::iter::once(processor.rip).chain(frames).collect())
}

/// Two words of the guest's memory at a virtual address, if it is mapped.
fn read_pair(qmp: &mut Qmp, processor: u64, address: u64) -> Option<[u64; 2]> {
    parse_pair(&qmp.monitor(processor, &format!("x/2gx {address:#x}")).ok()?)
}

fn parse_pair(dump: &str) -> Option<[u64; 2]> {
    let (_, words) = dump.trim().split_once(": ")?;
    let words: Vec<u64> = words.split_whitespace().map(guest::hex).collect::<Option<_>>()?;
    words.try_into().ok()
}

/// Return addresses along the chain of frame pointers.
fn walk(processor: &Processor, mut read: impl FnMut(u64) -> Option<[u64; 2]>) -> Vec<u64> {
    let mut frames = Vec::new();
    let mut frame = processor.rbp;
    // The kernel's stacks are in the higher half; anything else is a register used for something else.
    while processor.long_mode && frames.len() < MOST_FRAMES && frame >> 47 != 0 && frame.is_multiple_of(8) {
        let Some([caller, address]) = read(frame) else { break };
        if address == 0 {
            break;
        }
        frames.push(address);
        // Stacks grow down, so a caller's frame is above; a switch of stacks (an interrupt's, a DPC's) may go
        // either way, which is why only standing still ends the walk early.
        if caller == frame {
            break;
        }
        frame = caller;
    }
    frames
}

/// Picks the registers out of what `info registers` and `info lapic` print.
fn parse(registers: &str, apic: &str) -> Processor {
    // Assignments come as `NAME=value`, and some as `NAME =value`; a word without `=` changes nothing.
    let value = |name: &str| {
        registers
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
    };
    let either = |long: &str, short: &str| value(long).or_else(|| value(short)).unwrap_or(0);
    let apic_line = |name: &str| {
        let line = apic.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
        line.trim().to_owned()
    };
    Processor {
        rip: either("RIP", "EIP"),
        rsp: either("RSP", "ESP"),
        rbp: either("RBP", "EBP"),
        rflags: either("RFL", "EFL"),
        cr2: either("CR2", "CR2"),
        cr3: either("CR3", "CR3"),
        halted: value("HLT") == Some(1),
        long_mode: value("RIP").is_some(),
        task_priority: apic
            .split_once(" TPR ")
            .and_then(|(_, rest)| guest::hex(rest.split_whitespace().next()?)),
        in_service: apic_line("ISR"),
        requested: apic_line("IRR"),
    }
}

fn describe(text: &mut String, index: u64, p: &Processor, frames: &[u64], symbols: &Symbols) {
    let level = match p.task_priority {
        Some(priority) => format!("CR8={}", priority >> 4),
        None => "CR8=?".to_owned(),
    };
    let interrupts = if p.rflags & 1 << 9 != 0 { "IF=1" } else { "IF=0" };
    let halted = if p.halted { ", halted" } else { "" };
    let mode = if p.long_mode { "" } else { ", not in long mode" };
    let _ = writeln!(text, "cpu {index}: {level} {interrupts}{halted}{mode}");
    let _ = writeln!(
        text,
        "  rip={:#018x} rsp={:#018x} rbp={:#018x} cr2={:#x} cr3={:#x}",
        p.rip, p.rsp, p.rbp, p.cr2, p.cr3
    );
    let _ = writeln!(text, "  in service: {}  requested: {}", p.in_service, p.requested);
    for (index, &address) in (0..).zip([p.rip].iter().chain(frames)) {
        let places = if index == 0 { symbols.at(address) } else { symbols.before(address) };
        frame_lines(text, index, address, &places.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

/// One frame: its address, the function that holds it, and those inlined there, innermost first.
fn frame_lines(text: &mut String, index: u64, address: u64, places: &[String]) {
    let first = places.first().map_or("?", String::as_str);
    let _ = writeln!(text, "  #{index} {address:#018x}  {first}");
    for place in places.iter().skip(1) {
        let _ = writeln!(text, "       inlined into  {place}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERS: &str = "\r\nCPU#0\r\nRAX=0000000000000048 RBX=00000000000021e0\r\n\
        RSI=0 RDI=0 RBP=ffffffff80010000 RSP=ffffffff8000fff0\r\n\
        RIP=ffffffff80001029 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        ES =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r\n\
        CR0=00000011 CR2=00000000dead0000 CR3=0000000000001000 CR4=00000000\r\n";
    const APIC: &str = "dumping local APIC state for CPU 0 \r\n\r\nISR\t 47 \r\nIRR\t (none)\r\n\r\n\
        APR 0x00 TPR 0x20 DFR 0x0f LDR 0x00 PPR 0x20\r\n";

    #[test]
    fn registers_are_picked_out() {
        let p = parse(REGISTERS, APIC);
        assert_eq!(
            (p.rip, p.rsp, p.rbp),
            (0xffff_ffff_8000_1029, 0xffff_ffff_8000_fff0, 0xffff_ffff_8001_0000)
        );
        assert_eq!((p.rflags, p.cr2, p.cr3, p.halted, p.long_mode), (0x246, 0xdead_0000, 0x1000, true, true));
        assert_eq!(p.task_priority, Some(0x20));
        assert_eq!((p.in_service.as_str(), p.requested.as_str()), ("47", "(none)"));
    }

    #[test]
    fn a_processor_still_in_firmware_is_said_to_be() {
        let p = parse("EIP=000fd0cf EFL=00000002 [-------] HLT=1", "");
        assert!(!p.long_mode && p.task_priority.is_none());
        let mut text = String::new();
        describe(&mut text, 1, &p, &[], &Symbols::default());
        assert!(text.starts_with("cpu 1: CR8=? IF=0, halted, not in long mode\n"), "{text}");
    }

    #[test]
    fn nonsense_gives_a_blank_state() {
        assert_eq!(parse("", ""), Processor::default());
        assert_eq!(parse_pair("Cannot access memory at address 0x1"), None);
        assert_eq!(parse_pair("0000000000100000: 0x1 0x2\r\n"), Some([1, 2]));
    }

    #[test]
    fn the_walk_ends_at_the_bottom_at_unmapped_memory_and_on_a_loop() {
        let mut p = parse(REGISTERS, APIC);
        let base = p.rbp;
        let chain = move |address: u64| match (address - base) / 16 {
            0 => Some([base + 16, 0x11]),
            1 => Some([base + 32, 0x22]),
            _ => None,
        };
        assert_eq!(walk(&p, chain), [0x11, 0x22]);
        assert_eq!(walk(&p, |_| Some([base, 0x11])), [0x11]);
        assert_eq!(walk(&p, |a| Some([a + 16, 0x11])).len(), MOST_FRAMES);
        p.rbp = 0x1000;
        assert!(walk(&p, chain).is_empty());
    }
}
