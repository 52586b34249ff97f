//! What a seed aims at: some of the image's instructions, at which the guest stops its processors (kernel/src/ke/aim.rs).
//!
//! Only those count that are executed at all, which is what QEMU translates in one run that aims at nothing; the list of an image is kept.
//! Each of them belongs to one seed of any [`SHARES`] in a row, so as many seeds have aimed at all of them, at those too that the clock
//! would hardly ever hit.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, ensure};

use super::code::{self, Function};
use super::{TIMEOUT, Watch, kept};
use crate::guest;
use crate::image;
use crate::process::NoteSignals;
use crate::run::{End, Follow, POLL};
use crate::target::Target;

/// So many seeds share the instructions.
const SHARES: u64 = 200;
/// The guest takes no more (`MOST`).
const MOST: usize = 2048;
/// Operations of a thread in the run that is listed: many more than a seed's, for what happens rarely.
const ROUNDS: u32 = 400;

/// Where the guest counts from: the same in kernel/src/mm/layout.rs.
const IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

/// An image's instructions that may be aimed at.
pub(super) struct Aims {
    places: Vec<u64>,
}

impl Aims {
    /// Those of the target's image; nothing when a signal asked for an end.
    pub(super) fn of(target: &Target) -> Result<Option<Self>> {
        let name =
            format!("aims-{}-{:016x}.json", target.machine.cpus, kept::name_of(&target.machine.image)?);
        let path = image::target_dir().join("explore").join(name);
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(places) = known {
            return Ok(Some(Self { places }));
        }
        let Some(executed) = executed(target)? else { return Ok(None) };
        let functions = code::functions(&target.machine.image, may_be_aimed_at)?;
        let instructions = functions.iter().flat_map(|Function { instructions, .. }| instructions);
        let places: Vec<u64> = instructions.filter(|address| executed.contains(address)).copied().collect();
        ensure!(!places.is_empty(), "QEMU lists no instruction that could be aimed at");
        fs::create_dir_all(image::target_dir().join("explore"))?;
        fs::write(&path, serde_json::to_vec(&places)?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(Self { places }))
    }

    /// The seed's share as a word of the command line: distances in base 36.
    pub(super) fn word(&self, seed: u64) -> String {
        let share = (seed % SHARES) as usize;
        let mut before = IMAGE;
        let distances = self.places.iter().skip(share).step_by(SHARES as usize).take(MOST).map(|&place| {
            let distance = place - before;
            before = place;
            base_36(distance)
        });
        format!("aim={}", distances.collect::<Vec<_>>().join(","))
    }
}

/// Of the kernel, `sync` or the self-test; not what takes #DB or an NMI, which a breakpoint would ruin (kernel/src/ke/aim.rs, I1), nor what a
/// bugcheck runs.
fn may_be_aimed_at(name: &str) -> bool {
    const LEFT_OUT: [&str; 8] =
        ["aim", "bugcheck", "clock::stall", "freeze", "late", "prcb", "torment", "trap"];
    let is_left_out = |name: &str| LEFT_OUT.iter().any(|part| name.contains(&format!("kernel::ke::{part}")));
    let name = name.trim_start_matches(['<', '&']);
    ["kernel::", "sync::", "selftest::"].iter().any(|start| name.starts_with(start)) && !is_left_out(name)
}

/// What a run of the mixed phase executes, bring-up included; nothing when a signal asked for an end.
fn executed(target: &Target) -> Result<Option<BTreeSet<u64>>> {
    let list = tempfile::NamedTempFile::new().context("a file for what QEMU translates")?;
    let mut machine = target.machine.clone();
    machine.command_line = format!("seed=0 stress_rounds={ROUNDS} {}", machine.command_line);
    machine.translated = Some(list.path().to_owned());
    let signals = NoteSignals::start();
    let watch = Watch { timeout: Some(TIMEOUT), live: false, until_online: false };
    let mut follow = Follow::start(&target.qemu, &machine, &target.symbols, &watch)?;
    let end = loop {
        match follow.poll(&signals)? {
            Some(end) => break end,
            None => std::thread::sleep(POLL),
        }
    };
    let is_interrupted = end == End::Interrupted;
    follow.finish(end)?;
    if is_interrupted {
        return Ok(None);
    }
    let lines = BufReader::new(list.reopen().context("reading what QEMU translates")?).lines();
    // The others are headings, symbols and rules.
    let address = |line: String| line.split_once(':').and_then(|(address, _)| guest::hex(address));
    Ok(Some(lines.map_while(|line| line.ok()).filter_map(address).collect()))
}

/// How often processors were stopped, by what a guest that has passed says.
pub(super) fn stops(serial: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(serial);
    let (before, _) = text.split_once(" stops where aimed at")?;
    before.rsplit(' ').next()?.parse().ok()
}

fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.extend(char::from_digit((number % 36) as u32, 36));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest makes of the word.
    fn read(word: &str) -> Vec<u64> {
        let texts = word.strip_prefix("aim=").unwrap_or_default().split(',');
        let distances = texts.map_while(|text| u64::from_str_radix(text, 36).ok());
        distances
            .scan(IMAGE, |place, distance| {
                *place += distance;
                Some(*place)
            })
            .collect()
    }

    #[test]
    fn each_instruction_is_aimed_at_by_one_of_as_many_seeds() {
        let places: Vec<u64> = (0..1000).map(|number| 0xFFFF_FFFF_8010_0000 + number * number).collect();
        let aims = Aims { places: places.clone() };
        let mut aimed_at: Vec<u64> = (7..7 + SHARES).flat_map(|seed| read(&aims.word(seed))).collect();
        aimed_at.sort_unstable();
        assert_eq!(aimed_at, places);
    }

    #[test]
    fn stops_are_read_from_what_the_guest_says() {
        assert_eq!(stops(b"stress: 480 operations, 97 stops where aimed at, all balanced\n"), Some(97));
        assert_eq!(stops(b"stress: 480 operations\n"), None);
    }

    #[test]
    fn what_takes_breakpoints_is_not_aimed_at() {
        for name in ["kernel::ke::freeze::nmi", "kernel::ke::trap::exception", "kernel::ke::clock::stall"] {
            assert!(!may_be_aimed_at(name), "{name}");
        }
        for name in [
            "kernel::ke::sched::look::look",
            "sync::handoff::x",
            "<kernel::ex::worker::Queue as core::ops::drop::Drop>::drop",
        ] {
            assert!(may_be_aimed_at(name), "{name}");
        }
    }
}
