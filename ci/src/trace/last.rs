//! Events as lines: the last ones of each processor for a report, or all of them.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::decode::{Event, Trace};
use crate::symbols::Symbols;

/// As many of each processor as a report shows.
const SHOWN: usize = 24;

/// The last events of each processor.
pub(crate) fn report(trace: &Trace, symbols: &Symbols) -> String {
    let mut lines = Lines::new(trace, symbols);
    for (number, processor) in trace.processors.iter().enumerate() {
        let _ = writeln!(lines.text, "cpu {number}, the last of {} events:", processor.total);
        let from = processor.events.len().saturating_sub(SHOWN);
        processor.events[from..].iter().for_each(|event| lines.add(number, event));
    }
    lines.text
}

/// All events of all processors, by their time.
pub(crate) fn all(trace: &Trace, symbols: &Symbols) -> String {
    let mut lines = Lines::new(trace, symbols);
    let numbered = |(number, events): (usize, &super::decode::Processor)| {
        events.events.iter().map(move |event| (number, event.clone())).collect::<Vec<_>>()
    };
    let mut events: Vec<(usize, Event)> = trace.processors.iter().enumerate().flat_map(numbered).collect();
    events.sort_by_key(|(_, event)| event.stamp);
    events.iter().for_each(|(number, event)| lines.add(*number, event));
    lines.text
}

/// What is said of an address is looked up once.
struct Lines<'a> {
    trace: &'a Trace,
    symbols: &'a Symbols,
    places: HashMap<u64, String>,
    text: String,
}

impl<'a> Lines<'a> {
    fn new(trace: &'a Trace, symbols: &'a Symbols) -> Self {
        Self { trace, symbols, places: HashMap::new(), text: String::new() }
    }

    fn add(&mut self, processor: usize, event: &Event) {
        let nanoseconds = self.trace.nanoseconds(event.stamp);
        let _ = write!(
            self.text,
            "  {:>5}.{:09} {processor:02} #{} irql {:2} {}",
            nanoseconds / 1_000_000_000,
            nanoseconds % 1_000_000_000,
            event.index,
            event.level,
            self.trace.name(event)
        );
        let arguments = self.trace.kind(event).map(|kind| kind.arguments.clone()).unwrap_or_default();
        for (name, &value) in arguments.iter().zip(&event.arguments).filter(|(name, _)| *name != "-") {
            let shown = self.shown(name, value, event);
            let _ = write!(self.text, " {name}={shown}");
        }
        self.text.push('\n');
    }

    /// An argument as its name asks.
    fn shown(&mut self, name: &str, value: u64, event: &Event) -> String {
        match name {
            "levels" => format!("{}->{}", value >> 8, value & 0xFF),
            "vector" | "code" => format!("{value:#x}"),
            "place" => self.trace.place(value).unwrap_or_else(|| format!("{value:#x}")),
            "text" => self.trace.text(value, event.arguments[2]).unwrap_or_else(|| format!("{value:#x}")),
            "name" => name_of(value),
            "why" => why(value).to_owned(),
            "rip" | "routine" => {
                let symbols = self.symbols;
                let place = self.places.entry(value).or_insert_with(|| {
                    symbols.at(value).into_iter().next().map(|place| place.to_string()).unwrap_or_default()
                });
                format!("{value:#x} {place}").trim_end().to_owned()
            }
            _ if value > 0xFFFF => format!("{value:#x}"),
            _ => value.to_string(),
        }
    }
}

/// Eight bytes as text.
pub(super) fn name_of(value: u64) -> String {
    value
        .to_le_bytes()
        .iter()
        .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
        .map(|&b| b as char)
        .collect()
}

/// Where a switch left its thread, by the number of `ke::sched::Place`.
pub(super) fn why(place: u64) -> &'static str {
    match place {
        1 => "preempted",
        2 => "idle",
        4 => "ended",
        5 => "waits",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests::trace;
    use super::*;

    #[test]
    fn events_are_lines_with_their_arguments_by_name() {
        let name = u64::from_le_bytes(*b"worker\0\0");
        let trace = trace(&[
            &[(1_000_000_005, 5, 2, [0x0002, 0, 0]), (1_000_000_009, 10, 2, [5, 0xAAAA_0000, 0xBBBB_0000])],
            &[(1_000_000_007, 19, 2, [7, 0xAAAA_0000, name])],
        ]);
        let text = all(&trace, &Symbols::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("1.000000005 00 #0 irql  2 raise levels=0->2"), "{text}");
        assert!(lines[1].contains("01 #0 irql  2 thread number=7 thread=0xaaaa0000 name=worker"), "{text}");
        assert!(lines[2].contains("switch why=waits from=0xaaaa0000 to=0xbbbb0000"), "{text}");
        let report = report(&trace, &Symbols::default());
        assert!(report.contains("cpu 1, the last of 1 events:"), "{report}");
    }
}
