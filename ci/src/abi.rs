//! The kernel's structures against NT's, as `ddk/wdm.h` of mingw-w64 declares them: sizes, and offset and size of every field.
//!
//! The kernel's side is a text in the library `abi` (tests/abi), compiled for the bare machine. What it names is asked of a C
//! compiler: a program of one array, which is compiled and never run. Where the header is known to differ from NT, [`DEVIATIONS`]
//! says so, with the reason; one that no longer differs is an error, too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol};
use serde_json::Value;

use crate::image::{self, TARGET};

/// Debian's package `gcc-mingw-w64-x86-64` has it, `mingw-w64-x86-64-dev` the headers.
const COMPILER: &str = "x86_64-w64-mingw32-gcc";

/// What the C program begins with. The two headers cannot stand in one program, so the second is another one.
const HEADERS: [&str; 2] = ["ddk/wdm.h", "ddk/ntifs.h"];

/// What the second declares, and the first doesn't.
const IN_THE_SECOND: &[&str] = &[
    "KQUEUE",
    "KUSER_SHARED_DATA",
    "RTL_SPLAY_LINKS",
    "RTL_BALANCED_LINKS",
    "RTL_AVL_TABLE",
    "RTL_GENERIC_TABLE",
    "SID",
    "ACCESS_ALLOWED_ACE",
    "SECURITY_DESCRIPTOR",
    "SECURITY_DESCRIPTOR_RELATIVE",
];

/// The version of NT that the headers are to declare: 10.0, the model of the kernel's interfaces.
const VERSION: &str = "-D_WIN32_WINNT=0x0A00";

/// Where the header differs from NT, or has no such field.
struct Deviation {
    structure: &'static str,
    /// As the kernel's table names it; empty: the size of the structure.
    field: &'static str,
    /// Offset and size that the header has (the size alone, for a structure's); nothing: it has no such field.
    header: Option<(u64, u64)>,
    reason: &'static str,
}

const fn absent(structure: &'static str, field: &'static str, reason: &'static str) -> Deviation {
    Deviation { structure, field, header: None, reason }
}

const fn differs(
    structure: &'static str,
    field: &'static str,
    header: (u64, u64),
    reason: &'static str,
) -> Deviation {
    Deviation { structure, field, header: Some(header), reason }
}

const OLD_WAIT_BLOCK: &str =
    "the header's is NT 6.1's: since 6.2 the type, state and key come before the pointers";
const OLD_TIMER: &str = "the header's is NT 6.1's: since 6.2 the processor's four bytes have more in them";
const NEWER_SHARED_DATA: &str =
    "the header's is an older NT's, which calls these bytes reserved, or has nothing there";

const DEVIATIONS: &[Deviation] = &[
    differs("KTIMER", "Processor", (56, 4), OLD_TIMER),
    absent("KTIMER", "TimerType", OLD_TIMER),
    absent("KTIMER", "TimerFlags", OLD_TIMER),
    differs("KWAIT_BLOCK", "WaitType", (42, 1), OLD_WAIT_BLOCK),
    differs("KWAIT_BLOCK", "BlockState", (43, 1), OLD_WAIT_BLOCK),
    differs("KWAIT_BLOCK", "WaitKey", (40, 2), OLD_WAIT_BLOCK),
    differs("KWAIT_BLOCK", "SpareLong", (44, 4), OLD_WAIT_BLOCK),
    differs("KWAIT_BLOCK", "Thread", (16, 8), OLD_WAIT_BLOCK),
    differs("KWAIT_BLOCK", "Object", (24, 8), OLD_WAIT_BLOCK),
    absent("KWAIT_BLOCK", "SparePtr", OLD_WAIT_BLOCK),
    absent("KUSER_SHARED_DATA", "NtBuildNumber", NEWER_SHARED_DATA),
    absent("KUSER_SHARED_DATA", "NativeProcessorArchitecture", NEWER_SHARED_DATA),
    absent("KUSER_SHARED_DATA", "QpcFrequency", NEWER_SHARED_DATA),
    absent("KUSER_SHARED_DATA", "ActiveProcessorCount", NEWER_SHARED_DATA),
    absent("KUSER_SHARED_DATA", "ActiveGroupCount", NEWER_SHARED_DATA),
    differs(
        "DEVICE_OBJECT",
        "",
        (0, 328),
        "the header lacks NT's DECLSPEC_ALIGN(MEMORY_ALLOCATION_ALIGNMENT)",
    ),
];

/// A structure of the kernel's table.
#[derive(Debug, PartialEq, Eq)]
struct Structure {
    name: String,
    /// Nothing: only a part of it is declared.
    size: Option<u64>,
    fields: Vec<Field>,
}

#[derive(Debug, PartialEq, Eq)]
struct Field {
    first: String,
    last: String,
    offset: u64,
    size: u64,
}

/// Whether the compiler and the headers are there; else what is missing.
pub(crate) fn missing() -> Option<String> {
    let version =
        Command::new(COMPILER).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match version {
        Ok(status) if status.success() => None,
        _ => Some(format!("no {COMPILER}; `ci/setup.sh test` installs it where it may")),
    }
}

/// Compares; prints a line a structure and one for each difference.
pub(crate) fn check() -> Result<()> {
    let structures = parse(&table(&library()?)?)?;
    ensure!(!structures.is_empty(), "the kernel's table is empty");
    let asked = questions(&structures);
    let mut answers = BTreeMap::new();
    for header in HEADERS {
        let of_header: Vec<&Question> = asked.iter().filter(|q| header_of(&q.structure) == header).collect();
        let numbers = compile(header, &of_header)?;
        ensure!(numbers.len() == 2 * of_header.len(), "the C program has {} numbers", numbers.len());
        for (question, pair) in of_header.iter().zip(numbers.chunks_exact(2)) {
            answers.insert((question.structure.clone(), question.field.clone()), (pair[0], pair[1]));
        }
    }
    let mut wrong = gaps(&structures);
    wrong.extend(differences(&structures, &answers, DEVIATIONS));
    let fields: usize = structures.iter().map(|structure| structure.fields.len()).sum();
    println!(
        "{} structures, {fields} fields, {} deviations of the header:",
        structures.len(),
        DEVIATIONS.len()
    );
    for deviation in DEVIATIONS {
        println!("  {}.{}: {}", deviation.structure, deviation.field, deviation.reason);
    }
    for line in &wrong {
        println!("FAIL {line}");
    }
    ensure!(wrong.is_empty(), "{} differences; the first: {}", wrong.len(), wrong[0]);
    Ok(())
}

/// The header that declares a structure.
fn header_of(structure: &str) -> &'static str {
    // ntddk.h and ntifs.h include wdm.h, and declare what it leaves out.
    if IN_THE_SECOND.contains(&structure) { HEADERS[1] } else { HEADERS[0] }
}

/// Builds the library, and returns where it is.
fn library() -> Result<PathBuf> {
    let mut cargo = image::cargo()
        .args(["build", "--message-format=json-render-diagnostics", "--target", TARGET, "--package", "abi"])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let messages = cargo.stdout.take().context("cargo's standard output")?;
    let mut found = None;
    for line in BufReader::new(messages).lines() {
        found = built_library(&line?).or(found);
    }
    let status = cargo.wait()?;
    ensure!(status.success(), "building the library `abi` failed: cargo ends with {status}");
    found.context("cargo built `abi` but names no library")
}

/// The library that a message of cargo announces, if it is `abi`.
fn built_library(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == "abi";
    let files = message["filenames"].as_array().filter(|_| is_it)?;
    files.iter().filter_map(Value::as_str).find(|name| name.ends_with(".rlib")).map(PathBuf::from)
}

/// The text in the library's static.
fn table(library: &Path) -> Result<String> {
    let bytes = std::fs::read(library).with_context(|| format!("reading {}", library.display()))?;
    let archive = ArchiveFile::parse(&*bytes)?;
    for member in archive.members() {
        let Ok(file) = object::File::parse(member?.data(&*bytes)?) else { continue };
        for symbol in file.symbols() {
            let section = symbol.section_index().map(|index| file.section_by_index(index)).transpose()?;
            let (Some(section), true) = (section, symbol.name()?.contains("NT_LAYOUTS")) else { continue };
            let from = (symbol.address() - section.address()) as usize;
            let text = section.data()?.get(from..).context("the static is outside of its section")?;
            let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            return Ok(std::str::from_utf8(&text[..end])?.to_owned());
        }
    }
    bail!("{} has no static NT_LAYOUTS", library.display())
}

fn parse(text: &str) -> Result<Vec<Structure>> {
    let mut structures: Vec<Structure> = Vec::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["S", name, size] => structures.push(Structure {
                name: name.to_owned(),
                size: if size == "?" { None } else { Some(size.parse()?) },
                fields: Vec::new(),
            }),
            ["F", first, last, offset, size] => {
                structures.last_mut().context("a field of no structure")?.fields.push(Field {
                    first: first.to_owned(),
                    last: last.to_owned(),
                    offset: offset.parse()?,
                    size: size.parse()?,
                });
            }
            _ => bail!("not a line of the kernel's table: {line:?}"),
        }
    }
    Ok(structures)
}

/// Bytes of a structure that no field has, though alignment doesn't ask for them: a field that was not compared.
fn gaps(structures: &[Structure]) -> Vec<String> {
    let mut found = Vec::new();
    for structure in structures {
        let Some(size) = structure.size.filter(|_| !structure.fields.is_empty()) else { continue };
        let mut edges: Vec<(u64, u64)> =
            structure.fields.iter().map(|field| (field.offset, field.offset + field.size)).collect();
        edges.sort_unstable();
        edges.push((size, size));
        let mut end = 0;
        for (from, to) in edges {
            // What alignment leaves ends at a multiple of four or eight, and is less than that.
            let is_padding = from.is_multiple_of(8) && from - end.min(from) < 8
                || from.is_multiple_of(4) && from - end.min(from) < 4
                || from.is_multiple_of(16) && from == size && from - end.min(from) < 16;
            if from > end && !is_padding {
                found.push(format!("{}: bytes {end} to {from} are in no field", structure.name));
            }
            end = end.max(to);
        }
    }
    found
}

/// What the C compiler is to tell: two numbers.
struct Question {
    structure: String,
    /// Empty: the structure's size.
    field: String,
    /// Two expressions of C.
    expressions: [String; 2],
}

fn questions(structures: &[Structure]) -> Vec<Question> {
    let mut asked = Vec::new();
    for Structure { name, size, fields } in structures {
        if size.is_some() {
            let expressions = ["0".to_owned(), format!("sizeof({name})")];
            asked.push(Question { structure: name.clone(), field: String::new(), expressions });
        }
        for Field { first, last, .. } in fields {
            if DEVIATIONS.iter().any(|d| d.structure == name && d.field == first && d.header.is_none()) {
                continue;
            }
            let from = format!("offsetof({name}, {first})");
            let to = format!("offsetof({name}, {last}) + sizeof((({name} *)0)->{last})");
            let expressions = [from.clone(), format!("{to} - {from}")];
            asked.push(Question { structure: name.clone(), field: first.clone(), expressions });
        }
    }
    asked
}

/// The folder of `ddk/wdm.h`, which other headers there name without the folder.
fn ddk() -> Result<PathBuf> {
    let program = "#include <ddk/wdm.h>\n";
    let mut child = Command::new(COMPILER)
        .args(["-M", "-w", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {COMPILER}"))?;
    child.stdin.take().context("the compiler's standard input")?.write_all(program.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{COMPILER} finds no ddk/wdm.h");
    let list = String::from_utf8(output.stdout)?;
    let header = list.split_whitespace().find(|word| word.ends_with("/ddk/wdm.h"));
    let folder = header.and_then(|header| Path::new(header).parent()).context("the header is nowhere")?;
    Ok(folder.to_owned())
}

/// Compiles a program with `header` that has the answers in an array, and reads them out of the object file.
fn compile(header: &str, questions: &[&Question]) -> Result<Vec<u64>> {
    let mut program =
        format!("#include <stddef.h>\n#include <{header}>\nunsigned long long answers[] = {{\n");
    for question in questions {
        let [a, b] = &question.expressions;
        // A line each, so that the compiler's complaint about a name shows which.
        writeln!(program, "    {a}, {b},")?;
    }
    program.push_str("};\n");
    let folder = tempfile::tempdir()?;
    let (source, output) = (folder.path().join("abi.c"), folder.path().join("abi.o"));
    std::fs::write(&source, program)?;
    // -w: what the header does that a compiler may complain about is not ours.
    let status = Command::new(COMPILER)
        .args(["-std=gnu11", "-w", "-O0", "-c", VERSION, "-I"])
        .arg(ddk()?)
        .arg("-o")
        .arg(&output)
        .arg(&source)
        .status()
        .with_context(|| format!("starting {COMPILER}"))?;
    ensure!(status.success(), "{COMPILER} ends with {status}: a field is not in {header} under this name");
    let bytes = std::fs::read(&output)?;
    let file = object::File::parse(&*bytes)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("answers")).context("no array")?;
    let section = file.section_by_index(symbol.section_index().context("the array is nowhere")?)?;
    let data = section.data()?.get((symbol.address() - section.address()) as usize..).context("no data")?;
    let numbers = data.chunks_exact(8).take(2 * questions.len());
    Ok(numbers.map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect())
}

/// What differs between the table and the header's answers, and is not among `known`; and what is, but doesn't.
fn differences(
    structures: &[Structure],
    answers: &BTreeMap<(String, String), (u64, u64)>,
    known: &[Deviation],
) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = 0;
    for Structure { name, size, fields } in structures {
        let whole = size.map(|size| ("", (0, size)));
        let parts = fields.iter().map(|field| (field.first.as_str(), (field.offset, field.size)));
        for (field, ours) in whole.into_iter().chain(parts) {
            let theirs = answers.get(&(name.clone(), field.to_owned())).copied();
            let known = known.iter().find(|known| known.structure == name && known.field == field);
            used += usize::from(known.is_some());
            let wanted = known.map_or(Some(ours), |known| known.header);
            if theirs != wanted {
                found.push(format!("{name}.{field}: {theirs:?} in the header, {ours:?} here"));
            } else if known.is_some() && theirs == Some(ours) {
                found.push(format!("{name}.{field}: the header doesn't deviate"));
            }
        }
    }
    if used != known.len() {
        found.push(format!("{} deviations are of what the kernel doesn't have", known.len() - used));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "S A 16\nF Type Type 0 2\nF Links.Flink Links.Blink 8 8\nS B ?\n";

    fn answers(pairs: &[(&str, (u64, u64))]) -> BTreeMap<(String, String), (u64, u64)> {
        pairs.iter().map(|(field, pair)| (("A".to_owned(), (*field).to_owned()), *pair)).collect()
    }

    #[test]
    fn the_kernels_table_is_read_and_asked_about() {
        let structures = parse(TEXT).unwrap();
        assert_eq!(structures[0].fields[1].last, "Links.Blink");
        assert_eq!(structures[1].size, None);
        let asked = questions(&structures);
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[2].expressions[0], "offsetof(A, Links.Flink)");
        assert!(parse("F x x 0 1").is_err() && parse("what").is_err());
    }

    #[test]
    fn a_field_of_another_place_or_size_differs() {
        let structures = parse(TEXT).unwrap();
        let same = answers(&[("", (0, 16)), ("Type", (0, 2)), ("Links.Flink", (8, 8))]);
        assert!(differences(&structures, &same, &[]).is_empty());
        let moved = answers(&[("", (0, 24)), ("Type", (2, 2)), ("Links.Flink", (8, 4))]);
        assert_eq!(differences(&structures, &moved, &[]).len(), 3);
    }

    #[test]
    fn a_deviation_must_be_one() {
        let structures = parse(TEXT).unwrap();
        let moved = answers(&[("", (0, 24)), ("Type", (0, 2))]);
        let known = || [differs("A", "", (0, 24), ""), absent("A", "Links.Flink", "")];
        assert!(differences(&structures, &moved, &known()).is_empty());
        let same = answers(&[("", (0, 16)), ("Type", (0, 2)), ("Links.Flink", (8, 8))]);
        assert_eq!(differences(&structures, &same, &known()).len(), 2);
        assert_eq!(differences(&structures, &same, &[absent("C", "Type", "")]).len(), 1);
    }

    #[test]
    fn bytes_that_were_not_compared_are_found() {
        assert!(gaps(&parse(TEXT).unwrap()).is_empty());
        assert_eq!(gaps(&parse("S A 48\nF Type Type 0 2\nF Next Next 16 8\n").unwrap()).len(), 2);
    }

    #[test]
    fn only_the_library_is_taken() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"abi"},"filenames":["/t/a.rmeta","/t/a.rlib"]}"#;
        assert_eq!(built_library(message), Some("/t/a.rlib".into()));
        assert_eq!(built_library(&message.replace("\"abi\"", "\"sync\"")), None);
    }
}
