//! Which instructions of `ke` and `sync` were ever interrupted: a number, and a listing with their places.
//!
//! Instructions are those of the functions whose own names are in `kernel::ke` or `sync`; what of them was inlined into others is not
//! counted.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::code::{self, Function};
use crate::image;
use crate::symbols::Symbols;
use crate::trace::decode::Coverage;

/// Prints the number, and writes the listing into the target folder.
pub(super) fn write(image: &Path, coverage: &Coverage, symbols: &Symbols) -> Result<()> {
    let functions = code::functions(image, code::is_of_ke_or_sync)?;
    let hit = |address: u64| {
        let offset = address.checked_sub(coverage.start).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| coverage.hit.get(offset)).copied().unwrap_or(false)
    };
    let (mut all, mut interrupted, mut text) = (0, 0, String::new());
    for Function { name, instructions } in &functions {
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
