//! Self-tests that no boot of this process has really run: a skip in one boot is well where another boot, with more processors or
//! under the instruction counter, passes the test.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::guest::{Outcome, Test};

/// By name: why it was last skipped; nothing once it has been tried.
static SEEN: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());

/// Takes in the tests of a boot.
pub(crate) fn note(tests: &[Test]) {
    add(&mut SEEN.lock().unwrap_or_else(PoisonError::into_inner), tests);
}

/// A line for each test that was skipped in all boots so far.
pub(crate) fn everywhere() -> Vec<String> {
    of(&SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn add(seen: &mut BTreeMap<String, Option<String>>, tests: &[Test]) {
    for test in tests {
        let reason = (test.outcome == Outcome::Skipped).then(|| test.reason.clone().unwrap_or_default());
        let known = seen.entry(test.name.clone()).or_insert_with(|| reason.clone());
        if reason.is_none() {
            *known = None;
        }
    }
}

fn of(seen: &BTreeMap<String, Option<String>>) -> Vec<String> {
    seen.iter().filter_map(|(name, reason)| Some(format!("{name}: {}", reason.as_ref()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, outcome: Outcome) -> Test {
        Test { name: name.into(), outcome, us: None, reason: Some("needs 2 processors".into()) }
    }

    #[test]
    fn a_test_is_told_until_some_boot_has_tried_it() {
        let mut seen = BTreeMap::new();
        add(&mut seen, &[test("a", Outcome::Skipped), test("b", Outcome::Skipped)]);
        assert_eq!(of(&seen), ["a: needs 2 processors", "b: needs 2 processors"]);
        add(&mut seen, &[test("a", Outcome::Passed)]);
        add(&mut seen, &[test("a", Outcome::Skipped)]);
        assert_eq!(of(&seen), ["b: needs 2 processors"]);
    }
}
