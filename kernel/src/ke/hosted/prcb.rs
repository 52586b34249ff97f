//! Processors, as far as dispatcher objects ask for them.

/// How many there are: what a queue without a limit of its own lets run.
pub(in crate::ke) fn count() -> u32 {
    2
}
