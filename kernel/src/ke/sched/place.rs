//! Where a thread that becomes ready goes. Pure: it looks, and what it looks at may have changed before it is acted on.
//!
//! To an idle processor that it may run on: its ideal one, else the one that it ran on last, else this one, else any. Else to one
//! that runs something lower, in the same order, the lowest of all the rest. Else into the queue of its ideal processor.
//!
//! Tests: tests/props/tests/scheduler.rs.

use super::schedulable::Schedulable;

/// What a processor runs, as a number that compares: 0 idle, else the priority plus one. With a standby thread, the standby's.
pub type Level = u8;

/// The level of a priority.
#[inline(always)]
pub const fn level_of(priority: u8) -> Level {
    priority + 1
}

/// The processor for `thread`, seen from processor `here`. `idle` are the idle ones, `level` tells what one runs.
#[inline(always)]
pub fn choose(thread: &Schedulable, here: u32, idle: u64, level: impl Fn(u32) -> Level) -> u32 {
    let affinity = thread.affinity();
    if affinity & affinity.wrapping_sub(1) == 0 {
        // There is no choice.
        return affinity.trailing_zeros();
    }
    let (ideal, last) = (thread.ideal(), thread.last());
    let free = idle & affinity;
    if free != 0 {
        return [ideal, last, here]
            .into_iter()
            .find(|&processor| free >> processor & 1 != 0)
            .unwrap_or(free.trailing_zeros());
    }
    let mine = level_of(thread.priority());
    let may = |processor: u32| affinity >> processor & 1 != 0;
    if may(ideal) && level(ideal) < mine {
        return ideal;
    }
    if may(last) && level(last) < mine {
        return last;
    }
    lowest(affinity, mine, level).unwrap_or(if may(ideal) { ideal } else { affinity.trailing_zeros() })
}

/// The processor in `affinity` that runs the lowest, if that is below `mine`.
#[cold]
fn lowest(affinity: u64, mine: Level, level: impl Fn(u32) -> Level) -> Option<u32> {
    let mut best = None;
    let mut left = affinity;
    let mut below = mine;
    while left != 0 {
        let processor = left.trailing_zeros();
        left &= left - 1;
        let found = level(processor);
        if found < below {
            below = found;
            best = Some(processor);
        }
    }
    best
}
