//! The bench's local rows, and its wakes, without the instruction counter: time, as far as an emulator has any.
//!
//! Ticks of the host mean nothing elsewhere, so a row is told in instructions of a plain loop that take as long. A row that is far above its
//! count has instructions in it that are dear under TCG: writes to CR8 and to the x2APIC, which leave the translated code.
//!
//! The guest's line in place of the calibrations, behind the log's stamp: `loop L takes T`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Times;
use crate::baseline;
use crate::guest;
use crate::qemu::Accel;
use crate::report::Verdict;
use crate::target::{GuestArgs, ImageChoice, Target};

/// A boot takes a few seconds, on a busy host some more.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Rows of which most is a wait for the clock.
const WAITS: &[&str] = &["timer::clock_interrupt_to_dpc"];

/// Processors of the boots: alone for the local rows, four for the wakes. Those share the host's cores with all else it does.
const BOOTS: [u32; 2] = [1, 4];

/// Boots the bench, and reads its rows.
pub(super) fn measure() -> Result<Times> {
    let mut times = Times::new();
    for cpus in BOOTS {
        times.extend(measured(cpus)?);
    }
    Ok(times)
}

fn measured(cpus: u32) -> Result<Times> {
    let append = vec!["ticks".to_owned()];
    let args = GuestArgs { cpus, accel: Some(Accel::Tcg), append, ..GuestArgs::default() };
    let target = Target::prepare(&args, ImageChoice::Bench)?;
    let (run, verdict) = target.run(TIMEOUT, false)?;
    ensure!(
        verdict == Verdict::Passed,
        "the bench without a counter: {verdict:?}; again: {}",
        target.again()
    );
    times(&run.serial)
}

fn times(serial: &[u8]) -> Result<Times> {
    let text = String::from_utf8_lossy(serial);
    let (mut times, mut instruction) = (Times::new(), None);
    for line in text.lines().filter_map(|line| Some(guest::without_stamp(line)?.trim())) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["loop", length, "takes", ticks] => {
                let (length, ticks): (f64, f64) = (length.parse()?, ticks.parse()?);
                ensure!(length > 0.0 && ticks > 0.0, "not a measure: {line}");
                instruction = Some(ticks / length);
            }
            ["row", fields @ ..] => {
                let instruction = instruction.context("a row in front of the loop")?;
                let row = baseline::row(fields, 1).with_context(|| format!("not a row: {line}"))?;
                // Subtracting what a reading costs may leave less than nothing: the guest's numbers have 32 bits.
                let ticks = f64::from(u32::try_from(row.counts.median)?.cast_signed()).max(0.0);
                if !WAITS.contains(&row.name.as_str()) {
                    times.insert(row.name, ticks / instruction);
                }
            }
            _ => {}
        }
    }
    ensure!(!times.is_empty(), "no row was printed");
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Times> {
        let text: String = lines.iter().map(|line| format!("[    0.1 00] {line}\r\n")).collect();
        times(text.as_bytes())
    }

    #[test]
    fn rows_are_told_in_instructions_of_the_loop() {
        let lines = [
            "loop 2001 takes 6003",
            "row a::b samples 1024 min 1 median 36 max 4294967290 bound -",
            "row a::c samples 1024 min 1 median 4294967290 max 4294967295 bound 7",
            "row timer::clock_interrupt_to_dpc samples 1024 min 1 median 36 max 90 bound -",
        ];
        let wanted = Times::from([("a::b".to_owned(), 12.0), ("a::c".to_owned(), 0.0)]);
        assert_eq!(read(&lines).expect("times"), wanted);
    }

    #[test]
    fn without_a_loop_or_rows_there_are_no_times() {
        assert!(read(&["row a::b samples 1024 min 1 median 36 max 40 bound -"]).is_err());
        assert!(read(&["loop 2001 takes 6003"]).is_err());
        assert!(read(&["loop 2001 takes 0"]).is_err());
    }

    #[test]
    fn rows_that_wait_exist() {
        let stored = super::super::stored().expect("a baseline");
        assert!(WAITS.iter().all(|&row| stored.contains_key(row)));
    }
}
