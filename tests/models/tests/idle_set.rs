//! `idle_set`: no thread stays queued while a processor that may run it halts, knowing of nothing.
//!
//! `watch`: nobody asks a processor that doesn't look.
//!
//! The steps of going idle (kernel/ke/idle.rs, sched/balance.rs) and of queueing (sched/ready.rs) are copied, around the set as shipped. A
//! queue's summary is an atomic that is read without a lock, as there; what is taken out of it is taken by an exchange, in place of the
//! queue's lock. An interrupt is a word, which orders what came
//! before it as `arch::apic::send` promises: the halt ends by it, and before the halt it may have come and gone, between the look and the test
//! with IF=0. At the end each halted processor that was not interrupted since must have nothing to do.
//! Bound: one idle processor and one or two threads queued elsewhere: complete. Two and two: at most three preemptions.
//! A standby thread given to a processor as it goes idle, or comes back; the same to one that watches before it halts, and a word about a
//! thread to one that watches as an interrupt has it run something: complete.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, on_processor};
use sync::SpinLock;
use sync::idle_set::IdleSet;
use sync::irql::{Dispatch, PrcbLock};
use sync::watch::Watch;

struct Machine {
    idle: IdleSet,
    /// Queues of others: one thread each, or none.
    queued: [AtomicU32; 2],
    /// Told, says who queued a thread.
    told: [AtomicU32; 2],
    /// The interrupts for that which have been sent and not taken.
    sent: [AtomicU32; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Runs,
    Halted,
}

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            idle: IdleSet::new(),
            queued: [AtomicU32::new(0), AtomicU32::new(0)],
            told: [AtomicU32::new(0), AtomicU32::new(0)],
            sent: [AtomicU32::new(0), AtomicU32::new(0)],
        })
    }

    fn tell(&self, number: u32) {
        // Exchanges: loom lets a store be undone (litmus.rs).
        self.told[number as usize].swap(1, Ordering::Relaxed);
        self.sent[number as usize].swap(1, Ordering::Release);
    }

    /// As it runs something: at once, and with the interrupt.
    fn pass_on(&self, me: u32) {
        if self.told[me as usize].load(Ordering::Relaxed) != 0 {
            self.told[me as usize].swap(0, Ordering::Relaxed);
            while let Some(other) = self.idle.claim(u64::MAX) {
                self.tell(other);
            }
        }
    }

    fn go_idle(&self, me: u32) -> End {
        loop {
            self.told[me as usize].swap(0, Ordering::Relaxed);
            self.idle.enter(me);
            for queue in &self.queued {
                if queue.load(Ordering::Relaxed) != 0 && queue.swap(0, Ordering::AcqRel) != 0 {
                    self.idle.leave(me);
                    self.pass_on(me);
                    return End::Runs;
                }
            }
            // With interrupts on: what was sent up to here has come, and finds nothing standby.
            self.sent[me as usize].swap(0, Ordering::Acquire);
            // With IF=0.
            if self.idle.get() >> me & 1 != 0 {
                return End::Halted;
            }
        }
    }

    fn queue(&self, which: usize) {
        self.queued[which].store(1, Ordering::Release);
        const ALLOWED: u64 = 0b11;
        if self.idle.after_queueing() & ALLOWED != 0
            && let Some(told) = self.idle.claim(ALLOWED)
        {
            self.tell(told);
        }
    }

    /// As many halted processors are being woken as threads are left.
    fn judge(&self, ends: &[End]) {
        // Those that run take the interrupts that were sent to them.
        for (me, _) in (0..).zip(ends).filter(|(_, end)| **end == End::Runs) {
            if self.sent[me as usize].load(Ordering::Relaxed) != 0 {
                self.pass_on(me);
            }
        }
        let left = self.queued.iter().filter(|queue| queue.load(Ordering::Relaxed) != 0).count();
        let told = ends.iter().zip(&self.sent);
        let told =
            told.filter(|(end, sent)| **end == End::Halted && sent.load(Ordering::Relaxed) != 0).count();
        let halted = ends.iter().filter(|end| **end == End::Halted).count();
        assert!(left.min(halted) <= told, "{left} queued, {halted} halted, {told} of them told");
    }
}

fn scenario(idle: u32, queuers: &'static [&'static [usize]]) {
    let machine = Machine::new();
    let mut queuers: Vec<_> = queuers
        .iter()
        .map(|&list| {
            let machine = machine.clone();
            thread::spawn(move || list.iter().for_each(|&which| machine.queue(which)))
        })
        .collect();
    let others: Vec<_> = (1..idle)
        .map(|me| {
            let machine = machine.clone();
            thread::spawn(move || machine.go_idle(me))
        })
        .collect();
    let mut ends = vec![machine.go_idle(0)];
    ends.extend(others.into_iter().map(|other| other.join().unwrap()));
    queuers.drain(..).for_each(|queuer| queuer.join().unwrap());
    machine.judge(&ends);
}

#[test]
fn a_thread_is_queued_as_a_processor_goes_idle() {
    explore(None, || scenario(1, &[&[0]]));
}

#[test]
fn two_are_queued_by_one_as_a_processor_goes_idle() {
    explore(None, || scenario(1, &[&[0, 1]]));
}

#[test]
fn two_are_queued_by_two_as_two_go_idle() {
    explore(Some(3), || scenario(2, &[&[0], &[1]]));
}

/// A processor's part that a standby thread is handed over by.
struct There {
    idle: IdleSet,
    standby: SpinLock<bool, PrcbLock>,
    shows_standby: AtomicU32,
    sent: AtomicU32,
}

impl There {
    /// Takes what is standby, under the lock.
    fn take(&self) -> bool {
        on_processor::<Dispatch, _>(0, |at| {
            let mut standby = self.standby.lock(at);
            if *standby {
                self.shows_standby.store(0, Ordering::Relaxed);
            }
            core::mem::take(&mut *standby)
        })
    }
}

/// The processor's last thread waits, and another processor gives it one: before, as it looks, as it halts, or after.
#[test]
fn a_standby_thread_is_given_to_a_processor_that_goes_idle() {
    explore(None, || {
        let there = Arc::new(There {
            idle: IdleSet::new(),
            standby: SpinLock::new(false),
            shows_standby: AtomicU32::new(0),
            sent: AtomicU32::new(0),
        });
        let theirs = there.clone();
        let other = thread::spawn(move || {
            on_processor::<Dispatch, _>(1, |at| {
                *theirs.standby.lock(at) = true;
                theirs.shows_standby.store(1, Ordering::Relaxed);
            });
            if theirs.idle.get() & 1 != 0 {
                theirs.idle.leave(0);
            }
            theirs.sent.swap(1, Ordering::Release);
        });
        // `block`, the idle loop.
        let mut ran = there.take();
        let mut halted = false;
        while !ran && !halted {
            there.idle.enter(0);
            // A look of its own, or that of an interrupt.
            if there.shows_standby.load(Ordering::Relaxed) != 0 || there.sent.swap(0, Ordering::Acquire) != 0
            {
                ran = there.take();
                continue;
            }
            halted = there.idle.get() & 1 != 0 && there.shows_standby.load(Ordering::Relaxed) == 0;
        }
        other.join().unwrap();
        assert!(
            ran || there.sent.load(Ordering::Relaxed) != 0,
            "halted with a standby thread, and nobody interrupts"
        );
    });
}

/// The processor's last thread waits, and another processor gives it one: as it looks, as it watches, as it stops to, as it halts, or after.
/// The watch is one look long.
#[test]
fn a_standby_thread_is_given_to_a_processor_that_watches() {
    explore(None, || {
        let there = Arc::new((
            There {
                idle: IdleSet::new(),
                standby: SpinLock::new(false),
                shows_standby: AtomicU32::new(0),
                sent: AtomicU32::new(0),
            },
            Watch::new(),
        ));
        let theirs = there.clone();
        let other = thread::spawn(move || {
            let (theirs, watch) = &*theirs;
            on_processor::<Dispatch, _>(1, |at| {
                *theirs.standby.lock(at) = true;
                theirs.shows_standby.store(1, Ordering::Relaxed);
            });
            if theirs.idle.get() & 1 != 0 {
                theirs.idle.leave(0);
            }
            if !watch.ask() {
                theirs.sent.swap(1, Ordering::Release);
            }
        });
        let (there, watch) = &*there;
        let mut ran = false;
        let mut halted = false;
        while !ran && !halted {
            there.idle.enter(0);
            if there.shows_standby.load(Ordering::Relaxed) != 0 || there.sent.swap(0, Ordering::Acquire) != 0
            {
                ran = there.take();
                continue;
            }
            watch.begin();
            let _ = watch.is_unasked();
            if watch.end() {
                ran = there.take();
                assert!(ran, "asked to look, and nothing is there");
                continue;
            }
            halted = there.idle.get() & 1 != 0 && there.shows_standby.load(Ordering::Relaxed) == 0;
        }
        other.join().unwrap();
        assert!(
            ran || there.sent.load(Ordering::Relaxed) != 0,
            "halted with a standby thread, and nobody interrupts"
        );
    });
}

/// A processor that watches is interrupted, and runs what that brings, while another one tells it of a thread: the word reaches the switch,
/// or the look behind it.
#[test]
fn a_processor_is_told_as_an_interrupt_ends_its_watch() {
    explore(None, || {
        let there = Arc::new((AtomicU32::new(0), AtomicU32::new(0), Watch::new()));
        let theirs = there.clone();
        let other = thread::spawn(move || {
            let (told, sent, watch) = &*theirs;
            told.swap(1, Ordering::Relaxed);
            if !watch.ask() {
                sent.swap(1, Ordering::Release);
            }
        });
        let (told, sent, watch) = &*there;
        watch.begin();
        // The look of the interrupt's way out, which finds nothing asked; then `idle_gave_way`, and the request for another look.
        let mut passed_on = told.swap(0, Ordering::Relaxed) != 0;
        if watch.is_on() && watch.end() {
            assert!(passed_on || told.load(Ordering::Relaxed) != 0, "asked, and the word isn't there");
            passed_on = true;
        }
        other.join().unwrap();
        assert!(passed_on || sent.load(Ordering::Relaxed) != 0, "told, and nobody looks");
    });
}
