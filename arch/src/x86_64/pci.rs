//! PCI's configuration mechanism 1: an address port and a data port, so each access is two steps that nothing may come between.
//!
//! Sources: PCI Local Bus Specification, "Software Generation of Configuration Transactions".

use ::x86_64::instructions::port::{Port, PortWriteOnly};

/// The pair of ports. There is one; its owner sees to it that accesses don't mix.
pub struct ConfigPorts(());

impl ConfigPorts {
    /// The pair.
    ///
    /// # Safety
    /// Nobody else uses it.
    pub const unsafe fn new() -> Self {
        Self(())
    }

    fn select(&mut self, function: u16, register: u16) -> Port<u32> {
        const ENABLE: u32 = 1 << 31;
        let address = ENABLE | u32::from(function) << 8 | u32::from(register & 0xFC);
        // SAFETY: the ports are the PCI host's, and ours (`new`); the address register alone is written.
        unsafe { PortWriteOnly::new(0xCF8).write(address) };
        Port::new(0xCFC)
    }

    /// The word at `register`, below 256, of the function with this number (bus, device, function); all ones where there is none.
    pub fn read(&mut self, function: u16, register: u16) -> u32 {
        let mut data = self.select(function, register);
        // SAFETY: as in `select`; reading configuration space changes nothing.
        unsafe { data.read() }
    }

    /// Writes it.
    pub fn write(&mut self, function: u16, register: u16, value: u32) {
        let mut data = self.select(function, register);
        // SAFETY: as in `select`. What the value does is the caller's to know, as with a register that is mapped.
        unsafe { data.write(value) };
    }
}
