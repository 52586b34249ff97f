//! Kernel stacks of the processors: slots of 64 KiB, pages at the top, nothing below.
//!
//! Invariants: I1 the pages of a slot below its stack are never mapped: an overflow faults there, and the push of that fault's
//!                frame faults again, so it arrives as #DF on its own stack.
//!             I2 slot = processor * `Kind::COUNT` + kind: who an address belongs to is arithmetic, usable in a bugcheck.

use arch::paging::{Flags, OutOfPages};
use arch::tables::Ist;

use super::early::EarlyPages;
use super::layout::STACKS;
use super::space::KernelSpace;

const SLOT: u64 = 64 * 1024;

/// What a stack is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor's idle thread.
    Kernel,
    /// #DF.
    DoubleFault,
    /// NMI.
    Nmi,
    /// #MC.
    MachineCheck,
    /// #DB.
    Debug,
    /// DPCs, and what interrupts them.
    Dpc,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Kernel, Kind::DoubleFault, Kind::Nmi, Kind::MachineCheck, Kind::Debug, Kind::Dpc];
    const COUNT: u64 = Self::ALL.len() as u64;

    /// Mapped bytes. NT's kernel stack on x64 is 24 KiB; this one also carries the twelve nested handlers that `arch::trap`
    /// allows, and the report of a bugcheck.
    pub const fn bytes(self) -> u64 {
        match self {
            Kind::Kernel | Kind::Dpc => 32 * 1024,
            _ => 16 * 1024,
        }
    }

    /// The stack of an IST slot.
    pub const fn of_ist(slot: Ist) -> Self {
        match slot {
            Ist::DoubleFault => Kind::DoubleFault,
            Ist::Nmi => Kind::Nmi,
            Ist::MachineCheck => Kind::MachineCheck,
            Ist::Debug => Kind::Debug,
        }
    }
}

/// The end of a stack, where it begins to grow down from.
pub const fn top(processor: u32, kind: Kind) -> u64 {
    STACKS + (processor as u64 * Kind::COUNT + kind as u64 + 1) * SLOT
}

/// The lowest mapped address of a stack; its guard pages lie below.
pub const fn bottom(processor: u32, kind: Kind) -> u64 {
    top(processor, kind) - kind.bytes()
}

/// Whose stack `address` lies in, and whether it is in its guard pages.
pub fn owner(address: u64, processors: u32) -> Option<(u32, Kind, bool)> {
    let slot = address.checked_sub(STACKS)? / SLOT;
    let processor = u32::try_from(slot / Kind::COUNT).ok().filter(|&number| number < processors)?;
    let kind = Kind::ALL[(slot % Kind::COUNT) as usize];
    Some((processor, kind, address < bottom(processor, kind)))
}

/// Maps all stacks of `processor`.
pub fn map(processor: u32, space: &mut KernelSpace, pages: &mut EarlyPages) -> Result<(), OutOfPages> {
    for kind in Kind::ALL {
        let physical = pages.contiguous(kind.bytes()).ok_or(OutOfPages)?;
        let flags = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE | Flags::GLOBAL;
        // SAFETY: fresh pages at this slot's own addresses (I2); the guard pages stay unmapped (I1).
        unsafe { space.map(bottom(processor, kind), physical, kind.bytes(), flags, pages)? };
    }
    Ok(())
}
