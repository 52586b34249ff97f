//! Priorities that move, and quanta: NT's dynamic range, 1 to 15. Pure.
//!
//! A thread that a wait was satisfied for gets its base plus the caller's increment, if that is more than it has. Each quantum that it
//! uses up takes one off again. A thread that has not run for long gets the highest dynamic priority for one quantum, and falls
//! back to its base at once. Real-time priorities stay as they were set.
//!
//! Tests:   the unit tests below; tests/props/tests/scheduler.rs.
//! Sources: WDK, `KeSetEvent` (Increment), "Thread Priorities"; Win32, "Priority Boosts".

use super::schedulable::{REAL_TIME, Schedulable};

/// A wait is satisfied with `increment`. Under the thread's lock; it is in no queue.
#[inline(always)]
pub fn boost(thread: &Schedulable, increment: u8) {
    if increment == 0 {
        return;
    }
    let base = thread.base();
    if base >= REAL_TIME {
        return;
    }
    let boosted = base.saturating_add(increment).min(REAL_TIME - 1);
    if boosted > thread.priority() {
        thread.set_priority(boosted);
        // The quanta that it used up alone, before its wait, don't count against this boost.
        if thread.quantum() <= 0 {
            thread.set_quantum(thread.quantum_reset());
        }
    }
}

/// A quantum is used up, or several where no tick told: the next one starts, shorter by what this one took too much, and a boost decays by
/// one for each. Who was alone for longer than a quantum owes nothing. Under the thread's lock, and its processor's.
pub fn quantum_over(thread: &Schedulable) {
    let (left, reset) = (thread.quantum(), thread.quantum_reset());
    thread.set_quantum(if left > -reset { left + reset } else { reset });
    let (priority, base) = (thread.priority(), thread.base());
    if thread.is_boosted() {
        let used_up = 1 + left.min(0).unsigned_abs() / reset.max(1).unsigned_abs();
        let decays = used_up.min((priority - base).into()) as u8;
        thread.set_priority(if thread.is_starved() { base } else { priority - decays });
    }
    thread.set_starved(false);
}

/// It has been ready for too long: the highest dynamic priority. Under the lock of its queue, taken out of it. False: it has that, or
/// is above, already.
pub fn relieve(thread: &Schedulable) -> bool {
    if thread.priority() >= REAL_TIME - 1 {
        return false;
    }
    thread.set_starved(true);
    thread.set_priority(REAL_TIME - 1);
    true
}

/// A new base priority: what was boosted is lost, as on NT. Under the thread's lock, and that of its processor if it has one.
pub fn set_base(thread: &Schedulable, base: u8) {
    thread.set_base(base);
    thread.set_priority(base);
    thread.set_starved(false);
    thread.set_quantum(thread.quantum_reset());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(base: u8) -> Schedulable {
        Schedulable::new(base, 1, 0, 100)
    }

    #[test]
    fn boosts_are_from_the_base_and_stay_below_16() {
        let it = thread(8);
        boost(&it, 2);
        assert_eq!(it.priority(), 10);
        boost(&it, 1);
        assert_eq!(it.priority(), 10, "a smaller boost took from a greater one");
        boost(&it, 200);
        assert_eq!(it.priority(), 15);
        let real = thread(16);
        boost(&real, 3);
        assert_eq!(real.priority(), 16);
    }

    #[test]
    fn a_boost_decays_by_one_a_quantum_to_the_base() {
        let it = thread(8);
        boost(&it, 2);
        let mut seen = Vec::new();
        for _ in 0..4 {
            it.set_quantum(-5);
            quantum_over(&it);
            assert_eq!(it.quantum(), 95, "what was overdrawn is owed");
            seen.push(it.priority());
        }
        assert_eq!(seen, [9, 8, 8, 8]);
        let alone = thread(8);
        boost(&alone, 5);
        alone.set_quantum(-250);
        quantum_over(&alone);
        assert_eq!((alone.priority(), alone.quantum()), (10, 100), "three quanta without a tick");
        boost(&alone, 4);
        alone.set_quantum(-250);
        boost(&alone, 5);
        assert_eq!((alone.priority(), alone.quantum()), (13, 100), "a boost begins with a quantum");
        let real = thread(24);
        quantum_over(&real);
        assert_eq!(real.priority(), 24);
    }

    #[test]
    fn who_waits_keeps_what_is_left_of_its_quantum() {
        let it = thread(8);
        it.set_quantum(30);
        for increment in [0, 2] {
            boost(&it, increment);
            assert_eq!(it.quantum(), 30);
        }
        it.set_quantum(-10);
        boost(&it, 1);
        assert_eq!(it.quantum(), -10, "no boost, and what was overdrawn is forgotten");
    }

    #[test]
    fn relief_lasts_one_quantum() {
        let it = thread(4);
        assert!(relieve(&it));
        assert!(!relieve(&it));
        assert_eq!((it.priority(), it.base()), (15, 4));
        quantum_over(&it);
        assert_eq!(it.priority(), 4);
        assert!(!relieve(&thread(20)));
    }
}
