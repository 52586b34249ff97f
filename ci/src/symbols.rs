//! From a code address to function, file and line, through the DWARF of the images that the guest runs.
//!
//! The images are linked where they run, so a run-time address is a link-time address.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

use crate::guest;

/// One function's place. Inlining gives an address several: the innermost comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    function: String,
    line: Option<(String, u32)>,
}

impl Place {
    /// The function's name, demangled.
    pub(crate) fn function(&self) -> &str {
        &self.function
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> Option<&str> {
        self.line.as_ref().map(|(file, _)| file.as_str())
    }

    /// Whether the function's name ends with `function`.
    pub(crate) fn is_in(&self, function: &str) -> bool {
        self.function.ends_with(function)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.function)?;
        match &self.line {
            Some((file, line)) => write!(f, " {file}:{line}"),
            None => Ok(()),
        }
    }
}

struct Image {
    name: String,
    dwarf: Loader,
    text: Vec<Range<u64>>,
    functions: Vec<u64>,
}

/// The images of one guest.
#[derive(Default)]
pub(crate) struct Symbols {
    images: Vec<Image>,
}

impl Symbols {
    /// Reads what symbols the files have. One that has none costs its names in reports, and nothing else.
    pub(crate) fn of_each<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let read = |path| read_image(path).inspect_err(|e| eprintln!("warning: {e:#}")).ok();
        Self { images: paths.into_iter().filter_map(read).collect() }
    }

    /// Where an instruction is: the innermost inlined function first. Empty if no image has it.
    pub(crate) fn at(&self, address: u64) -> Vec<Place> {
        let Some(image) = self.image(address) else { return Vec::new() };
        let mut places = image.frames(address).unwrap_or_default();
        if places.is_empty() {
            let function = match image.dwarf.find_symbol(address) {
                Some(symbol) => addr2line::demangle_auto(symbol.into(), None).into_owned(),
                None => format!("(no symbol in {})", image.name),
            };
            places.push(Place { function, line: None });
        }
        places
    }

    /// Where the call was that returns to `address`.
    pub(crate) fn before(&self, address: u64) -> Vec<Place> {
        // One byte back is inside the call; the address itself may belong to the next line or, after a call that
        // never returns, to the next function.
        self.at(address.wrapping_sub(1))
    }

    /// The places of a backtrace's frame: number 0 is an exact address, the others were pushed by calls.
    pub(crate) fn frame(&self, index: u64, address: u64) -> Vec<Place> {
        // A report whose frame 0 is itself a return address may point just past a function's end.
        if index > 0 || self.starts_function(address) { self.before(address) } else { self.at(address) }
    }

    /// Every code address that `line` mentions, with its place.
    pub(crate) fn mentioned(&self, line: &str) -> Vec<(u64, Place)> {
        line.split(|c: char| !c.is_ascii_alphanumeric())
            .filter_map(guest::hex)
            .filter_map(|address| Some((address, self.at(address).into_iter().next()?)))
            .collect()
    }

    fn image(&self, address: u64) -> Option<&Image> {
        self.images.iter().find(|image| image.text.iter().any(|range| range.contains(&address)))
    }

    fn starts_function(&self, address: u64) -> bool {
        self.image(address).is_some_and(|image| image.functions.binary_search(&address).is_ok())
    }
}

/// Whether a mangled name is that of `name`, whatever hash it ends with.
pub(crate) fn is_named(mangled: &str, name: &str) -> bool {
    let demangled = addr2line::demangle_auto(mangled.into(), None);
    demangled.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::h"))
}

/// Where the function of this name begins in the image at `path`.
pub(crate) fn address_of(path: &Path, name: &str) -> Result<u64> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", path.display()))?;
    Ok(function(&file, path, name)?.address())
}

/// Where in the image's file the bytes of this variable are.
pub(crate) fn place_of(path: &Path, name: &str) -> Result<usize> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {}", path.display()))?;
    let place = || {
        let mut symbols = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Data);
        let symbol = symbols.find(|symbol| symbol.name().is_ok_and(|mangled| is_named(mangled, name)))?;
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let (start, bytes) = section.file_range()?;
        let offset = symbol.address().checked_sub(section.address())?;
        (offset + symbol.size() <= bytes).then_some((start + offset) as usize)
    };
    place().with_context(|| format!("{} has no variable {name}", path.display()))
}

/// The function of this name in the image at `path`, which is `file`.
pub(crate) fn function<'a, 'b>(
    file: &'b object::File<'a>,
    path: &Path,
    name: &str,
) -> Result<object::Symbol<'a, 'b>> {
    file.symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text)
        .find(|symbol| symbol.name().is_ok_and(|mangled| is_named(mangled, name)))
        .with_context(|| format!("{} has no function {name}", path.display()))
}

impl Image {
    fn frames(&self, address: u64) -> Result<Vec<Place>> {
        let mut frames = self.dwarf.find_frames(address).map_err(|e| anyhow!("{e}"))?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next().map_err(|e| anyhow!("{e}"))? {
            let Some(function) = frame.function else { continue };
            let function = function.demangle().map_or_else(|_| "?".to_owned(), |name| name.into_owned());
            let line = frame.location.and_then(|l| Some((short_path(l.file?), l.line?)));
            places.push(Place { function, line });
        }
        Ok(places)
    }
}

fn read_image(path: &Path) -> Result<Image> {
    let whose = || format!("reading the symbols of {}", path.display());
    let bytes = std::fs::read(path).with_context(whose)?;
    let file = object::File::parse(&*bytes).with_context(whose)?;
    let text = file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .map(|section| section.address()..section.address().saturating_add(section.size()))
        .collect();
    let mut functions: Vec<u64> = object::read::Object::symbols(&file)
        .filter(|symbol| object::ObjectSymbol::kind(symbol) == object::SymbolKind::Text)
        .map(|symbol| object::ObjectSymbol::address(&symbol))
        .collect();
    functions.sort_unstable();
    let dwarf = Loader::new(path).map_err(|e| anyhow!("{e}")).with_context(whose)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Image { name, dwarf, text, functions })
}

/// A path as a reader of this workspace wants it: relative, or from the crate's or the standard library's folder on.
fn short_path(file: &str) -> String {
    let root = crate::image::workspace();
    if let Ok(inside) = Path::new(file).strip_prefix(&root) {
        return inside.display().to_string();
    }
    if let Some((_, library)) = file.split_once("/library/").filter(|_| file.starts_with("/rustc/")) {
        return format!("library/{library}");
    }
    match file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')) {
        Some((_, in_crate)) => in_crate.to_owned(),
        None => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn landmark() -> u64 {
        std::hint::black_box(17)
    }

    #[test]
    fn an_address_of_this_very_program_is_found() {
        let own = std::env::current_exe().expect("the test's own file");
        let symbols = Symbols::of_each([own.as_path()]);
        let link_time = symbols.images[0]
            .functions
            .iter()
            .copied()
            .find(|&address| symbols.at(address).iter().any(|p| p.function.ends_with("tests::landmark")))
            .expect("landmark is in the symbol table");
        assert_eq!(landmark(), 17);
        let place = symbols.at(link_time).pop().expect("a place").to_string();
        assert!(place.contains("ci/src/symbols.rs:"), "{place}");
        let mention = symbols.mentioned(&format!("rip={link_time:#x}, and no code: 0x10"));
        assert_eq!(mention.len(), 1);
        // A first byte as frame 0 can only be a return address past a call without return.
        assert_ne!(symbols.frame(0, link_time), symbols.at(link_time));
    }

    #[test]
    fn what_is_no_elf_file_is_named() {
        let error = read_image(&crate::image::workspace().join("Cargo.toml")).err().map(|e| format!("{e:#}"));
        assert!(error.is_some_and(|e| e.contains("Cargo.toml")));
    }

    #[test]
    fn paths_are_shortened() {
        assert_eq!(short_path("/rustc/abc/library/core/src/x.rs"), "library/core/src/x.rs");
        assert_eq!(short_path("/h/.cargo/registry/src/reg-1/acpi-5/src/y.rs"), "acpi-5/src/y.rs");
        assert_eq!(short_path("z.rs"), "z.rs");
    }
}
