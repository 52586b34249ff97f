//! Security descriptors: `kernel::se::descriptor`.

#![no_main]

#[path = "../descriptors.rs"]
mod descriptors;

libfuzzer_sys::fuzz_target!(|input: &[u8]| descriptors::descriptors(input));
