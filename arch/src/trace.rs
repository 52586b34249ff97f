//! The trace: what each processor did last, in a ring of its own, to be read out of memory by the harness.
//!
//! Owns:       [`Kind`], what a record looks like, [`DESCRIPTION`]; [`event`], which records. Not: where the rings lie and how the
//!             harness finds them (kernel/src/kd/trace.rs), what is made of them (ci/src/trace).
//! Called by:  the interrupt path, `sync` and the kernel, each where it happens.
//! IRQL:       DISPATCH or above, or IF=0: a thread that moved to another processor in the middle would write into the ring of the
//!             first one beside its owner. A record would be torn then, nothing else.
//! Cost:       at most 25 instructions an event (selftest `trace::an_event_takes_at_most_25_instructions`); nothing at all without
//!             the feature `trace`, which comes with the checked build.
//! Invariants: I1 a ring is written by its own processor. An index is taken by one instruction, so an interrupt or NMI in the
//!                middle of a record gets the next one.
//!             I2 a record is whole if its low 32 bits of index are those of its place; else it was being written when the machine
//!                stopped. They are the last thing that is written.
//!
//! A record, 32 bytes, little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | the time stamp counter |
//! | 8 | 4 | the index, low half (I2) |
//! | 12 | 1 | the kind |
//! | 13 | 1 | CR8 |
//! | 14 | 2 | first argument |
//! | 16 | 8 | second argument |
//! | 24 | 8 | third argument |

#[cfg(target_os = "none")]
pub use crate::x86_64::ring::{Ring, attach, cover, here, record};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What happened. The arguments' names are in [`DESCRIPTION`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        /// The kinds for who reads a ring without this source: a line each, number, name, and the arguments' names (`-`: none).
        pub const DESCRIPTION: &str = concat!($(stringify!($number), " ", $text, "\n",)*);
    };
}

kinds! {
    /// A maskable interrupt begins.
    Interrupt = 1, "interrupt vector rip level";
    /// It was acknowledged.
    Eoi = 2, "eoi - - -";
    /// It returns.
    InterruptExit = 3, "interrupt_exit vector rip level";
    /// An exception, or an NMI.
    Exception = 4, "exception vector rip address";
    /// The level was raised to DISPATCH or above: from and to, a byte each.
    Raise = 5, "raise levels place -";
    /// It is about to be lowered again.
    Lower = 6, "lower levels - -";
    /// A DPC was queued.
    DpcInsert = 7, "dpc_insert front entry routine";
    /// Its routine begins.
    DpcRun = 8, "dpc_run threaded entry routine";
    /// It has ended.
    DpcEnd = 9, "dpc_end threaded entry -";
    /// A switch; why: where the thread that is left goes (`ke::sched::Place`).
    Switch = 10, "switch why from to";
    /// A thread was made ready, by the thread that runs here or a handler; with its boost.
    Ready = 11, "ready boost thread -";
    /// A thread begins to wait for so many objects; the first of them.
    Wait = 12, "wait objects object thread";
    /// An object was signalled.
    Signal = 13, "signal kind object state";
    /// A timer was set.
    TimerSet = 14, "timer_set - timer due";
    /// It expired.
    TimerExpire = 15, "timer_expire - timer due";
    /// An interrupt was sent to a processor, by its APIC id; to all others (-1), to the sender (-2), to processors of one cluster (bit
    /// 32, and their logical ids). A vector of 2 is an NMI. Not `Send`: the compiler's messages would no longer call the trait by its
    /// name alone.
    SendVector = 16, "send vector target -";
    /// A lock was found held.
    Contended = 17, "contended owner lock -";
    /// That lock was taken.
    Acquired = 18, "acquired - lock -";
    /// A thread was started: its number, and the beginning of its name.
    Thread = 19, "thread number thread name";
    /// A text of the image: address and length.
    Mark = 20, "mark value text length";
    /// A bugcheck.
    Bugcheck = 21, "bugcheck - code parameter";
    /// A fault that a test provokes.
    Inject = 22, "inject what value -";
}

/// Whether anything is recorded: for arguments that the compiler wouldn't leave out, such as atomics.
pub const ENABLED: bool = cfg!(all(feature = "trace", target_os = "none"));

/// Records an event of this processor. See the module for the level.
#[inline(always)]
pub fn event(kind: Kind, first: u16, second: u64, third: u64) {
    #[cfg(all(feature = "trace", target_os = "none"))]
    record(u32::from(kind as u8) | u32::from(first) << 16, second, third);
    #[cfg(not(all(feature = "trace", target_os = "none")))]
    let _ = (kind, first, second, third);
}

/// The same with the address of something.
#[inline(always)]
pub fn about<T: ?Sized>(kind: Kind, first: u16, what: *const T, third: u64) {
    event(kind, first, what.addr() as u64, third);
}

/// Records that `text` was reached.
#[inline(always)]
pub fn mark(text: &'static str, value: u16) {
    event(Kind::Mark, value, text.as_ptr().addr() as u64, text.len() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_a_line_of_five_words_for_each_kind() {
        let mut numbers: Vec<u8> = Vec::new();
        for line in DESCRIPTION.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words.len(), 5, "{line}");
            numbers.push(words[0].parse().expect("a number"));
        }
        assert_eq!(numbers, (Kind::Interrupt as u8..=Kind::Inject as u8).collect::<Vec<_>>());
    }
}
