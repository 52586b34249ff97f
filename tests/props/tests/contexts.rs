//! A flush that arrives while a processor changes its address space, at every point of the change: with PCIDs, what ended under the
//! one that is loaded is not kept.
//!
//! The processor has what the SDM says: translations by PCID, and a flush that forgets those of the PCID in use. The interrupt is
//! that of a flush by another processor, which has begun right before it and returns when this one has served it. Nothing may
//! reach the page behind that.
//! Bound: one flush in each run. A flush that began before the change, and has not arrived: tests/models/tests/shootdown.rs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::inject::{Outcome, every_point, point};
use sync::ipi::{self, Mailbox, Processors};
use sync::irql::{Fixed, Ipi, Irql, Level, Passive};
use sync::shootdown::{Contexts, Extent, Machine, Owner, Sleep, Space, flush};

/// Runs `f` with a token for the level that this processor is at.
fn at<L: Level, R>(f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
    // SAFETY: each thread here is a processor of its own, at that level, and one use of this function does not contain another
    //         but in an interrupt's handler, whose token is unused when the interrupted code goes on.
    unsafe { Irql::with(f) }
}

/// What the two processors share.
#[derive(Default)]
struct Shared {
    mailboxes: [Mailbox; 2],
    sleeps: [Sleep; 2],
    told: AtomicU32,
    mapped: AtomicBool,
}

/// What the first processor has cached: PCIDs whose translation of the page it keeps, and the PCID in use.
#[derive(Default)]
struct Cache {
    kept: RefCell<BTreeSet<u16>>,
    loaded: Cell<u16>,
}

thread_local! {
    static CACHE: Cache = Cache::default();
}

// SAFETY: a mailbox for each number; the threads keep theirs.
unsafe impl Processors for Shared {
    fn mailbox(&self, number: u32) -> &Mailbox {
        &self.mailboxes[number as usize]
    }

    fn interrupt(&self, targets: u64) {
        self.told.fetch_or(targets as u32, Ordering::Release);
    }
}

// SAFETY: as above; forgetting is of the PCID in use, as for INVLPG.
unsafe impl Machine for Shared {
    fn sleep(&self, number: u32) -> &Sleep {
        &self.sleeps[number as usize]
    }

    fn online(&self) -> u64 {
        0b11
    }

    fn forget(&self, _: &Extent<'_>) {
        CACHE.with(|cache| cache.kept.borrow_mut().remove(&cache.loaded.get()));
    }
}

struct Subject {
    shared: Shared,
    contexts: Contexts<2>,
    /// The one with the page, and the one that the processor comes from.
    spaces: [Space; 2],
}

impl Subject {
    /// The page was reached by the first space, which then was left for the second.
    fn new() -> Self {
        let subject =
            Self { shared: Shared::default(), contexts: Contexts::new(), spaces: [1, 2].map(Space::new) };
        subject.shared.mapped.store(true, Ordering::Relaxed);
        subject.shared.sleeps.iter().for_each(|sleep| _ = sleep.end());
        CACHE.with(|cache| cache.kept.borrow_mut().clear());
        at(|at| subject.change(None, 0, at));
        assert!(subject.reaches());
        at(|at| subject.change(Some(0), 1, at));
        subject
    }

    fn change(&self, from: Option<usize>, to: usize, at: &mut Irql<Passive>) {
        self.contexts.load(&self.spaces[to], 0, at, |choice| {
            point();
            CACHE.with(|cache| {
                if !choice.keep {
                    cache.kept.borrow_mut().remove(&choice.pcid);
                }
                cache.loaded.set(choice.pcid);
            });
            point();
        });
        if let Some(from) = from {
            self.spaces[from].leave(0);
        }
    }

    /// An access of the page in the space that is loaded, which is the first.
    fn reaches(&self) -> bool {
        CACHE.with(|cache| {
            let mapped = self.shared.mapped.load(Ordering::Acquire);
            if mapped {
                cache.kept.borrow_mut().insert(cache.loaded.get());
            }
            cache.kept.borrow().contains(&cache.loaded.get())
        })
    }

    /// Another processor ends the translation; its interrupt, if it sends one, is taken here.
    fn flushed_by_another(&self) {
        let (shared, space) = (&self.shared, &self.spaces[0]);
        std::thread::scope(|s| {
            let other = s.spawn(move || {
                let _second = arch::cpu::enter(1);
                shared.mapped.store(false, Ordering::Release);
                at::<Passive, _>(|at| flush(shared, Owner::Space(space), Extent::User, at));
            });
            while !other.is_finished() && shared.told.load(Ordering::Acquire) & 1 == 0 {
                std::thread::yield_now();
            }
            at::<Ipi, _>(|at| ipi::serve(shared, at));
        });
    }
}

#[test]
fn a_flush_at_any_point_of_a_change_of_space_leaves_nothing_stale() {
    let _first = arch::cpu::enter(0);
    let told = Cell::new(0);
    let points = every_point(
        Ipi::CR8,
        Subject::new,
        |subject| {
            at(|at| subject.change(Some(1), 0, at));
            point();
        },
        Subject::flushed_by_another,
        |subject, outcome| {
            let ran = matches!(outcome, Outcome::Delivered { .. });
            assert_ne!(outcome, Outcome::StillPending);
            assert_eq!(subject.reaches(), !ran, "reached by a translation that had ended: {outcome:?}");
            told.set(told.get() + u32::from(subject.shared.told.load(Ordering::Relaxed) & 1 != 0));
        },
    );
    // Both kinds: before the space was entered nobody is told, behind that this processor is.
    assert!(told.get() > 0 && told.get() < points, "{} of {points}", told.get());
}
