//! What the loader does to the machine.
//!
//! In the order of a boot: [`entry`] reaches long mode, [`start`] runs the boot, with [`machine`] for registers and
//! ports, [`devices`] for interrupt controllers and clock, [`processors`] for the others, [`handoff`] for the last
//! step; [`console`] for the case that there is no last step.

mod console;
mod devices;
mod entry;
mod handoff;
mod machine;
mod processors;
mod start;
