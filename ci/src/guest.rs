//! What the guest prints, taken apart: lines out of bytes, events out of lines, a transcript out of events.
//!
//! Everything here must survive any bytes at all: a guest that has lost its mind prints what it likes.
//!
//! A line of the kernel is `[SSSSS.UUUUUU CC] text`; one of the loader is `boot: text`. Texts with a meaning:
//!
//! | text | meaning |
//! |---|---|
//! | `online: N processors` | bring-up is complete |
//! | `run  NAME` | a self-test starts |
//! | `ok   NAME (N us)`, `FAIL NAME: reason`, `skip NAME: reason` | how it ended |
//! | `selftest: P passed, F failed, S skipped` | all have ended |
//! | `stress: vector V N ...` | how often each processor took a vector |
//! | `stress: KIND N ops R/s p50 A p90 B p99 C max D ns` | a line of the table of the mixed phase |
//! | `*** STOP 0xCODE NAME (0x.., 0x.., 0x.., 0x..)` | a bugcheck report begins |
//! | `*** end of report` | and is complete |
//! | `*** failed again while reporting:` | or will not be |
//! | `#N 0xADDRESS` | a frame of a backtrace |

use serde::Serialize;

/// A guest that prints no line end still gets its lines cut, so memory stays bounded.
const LONGEST_LINE: usize = 16 * 1024;

/// Cuts a stream of bytes into printable lines.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds `bytes` and hands every line that they complete to `each`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() == LONGEST_LINE {
                each(printable(&self.partial));
                self.partial.clear();
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    /// The text after the last line end, if any: a guest that died in the middle of a line.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.partial);
        (!rest.is_empty()).then(|| printable(&rest))
    }
}

/// Bytes as text that cannot move a terminal's cursor or change its colours.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\r')
        .chars()
        .map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// How a self-test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It held.
    Passed,
    /// It did not hold.
    Failed,
    /// It could not be tried here.
    Skipped,
}

/// One self-test's result line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Test {
    /// The test's name.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// The guest's own measure of a passed test, in microseconds.
    pub(crate) us: Option<u64>,
    /// Why it failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The first line of a bugcheck report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stop {
    /// The stop code.
    pub(crate) code: u64,
    /// Its name, as the guest prints it.
    pub(crate) name: String,
    /// The four parameters.
    pub(crate) parameters: [u64; 4],
}

/// The counts of the last line of a self-test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    /// Tests that held.
    pub(crate) passed: u64,
    /// Tests that did not.
    pub(crate) failed: u64,
    /// Tests that could not be tried.
    pub(crate) skipped: u64,
}

/// A kind of operation of the mixed phase. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Operation {
    /// What.
    pub(crate) kind: String,
    /// How many.
    pub(crate) count: u64,
    /// How many in a second.
    pub(crate) per_second: u64,
    /// Half of them took less, up to a factor of two; likewise 90 and 99 in a hundred.
    pub(crate) p50: u64,
    /// See above.
    pub(crate) p90: u64,
    /// See above.
    pub(crate) p99: u64,
    /// The longest.
    pub(crate) max: u64,
}

/// How often a vector was taken since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Interrupts {
    /// The vector.
    pub(crate) vector: u8,
    /// By processor.
    pub(crate) taken: Vec<u64>,
}

/// A line's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `online: N processors`.
    Online(u64),
    /// `run  NAME`.
    Started(String),
    /// `ok`, `FAIL` or `skip`.
    Ended(Test),
    /// `selftest: ...`.
    Summary(Summary),
    /// `stress: ...` with numbers.
    Operation(Operation),
    /// `stress: vector ...`.
    Interrupts(Interrupts),
    /// `*** STOP ...`.
    Stop(Stop),
    /// `*** end of report`.
    EndOfReport,
    /// `*** failed again while reporting:`.
    FailedAgain,
    /// `#N 0xADDRESS`.
    Frame {
        /// 0 is where the processor was; the others are return addresses.
        index: u64,
        /// The code address.
        address: u64,
    },
    /// Any other line.
    Text,
}

/// The meaning of one line.
pub(crate) fn parse(line: &str) -> Event {
    let (stamped, text) = match without_stamp(line) {
        Some(text) => (true, text),
        None => (false, line),
    };
    let text = text.trim();
    // A report may begin before there is a clock or a processor number, so these need no stamp.
    if let Some(stop) = text.strip_prefix("*** STOP ") {
        return parse_stop(stop).map_or(Event::Text, Event::Stop);
    }
    match text {
        "*** end of report" => return Event::EndOfReport,
        "*** failed again while reporting:" => return Event::FailedAgain,
        _ => {}
    }
    if text.starts_with('#') {
        return parse_frame(text).unwrap_or(Event::Text);
    }
    if !stamped {
        return Event::Text;
    }
    parse_stamped(text).unwrap_or(Event::Text)
}

/// What follows `[    0.012345 03] `, if the line starts so.
pub(crate) fn without_stamp(line: &str) -> Option<&str> {
    let (stamp, text) = line.strip_prefix('[')?.split_once(']')?;
    let (time, processor) = stamp.trim().split_once(' ')?;
    let (seconds, micros) = time.split_once('.')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(seconds) && digits(micros) && digits(processor.trim())).then_some(text)
}

fn parse_stamped(text: &str) -> Option<Event> {
    let (word, rest) = text.split_once(' ')?;
    let rest = rest.trim();
    match word {
        "online:" => rest.split_once(' ')?.0.parse().ok().map(Event::Online),
        "run" => Some(Event::Started(rest.to_owned())),
        "ok" => {
            let (name, time) = rest.rsplit_once(" (")?;
            let us = time.strip_suffix(" us)")?.parse().ok()?;
            let name = name.trim().to_owned();
            Some(Event::Ended(Test { name, outcome: Outcome::Passed, us: Some(us), reason: None }))
        }
        "FAIL" => Some(Event::Ended(unhappy(rest, Outcome::Failed))),
        "skip" => Some(Event::Ended(unhappy(rest, Outcome::Skipped))),
        "selftest:" => parse_summary(rest).map(Event::Summary),
        "stress:" => match rest.strip_prefix("vector ") {
            Some(rest) => parse_interrupts(rest).map(Event::Interrupts),
            None => parse_operation(rest).map(Event::Operation),
        },
        _ => None,
    }
}

fn unhappy(rest: &str, outcome: Outcome) -> Test {
    let (name, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
    Test { name: name.to_owned(), outcome, us: None, reason: Some(reason.to_owned()) }
}

fn parse_summary(text: &str) -> Option<Summary> {
    let mut counts = text.split(", ");
    let mut count = |what: &str| counts.next()?.strip_suffix(what)?.trim().parse().ok();
    Some(Summary { passed: count("passed")?, failed: count("failed")?, skipped: count("skipped")? })
}

fn parse_operation(text: &str) -> Option<Operation> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let &[kind, count, "ops", rate, "p50", p50, "p90", p90, "p99", p99, "max", max, "ns"] = words.as_slice()
    else {
        return None;
    };
    Some(Operation {
        kind: kind.to_owned(),
        count: count.parse().ok()?,
        per_second: rate.strip_suffix("/s")?.parse().ok()?,
        p50: p50.parse().ok()?,
        p90: p90.parse().ok()?,
        p99: p99.parse().ok()?,
        max: max.parse().ok()?,
    })
}

fn parse_interrupts(text: &str) -> Option<Interrupts> {
    let mut words = text.split_whitespace();
    let vector = hex(words.next()?)?.try_into().ok()?;
    let taken: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    (!taken.is_empty()).then_some(Interrupts { vector, taken })
}

fn parse_stop(text: &str) -> Option<Stop> {
    let (head, parameters) = text.split_once('(')?;
    let (code, name) = head.trim().split_once(' ')?;
    let parameters: Vec<u64> =
        parameters.trim_end().strip_suffix(')')?.split(',').map(|p| hex(p.trim())).collect::<Option<_>>()?;
    Some(Stop { code: hex(code)?, name: name.trim().to_owned(), parameters: parameters.try_into().ok()? })
}

fn parse_frame(text: &str) -> Option<Event> {
    let (index, rest) = text.strip_prefix('#')?.split_once(' ')?;
    let address = rest.split_whitespace().next()?;
    Some(Event::Frame { index: index.parse().ok()?, address: hex(address)? })
}

/// `0x` and hexadecimal digits, perhaps grouped by `_` or `` ` ``.
pub(crate) fn hex(text: &str) -> Option<u64> {
    let digits: String = text.strip_prefix("0x")?.chars().filter(|c| *c != '_' && *c != '`').collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// What a whole run has said so far.
#[derive(Default, Debug)]
pub(crate) struct Transcript {
    /// Every result line, in order.
    pub(crate) tests: Vec<Test>,
    /// The test that has started and not ended.
    pub(crate) running: Option<String>,
    /// Processors in the `online:` line.
    pub(crate) online: Option<u64>,
    /// The summaries: a sane run prints exactly one.
    pub(crate) summaries: Vec<Summary>,
    /// The table of the mixed phase.
    pub(crate) operations: Vec<Operation>,
    /// The table of interrupts behind it.
    pub(crate) interrupts: Vec<Interrupts>,
    /// Bugcheck reports begun: a sane crash prints exactly one.
    pub(crate) stops: Vec<Stop>,
    /// Bugcheck reports that came to their end.
    pub(crate) whole_reports: u64,
    /// Failures inside a report.
    pub(crate) failed_again: u64,
    /// The last line that was not blank, for runs that end without a verdict.
    pub(crate) last_line: String,
}

impl Transcript {
    /// Adds one line and says what it meant.
    pub(crate) fn line(&mut self, line: &str) -> Event {
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut self.last_line);
        }
        let event = parse(line);
        match &event {
            Event::Online(processors) => self.online = Some(*processors),
            Event::Started(name) => self.running = Some(name.clone()),
            Event::Ended(test) => {
                self.running = None;
                self.tests.push(test.clone());
            }
            Event::Summary(summary) => self.summaries.push(*summary),
            Event::Operation(operation) => self.operations.push(operation.clone()),
            Event::Interrupts(interrupts) => self.interrupts.push(interrupts.clone()),
            Event::Stop(stop) => self.stops.push(stop.clone()),
            Event::EndOfReport => self.whole_reports += 1,
            Event::FailedAgain => self.failed_again += 1,
            Event::Frame { .. } | Event::Text => {}
        }
        event
    }

    /// The summary that the result lines themselves add up to.
    pub(crate) fn counted(&self) -> Summary {
        let count = |outcome| self.tests.iter().filter(|t| t.outcome == outcome).count() as u64;
        Summary {
            passed: count(Outcome::Passed),
            failed: count(Outcome::Failed),
            skipped: count(Outcome::Skipped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in bytes.chunks(3) {
            lines.feed(chunk, |line| out.push(line));
        }
        out.extend(lines.finish());
        out
    }

    #[test]
    fn lines_come_out_whole_however_the_bytes_arrive() {
        assert_eq!(lines(b"one\r\ntwo\n\nlast"), ["one", "two", "", "last"]);
    }

    #[test]
    fn hostile_bytes_become_harmless_text() {
        assert_eq!(lines(b"\x1b[2J\xff\x00\n"), ["\u{fffd}[2J\u{fffd}\u{fffd}"]);
        assert!(lines(&vec![b'x'; 100_000]).iter().all(|l| l.len() <= LONGEST_LINE));
    }

    #[test]
    fn test_lines_are_taken_apart() {
        assert_eq!(parse("[    0.012345 03] run  ipi_all"), Event::Started("ipi_all".into()));
        let passed = Test { name: "ipi_all".into(), outcome: Outcome::Passed, us: Some(17), reason: None };
        assert_eq!(parse("[    0.012345 03] ok   ipi_all (17 us)"), Event::Ended(passed));
        let failed =
            Test { name: "nmi".into(), outcome: Outcome::Failed, us: None, reason: Some("a: b".into()) };
        assert_eq!(parse("[12345.012345 127] FAIL nmi: a: b"), Event::Ended(failed));
        let summary = Summary { passed: 3, failed: 0, skipped: 1 };
        assert_eq!(parse("[    0.1 00] selftest: 3 passed, 0 failed, 1 skipped"), Event::Summary(summary));
        assert_eq!(parse("[    0.1 00] online: 64 processors"), Event::Online(64));
        let line = "[    0.1 00] stress: dpc 861 ops 414/s p50 63 p90 126 p99 403 max 24270 ns";
        let dpc = Operation {
            kind: "dpc".into(),
            count: 861,
            per_second: 414,
            p50: 63,
            p90: 126,
            p99: 403,
            max: 24270,
        };
        assert_eq!(parse(line), Event::Operation(dpc));
        assert_eq!(parse("[    0.1 00] stress: 5 s, 100 operations"), Event::Text);
        let interrupts = Interrupts { vector: 0x2F, taken: vec![17, 0] };
        assert_eq!(parse("[    0.1 00] stress: vector 0x2f 17 0"), Event::Interrupts(interrupts));
        assert_eq!(parse("[    0.1 00] stress: vector 0x2f"), Event::Text);
    }

    #[test]
    fn lines_that_only_resemble_results_are_text() {
        for line in [
            "ok   no_stamp (1 us)",
            "[    0.1 00] ok   no_time",
            "[    0.1 00] ok   negative (-1 us)",
            "[    0.1 00] okay then (1 us)",
            "[    0.1 00] selftest: 3 passed, 0 failed",
            "[    0.1 00] online: many processors",
            "[x.y 00] ok   bad_stamp (1 us)",
            "*** STOP 0x0A NAME (1, 2, 3, 4)",
            "*** STOP 0x0A NAME (0x1, 0x2, 0x3)",
            "#x 0x1",
            "#1",
            "[",
            "[]",
            "",
        ] {
            assert_eq!(parse(line), Event::Text, "{line}");
        }
    }

    #[test]
    fn a_stop_line_needs_no_stamp() {
        let text =
            "*** STOP 0x0000000A IRQL_NOT_LESS_OR_EQUAL (0x0000000000000010, 0x2, 0x0, 0xffffffff80001234)";
        let stop = Stop {
            code: 0xa,
            name: "IRQL_NOT_LESS_OR_EQUAL".into(),
            parameters: [0x10, 2, 0, 0xffff_ffff_8000_1234],
        };
        assert_eq!(parse(text), Event::Stop(stop.clone()));
        assert_eq!(parse(&format!("[    1.000000 02] {text}")), Event::Stop(stop));
    }

    #[test]
    fn frames_are_found_with_and_without_stamp() {
        let frame = Event::Frame { index: 10, address: 0xffff_ffff_8000_1234 };
        assert_eq!(parse("  #10 0xffffffff80001234"), frame);
        assert_eq!(parse("[    1.000000 02]   #10 0xffffffff80001234 more"), frame);
    }

    #[test]
    fn a_transcript_counts_what_it_saw() {
        let mut transcript = Transcript::default();
        transcript.line("[    0.1 00] run  a");
        assert_eq!(transcript.running.as_deref(), Some("a"));
        transcript.line("[    0.1 00] ok   a (5 us)");
        transcript.line("[    0.1 00] skip b: needs 2 processors");
        assert_eq!(transcript.running, None);
        assert_eq!(transcript.counted(), Summary { passed: 1, failed: 0, skipped: 1 });
    }
}
