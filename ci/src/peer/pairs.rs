//! Which rows of the peer and of the bench are the same operation, as nearly as there is one, and what differs.

use std::collections::BTreeMap;

use crate::baseline::{Baseline, Counts};

/// One operation of both.
#[derive(Debug)]
pub(super) struct Pair {
    /// The peer's row (tests/peer/linux).
    pub(super) theirs: &'static str,
    /// The bench's row.
    pub(super) ours: &'static str,
    /// What is not comparable one to one; empty if nothing is known.
    pub(super) note: &'static str,
}

const fn pair(theirs: &'static str, ours: &'static str, note: &'static str) -> Pair {
    Pair { theirs, ours, note }
}

/// Each row of the peer, once.
pub(super) const PAIRS: &[Pair] = &[
    pair(
        "preempt::off_on",
        "irql::raise_lower",
        "keeps the scheduler out, but neither softirqs nor interrupts",
    ),
    pair(
        "softirq::off_on",
        "irql::raise_lower",
        "keeps softirqs and the scheduler out, which is what DISPATCH does",
    ),
    pair(
        "irq::off_on",
        "irql::raise_lower_to_high",
        "by the interrupt flag, not by the processor's priority",
    ),
    pair("locks::spin", "locks::spin", "keeps the scheduler out alone"),
    pair("locks::spin_bh", "locks::spin", ""),
    pair(
        "locks::spin_irqsave",
        "locks::interrupt",
        "all interrupts off; Kirql's raises to the device's level",
    ),
    pair("locks::read_bh", "locks::rw_shared", ""),
    pair("locks::write_bh", "locks::rw_exclusive", ""),
    pair("locks::mutex", "ex::fast_mutex", "Kirql's also keeps APCs out"),
    pair("locks::rwsem_write", "ex::push_lock_exclusive", ""),
    pair("locks::rwsem_read", "ex::push_lock_shared", ""),
    pair(
        "memory::kmalloc_64",
        "memory::pool_64_from_passive",
        "no tag on Linux; block not cleared on either",
    ),
    pair("memory::kmalloc_1000", "memory::pool_1000", "Kirql's row starts at DISPATCH"),
    pair("memory::kmalloc_4096", "memory::pool_4096", "Kirql's row starts at DISPATCH"),
    pair("memory::kmalloc_8192", "memory::pool_8192", "Kirql's row starts at DISPATCH"),
    pair("memory::page", "memory::page", "Kirql's row starts at DISPATCH; page not cleared on either"),
    pair(
        "memory::vmap_vunmap",
        "memory::map_and_unmap_page",
        "Linux flushes the TLB later, for many at once: its maximum has that",
    ),
    pair("time::monotonic", "time::interrupt_time_precise", "nanoseconds; Kirql's are 100 ns"),
    pair("time::real", "time::system_time_precise", "nanoseconds; Kirql's are 100 ns"),
    pair(
        "irq_work::to_handler",
        "dpc::passive_to_routine",
        "runs in an interrupt, which it raises, with all others off",
    ),
    pair(
        "irq_work::and_back",
        "interrupts::self_ipi_empty_handler",
        "the queue included: a module gets no vector of its own",
    ),
    pair("tasklet::schedule", "dpc::insert_at_dispatch", ""),
    pair(
        "tasklet::to_handler",
        "dpc::passive_to_routine",
        "softirqs off and on around it: else a thread would be woken for it",
    ),
    pair("tasklet::and_back", "dpc::passive_to_routine_and_back", "as above"),
    pair(
        "tasklet::interrupt_return_to_handler",
        "dpc::interrupt_return_to_routine",
        "from the last instruction of an irq_work; Kirql's of a device's handler",
    ),
    pair(
        "tasklet::interrupt_to_handler_and_back",
        "dpc::interrupt_to_routine_and_back",
        "the queue of irq_work included",
    ),
    pair("timer::hrtimer_start_cancel", "timer::set_cancel", ""),
    pair(
        "timer::wheel_mod_delete",
        "timer::set_cancel",
        "due to within jiffies (4 ms), and later the further away",
    ),
    pair("timer::hrtimer_start_cancel_with_10000_armed", "timer::set_cancel_with_10000_armed", ""),
    pair(
        "timer::hrtimer_expiry",
        "timer::clock_interrupt_to_dpc",
        "Linux's handler runs in the interrupt itself, Kirql's in a DPC behind it",
    ),
    pair("threads::yield_switch", "threads::yield_switch", "SCHED_FIFO"),
    pair(
        "threads::yield_switch_fair",
        "threads::yield_switch",
        "the class that most threads are of; those of its yields that switch",
    ),
    pair("threads::yield_to_nobody", "threads::yield_to_nobody", "SCHED_FIFO"),
    pair(
        "threads::create_run_stop",
        "threads::create_run_exit_join",
        "two switches more; and 16 KiB of stack are cleared, where each store counts",
    ),
    pair("waits::complete_without_waiter", "waits::set_event_without_waiter", ""),
    pair(
        "waits::wake_up_without_waiter",
        "waits::set_event_without_waiter",
        "a wait queue has no state to set",
    ),
    pair("waits::wait_for_completed", "waits::wait_for_signalled_event", ""),
    pair("waits::complete_to_higher_thread", "waits::set_event_to_higher_thread", "SCHED_FIFO"),
    pair("waits::wake_up_to_higher_thread", "waits::set_event_to_higher_thread", "SCHED_FIFO"),
    pair("waits::completion_round_trip", "waits::event_round_trip", "SCHED_FIFO, equal priorities"),
    pair(
        "waits::handler_to_thread",
        "waits::isr_to_dpc_to_thread",
        "Linux's handler wakes by itself, Kirql's by a DPC",
    ),
    pair(
        "waits::interrupt_to_thread",
        "waits::interrupt_to_dpc_to_thread",
        "as above; the queue of irq_work included",
    ),
    pair("waits::semaphore_pair", "waits::semaphore_pair", ""),
    pair(
        "wakes::complete_to_idle_processor",
        "wakes::set_event_to_idle_processor",
        "both processors' sum; SCHED_FIFO",
    ),
    pair(
        "wakes::completion_round_trip",
        "wakes::event_round_trip",
        "both processors' sum; Linux's asker becomes idle, too, Kirql's is found awake and gets no interrupt",
    ),
    pair("ipi::call_one", "ipi::call_one", "sum; the target halts in a thread on both"),
    pair("ipi::call_one_to_function", "ipi::call_one_to_function", "as above"),
    pair("ipi::call_all_of_4", "ipi::call_all_of_4", "as above"),
    pair("ipi::call_self", "ipi::call_self", ""),
];

/// Of a pair: the medians, and how many times this kernel's the peer's is.
#[derive(Debug, PartialEq)]
pub(super) struct Medians {
    pub(super) ours: u64,
    pub(super) theirs: u64,
    pub(super) ratio: f64,
}

impl Pair {
    /// What was counted, if both were.
    pub(super) fn medians(&self, ours: &Baseline, theirs: &BTreeMap<String, Counts>) -> Option<Medians> {
        let (ours, theirs) = (ours.get(self.ours)?.counts.median, theirs.get(self.theirs)?.median);
        Some(Medians { ours, theirs, ratio: theirs as f64 / ours as f64 })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::baseline::Stored;
    use crate::image::workspace;

    #[test]
    fn each_pair_names_a_row_of_the_bench() {
        let baseline = crate::bench::stored().expect("a baseline");
        for pair in PAIRS {
            assert!(baseline.contains_key(pair.ours), "{} is no row of the bench", pair.ours);
        }
    }

    /// The rows in the module's tables, of lines as `{ "area::operation", probe },`.
    fn rows_of_module() -> Vec<String> {
        let folder = std::fs::read_dir(workspace().join("tests/peer/linux")).expect("in the tree");
        let texts =
            folder.map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("text"));
        let name = |line: &str| Some(line.trim().strip_prefix("{ \"")?.split_once('"')?.0.to_owned());
        texts.flat_map(|text| text.lines().filter_map(name).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_module_and_the_pairs_name_the_same_rows_once() {
        let rows = rows_of_module();
        let named: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
        let paired: BTreeSet<&str> = PAIRS.iter().map(|pair| pair.theirs).collect();
        assert_eq!(named, paired);
        assert_eq!((rows.len(), PAIRS.len()), (named.len(), paired.len()), "a row is named twice");
    }

    #[test]
    fn a_ratio_takes_both_counts() {
        let counts = |median| Counts { min: median, median, max: median };
        let it = pair("theirs", "ours", "");
        let ours = Stored { processors: 1, counts: counts(4), bound: None };
        let ours = Baseline::from([("ours".to_owned(), ours)]);
        let theirs = BTreeMap::from([("theirs".to_owned(), counts(10))]);
        assert_eq!(it.medians(&ours, &theirs), Some(Medians { ours: 4, theirs: 10, ratio: 2.5 }));
        assert_eq!(it.medians(&ours, &BTreeMap::new()), None);
    }
}
