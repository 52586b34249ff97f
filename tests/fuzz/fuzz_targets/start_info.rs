//! A start info with its tables: `boot::start_info` and `boot::memory_map`.

#![no_main]

#[allow(dead_code, reason = "each target uses one check")]
#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::start_info(input));
