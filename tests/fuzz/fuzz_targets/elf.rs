//! A kernel file: `boot::elf`, and `boot::requests` on what it loads.

#![no_main]

#[allow(dead_code, reason = "each target uses one check")]
#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::elf(input));
