//! What a person sees: the serial console.

pub mod log;
