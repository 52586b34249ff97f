//! A MADT, and all from the RSDP down to it: `boot::acpi`.

#![no_main]

#[allow(dead_code, reason = "each target uses one check")]
#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::madt(input));
