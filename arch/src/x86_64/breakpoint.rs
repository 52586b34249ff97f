//! This processor's breakpoints on instructions, in its debug registers. What they mean is up to who takes #DB.
//!
//! Sources: SDM vol. 3, "Debug Registers", "Instruction-Breakpoint Exception Condition".

use ::x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr7, Dr7Flags};

/// How many there are.
pub const COUNT: usize = 4;

/// None stops anything from here on.
pub fn disarm() {
    Dr7::write_raw(ALWAYS);
}

/// Those with an address stop this processor before it executes what is there; zero is none. An instruction of which a breakpoint
/// falsely says that it begins there is never stopped at.
///
/// # Safety
/// #DB, which may come in front of the next instruction and with IF=0, is taken by who resumes these places with RF set.
pub unsafe fn arm(addresses: [u64; COUNT]) {
    disarm();
    let [first, second, third, fourth] = addresses;
    Dr0::write(first);
    Dr1::write(second);
    Dr2::write(third);
    Dr3::write(fourth);
    // Conditions and lengths of zero: an instruction, whose length is always one.
    let enabled = (0..COUNT).filter(|&number| addresses[number] != 0);
    let flags =
        enabled.fold(0, |flags, number| flags | Dr7Flags::GLOBAL_BREAKPOINT_0_ENABLE.bits() << (2 * number));
    Dr7::write_raw(ALWAYS | flags);
}

/// Where those that are armed are; zero for the others.
pub fn armed() -> [u64; COUNT] {
    let flags = Dr7::read_raw();
    let mut addresses = [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()];
    for (number, address) in addresses.iter_mut().enumerate() {
        if flags >> (2 * number) & 2 == 0 {
            *address = 0;
        }
    }
    addresses
}

/// A bit of DR7 that reads as one.
const ALWAYS: u64 = 1 << 10;

/// RF in RFLAGS: the instruction at which it is set is not stopped at again.
pub const RESUME: u64 = 1 << 16;
