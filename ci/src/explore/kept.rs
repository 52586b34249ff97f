//! What is kept of each run, to tell whether another run of its seed is the same one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Plan;
use crate::image;
use crate::target::Target;

/// Of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Of its trace; nothing if the guest did not end by itself, which no two runs do at the same instruction.
    pub(super) digest: Option<u64>,
    /// What was wrong, in a line; nothing if it passed.
    pub(super) failure: Option<String>,
}

impl Told {
    /// Whether the other is the same run: to the byte of its trace. Two hangs have none to compare; they are the same where they are
    /// told in the same words.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self == other && (self.digest.is_some() || self.failure.is_some())
    }
}

/// A number that another image will hardly have.
pub(super) fn name_of(image: &Path) -> Result<u64> {
    let bytes = fs::read(image).context("reading the image")?;
    Ok(bytes.chunks(8).fold(0xCBF2_9CE4_8422_2325_u64, |hash, chunk| {
        let word = chunk.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        (hash ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(23)
    }))
}

/// Runs of one image with one plan.
#[derive(Default)]
pub(super) struct Kept {
    path: PathBuf,
    stored: Stored,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    image: u64,
    seeds: BTreeMap<u64, Told>,
}

impl Kept {
    /// Runs of so many operations a thread, of the target's very image.
    pub(super) fn load(plan: &Plan, rounds: u32, target: &Target) -> Result<Self> {
        let image = name_of(&target.machine.image)?;
        let name = format!("runs-{}-{rounds}-{}.json", plan.cpus, plan.torment);
        let path = image::target_dir().join("explore").join(name);
        let stored: Option<Stored> =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let seeds = stored.filter(|stored| stored.image == image).map(|stored| stored.seeds);
        Ok(Self { path, stored: Stored { image, seeds: seeds.unwrap_or_default() } })
    }

    pub(super) fn get(&self, seed: u64) -> Option<&Told> {
        self.stored.seeds.get(&seed)
    }

    pub(super) fn put(&mut self, seed: u64, told: Told) {
        self.stored.seeds.insert(seed, told);
    }

    pub(super) fn save(&self) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.path, serde_json::to_vec_pretty(&self.stored)?)
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

/// How many seeds ran as they had run before, and which did not.
#[derive(Default)]
pub(super) struct Sameness {
    same: usize,
    different: Vec<u64>,
}

impl Sameness {
    pub(super) fn count(&mut self, seed: u64, one: &Told, other: &Told) {
        if one.is_same(other) {
            self.same += 1;
        } else {
            self.different.push(seed);
        }
    }

    pub(super) fn count_if(&mut self, seed: u64, one: Option<&Told>, other: &Told) {
        if let Some(one) = one {
            self.count(seed, one, other);
        }
    }

    pub(super) fn compared(&self) -> usize {
        self.same + self.different.len()
    }

    pub(super) fn different(&self) -> usize {
        self.different.len()
    }
}

impl fmt::Display for Sameness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} seeds", self.same, self.compared())?;
        if self.different.is_empty() { Ok(()) } else { write!(f, " (not {:?})", self.different) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(digest: Option<u64>, failure: Option<&str>) -> Told {
        Told { digest, failure: failure.map(str::to_owned) }
    }

    #[test]
    fn runs_are_the_same_by_trace_and_end() {
        let passed = told(Some(1), None);
        assert!(passed.is_same(&passed.clone()));
        for other in [told(Some(2), None), told(Some(1), Some("HANG")), told(None, None)] {
            assert!(!passed.is_same(&other) && !other.is_same(&passed), "{other:?}");
        }
        let hang = told(None, Some("HANG: in the test x"));
        assert!(hang.is_same(&hang.clone()) && !hang.is_same(&told(None, Some("HANG: in the test y"))));
        assert!(!told(None, None).is_same(&told(None, None)), "of nothing, nothing is known");
    }

    #[test]
    fn seeds_that_ran_otherwise_are_counted_and_named() {
        let mut sameness = Sameness::default();
        sameness.count(1, &told(Some(1), None), &told(Some(1), None));
        assert_eq!(sameness.to_string(), "1 of 1 seeds");
        sameness.count(7, &told(Some(1), None), &told(Some(2), None));
        sameness.count_if(9, None, &told(Some(2), None));
        assert_eq!(sameness.to_string(), "1 of 2 seeds (not [7])");
        assert_eq!((sameness.compared(), sameness.different()), (2, 1));
    }
}
