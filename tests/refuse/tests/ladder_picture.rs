//! docs/irql-ladder.svg is drawn from the ladder itself, so the picture can't differ from the list in sync/src/rank.rs.
//!
//! `BLESS=1 cargo test -p refuse` draws it anew, after a new rank.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use arch::vector;
use sync::irql::LADDER;

/// Height of an entry, in pixels, as are all lengths here.
const ROW: usize = 24;
const TOP: usize = 40;
const WIDTH: usize = 900;

/// Entries that are alike in what their code may do.
struct Section {
    colour: &'static str,
    title: &'static str,
    what: &'static [&'static str],
}

const THREADS: Section = Section {
    colour: "#cfe8cf",
    title: "threads",
    what: &["may wait, touch paged memory, be switched away"],
};
const DISPATCH: Section = Section {
    colour: "#cfdff5",
    title: "DPCs, the scheduler, holders of spin locks",
    what: &[
        "stay on their processor: no wait, no page fault;",
        "its locks are never taken by code an interrupt runs",
    ],
};
const DEVICE: Section = Section { colour: "#fbe3bd", title: "ISRs, holders of an InterruptLock", what: &[] };
const INTERRUPTS: Section = Section {
    colour: "#f6cfc5",
    title: "the kernel's own interrupts",
    what: &["the locks of this section are the only ones that", "ISRs, and the handlers up here, may take"],
};
const UNMASKABLE: Section =
    Section { colour: "#dddddd", title: "NMI, machine check: no lock, no raise", what: &[] };

/// The section of an entry, by its CR8 values.
fn section(low: u8, high: u8) -> &'static Section {
    match (low, high) {
        (0, 15) => &UNMASKABLE,
        (0 | 1, _) => &THREADS,
        (2, _) => &DISPATCH,
        (low, high) if low != high => &DEVICE,
        _ => &INTERRUPTS,
    }
}

/// The vectors that are delivered at these levels, where the kernel gives them a meaning.
fn vectors(low: u8, high: u8) -> String {
    if (low, high) == (vector::DEVICE_FIRST >> 4, vector::DEVICE_LAST >> 4) {
        return format!("vectors {:#04X}–{:#04X}", vector::DEVICE_FIRST, vector::DEVICE_LAST)
            .replace("0X", "0x");
    }
    let fixed = [vector::APC, vector::DISPATCH, vector::CLOCK, vector::IPI, vector::APIC_ERROR];
    let here: Vec<_> = fixed.into_iter().filter(|vector| low == high && vector >> 4 == low).collect();
    here.iter().map(|vector| format!("vector {vector:#04X}").replace("0X", "0x")).collect()
}

/// Levels have NT's names, in capitals; lock ranks have a type's.
fn is_rank(name: &str) -> bool {
    name.chars().any(char::is_lowercase)
}

/// The ladder, its highest entry on top.
fn drawn() -> String {
    let height = TOP + LADDER.len() * ROW + 16;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"13\">\n\
         <title>The ladder of levels and lock ranks</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (x, heading) in
        [(24, "CR8"), (74, "level"), (184, "lock rank"), (374, "delivers"), (530, "who is there")]
    {
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"26\" fill=\"#555555\">{heading}</text>");
    }
    let rows: Vec<_> = LADDER.iter().rev().collect();
    for (row, &&(name, low, high)) in rows.iter().enumerate() {
        let y = TOP + row * ROW;
        let text = y + 16;
        let value = if low == high { low.to_string() } else { format!("{low}–{high}") };
        let (x, width) = if is_rank(name) { (176, 180) } else { (66, 290) };
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"{width}\" height=\"{}\" rx=\"3\" fill=\"{}\" stroke=\"#777777\"/>\n\
             <text x=\"24\" y=\"{text}\">{value}</text><text x=\"{}\" y=\"{text}\">{name}</text>",
            y + 1,
            ROW - 3,
            section(low, high).colour,
            x + 8,
        );
        if !is_rank(name) {
            let _ =
                writeln!(svg, "<text x=\"374\" y=\"{text}\" fill=\"#555555\">{}</text>", vectors(low, high));
        }
    }
    let mut first = 0;
    for run in rows.chunk_by(|a, b| section(a.1, a.2).title == section(b.1, b.2).title) {
        let section = section(run[0].1, run[0].2);
        let (top, bottom) = (TOP + first * ROW + 2, TOP + (first + run.len()) * ROW - 3);
        let _ = writeln!(svg, "<path d=\"M514 {top} h6 V{bottom} h-6\" fill=\"none\" stroke=\"#777777\"/>");
        let mut y = (top + bottom) / 2 - 9 * section.what.len() + 5;
        let _ = writeln!(svg, "<text x=\"530\" y=\"{y}\" font-weight=\"bold\">{}</text>", section.title);
        for line in section.what {
            y += 18;
            let _ = writeln!(svg, "<text x=\"530\" y=\"{y}\">{line}</text>");
        }
        first += run.len();
    }
    svg + "</svg>\n"
}

#[test]
fn the_picture_shows_the_ladder() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/irql-ladder.svg");
    let drawn = drawn();
    if env::var_os("BLESS").is_some() {
        fs::write(&file, &drawn).expect("docs/irql-ladder.svg can be written");
    }
    let found = fs::read_to_string(&file).expect("there is docs/irql-ladder.svg");
    assert!(found == drawn, "docs/irql-ladder.svg is not of this ladder; BLESS=1 draws it anew");
}
