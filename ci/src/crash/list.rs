//! Every deliberate end that the self-test image knows, and what must be told of it.

use super::Parameter::{Any, At, In, Is, Paged, Told};
use super::{Crash, Headline, Parameter, Wanted};

/// A stop code and its name.
type Code = (u64, &'static str);

const APC_INDEX: Code = (0x01, "APC_INDEX_MISMATCH");
const NOT_GREATER: Code = (0x09, "IRQL_NOT_GREATER_OR_EQUAL");
const NOT_LESS: Code = (0x0A, "IRQL_NOT_LESS_OR_EQUAL");
const TOO_MANY_OBJECTS: Code = (0x0C, "MAXIMUM_WAIT_OBJECTS_EXCEEDED");
const OWNED: Code = (0x0F, "SPIN_LOCK_ALREADY_OWNED");
const NOT_OWNED: Code = (0x10, "SPIN_LOCK_NOT_OWNED");
const IN_PAGE: Code = (0x7A, "KERNEL_DATA_INPAGE_ERROR");
const NO_LOCATION: Code = (0x35, "NO_MORE_IRP_STACK_LOCATIONS");
const COMPLETED_TWICE: Code = (0x44, "MULTIPLE_IRP_COMPLETE_REQUESTS");
const IO_MANAGER: Code = (0xC9, "DRIVER_VERIFIER_IOMANAGER_VIOLATION");
const POOL_HEADER: Code = (0x19, "BAD_POOL_HEADER");
const MEMORY: Code = (0x1A, "MEMORY_MANAGEMENT");
const EXCEPTION: Code = (0x1E, "KMODE_EXCEPTION_NOT_HANDLED");
const APC_PENDING: Code = (0x20, "KERNEL_APC_PENDING_DURING_EXIT");
const PFN: Code = (0x4E, "PFN_LIST_CORRUPT");
const FAULT: Code = (0x50, "PAGE_FAULT_IN_NONPAGED_AREA");
const TRAP: Code = (0x7F, "UNEXPECTED_KERNEL_MODE_TRAP");
const NMI: Code = (0x80, "NMI_HARDWARE_FAILURE");
const WRITE: Code = (0xBE, "ATTEMPTED_WRITE_TO_READONLY_MEMORY");
const POOL_CALLER: Code = (0xC2, "BAD_POOL_CALLER");
const MUTEX_OWNED: Code = (0xBF, "MUTEX_ALREADY_OWNED");
const VERIFIER: Code = (0xC4, "DRIVER_VERIFIER_DETECTED_VIOLATION");
const LEVEL: Code = (0xC8, "IRQL_UNEXPECTED_VALUE");
const DRIVER_NOT_LESS: Code = (0xD1, "DRIVER_IRQL_NOT_LESS_OR_EQUAL");
const MANUAL: Code = (0xE2, "MANUALLY_INITIATED_CRASH");
const STORM: Code = (0xF2, "HARDWARE_INTERRUPT_STORM");
const EXECUTE: Code = (0xFC, "ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY");
const SWITCH: Code = (0xB8, "ATTEMPTED_SWITCH_FROM_DPC");
const WATCHDOG: Code = (0x133, "DPC_WATCHDOG_VIOLATION");

/// Where the self-tests' user pages are.
const USER: u64 = 0x10_0000_0000;

/// The pool tags of the deliberate misuse.
const MINE: u64 = u32::from_le_bytes(*b"Mine") as u64;
const OTHER: u64 = u32::from_le_bytes(*b"Othr") as u64;

/// Every deliberate end that the self-test image knows: its name, processors, stop code and parameters.
pub(super) const CRASHES: &[Crash] = &[
    crash("manual", 4, MANUAL, [Is(1), Is(2), Is(3), Is(4)]),
    // Each of two threads has what the other waits for; the bugcheck comes when that was told.
    told_of_a_wait("mutants_in_a_circle", "again: deadlock, 2 threads"),
    // The same, where one gives up after a minute.
    told_of_a_wait("circle_with_a_timeout", "again: a circle that may end, 2 threads"),
    // By a guarded mutex, a resource, and a thread's end.
    told_of_a_wait("locks_in_a_chain", "again: deadlock, 3 threads"),
    // One that sleeps has what another waits for.
    told_of_a_wait("held_for_long", "\"sleeper\", which waits for time"),
    // Objects, wait blocks, the most.
    crash("wait_for_65_objects", 1, TOO_MANY_OBJECTS, [Is(65), Is(65), Is(64), Is(0)]),
    crash("wait_for_4_objects_without_blocks", 1, TOO_MANY_OBJECTS, [Is(4), Is(3), Is(64), Is(0)]),
    // The thread; the processor that switches to it; the one that is on its stack, its affinity, the place that it is in.
    crash("runs_twice", 4, VERIFIER, [Is(0x2001), Any, Any, Any]),
    crash("outside_its_affinity", 2, VERIFIER, [Is(0x2002), Any, Is(0), Is(0b10)]),
    crash("in_two_places", 2, VERIFIER, [Is(0x2003), Any, Is(0), Is(0x101)]),
    crash("runs_while_it_waits", 2, VERIFIER, [Is(0x2004), Any, Is(0), Any]),
    // The thread that waits, the object, the thread that let go of it signalled.
    crash("signalled_behind_its_lock", 2, VERIFIER, [Is(0x2007), Any, Any, Any]),
    // The same of a queue: an entry, and room for one more of its threads.
    crash("queue_entry_behind_its_lock", 2, VERIFIER, [Is(0x2007), Any, Any, Any]),
    // The thread that waits for all, the first object, the thread that let go of one of them signalled.
    crash("all_signalled_by_hand", 2, VERIFIER, [Is(0x2009), Any, Any, Any]).with(&["wait_limit=300"]),
    crash("queue_wakeup_dropped", 2, VERIFIER, [Is(0x2008), Any, Is(0), Any]).with(&["wait_limit=300"]),
    // The thread that waited, how its wait ended, the thread that ended it.
    crash("wakeup_dropped", 2, VERIFIER, [Is(0x2008), Any, Is(0), Any]).with(&["wait_limit=300"]),
    // The page below the stack takes the first fault, and its frame cannot be pushed: a double fault.
    crash("stack_overflow", 2, TRAP, [Is(8), Any, Any, In("overflow")]).saying("(main) ran over"),
    crash("thread_stack_overflow", 2, TRAP, [Is(8), Any, Any, In("overflow")]).saying("(deep) ran over"),
    // A Rust panic counts as an exception that nothing handles, with a status of its own.
    crash("panic", 2, EXCEPTION, [Is(0xE000_0001), Any, Any, Is(0)]),
    crash("recursion", 2, MANUAL, [Is(5), Is(0), Is(0), Is(0)]).failing_again(),
    // Whichever processor is first reports, and names itself in the second parameter.
    crash("two_at_once", 4, MANUAL, [Is(6), Any, Is(0), Is(0)]),
    crash("unannounced_nmi", 2, NMI, [Any; 4]),
    // Found DISPATCH where PASSIVE is the least and the most.
    crash("forgotten_raise", 1, LEVEL, [Is(2), Is(0), At("at.check()"), Is(0)]),
    // Error code 3: a write, and the page is there.
    crash("write_text", 1, WRITE, [Any, Is(3), Any, Is(0)]),
    // Device not available, by a thread without extended state.
    crash("extended_without_state", 2, TRAP, [Is(7), Is(0), In("run"), Any]),
    // A read of address 16 at DISPATCH, which is 2.
    crash("fault_at_dispatch", 1, NOT_LESS, [Is(16), Is(2), Is(0), Any]),
    // The same by code outside of the image; the instruction is the first of a page.
    crash("fault_in_a_driver", 1, DRIVER_NOT_LESS, [Is(16), Is(2), Is(0), Any]),
    // The user's memory, at USER, reached by the kernel itself.
    crash("user_smap", 1, FAULT, [Is(USER), Is(0), In("touch_the_user"), Is(0)]).saying("SMAP"),
    crash("user_smap_at_dispatch", 1, NOT_LESS, [Is(USER), Is(2), Is(1), In("touch_the_user")])
        .saying("SMAP"),
    // There, and a fetch.
    crash("user_smep", 1, EXECUTE, [Is(USER), Is(0x11), Is(USER), Is(0)]).saying("SMEP"),
    crash("user_reserved_bit", 1, MEMORY, [Is(0x411), Is(USER), Any, In("touch_the_user")])
        .saying("a reserved bit"),
    // A write with interrupts off: the level is told as 0xFF.
    crash("user_copy_uninterruptible", 1, NOT_LESS, [Is(USER), Is(0xFF), Is(1), In("kirql_user_copy")]),
    // One DPC, longer than its limit; the others of the machine are idle and take no tick.
    crash("slow_dpc", 2, WATCHDOG, [Is(0), Any, Is(200), In("never_ends")]).with(&["dpc_timeout=200"]),
    // No DPC is slow, but the processor never comes below DISPATCH again.
    crash("endless_dpcs", 1, WATCHDOG, [Is(1), Any, Is(500), In("queues_itself")])
        .with(&["dpc_timeout=200", "dpc_watchdog=500"]),
    // Each stay ends, but a thread that gets to run between them begins the next one.
    crash("endless_stays", 1, WATCHDOG, [Is(1), Any, Is(400), In("takes_its_time")])
        .with(&["dpc_watchdog=400"]),
    // A thread that never comes down from DISPATCH, on a processor that nobody else has work for: the clock's owner, another
    // one, has it looked at.
    crash("stuck_raised", 2, WATCHDOG, [Is(1), Any, Is(400), In("stays_raised")]).with(&["dpc_watchdog=400"]),
    // The same where the clock's owner is the culprit.
    crash("stuck_raised_alone", 1, WATCHDOG, [Is(1), Any, Is(400), In("stays_raised")])
        .with(&["dpc_watchdog=400"]),
    // A DPC far over its limit, then a stay: under a debugger neither counts, and the end is the test's own.
    crash("debugged_dpc", 1, MANUAL, [Is(8), Is(1), Is(0), Is(0)]).with(&[
        "dpc_timeout=50",
        "dpc_watchdog=50",
        "debug",
    ]),
    // A thread that stays at HIGH, where no clock comes: found when it lowers.
    crash("long_raise", 1, WATCHDOG, [Is(1), Any, Is(100), At("at.raise::<High>()")])
        .with(&["dpc_watchdog=100"]),
    // A wait that is longer than a stay may be is none: the end is the test's own.
    crash("long_wait", 1, MANUAL, [Is(9), Is(0), Is(0), Is(0)]).with(&["dpc_watchdog=500"]),
    // Found HIGH where DISPATCH is expected.
    crash("dpc_left_raised", 1, LEVEL, [Is(15), Is(2), In("forgets_a_raise"), Is(1)]),
    // Found HIGH where PASSIVE is expected, of a work item.
    crash("work_item_left_raised", 1, LEVEL, [Is(15), Is(0), In("work_forgets_a_raise"), Is(6)]),
    crash("callback_left_raised", 1, LEVEL, [Is(15), Is(0), In("callback_forgets_a_raise"), Is(8)]),
    // At CLOCK, where DISPATCH is the most.
    crash("object_released_above_dispatch", 1, NOT_LESS, [Is(13), Is(2), Is(0), Is(0)]),
    crash("thread_left_raised", 1, LEVEL, [Is(15), Is(0), In("thread_forgets_a_raise"), Is(4)]),
    crash("threaded_dpc_left_raised", 1, LEVEL, [Is(15), Is(0), In("threaded_forgets_a_raise"), Is(2)]),
    // It would wait for itself.
    crash("flush_in_a_threaded_dpc", 1, SWITCH, [Is(0), Is(0), Is(0), Is(4)]),
    // At the right level, but with interrupts off: a DPC (1) of the routine named by the third parameter.
    crash("dpc_left_uninterruptible", 1, LEVEL, [Is(2), Is(2), In("clears_the_interrupt_flag"), Is(1)]),
    // Packets: the packet's address; of what the checked build finds, the rule, the routine, the packet, the status.
    crash("irp_completed_twice", 1, COMPLETED_TWICE, [Any, Is(0), Is(0), Is(0)]),
    crash("irp_completed_above_dispatch", 1, NOT_LESS, [Is(13), Is(2), Is(0), Any]),
    crash("irp_no_location", 1, NO_LOCATION, [Any, Is(0), Is(0), Is(0)]),
    crash("irp_pending_unmarked", 1, IO_MANAGER, [Is(0x1001), In("says_pending"), Any, Is(0x103)]),
    crash("irp_marked_not_pending", 1, IO_MANAGER, [Is(0x1002), In("marks_and_succeeds"), Any, Is(0)]),
    crash("irp_dropped", 1, IO_MANAGER, [Is(0x1005), Is(0), Any, Is(0)]),
    crash("irp_ended_as_pending", 1, IO_MANAGER, [Is(0x1003), Is(0), Any, Is(0)]),
    // The pool's: the log tells of the block, the tags are "Mine" and "Othr".
    crash("pool_double_free", 2, POOL_CALLER, [Is(7), Is(MINE), Any, Told("block", 0)])
        .saying("freed before at tests/selftest/src/crash.rs"),
    crash("pool_wrong_tag", 2, POOL_CALLER, [Is(0xA), Told("block", 0), Is(MINE), Is(OTHER)]),
    // At CLOCK, 100 bytes.
    crash("pool_above_dispatch", 1, POOL_CALLER, [Is(8), Is(13), Is(0), Is(100)]),
    crash("pool_overrun", 2, POOL_HEADER, [Is(0x21), Told("block", 0), Is(MINE), Told("block", 100)]),
    // The state word, as it is and as it was.
    crash(
        "pool_underrun",
        2,
        POOL_HEADER,
        [Is(0x20), Told("block", 0), Told("damaged", 0), Told("state", 0)],
    ),
    crash("pool_use_after_free", 2, POOL_HEADER, [Is(0x3), Told("block", 0), Is(MINE), Told("block", 50)]),
    // Its number; free (2), in a processor's cache (0xFE); no reference.
    crash("pool_page_freed_twice", 2, PFN, [Told("page", 0), Is(0xFE02), Is(0), Any]),
    // A write (1), at PASSIVE, of the guard page.
    crash("pool_special_overrun", 2, FAULT, [Told("block", 112), Is(1), In("misuse_pool"), Is(0)]),
    crash(
        "pool_special_small_overrun",
        2,
        POOL_HEADER,
        [Is(0x21), Told("block", 0), Is(MINE), Told("block", 100)],
    ),
    // A read (0), at DISPATCH (2).
    crash("pool_special_use_after_free", 2, NOT_LESS, [Told("block", 0), Is(2), Is(0), In("misuse_pool")]),
    crash("pool_special_double_free", 2, POOL_CALLER, [Is(7), Is(MINE), Is(0), Told("block", 0)]),
    // Paged pool's: the eighth byte of a page.
    // A write of a page that was never touched.
    crash("paged_at_dispatch", 2, NOT_LESS, [Paged(8), Is(2), Is(1), In("misuse_paged")]),
    // A read of a page that was there until the raise took it away.
    crash("paged_resident_at_dispatch", 3, NOT_LESS, [Paged(8), Is(2), Is(0), In("misuse_paged")])
        .with(&["trim"]),
    crash("paged_uninterruptible", 2, NOT_LESS, [Paged(8), Is(0xFF), Is(0), In("misuse_paged")]),
    crash("paged_use_after_free", 2, FAULT, [Paged(8), Is(0), In("misuse_paged"), Is(0)]),
    // What the store says.
    crash("paged_unreadable", 2, IN_PAGE, [Any, Is(0xC000_0001), Is(0), Paged(8)]),
    // A fetch; it is nobody's code.
    crash("paged_executed", 2, FAULT, [Paged(8), Is(8), Paged(8), Is(0)]),
    crash("paged_wrong_tag", 2, POOL_CALLER, [Is(0xA), Told("block", 0), Is(MINE), Is(OTHER)]),
    crash("paged_small_double_free", 2, POOL_CALLER, [Is(7), Is(MINE), Any, Told("block", 0)]),
    crash("paged_small_overrun", 2, POOL_HEADER, [Is(0x21), Told("block", 0), Is(MINE), Told("block", 100)]),
    // At DISPATCH, paged pool (1).
    crash("paged_dropped_at_dispatch", 2, POOL_CALLER, [Is(9), Is(2), Is(1), Any]),
    // A latched chain whose ISR claims in every pass: the first vector of level 5, and the passes.
    crash("endless_chain", 1, STORM, [Is(0x50), Is(100_000), Is(0), Is(0)]),
    // HIGH instead of CLOCK; the kernel's own handlers are told by the entry that their stub calls.
    crash(
        "handler_at_another_level",
        1,
        LEVEL,
        [Is(15), Is(13), In("handler_left_raised::{closure_env#0}>>>"), Is(3)],
    ),
    // DISPATCH instead of APC; the fourth is an APC (5).
    crash("apc_left_raised", 1, LEVEL, [Is(2), Is(1), In("apc_forgets_a_raise"), Is(5)]),
    // One critical region more than before.
    crash("apc_left_in_a_region", 1, APC_INDEX, [In("apc_forgets_a_region"), Is(0), Is(1), Is(5)]),
    // One guarded region.
    crash("apc_region_at_the_end_of_a_thread", 2, APC_PENDING, [Any, Is(0x1_0000), In("run_main"), Is(0)]),
    // HIGH instead of 5; the third is an ISR (3).
    crash("isr_at_another_level", 1, LEVEL, [Is(15), Is(5), In("forgets_in_its_isr"), Is(3)]),
    // Active, in use as a page, written to; two references and one share: the lock's is still there. What the owner's field held is old.
    crash("mdl_page_freed", 2, PFN, [Told("page", 0), Is(0x100_FF04), Is(0x1_0000_0002), Any]),
    crash("mdl_unlocked_twice", 2, MEMORY, [Is(0x409), Told("list", 0), Is(0), Told("buffer", 0)]),
    // Pages locked (0x02) for writing (0x80).
    crash("mdl_freed", 2, MEMORY, [Is(0x407), Told("list", 0), Is(0x82), Told("buffer", 0)]),
    // The checked build's, and the raw interface's. `At` is the line that is to blame.
    // The lock's word says processor 0, plus one.
    crash("spin_lock_taken_twice", 1, OWNED, [Any, Is(1), At("taken by its owner"), Is(0)]),
    crash("raw_lock_taken_twice", 1, OWNED, [Any, Is(1), At("taken again by its owner"), Is(0)]),
    crash("queued_lock_taken_twice", 1, OWNED, [Any, Is(1), At("queued by its owner"), Is(0)]),
    crash("guarded_mutex_taken_twice", 1, MUTEX_OWNED, [Any, Any, At("guarded by its holder"), Is(0)]),
    crash("writer_enters_as_a_reader", 1, OWNED, [Any, Is(1), At("shared by its writer"), Is(0)]),
    // Nobody's: no processor in its word.
    crash("raw_lock_released_by_nobody", 1, NOT_OWNED, [Any, Is(0), At("not held"), Is(0)]),
    // Processor 1's, while 0 releases it.
    crash("raw_lock_released_by_another", 2, NOT_OWNED, [Any, Is(2), At("held by another"), Is(0)]),
    // From 5 to 2.
    crash("raise_that_lowers", 1, NOT_GREATER, [Is(5), Is(2), At("raise that lowers"), Is(0)]),
    // The typed interface, where the level is known at run time only: from 7 to 5.
    crash("device_raise_that_lowers", 1, NOT_GREATER, [Is(7), Is(5), At("device raise that lowers"), Is(0)]),
    // From 0 to 2.
    crash("lower_that_raises", 1, NOT_LESS, [Is(0), Is(2), At("lower that raises"), Is(0)]),
    // NT's "deadlock detected", the lock, the acquire that would close the cycle, and the one that made the other order.
    crash(
        "locks_in_both_orders",
        1,
        VERIFIER,
        [Is(0x1001), Any, At("first under second"), At("second under first")],
    ),
    // The cycle is closed by the third lock; what is told of it is its first step.
    crash(
        "locks_in_a_circle",
        1,
        VERIFIER,
        [Is(0x1001), Any, At("first under third"), At("second of three under first")],
    ),
    // A token is used at another level: found PASSIVE where DISPATCH is the least and the most.
    crash("token_at_another_level", 1, LEVEL, [Is(0), Is(2), At("at another level"), Is(2)]),
    // Pages locked (0x02) and mapped (0x01).
    crash("mdl_pages_freed_mapped", 2, MEMORY, [Is(0x40D), Told("list", 0), Is(0x03), Is(0)]),
    crash("contiguous_freed_twice", 2, POOL_CALLER, [Is(0x60), Told("block", 0), Is(0), Is(0)]),
    // Its second page.
    crash("contiguous_freed_inside", 2, POOL_CALLER, [Is(0x60), Told("block", 4096), Is(0), Is(0)]),
    // There, and a write, of what is behind the instruction.
    crash("executable_writes_into_itself", 2, WRITE, [Told("block", 7), Is(3), Told("block", 0), Is(0)]),
    crash("executable_run_at_high", 2, EXECUTE, [Told("block", 0), Is(0x11), Told("block", 0), Is(0)]),
    crash("executable_wrong_tag", 2, POOL_CALLER, [Is(0xA), Told("block", 0), Is(MINE), Is(OTHER)]),
    crash("executable_freed_twice", 2, POOL_CALLER, [Is(7), Is(MINE), Is(0), Told("block", 0)]),
    // At DISPATCH, paged pool (1), 100 bytes.
    crash("nt_pool_paged_at_dispatch", 2, POOL_CALLER, [Is(8), Is(2), Is(1), Is(100)]),
    // STATUS_INSUFFICIENT_RESOURCES, which nobody handles.
    crash("nt_pool_raises", 2, EXCEPTION, [Is(0xFFFF_FFFF_C000_009A), Is(0), Is(0), Is(0)]),
    hang("hang", 2),
];

const fn crash(name: &'static str, cpus: u32, (code, stop): Code, parameters: [Parameter; 4]) -> Crash {
    Crash { name, cpus, words: &[], wanted: Wanted::Report(Headline { code, name: stop, parameters }) }
}

/// The image says when it was told `text` of a wait that takes too long, which 300 ms are.
const fn told_of_a_wait(name: &'static str, text: &'static str) -> Crash {
    crash(name, 2, MANUAL, [Is(7), Is(0), Is(0), Is(0)]).with(&["wait_limit=300"]).saying(text)
}

const fn hang(name: &'static str, cpus: u32) -> Crash {
    Crash { name, cpus, words: &[], wanted: Wanted::Hang }
}

impl Crash {
    /// With more words for the command line.
    const fn with(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }

    /// The log must say so, too.
    const fn saying(self, text: &'static str) -> Self {
        match self.wanted {
            Wanted::Report(headline) => Self { wanted: Wanted::Saying(headline, text), ..self },
            _ => panic!("said of a plain report"),
        }
    }

    /// The end of the report fails in turn.
    const fn failing_again(self) -> Self {
        match self.wanted {
            Wanted::Report(headline) => Self { wanted: Wanted::FailedAgain(headline), ..self },
            _ => panic!("said of a plain report"),
        }
    }
}
