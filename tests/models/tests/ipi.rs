//! `ipi`: each call runs once on each target, processors that target each other both get on, and nothing of a call is touched
//! after it returned.
//!
//! A processor is a thread, its IPI vector a flag that it polls where the machine would have been interrupted; what the
//! polling cannot show, an interrupt in the middle of the sender's own steps, is masked by the protocol itself (it runs at
//! IPI). The argument of a call is a loom cell that the targets write and the sender then reads, so that a target that is
//! still at it, or a packet overwritten under one, is reported. A processor that waits for ever has too many branches.
//! Bound: two processors with one or two calls, three with one; at most two preemptions with two
//! processors, one with three, none with three of which two send: there only waits and every value that a load may see are
//! explored, and the order of the two requests.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;
use models::{explore, on_processor};
use sync::ipi::{self, Mailbox, Processors};
use sync::irql::{Ipi, Irql, Passive};

struct Machine {
    mailboxes: Vec<Mailbox>,
    /// How often the vector was sent. Never stored to: loom does not order a store with a read-modify-write of another
    /// thread, and could lose an interrupt that a machine cannot.
    sent: Vec<AtomicU32>,
    /// With this, an idle processor halts until the vector is sent, and doesn't poll. Of three threads that all poll, loom's
    /// scheduler can leave one out for ever. Waking orders the interrupter's past for the woken, as polling doesn't.
    halt: Option<Vec<Notify>>,
}

// SAFETY: a mailbox for each number, in a vector that never changes; threads keep their number.
unsafe impl Processors for Machine {
    fn mailbox(&self, number: u32) -> &Mailbox {
        &self.mailboxes[number as usize]
    }

    fn interrupt(&self, targets: u64) {
        for (number, sent) in self.sent.iter().enumerate() {
            if targets & 1 << number != 0 {
                // Relaxed: an interrupt orders nothing, the mailbox has to.
                sent.fetch_add(1, Ordering::Relaxed);
                if let Some(halt) = &self.halt {
                    halt[number].notify();
                }
            }
        }
    }
}

impl Machine {
    fn new(processors: usize, halt: bool) -> Arc<Self> {
        Arc::new(Self {
            mailboxes: (0..processors).map(|_| Mailbox::new()).collect(),
            sent: (0..processors).map(|_| AtomicU32::new(0)).collect(),
            halt: halt.then(|| (0..processors).map(|_| Notify::new()).collect()),
        })
    }

    /// Takes interrupts until `done`.
    fn take_interrupts(&self, at: &mut Irql<Passive>, done: impl Fn() -> bool) {
        let number = arch::cpu::number() as usize;
        let mut taken = 0;
        while !done() {
            let sent = self.sent[number].load(Ordering::Relaxed);
            if sent != taken {
                taken = sent;
                ipi::serve(self, &mut at.raise::<Ipi>());
            } else if let Some(halt) = &self.halt {
                halt[number].wait();
            } else {
                arch::cpu::spin_hint();
            }
        }
    }
}

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
    processors_that_idle(targets, false);
}

fn processors_that_idle(targets: &'static [&'static [u64]], halt: bool) {
    let machine = Machine::new(targets.len(), halt);
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
    assert!(machine.mailboxes.iter().all(|mailbox| !mailbox.is_requested()), "a request left over");
}

#[test]
fn a_call_runs_once_on_each_target_and_on_the_sender() {
    explore(Some(2), || processors(&[&[0b11], &[]]));
}

#[test]
fn the_second_call_does_not_disturb_the_first() {
    explore(Some(2), || processors(&[&[0b10, 0b10], &[]]));
}

#[test]
fn processors_that_target_each_other_both_return() {
    explore(Some(2), || processors(&[&[0b10], &[0b01]]));
}

/// No preemption: with one, the three waits exceed loom's limit on branches, and the exploration would not be complete.
#[test]
fn two_senders_share_one_target() {
    explore(Some(0), || processors_that_idle(&[&[], &[0b001], &[0b001]], true));
}

#[test]
fn one_sender_waits_for_two_targets() {
    explore(Some(1), || processors(&[&[0b110], &[], &[]]));
}
