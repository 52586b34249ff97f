//! From the loader's jump to the image's own code on every processor.
//!
//! Order:      `start()` reads as a list. `limine` is what the loader tells, `command_line` what the user asks,
//!             `firmware` what ACPI knows, `processors` brings the other processors up.
//! IRQL:       interrupts are off until a processor is complete; then PASSIVE.

pub mod command_line;
#[cfg(target_os = "none")]
pub mod firmware;
#[cfg(target_os = "none")]
pub mod limine;
#[cfg(target_os = "none")]
pub mod processors;
#[cfg(target_os = "none")]
mod refusal;
#[cfg(target_os = "none")]
mod start;

#[cfg(target_os = "none")]
pub use refusal::Refusal;
#[cfg(target_os = "none")]
pub use start::{Facts, Image, facts, start};

/// Defines the image's ELF entry point from a `static` `kernel::boot::Image`.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! image {
    ($image:path) => {
        /// The ELF entry point: the loader jumps here on its own stack, with RBP zero.
        #[unsafe(no_mangle)]
        extern "C" fn _start() -> ! {
            $crate::boot::start(&$image)
        }
    };
}
