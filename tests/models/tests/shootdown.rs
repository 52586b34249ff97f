//! `shootdown`: once a flush has returned, no processor reaches the page by the translation that ended.
//!
//! A page is a loom cell. A processor reaches it by what it has cached, or else by the entry, which it then caches: so it may use an
//! ended translation for as long as nobody makes it forget. The one that ended it writes the page as its new owner would,
//! and loom reports every access that the write is not ordered behind. Interrupts are polled between a processor's accesses, as in
//! the model of `ipi`, whose call carries the flush. A processor that halts does so in the order of the idle loop: sleeps, is
//! interrupted or not, and wakes before it takes the interrupt.
//! Bound: two processors, at most three preemptions (two where both flush); three with one preemption, where two are told.
#![cfg(loom)]

use core::cell::Cell;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::thread;
use models::machine::Machine;
use models::{explore, on_processor};
use sync::irql::{Irql, Passive};
use sync::shootdown::{self, Contexts, Extent, Owner, Space};

const SOME: Extent<'static> = Extent::Runs(&[]);

/// One page and the entry that maps it: 1 where it does.
struct Page {
    entry: AtomicU64,
    content: UnsafeCell<u32>,
}

// SAFETY: the content is reached by translations, and by the owner after the flush: what the model checks.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn mapped() -> Self {
        Self { entry: AtomicU64::new(1), content: UnsafeCell::new(0) }
    }

    /// The entry becomes empty, as `mm::tables` does it.
    fn unmap(&self) {
        self.entry.swap(0, Ordering::AcqRel);
    }

    /// The next owner writes.
    fn reuse(&self) {
        // SAFETY: no processor reaches it any more; loom checks it.
        self.content.with_mut(|content| unsafe { *content += 1 });
    }
}

loom::thread_local! {
    /// This processor's translations, one for each page.
    static CACHED: [Cell<bool>; 2] = [Cell::new(false), Cell::new(false)]
}

struct Hardware {
    machine: Machine,
    pages: [Page; 2],
}

fn forget() {
    CACHED.with(|cached| cached.iter().for_each(|page| page.set(false)));
}

impl Hardware {
    fn new(processors: usize) -> Arc<Self> {
        Arc::new(Self { machine: Machine::new(processors, forget), pages: [Page::mapped(), Page::mapped()] })
    }

    /// One access, if the page is mapped as far as this processor knows.
    fn reach(&self, page: usize) {
        let reaches = CACHED.with(|cached| {
            if !cached[page].get() {
                cached[page].set(self.pages[page].entry.load(Ordering::Acquire) == 1);
            }
            cached[page].get()
        });
        if reaches {
            // SAFETY: a translation leads here; loom checks that no new owner has it.
            self.pages[page].content.with(|content| unsafe { content.read() });
        }
    }
}

/// Ends the page's translation everywhere, then uses it as another's.
fn end_and_reuse(hardware: &Hardware, page: usize, owner: Owner<'_>, at: &mut Irql<Passive>) {
    hardware.pages[page].unmap();
    shootdown::flush(&hardware.machine, owner, SOME, at);
    hardware.pages[page].reuse();
}

/// Runs `life(n)` as processor n; each takes interrupts until all have finished theirs.
fn run(processors: u32, life: impl Fn(&Hardware, u32, &mut Irql<Passive>) + Clone + Send + 'static) {
    let hardware = Hardware::new(processors as usize);
    let finished = Arc::new(AtomicU32::new(0));
    let whole = move |hardware: &Hardware, finished: &AtomicU32, me: u32| {
        on_processor::<Passive, _>(me, |at| {
            hardware.machine.wake(me);
            life(hardware, me, at);
            finished.fetch_add(1, Ordering::Relaxed);
            hardware.machine.take_interrupts(at, || finished.load(Ordering::Relaxed) == processors);
        });
    };
    let threads: Vec<_> = (1..processors)
        .map(|me| {
            let (hardware, finished, whole) = (hardware.clone(), finished.clone(), whole.clone());
            thread::spawn(move || whole(&hardware, &finished, me))
        })
        .collect();
    whole(&hardware, &finished, 0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn an_awake_processor_is_told_before_the_page_is_reused() {
    explore(Some(3), || {
        run(2, |hardware, me, at| {
            if me == 0 {
                end_and_reuse(hardware, 0, Owner::Kernel, at);
            } else {
                hardware.reach(0);
                hardware.machine.take_one(at);
                hardware.reach(0);
            }
        });
    });
}

#[test]
fn one_that_sleeps_and_wakes_meanwhile_is_told_or_flushes_by_itself() {
    explore(Some(3), || {
        run(2, |hardware, me, at| {
            if me == 0 {
                end_and_reuse(hardware, 0, Owner::Kernel, at);
            } else {
                hardware.reach(0);
                hardware.machine.sleep(1);
                hardware.machine.wake(1);
                hardware.reach(0);
                hardware.machine.take_one(at);
                hardware.reach(0);
            }
        });
    });
}

/// Two flushes while it may sleep: what the first left to it is not lost by the second, nor by a second sleep.
#[test]
fn what_is_owed_is_not_lost_between_two_sleeps() {
    explore(Some(2), || {
        run(2, |hardware, me, at| {
            if me == 0 {
                end_and_reuse(hardware, 0, Owner::Kernel, at);
                end_and_reuse(hardware, 1, Owner::Kernel, at);
            } else {
                hardware.reach(0);
                hardware.reach(1);
                hardware.machine.sleep(1);
                hardware.machine.wake(1);
                hardware.reach(1);
                hardware.machine.sleep(1);
                hardware.machine.wake(1);
                hardware.reach(0);
                hardware.reach(1);
            }
        });
    });
}

/// Nobody interrupts it, so it does not poll: a processor that halts for good holds nobody up.
#[test]
fn one_that_sleeps_on_is_not_waited_for() {
    explore(None, || {
        let hardware = Hardware::new(2);
        // Processor 1 is in its first sleep, from which nothing wakes it.
        on_processor::<Passive, _>(0, |at| {
            hardware.machine.wake(0);
            end_and_reuse(&hardware, 0, Owner::Kernel, at);
        });
        assert_eq!(hardware.machine.sent(1), 0, "an idle processor was interrupted");
        assert!(shootdown::Machine::sleep(&hardware.machine, 1).end(), "it owes the flush");
    });
}

#[test]
fn two_that_flush_each_other_both_return() {
    explore(Some(2), || {
        run(2, |hardware, me, at| {
            let (mine, other) = (me as usize, 1 - me as usize);
            hardware.reach(other);
            end_and_reuse(hardware, mine, Owner::Kernel, at);
            hardware.reach(other);
        });
    });
}

#[test]
fn two_are_told_by_one() {
    explore(Some(1), || {
        let hardware = Hardware::new(3);
        (0..3).for_each(|number| hardware.machine.wake(number));
        let threads: Vec<_> = (1..3)
            .map(|me| {
                let hardware = hardware.clone();
                thread::spawn(move || {
                    on_processor::<Passive, _>(me, |at| {
                        hardware.reach(0);
                        while !hardware.machine.take_one(at) {
                            arch::cpu::spin_hint();
                        }
                        hardware.reach(0);
                    });
                })
            })
            .collect();
        on_processor::<Passive, _>(0, |at| end_and_reuse(&hardware, 0, Owner::Kernel, at));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Processor 0 ends a translation of a space; `life` is what 1 does with it.
fn run_with_a_space(life: fn(&Hardware, &Space, &mut Irql<Passive>)) {
    let space = Arc::new(Space::new(1));
    run(2, move |hardware, me, at| {
        if me == 0 {
            end_and_reuse(hardware, 0, Owner::Space(&space), at);
        } else {
            life(hardware, &space, at);
        }
    });
}

/// A processor that loads the space meanwhile is told, or finds the entry empty; one that left it is left alone.
#[test]
fn a_space_is_flushed_where_it_is_loaded() {
    explore(Some(3), || {
        run_with_a_space(|hardware, space, _| {
            space.enter(1);
            hardware.reach(0);
            // Other tables: what was cached of these goes, as without PCIDs.
            forget();
            space.leave(1);
            space.enter(1);
            hardware.reach(0);
        });
    });
}

/// With PCIDs the translations stay when the space is left; its generation says at the return that one ended.
#[test]
fn a_kept_context_is_flushed_when_its_space_changed() {
    explore(Some(3), || {
        run_with_a_space(|hardware, space, at| {
            let contexts = Contexts::<1>::new();
            for _ in 0..2 {
                contexts.load(space, 1, at, |choice| {
                    if !choice.keep {
                        forget();
                    }
                });
                hardware.reach(0);
                space.leave(1);
            }
        });
    });
}
