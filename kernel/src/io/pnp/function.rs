//! A function driver's part of plug and play: in which order it and what is below it learn of a start and of an end.
//!
//! | request | order |
//! |---|---|
//! | START_DEVICE | below first: the bus makes the device answer, then the driver sets it to work |
//! | QUERY_REMOVE_DEVICE | the driver first: its no goes no further |
//! | CANCEL_REMOVE_DEVICE | below first |
//! | SURPRISE_REMOVAL, REMOVE_DEVICE | the driver first: it stops using what the bus then takes away |
//!
//! IRQL:       PASSIVE.
//! Sources:    WDK, "Handling PnP Minor IRPs".

use sync::irql::{Irql, Passive};

use super::resources::ResourceList;
use crate::io::driver::Driver;
use crate::io::irp::{Handled, Irp};
use crate::io::layout::pnp as minor;
use crate::io::objects::KDeviceObject;
use crate::io::pci::header::Header;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

/// Why a device ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is there, and is to be left quiet.
    Orderly,
    /// It may be gone: nothing that it says is to be waited for.
    Surprise,
}

/// A driver of devices that a bus finds. Its `pnp` is [`handle`].
pub trait FunctionDriver: Driver {
    /// Does it drive such devices?
    fn is_for(header: &Header) -> bool;

    /// A device's state, before its start: `physical` is the bus's device.
    #[doc(alias = "DRIVER_ADD_DEVICE")]
    fn new(physical: ObRef<KDeviceObject>) -> Self;

    /// The device answers: it is set to work. A status that is no success leaves nothing behind.
    fn start(&self, resources: &ResourceList, at: &mut Irql<Passive>) -> NtStatus;

    /// May it be removed? From a yes on it takes no new request, until it is removed or the question is taken back.
    fn query_remove(&self, at: &mut Irql<Passive>) -> NtStatus {
        let _ = at;
        NtStatus::SUCCESS
    }

    /// It stays after all.
    fn cancel_remove(&self, at: &mut Irql<Passive>) {
        let _ = at;
    }

    /// The device is set to work no more, all that was asked of it ends, and what it had is given back. Called once or twice, the second
    /// time with nothing left to do; also for one that was not started.
    fn end(&self, removal: Removal, at: &mut Irql<Passive>);
}

/// A request of plug and play's, for a driver whose device this is.
pub fn handle<'c, D: FunctionDriver>(device: &D, irp: Irp<'c>, at: &mut Irql<Passive>) -> Handled<'c> {
    match irp.minor() {
        minor::START_DEVICE => {
            let irp = irp.send_and_wait(at);
            if !irp.status().is_success() {
                return irp.complete_as_it_is(at);
            }
            let status = match irp.start_resources() {
                Some(resources) => device.start(resources, at),
                None => NtStatus::INVALID_PARAMETER,
            };
            irp.complete(status, 0, at)
        }
        minor::QUERY_REMOVE_DEVICE => {
            let status = device.query_remove(at);
            if !status.is_success() {
                return irp.complete(status, 0, at);
            }
            irp.forward(at)
        }
        minor::CANCEL_REMOVE_DEVICE => {
            let irp = irp.send_and_wait(at);
            device.cancel_remove(at);
            irp.complete_as_it_is(at)
        }
        minor::SURPRISE_REMOVAL => {
            device.end(Removal::Surprise, at);
            irp.forward(at)
        }
        minor::REMOVE_DEVICE => {
            device.end(Removal::Orderly, at);
            irp.forward(at)
        }
        _ => irp.forward(at),
    }
}
