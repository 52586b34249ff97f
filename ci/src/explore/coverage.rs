//! Which instructions of `ke` and `sync` were ever interrupted: a number, and a listing with their places.
//!
//! Instructions are those of the functions whose own names are in `kernel::ke` or `sync`; what of them was inlined into others is not
//! counted.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::image;
use crate::symbols::Symbols;
use crate::trace::decode::Coverage;

/// Prints the number, and writes the listing into the target folder.
pub(super) fn write(image: &Path, coverage: &Coverage, symbols: &Symbols) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", image.display()))?;
    let mut functions: Vec<(String, u64, Vec<u64>)> = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let name = addr2line::demangle_auto(symbol.name().unwrap_or_default().into(), None).into_owned();
        if !is_subject(&name) {
            continue;
        }
        let code = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        let code =
            code.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
        functions.push((name, symbol.address(), instructions(code.unwrap_or_default(), symbol.address())));
    }
    functions.sort_by_key(|(_, address, _)| *address);
    functions.dedup_by_key(|(_, address, _)| *address);
    let hit = |address: u64| {
        let offset = address.checked_sub(coverage.start).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| coverage.hit.get(offset)).copied().unwrap_or(false)
    };
    let (mut all, mut interrupted, mut text) = (0, 0, String::new());
    for (name, _, instructions) in &functions {
        let count = instructions.iter().filter(|&&address| hit(address)).count();
        (all, interrupted) = (all + instructions.len(), interrupted + count);
        let _ = writeln!(text, "{name}: {count} of {}", instructions.len());
        for &address in instructions {
            let place =
                symbols.at(address).into_iter().next().map(|place| place.to_string()).unwrap_or_default();
            let _ = writeln!(text, "  {} {address:#x} {place}", if hit(address) { '+' } else { '-' });
        }
    }
    let path = image::target_dir().join("explore").join("coverage.txt");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let percent = interrupted as f64 * 100.0 / (all as f64).max(1.0);
    println!(
        "{interrupted} of {all} instructions of ke and sync ({percent:.1} %) were interrupted at least once, of those {} functions \
         that have code of their own in the checked self-test image; what was inlined into others is not counted: {}",
        functions.len(),
        path.display()
    );
    Ok(())
}

/// By a demangled name: of one of the two, or of an implementation for one of their types.
fn is_subject(name: &str) -> bool {
    let name = name.trim_start_matches(['<', '&']);
    name.starts_with("kernel::ke::") || name.starts_with("sync::")
}

/// Where they begin.
fn instructions(code: &[u8], address: u64) -> Vec<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        found.push(decoder.decode().ip());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_their_beginnings() {
        // push rbp; mov rbp, rsp; ret
        assert_eq!(instructions(&[0x55, 0x48, 0x89, 0xE5, 0xC3], 0x10), [0x10, 0x11, 0x14]);
        assert!(is_subject("<sync::word::Held as core::ops::drop::Drop>::drop"));
        assert!(is_subject("kernel::ke::sched::look::look") && !is_subject("kernel::mm::pages::x"));
    }
}
