//! The bus's driver: a physical device for each function, which answers what is common to all of them.
//!
//! Owns:       [`Function`], the state of such a device, by which its driver reaches its registers and messages. Not: who drives it (pnp).
//! IRQL:       PASSIVE but where it says otherwise.
//! Invariants: I1 the ranges were found while nobody used the function, and stay where the firmware has put them.
//! Not as NT:  one driver for all buses, and none for a bridge's own registers; resources are never moved, so there is no arbiter, and
//!             none to be asked for. What drivers get by IRP_MN_QUERY_INTERFACE with BUS_INTERFACE_STANDARD is [`Function`] here.
//! Tests:      selftest `pci::*`.
//! Sources:    WDK, "Writing a Bus Driver", `IRP_MN_START_DEVICE`, `IRP_MN_REMOVE_DEVICE`.

use sync::irql::{Below, Ipi, Irql, Passive, SpaceLock, Synch};

use super::access::{Access, map_bus};
use super::bar::{self, Bars, Space};
use super::config::{Address, Config, command, read_command, write_command};
use super::header::{Header, Kind};
use super::msi::{Msi, Msix};
use super::registers::Registers;
use super::walk::{Functions, walk};
use crate::io::MayDoIo;
use crate::io::device;
use crate::io::driver::{self, Driver};
use crate::io::irp::{Handled, Irp};
use crate::io::layout::pnp as minor;
use crate::io::objects::{KDeviceObject, device_flags};
use crate::io::pnp::resources::{Resource, ResourceList};
use crate::ob::ObRef;
use crate::rtl::NtStatus;

/// A function's device: the bottom of its stack.
pub struct Function {
    address: Address,
    header: Header,
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<Msix>,
}

impl Function {
    /// The function that `physical` is of; `None`: it is none of the bus's devices.
    pub fn of(physical: &ObRef<KDeviceObject>) -> Option<&Self> {
        device::state_of(physical)
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        self.address
    }

    /// What it is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it answers.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Its MSI capability.
    pub fn msi(&self) -> Option<Msi> {
        self.msi
    }

    /// Its MSI-X capability.
    pub fn msix(&self) -> Option<Msix> {
        self.msix
    }

    /// Its configuration space.
    pub fn config<'a, L: Below<Synch>>(&self, at: &'a mut Irql<L>) -> Access<'a, L> {
        Access::new(self.address, at)
    }

    /// Maps `bytes` of the range of register `bar`, from `offset` on.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: it hasn't that; STATUS_INSUFFICIENT_RESOURCES.
    pub fn map<L: Below<SpaceLock> + Below<Ipi>>(
        &self,
        bar: usize,
        offset: u64,
        bytes: u64,
        at: &mut Irql<L>,
    ) -> Result<Registers, NtStatus> {
        let range = self.bars.get(bar).and_then(Option::as_ref).ok_or(NtStatus::INVALID_PARAMETER)?;
        Registers::map(range, offset, bytes, at)
    }

    /// What it has, in the order of its registers, and its messages behind.
    pub(crate) fn resources(&self) -> ResourceList {
        let mut list = ResourceList::new(self.address.bus().into());
        for bar in self.bars.iter().flatten().filter(|bar| bar.base != 0) {
            let (start, length) = (bar.base, bar.length);
            list.push(match bar.space {
                Space::Io => Resource::Port { start, length },
                Space::Memory { is_prefetchable, .. } => Resource::Memory { start, length, is_prefetchable },
            });
        }
        let messages = self.msix.map_or(u16::from(self.msi.is_some()), |msix| msix.count);
        if messages > 0 {
            list.push(Resource::Messages { count: messages });
        }
        list
    }

    /// Has it answer its ranges, and lets it write memory; or not.
    fn set_decoding<L: Below<Synch>>(&self, on: bool, at: &mut Irql<L>) {
        let config = &mut self.config(at);
        let mut bits = command::MASTER;
        for bar in self.bars.iter().flatten().filter(|bar| bar.base != 0) {
            bits |= if bar.space == Space::Io { command::IO } else { command::MEMORY };
        }
        let now = read_command(config);
        write_command(config, if on { now | bits } else { now & !bits });
    }

    /// Is it still there? A device that was pulled out answers with all ones.
    pub fn is_present<L: Below<Synch>>(&self, at: &mut Irql<L>) -> bool {
        Header::read(&mut self.config(at))
            .is_some_and(|now| (now.vendor, now.device) == (self.header.vendor, self.header.device))
    }
}

impl Driver for Function {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        irp.complete(NtStatus::INVALID_DEVICE_REQUEST, 0, at)
    }

    fn pnp<'c>(&self, irp: Irp<'c>, at: &mut Irql<Passive>) -> Handled<'c> {
        match irp.minor() {
            minor::START_DEVICE => {
                let status = if self.is_present(at) {
                    self.set_decoding(true, at);
                    NtStatus::SUCCESS
                } else {
                    NtStatus::NO_SUCH_DEVICE
                };
                irp.complete(status, 0, at)
            }
            minor::REMOVE_DEVICE => {
                self.set_decoding(false, at);
                irp.complete(NtStatus::SUCCESS, 0, at)
            }
            minor::QUERY_REMOVE_DEVICE | minor::CANCEL_REMOVE_DEVICE | minor::SURPRISE_REMOVAL => {
                irp.complete(NtStatus::SUCCESS, 0, at)
            }
            // As it came: the bus knows nothing of it.
            _ => irp.complete_as_it_is(at),
        }
    }
}

/// The walk's way to the registers.
struct Machine<'a> {
    at: &'a mut Irql<Passive>,
    /// A bus could not be mapped.
    refused: bool,
}

impl Functions for Machine<'_> {
    fn at(&mut self, address: Address) -> Option<impl Config> {
        if map_bus(address.bus(), self.at).is_err() {
            self.refused = true;
            return None;
        }
        Some(Access::new(address, self.at))
    }
}

/// Finds all functions, and tells their devices to `found`. Bridges are passed through, and have none.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES, or what `found` returns.
pub(crate) fn enumerate(
    at: &mut Irql<Passive>,
    mut found: impl FnMut(ObRef<KDeviceObject>, &mut Irql<Passive>) -> Result<(), NtStatus>,
) -> Result<(), NtStatus> {
    let driver = driver::register::<Function, _>(at)?;
    let mut machine = Machine { at, refused: false };
    walk(&mut machine, |machine, address, header| {
        if header.kind != Kind::Function {
            return Ok(());
        }
        let mut config = Access::new(address, machine.at);
        // I1: nobody drives it yet.
        let bars = bar::probe(&mut config, header.kind);
        let (msi, msix) = (Msi::find(&mut config), Msix::find(&mut config, &bars));
        let state = Function { address, header: *header, bars, msi, msix };
        crate::debug!(
            "pci {address}: {:04x}:{:04x} class {:06x}, msi {}, msi-x {}",
            header.vendor,
            header.device,
            header.class,
            u8::from(msi.is_some()),
            msix.map_or(0, |msix| msix.count)
        );
        // What is put on top brings buffers as this does: by their pages, as devices that reach memory want them.
        let physical = device::create_device_with(&driver, device_flags::DIRECT_IO, state, machine.at)?;
        found(physical, machine.at)
    })?;
    if machine.refused { Err(NtStatus::INSUFFICIENT_RESOURCES) } else { Ok(()) }
}
