//! The kernel's functions in an image, and where their instructions begin.
//!
//! Of what was inlined into others, the others have it.

use std::path::Path;

use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Code of its own.
pub(super) struct Function {
    /// As it is written.
    pub(super) name: String,
    /// Ascending.
    pub(super) instructions: Vec<u64>,
}

/// Those of an image whose names `is_wanted` takes, by address.
pub(super) fn functions(image: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Function>> {
    let bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", image.display()))?;
    let mut found: Vec<(u64, Function)> = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let name = addr2line::demangle_auto(symbol.name().unwrap_or_default().into(), None).into_owned();
        if !is_wanted(&name) {
            continue;
        }
        let code = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        let code =
            code.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
        let instructions = instructions(code.unwrap_or_default(), symbol.address());
        found.push((symbol.address(), Function { name, instructions }));
    }
    found.sort_by_key(|(address, _)| *address);
    found.dedup_by_key(|(address, _)| *address);
    Ok(found.into_iter().map(|(_, function)| function).collect())
}

/// By a demangled name: of `ke` or `sync`, or of an implementation for one of their types.
pub(super) fn is_of_ke_or_sync(name: &str) -> bool {
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
        assert!(is_of_ke_or_sync("<sync::word::Held as core::ops::drop::Drop>::drop"));
        assert!(
            is_of_ke_or_sync("kernel::ke::sched::look::look") && !is_of_ke_or_sync("kernel::mm::pages::x")
        );
    }
}
