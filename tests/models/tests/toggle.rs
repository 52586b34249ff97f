//! `toggle`: no processor may write to a page while another may run it, though each has cached the right that it had.
//!
//! A processor reaches the page by the rights it has cached, or else by the entry's, which it then caches; all caches are known to the
//! model, which compares them at each access. Interrupts are polled, as in the model of `shootdown`.
//! Bound: two processors that want opposite rights, or the same, with at most three preemptions; with a third that has the page cached
//! one, and three idle looks.
#![cfg(loom)]

use std::cell::Cell;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::machine::Machine;
use models::{explore, explore_looks, on_processor};
use sync::irql::{Irql, Passive};
use sync::shootdown::{self, Extent, Owner};
use sync::toggle::{self, Rights};

const NONE: [Option<Rights>; 3] = [None; 3];

std::thread_local! {
    /// What each processor has cached. Not loom's, whose threads are all one of the host's: an observer's, that orders nothing.
    static CACHED: Cell<[Option<Rights>; 3]> = const { Cell::new(NONE) }
}

fn cached<R>(f: impl FnOnce(&mut [Option<Rights>; 3]) -> R) -> R {
    CACHED.with(|cell| {
        let mut all = cell.get();
        let result = f(&mut all);
        cell.set(all);
        result
    })
}

fn me() -> usize {
    arch::cpu::number() as usize
}

fn forget() {
    cached(|cached| cached[me()] = None);
}

/// 0: Write, 1: Run, 2: Neither.
struct Entry(AtomicU32);

const ALL: [Rights; 3] = [Rights::Write, Rights::Run, Rights::Neither];

fn number(rights: Rights) -> u32 {
    ALL.iter().position(|&other| other == rights).map_or(3, |number| number as u32)
}

impl toggle::Entry for Entry {
    fn rights(&self) -> Option<Rights> {
        ALL.get(self.0.load(Ordering::Acquire) as usize).copied()
    }

    fn exchange(&self, from: Rights, to: Rights) -> bool {
        self.0.compare_exchange(number(from), number(to), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

struct Hardware {
    machine: Machine,
    entry: Entry,
}

impl Hardware {
    /// One access. Says whether it was allowed; if not, it faults, and what was cached is forgotten.
    fn access(&self, wanted: Rights) -> bool {
        let known = cached(|cached| cached[me()]).or_else(|| toggle::Entry::rights(&self.entry));
        let allowed = known == Some(wanted);
        cached(|cached| {
            cached[me()] = known.filter(|_| allowed);
            let either = [Rights::Write, Rights::Run].map(|right| cached.contains(&Some(right)));
            assert_ne!(either, [true, true], "one processor may write what another may run");
        });
        allowed
    }

    /// Accesses as code does: what faults is resolved, and tried again once.
    fn want(&self, wanted: Rights, at: &mut Irql<Passive>) {
        if self.access(wanted) {
            return;
        }
        let wait = |at: &mut Irql<Passive>| {
            if !self.machine.take_one(at) {
                arch::cpu::spin_hint();
            }
        };
        let all = Extent::Everything;
        let flush = |at: &mut _| shootdown::flush(&self.machine, Owner::Kernel, all, at);
        assert!(toggle::change(&self.entry, wanted, wait, flush, at));
        self.access(wanted);
    }
}

/// Each processor has the page cached as it is at first, to be written; then each runs its life, and takes interrupts to the end.
fn run(lives: &'static [fn(&Hardware, &mut Irql<Passive>)]) {
    let count = lives.len() as u32;
    let entry = Entry(AtomicU32::new(number(Rights::Write)));
    let hardware = Arc::new(Hardware { machine: Machine::new(lives.len(), forget), entry });
    (0..count).for_each(|me| on_processor::<Passive, _>(me, |_| hardware.machine.wake(me)));
    cached(|cached| *cached = core::array::from_fn(|number| (number < lives.len()).then_some(Rights::Write)));
    let finished = Arc::new(AtomicU32::new(0));
    let whole = move |hardware: &Hardware, finished: &AtomicU32, me: u32| {
        on_processor::<Passive, _>(me, |at| {
            lives[me as usize](hardware, at);
            finished.fetch_add(1, Ordering::Relaxed);
            hardware.machine.take_interrupts(at, || finished.load(Ordering::Relaxed) == count);
        });
    };
    let threads: Vec<_> = (1..count)
        .map(|me| {
            let (hardware, finished) = (hardware.clone(), finished.clone());
            thread::spawn(move || whole(&hardware, &finished, me))
        })
        .collect();
    whole(&hardware, &finished, 0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn runs(hardware: &Hardware, at: &mut Irql<Passive>) {
    hardware.want(Rights::Run, at);
}

fn writes(hardware: &Hardware, at: &mut Irql<Passive>) {
    hardware.want(Rights::Write, at);
}

#[test]
fn one_runs_while_another_goes_on_writing() {
    explore(Some(3), || run(&[runs, writes]));
}

#[test]
fn two_that_run_it_change_it_once() {
    explore(Some(3), || run(&[runs, runs]));
}

#[test]
fn rights_that_go_back_and_forth() {
    explore(Some(2), || {
        run(&[
            |hardware, at| {
                runs(hardware, at);
                writes(hardware, at);
            },
            runs,
        ]);
    });
}

/// It has the page cached to be written until the flush: whoever finds the other right before that could run it.
#[test]
fn two_that_run_it_beside_one_that_has_it_cached() {
    explore_looks(Some(1), 3, || run(&[runs, runs, |_, _| ()]));
}

/// The flush of one change must not serve another that began behind it.
#[test]
fn a_third_that_has_it_cached_has_forgotten() {
    explore_looks(Some(1), 3, || {
        run(&[runs, writes, |hardware, _| {
            hardware.access(Rights::Write);
        }]);
    });
}
