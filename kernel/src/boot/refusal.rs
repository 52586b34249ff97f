//! Why the kernel can't run here: one line, and the exit status that says so.

use core::fmt;

use arch::clock::Uncalibrated;
use arch::exit::Outcome;

/// The reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The loader speaks an older protocol.
    BaseRevision(u64),
    /// A request that the kernel needs has no answer.
    NoAnswer(&'static str),
    /// A processor feature is missing, by the SDM's name.
    NoFeature(&'static str),
    /// The loader left the processors in xAPIC mode.
    NotX2apic,
    /// No page left for bring-up.
    NoMemory,
    /// An ACPI table can't be read.
    Firmware(&'static str),
    /// The clocks can't be measured.
    Clock(Uncalibrated),
    /// The processor with this APIC id is in the MADT, or was told to start, and did not arrive.
    ProcessorMissing(u32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BaseRevision(used) => {
                write!(
                    f,
                    "the boot loader uses base revision {used} of the Limine protocol; 2 or 3 is needed (Limine 8 or later)"
                )
            }
            Self::NoAnswer(request) => write!(f, "the boot loader gave no answer to the {request} request"),
            Self::NoFeature(name) => {
                write!(f, "this processor has no {name}; under QEMU (9 or newer) use -cpu max")
            }
            Self::NotX2apic => {
                f.write_str("the processors are not in x2APIC mode; under QEMU (9 or newer) use -cpu max")
            }
            Self::NoMemory => f.write_str("out of memory during bring-up; 128 MiB is the least"),
            Self::Firmware(what) => write!(f, "{what} can't be read"),
            Self::Clock(Uncalibrated::NoPit) => {
                f.write_str("the PIT does not count, so the clocks can't be measured")
            }
            Self::Clock(Uncalibrated::Unsteady) => f.write_str("no two measurements of the clocks agree"),
            Self::ProcessorMissing(id) => write!(f, "the processor with APIC id {id} did not arrive"),
        }
    }
}

impl Refusal {
    /// Says it and ends the run.
    pub fn report(self) -> ! {
        crate::error!("cannot run: {self}");
        arch::exit::leave(Outcome::CannotRun)
    }
}
