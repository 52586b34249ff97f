//! Configuration space: where a function's is, and how it is read, whoever gives access to it.
//!
//! Sources: PCI Express Base Specification, "Configuration Space"; PCI Local Bus Specification, "Configuration Space Organization".

use core::fmt;

/// A function's address: bus, device, function. Segment group 0 alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Address(u16);

impl Address {
    /// Of so much of device and function as there can be: 32 and 8.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16)
    }

    /// The bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device on its bus.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// The function of its device.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }

    /// All three, as a requester's id has them.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One function's configuration space. Words of 32 bits are what every way to it has; a register that is none is all ones.
pub trait Config {
    /// The word at `register`, whose lowest two bits are not looked at.
    fn read(&mut self, register: u16) -> u32;

    /// Writes the word at `register`, likewise.
    fn write(&mut self, register: u16, value: u32);

    /// 16 bits of it; `register` is even.
    fn read16(&mut self, register: u16) -> u16 {
        (self.read(register) >> (8 * (register & 2))) as u16
    }

    /// A byte of it.
    fn read8(&mut self, register: u16) -> u8 {
        (self.read(register) >> (8 * (register & 3))) as u8
    }

    /// Writes 16 bits, and what is beside them as it was read: not beside a register whose ones clear something.
    fn write16(&mut self, register: u16, value: u16) {
        let shift = 8 * (register & 2);
        let beside = self.read(register) & !(0xFFFF << shift);
        self.write(register, beside | u32::from(value) << shift);
    }
}

impl<C: Config + ?Sized> Config for &mut C {
    fn read(&mut self, register: u16) -> u32 {
        (**self).read(register)
    }

    fn write(&mut self, register: u16, value: u32) {
        (**self).write(register, value);
    }
}

/// Registers that every function has, and bits of them.
pub mod register {
    /// Vendor in the lower half, device in the upper one.
    pub const IDENTITY: u16 = 0x00;
    /// Command; the status register is beside it, whose ones clear something.
    pub const COMMAND: u16 = 0x04;
    /// Revision in the lowest byte, class above.
    pub const CLASS: u16 = 0x08;
    /// Header type in the third byte.
    pub const HEADER_TYPE: u16 = 0x0E;
    /// The first base address register.
    pub const BARS: u16 = 0x10;
    /// Of a bridge: primary, secondary and subordinate bus in its lower bytes.
    pub const BUSES: u16 = 0x18;
    /// Subsystem's vendor and device, of type 0.
    pub const SUBSYSTEM: u16 = 0x2C;
    /// Where the capabilities begin.
    pub const CAPABILITIES: u16 = 0x34;
    /// Line and pin, in the lower bytes.
    pub const INTERRUPT: u16 = 0x3C;
}

/// Bits of the command register.
pub mod command {
    /// Its I/O ports answer.
    pub const IO: u16 = 1 << 0;
    /// Its memory answers.
    pub const MEMORY: u16 = 1 << 1;
    /// It may read and write memory, which messages of interrupts are, too.
    pub const MASTER: u16 = 1 << 2;
    /// It doesn't assert its line.
    pub const NO_LINE: u16 = 1 << 10;
}

/// The command register.
pub fn read_command(config: &mut impl Config) -> u16 {
    config.read16(register::COMMAND)
}

/// Writes the command register, and zeroes beside it, which clear nothing.
pub fn write_command(config: &mut impl Config, bits: u16) {
    config.write(register::COMMAND, bits.into());
}
