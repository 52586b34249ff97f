//! Paths of objects: `kernel::ob::namespace`.

#![no_main]

#[path = "../names.rs"]
mod names;

libfuzzer_sys::fuzz_target!(|input: &[u8]| names::names(input));
