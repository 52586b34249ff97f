//! Links the image by kernel/image.ld; a host build of the same package is an ordinary program. Makes the table of upper cases.

// It runs on the host, where memory that runs out may end it.
#![allow(clippy::disallowed_methods)]

use std::fmt::Write as _;
use std::path::Path;

use icu_casemap::CaseMapper;

/// Units in a block of the table.
const BLOCK: usize = 128;

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/image.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
    }
    let folder = std::env::var_os("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&folder).join("upcase.rs"), upcase_table()).expect("the folder is for that");
}

/// kernel/src/rtl/upcase.rs says what is in it: for each block of units its number in `BLOCKS`, and there what to add to each.
fn upcase_table() -> String {
    let mapper = CaseMapper::new();
    let upcase = |unit: u16| {
        let Some(character) = char::from_u32(unit.into()) else { return unit };
        let upper = mapper.simple_uppercase(character);
        match u16::try_from(u32::from(upper)) {
            Ok(upper_unit) if mapper.simple_lowercase(upper) == character => upper_unit,
            _ => unit,
        }
    };
    let all: Vec<u16> = (0..=u16::MAX).map(|unit| upcase(unit).wrapping_sub(unit)).collect();
    let mut blocks: Vec<&[u16]> = Vec::new();
    let index: Vec<usize> = all
        .chunks(BLOCK)
        .map(|block| {
            blocks.iter().position(|&known| known == block).unwrap_or_else(|| {
                blocks.push(block);
                blocks.len() - 1
            })
        })
        .collect();
    assert!(blocks.len() <= 256, "a block's number is a byte");
    let mut text = String::new();
    let (blocks_count, index_count) = (blocks.len(), index.len());
    let written = writeln!(text, "static INDEX: [u8; {index_count}] = {index:?};")
        .and_then(|()| writeln!(text, "static BLOCKS: [[u16; {BLOCK}]; {blocks_count}] = {blocks:?};"));
    written.expect("a string takes all");
    text
}
