//! The machine's way to a function's registers: ECAM where ACPI's MCFG has the bus, else the pair of ports.
//!
//! IRQL:       below SYNCH. The ports are under a lock held there, as the I/O APICs' registers are; ECAM needs none.
//! Invariants: I1 an address in `BUSES` is that bus's 1 MiB of configuration space, mapped uncached for good.
//! Not as NT:  segment group 0 alone.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use arch::pci::ConfigPorts;
use sync::SpinLock;
use sync::irql::{Below, Ipi, Irql, SpaceLock, Synch};

use super::config::{Address, Config};
use crate::boot::facts;
use crate::boot::firmware::EcamFacts;
use crate::mm::system_pte::{self, MapError};
use crate::mm::tables::Caching;

const BUS_BYTES: u64 = 1 << 20;
const FUNCTION_BYTES: usize = 4096;

// SAFETY: this is their one owner. The self-tests' own driver uses them while nothing else runs.
static PORTS: SpinLock<ConfigPorts, Synch> = SpinLock::new(unsafe { ConfigPorts::new() });

/// See I1.
static BUSES: [AtomicPtr<u8>; 256] = [const { AtomicPtr::new(ptr::null_mut()) }; 256];

/// Maps a bus, if the firmware says where it is and nobody has mapped it yet.
pub(super) fn map_bus<L: Below<SpaceLock> + Below<Ipi>>(bus: u8, at: &mut Irql<L>) -> Result<(), MapError> {
    let place = &BUSES[usize::from(bus)];
    let Some(physical) = physical_of(bus).filter(|_| place.load(Ordering::Relaxed).is_null()) else {
        return Ok(());
    };
    // SAFETY: the firmware says that configuration space lies there, which this module alone maps.
    let mapping = unsafe { system_pte::map_io(physical, BUS_BYTES, Caching::Uncached, at) }?;
    place.store(mapping.address().as_ptr(), Ordering::Release);
    Ok(())
}

fn physical_of(bus: u8) -> Option<u64> {
    let has_it = |ecam: &&EcamFacts| ecam.segment == 0 && (ecam.first..=ecam.last).contains(&bus);
    let ecam = facts().firmware.ecam.as_slice().iter().find(has_it)?;
    Some(ecam.base + u64::from(bus - ecam.first) * BUS_BYTES)
}

/// A function's registers, for as long as the level is lent.
pub struct Access<'a, L: Below<Synch>> {
    address: Address,
    at: &'a mut Irql<L>,
}

impl<'a, L: Below<Synch>> Access<'a, L> {
    /// Those of the function at `address`.
    pub fn new(address: Address, at: &'a mut Irql<L>) -> Self {
        Self { address, at }
    }

    /// Is the space behind the first 256 bytes reached?
    pub fn is_extended(&self) -> bool {
        !self.bus().is_null()
    }

    fn bus(&self) -> *mut u8 {
        BUSES[usize::from(self.address.bus())].load(Ordering::Acquire)
    }

    /// The register's place; null: it is reached by the ports.
    fn place(&self, register: u16) -> *mut u32 {
        let bus = self.bus();
        if bus.is_null() {
            return ptr::null_mut();
        }
        let function = usize::from(self.address.number() & 0xFF) * FUNCTION_BYTES;
        bus.wrapping_add(function + usize::from(register & 0xFFC)).cast()
    }
}

impl<L: Below<Synch>> Config for Access<'_, L> {
    fn read(&mut self, register: u16) -> u32 {
        let place = self.place(register);
        if !place.is_null() {
            // SAFETY: within the bus's mapping (I1); reading configuration space changes nothing.
            return unsafe { place.read_volatile() };
        }
        if register >= 0x100 {
            return u32::MAX;
        }
        PORTS.lock(self.at).read(self.address.number(), register)
    }

    fn write(&mut self, register: u16, value: u32) {
        let place = self.place(register);
        if !place.is_null() {
            // SAFETY: within the bus's mapping (I1); what the value does to its device is the caller's to know.
            return unsafe { place.write_volatile(value) };
        }
        if register < 0x100 {
            PORTS.lock(self.at).write(self.address.number(), register, value);
        }
    }
}
