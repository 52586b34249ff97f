//! Time, as a machine's test says it.

use super::thread;

/// System time less interrupt time, 100 ns: never changed.
pub const OFFSET: u64 = 130_000_000_000_000_000;

/// The machine's time, for its threads.
pub(in crate::ke) fn interrupt_time_precise() -> u64 {
    thread::mine().machine().now()
}

/// Time stamps a second: the host's are nanoseconds.
pub(in crate::ke) fn tsc_hz() -> u64 {
    1_000_000_000
}

/// What the system time was ahead of it when the machine started.
pub(in crate::ke) fn first_offset() -> u64 {
    OFFSET
}
