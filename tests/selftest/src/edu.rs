//! Two of QEMU's `edu` PCI devices on one line: software raises and acknowledges their interrupts.
//!
//! A device keeps 32 interrupt bits. While one is set it asserts its line; with MSI enabled each raise sends a message instead. The
//! harness plugs both in four slots apart, so that the chipset leads them to one line; which one is found out by trying.
//!
//! Sources: QEMU, "EDU device"; PCI Local Bus Specification, "Configuration Mechanism", "MSI Capability Structure".

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::msi::Message;
use kernel::ke::interrupt::{Claim, Interrupt, Line, Request, Share, Source};
use kernel::ke::{clock, ipi};
use kernel::mm::system_pte;
use kernel::mm::tables::Caching;
use sync::irql::{Device as DeviceIrql, DeviceLevel, Irql, Passive};
use sync::{InterruptLock, Once};

use crate::runner::Verdict;

const VENDOR_AND_DEVICE: u32 = 0x11E8_1234;
/// Registers of BAR 0.
const STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const REGISTER_BYTES: u64 = 0x1000;
/// The lines that a PCI device of this chipset can have in APIC mode.
const PCI_LINES: core::ops::Range<u32> = 16..24;

/// One device.
#[derive(Clone, Copy)]
pub(crate) struct Edu {
    slot: u8,
    registers: usize,
}

impl Edu {
    /// Sets interrupt bits.
    pub(crate) fn raise(self, bits: u32) {
        self.write(RAISE, bits);
    }

    /// Clears interrupt bits; with the last one, its line is asserted no more.
    pub(crate) fn acknowledge(self, bits: u32) {
        self.write(ACKNOWLEDGE, bits);
    }

    /// The interrupt bits.
    pub(crate) fn status(self) -> u32 {
        // SAFETY: a register of the device, mapped for good; reading it changes nothing.
        unsafe { ((self.registers + STATUS) as *const u32).read_volatile() }
    }

    fn write(self, register: usize, value: u32) {
        // SAFETY: a register of the device, mapped for good, that takes any value.
        unsafe { ((self.registers + register) as *mut u32).write_volatile(value) }
    }

    /// From now on a raise sends `message`; or, with nothing, asserts the line.
    pub(crate) fn set_message(self, message: Option<Message>) {
        const ENABLE: u32 = 1 << 16;
        let Some(at) = self.capability(0x05) else { return };
        let control = config(self.slot, at);
        let Some(message) = message else { return set_config(self.slot, at, control & !ENABLE) };
        set_config(self.slot, at + 4, message.address as u32);
        set_config(self.slot, at + 8, (message.address >> 32) as u32);
        set_config(self.slot, at + 12, message.data);
        set_config(self.slot, at, control | ENABLE);
    }

    fn capability(self, id: u8) -> Option<u8> {
        let mut at = config(self.slot, 0x34) as u8;
        while at != 0 {
            let head = config(self.slot, at);
            if head as u8 == id {
                return Some(at);
            }
            at = (head >> 8) as u8;
        }
        None
    }
}

/// Both.
pub(crate) struct Pair {
    pub(crate) devices: [Edu; 2],
    /// The line of both.
    pub(crate) line: Line,
}

static PAIR: Once<Option<Pair>> = Once::new();

/// Both devices, quiet; or what the test needs.
pub(crate) fn pair(at: &mut Irql<Passive>) -> Result<&'static Pair, Verdict> {
    let found = PAIR.call_once(|| find(at)).as_ref();
    let pair = found.ok_or(Verdict::Skip("needs two edu devices on one line"))?;
    for device in pair.devices {
        answer(device.slot);
        device.set_message(None);
        device.acknowledge(u32::MAX);
    }
    Ok(pair)
}

fn found() -> &'static Pair {
    match PAIR.get() {
        Some(Some(pair)) => pair,
        _ => panic!("a test of devices that were not found"),
    }
}

/// One of the devices, for what runs only after [`pair`] found them.
pub(crate) fn device(index: usize) -> Edu {
    found().devices[index]
}

/// Their line, likewise.
pub(crate) fn line() -> Line {
    found().line
}

fn find(at: &mut Irql<Passive>) -> Option<Pair> {
    let mut slots = (0..32).filter(|&slot| config(slot, 0) == VENDOR_AND_DEVICE);
    let mut next = || {
        let slot = slots.next()?;
        answer(slot);
        let physical = u64::from(config(slot, 0x10) & !0xF);
        // SAFETY: the registers of a device that is the test's alone, for good.
        let mapping = unsafe { system_pte::map_io(physical, REGISTER_BYTES, Caching::Uncached, at) }.ok()?;
        Some(Edu { slot, registers: mapping.address().addr().get() })
    };
    let devices = [next()?, next()?];
    let lines = devices.map(|device| line_of(device, at));
    match lines {
        [Some(first), Some(second)] if first == second => Some(Pair { devices, line: first }),
        _ => None,
    }
}

/// Has the device in `slot` answer and send, which who drove it before may have ended.
fn answer(slot: u8) {
    const MEMORY_AND_MASTER: u32 = 0b110;
    set_config(slot, 0x04, config(slot, 0x04) & 0xFFFF | MEMORY_AND_MASTER);
}

/// The line on which an interrupt arrives when the device raises one.
fn line_of(device: Edu, at: &mut Irql<Passive>) -> Option<Line> {
    static HEARD: AtomicU32 = AtomicU32::new(0);
    static NOTHING: InterruptLock<Option<Edu>> = InterruptLock::new(LEVEL, None);
    static PROBE: Interrupt<Option<Edu>> = Interrupt::new(&NOTHING, |device, _: &mut Irql<DeviceIrql>| {
        let Some(device) = device.filter(|device| device.status() != 0) else { return Claim::NotMine };
        device.acknowledge(u32::MAX);
        HEARD.fetch_add(1, Ordering::Relaxed);
        Claim::Claimed
    });
    PROBE.synchronize(at, |shared, _| *shared = Some(device));
    let found = PCI_LINES.map(Line::pci).find(|&line| {
        let request = Request {
            source: Source::Line(line),
            level: LEVEL,
            share: Share::Exclusive,
            affinity: ipi::online(),
        };
        HEARD.store(0, Ordering::Relaxed);
        if PROBE.connect(&request, at).is_err() {
            return false;
        }
        device.raise(1);
        let heard = within(5_000, || HEARD.load(Ordering::Relaxed) != 0);
        device.acknowledge(u32::MAX);
        PROBE.disconnect(at);
        heard
    });
    PROBE.synchronize(at, |shared, _| *shared = None);
    found
}

/// The level that the tests connect at.
pub(crate) const LEVEL: DeviceLevel = DeviceLevel::new(5).unwrap();

/// Spins until `holds`, for at most so many microseconds; whether it did.
pub(crate) fn within(microseconds: u64, holds: impl Fn() -> bool) -> bool {
    let start = clock::since_start();
    while !holds() {
        if clock::since_start() - start > microseconds {
            return holds();
        }
        arch::cpu::spin_hint();
    }
    true
}

fn select(slot: u8, register: u8) {
    let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & 0xFC);
    // SAFETY: PCI configuration mechanism 1; the boot processor alone uses the pair of ports, at PASSIVE.
    unsafe { asm!("out dx, eax", in("dx") 0xCF8_u16, in("eax") address, options(nostack, preserves_flags)) };
}

/// A word of function 0 of the device in `slot` on bus 0; all ones where there is none.
pub(crate) fn config(slot: u8, register: u8) -> u32 {
    select(slot, register);
    let value;
    // SAFETY: as in `select`; reading configuration space changes nothing.
    unsafe { asm!("in eax, dx", in("dx") 0xCFC_u16, out("eax") value, options(nostack, preserves_flags)) };
    value
}

fn set_config(slot: u8, register: u8, value: u32) {
    select(slot, register);
    // SAFETY: as in `select`; only registers of the test's own devices are written.
    unsafe { asm!("out dx, eax", in("dx") 0xCFC_u16, in("eax") value, options(nostack, preserves_flags)) };
}
