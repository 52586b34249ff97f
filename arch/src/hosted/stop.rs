//! A bugcheck on the host is a panic; [`catch`] tells a test which one it was.

use core::cell::Cell;
use core::fmt;
use std::panic::{self, AssertUnwindSafe};

use super::irql;

/// A stop code and its four parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// NT's stop code.
    pub code: u32,
    /// The four parameters that go with it.
    pub parameters: [u64; 4],
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.parameters;
        write!(f, "*** STOP 0x{:08X} (0x{a:016X}, 0x{b:016X}, 0x{c:016X}, 0x{d:016X})", self.code)
    }
}

std::thread_local! {
    static LAST: Cell<Option<Stop>> = const { Cell::new(None) };
}

/// A broken invariant: panics with a message that holds the stop code and the parameters.
#[cold]
#[track_caller]
pub fn fatal(code: u32, parameters: [u64; 4]) -> ! {
    let stop = Stop { code, parameters };
    LAST.set(Some(stop));
    panic!("{stop}");
}

/// Runs `f` and returns the bugcheck that it ended in, or nothing when it returned. The level is then what it was before,
/// as if the processor had been restarted. Any other panic goes on.
pub fn catch(f: impl FnOnce()) -> Option<Stop> {
    let level = irql::peek();
    LAST.set(None);
    let outcome = panic::catch_unwind(AssertUnwindSafe(f));
    let Err(payload) = outcome else { return None };
    irql::write(level);
    match LAST.take() {
        Some(stop) => Some(stop),
        None => panic::resume_unwind(payload),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn catch_tells_code_and_parameters() {
        assert_eq!(catch(|| fatal(0x0F, [1, 2, 3, 4])), Some(Stop { code: 0x0F, parameters: [1, 2, 3, 4] }));
        assert_eq!(catch(|| ()), None);
    }

    #[test]
    #[should_panic(expected = "*** STOP 0x0000000A (0x0000000000000002, ")]
    fn the_message_holds_both() {
        fatal(0x0A, [2, 0, 0, 0]);
    }
}
