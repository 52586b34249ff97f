//! The I/O APICs: every line by its global system interrupt. The only owner of their registers.
//!
//! Called by:  start.rs (once), routing.rs (program, mask, unmask), chain.rs (masks a storm, in the interrupt).
//! IRQL:       below SYNCH. Each chip's index and data pair is under a lock held at SYNCH, which no device's ISR interrupts.
//! Invariants: I1 `program` is called only for a line that is masked and not in flight: an EOI finds its entry by the vector.
//!             I2 a line is unmasked only while its vector has its chain.

use arch::ioapic::IoApic;
use arch::redirection::{OutOfReach, Polarity, Redirection, Trigger, destination};
use sync::irql::{Below, Irql, Synch};
use sync::{Once, SpinLock};

use crate::boot::Refusal;
use crate::boot::firmware::{Firmware, MAX_IO_APICS};
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;

use super::wiring::{Line, Override};

/// One I/O APIC.
struct Chip {
    /// Its first global system interrupt.
    first: u32,
    /// How many lines it has.
    count: u32,
    registers: SpinLock<IoApic, Synch>,
}

struct Wiring {
    chips: [Option<Chip>; MAX_IO_APICS],
    firmware: Firmware,
}

static WIRING: Once<Wiring> = Once::new();

/// Maps every I/O APIC for good, and masks every line until a driver connects to it.
pub(crate) fn init(
    firmware: &Firmware,
    space: &mut KernelSpace,
    pages: &mut EarlyPages,
) -> Result<(), Refusal> {
    let mut chips = [const { None }; MAX_IO_APICS];
    for (slot, chip) in chips.iter_mut().zip(firmware.io_apics.as_slice()) {
        let address = space.map_device(chip.address.into(), 0x20, pages).map_err(|_| Refusal::NoMemory)?;
        // SAFETY: the registers of an I/O APIC, mapped uncached for good; this is the one handle to them.
        let mut registers = unsafe { IoApic::new(address) };
        let count = registers.lines();
        // The vector is what the processor would be given if the mask bit didn't hold: one that is handled.
        let idle = Redirection {
            vector: arch::vector::SPURIOUS,
            destination: 0,
            polarity: Polarity::High,
            trigger: Trigger::Edge,
            masked: true,
        };
        for line in 0..count {
            // SAFETY: masked, so nothing is delivered; what the firmware left in flight ended with its use of the line.
            unsafe { registers.set(line, idle) };
        }
        *slot = Some(Chip { first: chip.gsi_base, count, registers: SpinLock::new(registers) });
    }
    WIRING.call_once(|| Wiring { chips, firmware: *firmware });
    Ok(())
}

/// ISA IRQ `irq`, as this machine wires it.
pub fn isa(irq: u8) -> Line {
    let overrides: &[Override] =
        WIRING.get().map_or(&[], |wiring: &Wiring| wiring.firmware.overrides.as_slice());
    Line::isa(irq, overrides)
}

/// What a line's entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Vector, destination, mode and mask.
    pub entry: Redirection,
    /// A processor has accepted a level interrupt and not yet ended it.
    pub in_flight: bool,
}

/// How `gsi` is programmed; nothing if no I/O APIC has it.
pub fn state<L: Below<Synch>>(gsi: u32, at: &mut Irql<L>) -> Option<State> {
    with(gsi, at, |registers, line| State {
        entry: Redirection::from_bits(registers.entry(line)),
        in_flight: registers.is_in_flight(line),
    })
}

/// Does any I/O APIC have this line?
pub(super) fn exists(gsi: u32) -> bool {
    find(gsi).is_some()
}

/// Programs `line` to deliver `vector` to the processor with `apic_id`, masked.
///
/// # Safety
/// The line is masked and not in flight (I1); `vector` is a device's.
pub(super) unsafe fn program<L: Below<Synch>>(
    line: Line,
    vector: u8,
    apic_id: u32,
    at: &mut Irql<L>,
) -> Result<(), OutOfReach> {
    let destination = destination(apic_id)?;
    let entry =
        Redirection { vector, destination, polarity: line.polarity, trigger: line.trigger, masked: true };
    // SAFETY: as the caller promised; every device vector has the one handler on all processors.
    with(line.gsi, at, |registers, index| unsafe { registers.set(index, entry) });
    Ok(())
}

/// Delivers `gsi` to the processor with `apic_id` from now on. What is under way ends where it was delivered.
pub(super) fn retarget<L: Below<Synch>>(gsi: u32, apic_id: u32, at: &mut Irql<L>) -> Result<(), OutOfReach> {
    let destination = destination(apic_id)?;
    // SAFETY: a device's vector, which has the one handler on all processors.
    with(gsi, at, |registers, index| unsafe { registers.set_destination(index, destination) });
    Ok(())
}

/// Masks or unmasks `gsi`, if `still`, asked under the chip's lock, says so. Returns whether it did.
pub(super) fn set_masked<L: Below<Synch>>(
    gsi: u32,
    masked: bool,
    at: &mut Irql<L>,
    still: impl FnOnce() -> bool,
) -> bool {
    let done = with(gsi, at, |registers, line| {
        let holds = still();
        if holds {
            registers.set_masked(line, masked);
        }
        holds
    });
    done.unwrap_or(false)
}

/// Is a level interrupt of `gsi` accepted and not yet ended?
pub(super) fn is_in_flight<L: Below<Synch>>(gsi: u32, at: &mut Irql<L>) -> bool {
    with(gsi, at, IoApic::is_in_flight).unwrap_or(false)
}

fn find(gsi: u32) -> Option<(&'static Chip, u32)> {
    let chips = WIRING.get()?.chips.iter().flatten();
    chips
        .filter_map(|chip| Some((chip, gsi.checked_sub(chip.first)?)))
        .find(|(chip, line)| *line < chip.count)
}

fn with<L: Below<Synch>, R>(gsi: u32, at: &mut Irql<L>, f: impl FnOnce(&mut IoApic, u32) -> R) -> Option<R> {
    let (chip, line) = find(gsi)?;
    Some(f(&mut chip.registers.lock(at), line))
}
