//! `ipi`: each call runs once on each target, processors that target each other both get on, and nothing of a call is touched
//! after it returned.
//!
//! A processor is a thread, its IPI vector a counter that it polls where the machine would have been interrupted; what the
//! polling cannot show, an interrupt in the middle of the sender's own steps, is masked by the protocol itself (it runs at
//! IPI). The argument of a call is a loom cell that the targets write and the sender then reads, so that a target that is
//! still at it, or a packet overwritten under one, is reported. A processor that waits for ever has too many branches.
//! Bound: two processors with one or two calls, any number of idle looks; three with one call each, eight idle looks (two where
//! all three call); at most three preemptions, two where all three call.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::machine::Machine;
use models::{explore, explore_looks, on_processor};
use sync::ipi;
use sync::irql::{Ipi, Irql, Passive};

/// The argument of a call: a place for each processor, written by it without any ordering of its own.
struct Marks(Vec<UnsafeCell<u32>>);

// SAFETY: a processor writes its own place during the call, the sender reads after it: what the model checks.
unsafe impl Sync for Marks {}

impl Marks {
    fn new(processors: usize) -> Self {
        Self((0..processors).map(|_| UnsafeCell::new(0)).collect())
    }

    fn mark(&self) {
        // SAFETY: this processor's own place; loom checks it.
        self.0[arch::cpu::number() as usize].with_mut(|mark| unsafe { *mark += 1 });
    }

    fn of(&self, number: usize) -> u32 {
        // SAFETY: the call is over; loom checks it.
        self.0[number].with(|mark| unsafe { *mark })
    }
}

/// Calls `targets` and checks that each ran it once, and no one else. `asked` counts the calls that a processor has run.
fn call_once(machine: &Machine, targets: u64, asked: &[AtomicU32], at: &mut Irql<Passive>) {
    let marks = Marks::new(asked.len());
    ipi::call(
        machine,
        targets,
        &|_: &mut Irql<Ipi>| {
            marks.mark();
            asked[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
        },
        at,
    );
    for number in 0..asked.len() {
        assert_eq!(marks.of(number), u32::from(targets & 1 << number != 0), "on processor {number}");
    }
}

fn counters(processors: usize) -> Arc<Vec<AtomicU32>> {
    Arc::new((0..processors).map(|_| AtomicU32::new(0)).collect())
}

/// `targets[n]` lists the calls that processor n makes, after which it takes interrupts until it has run all meant for it.
fn processors(targets: &'static [&'static [u64]]) {
    let machine = Arc::new(Machine::new(targets.len(), || ()));
    let asked = counters(targets.len());
    let life = move |machine: &Machine, asked: &[AtomicU32], me: usize| {
        let meant = targets.iter().flat_map(|calls| *calls).filter(|&&call| call & 1 << me != 0).count();
        on_processor::<Passive, _>(me as u32, |at| {
            targets[me].iter().for_each(|&call| call_once(machine, call, asked, at));
            machine.take_interrupts(at, || asked[me].load(Ordering::Relaxed) as usize == meant);
        });
    };
    let threads: Vec<_> = (1..targets.len())
        .map(|me| {
            let (machine, asked) = (machine.clone(), asked.clone());
            thread::spawn(move || life(&machine, &asked, me))
        })
        .collect();
    life(&machine, &asked, 0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!machine.is_requested(), "a request left over");
}

#[test]
fn a_call_runs_once_on_each_target_and_on_the_sender() {
    explore(Some(3), || processors(&[&[0b11], &[]]));
}

#[test]
fn the_second_call_does_not_disturb_the_first() {
    explore(Some(3), || processors(&[&[0b10, 0b10], &[]]));
}

#[test]
fn processors_that_target_each_other_both_return() {
    explore(Some(3), || processors(&[&[0b10], &[0b01]]));
}

#[test]
fn two_senders_share_one_target() {
    explore_looks(Some(3), 8, || processors(&[&[], &[0b001], &[0b001]]));
}

#[test]
fn one_sender_waits_for_two_targets() {
    explore_looks(Some(3), 8, || processors(&[&[0b110], &[], &[]]));
}

#[test]
fn three_processors_that_target_all_others_return() {
    explore_looks(Some(2), 2, || processors(&[&[0b110], &[0b101], &[0b011]]));
}
