//! `handoff`, with the wait word in front of it: a thread that waits is made ready once, by who sees its context saved.
//!
//! The saved context is a loom cell: written by the processor that leaves the stack, read by who resumes it, so a missing order is
//! reported as a race, and a thread on two processors at once as two accesses. Who is told to make it ready resumes it on the spot.
//! Bound: one thread; its processor, and one or two that end its wait: complete. Two waits in a row, the second ended by a third
//! processor: at most four preemptions, four idle looks.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, explore_looks};
use sync::handoff::{Handoff, Wake};
use sync::wait_word::{Claim, WaitWord};

struct Thread {
    handoff: Handoff,
    wait: WaitWord,
    context: UnsafeCell<u32>,
    resumed: AtomicU32,
}

// SAFETY: the context is accessed by the processor that has the thread: what the models check.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

/// What the thread does when it runs again, on the processor that resumes it: round 0 first.
type Life = fn(&Thread, round: u32);

impl Thread {
    /// It runs, and is about to wait.
    fn new() -> Arc<Self> {
        let it = Self {
            handoff: Handoff::new(),
            wait: WaitWord::new(),
            context: UnsafeCell::new(0),
            resumed: AtomicU32::new(0),
        };
        it.handoff.run();
        Arc::new(it)
    }

    /// `sched::block`: the wait is committed.
    fn block(&self, life: Life) {
        // SAFETY: loom checks it.
        self.context.with_mut(|context| unsafe { *context += 1 });
        if self.handoff.saved() {
            self.resume(life);
        }
    }

    /// The other side: its wait is ended with `status`, if that comes first.
    fn end(&self, status: u32, life: Life) -> bool {
        let won = self.wait.claim(status) == Claim::Wake;
        if won && self.handoff.wake() == Wake::Now {
            self.resume(life);
        }
        won
    }

    fn resume(&self, life: Life) {
        self.handoff.run();
        // SAFETY: loom checks it.
        let round = self.context.with(|context| unsafe { *context });
        assert_eq!(self.resumed.fetch_add(1, Ordering::Relaxed) + 1, round, "resumed twice");
        life(self, round);
    }
}

fn ends(_: &Thread, _: u32) {}

#[test]
fn woken_while_it_leaves_its_stack() {
    explore(None, || {
        let it = Thread::new();
        it.wait.commit_at_once();
        let theirs = it.clone();
        let other = thread::spawn(move || assert!(theirs.end(7, ends)));
        it.block(ends);
        other.join().unwrap();
        assert_eq!((it.resumed.load(Ordering::Relaxed), it.wait.status()), (1, 7));
    });
}

#[test]
fn ended_by_two_at_once_it_is_resumed_once() {
    explore(None, || {
        let it = Thread::new();
        it.wait.commit_at_once();
        let others = [1, 2].map(|status| {
            let it = it.clone();
            thread::spawn(move || it.end(status, ends))
        });
        it.block(ends);
        let won = others.map(|other| other.join().unwrap());
        assert!(won[0] != won[1], "won by both, or by neither");
        assert_eq!((it.resumed.load(Ordering::Relaxed), it.wait.status()), (1, if won[0] { 1 } else { 2 }));
    });
}

/// Resumed for the first time, it waits again, wherever it is.
fn waits_again(it: &Thread, round: u32) {
    if round == 1 {
        it.wait.commit_at_once();
        it.block(waits_again);
    }
}

#[test]
fn it_waits_again_where_it_was_resumed() {
    explore_looks(Some(4), 4, || {
        let it = Thread::new();
        it.wait.commit_at_once();
        let others = [1, 2].map(|status| {
            let it = it.clone();
            thread::spawn(move || {
                while !it.end(status, waits_again) {
                    arch::cpu::spin_hint();
                }
            })
        });
        it.block(waits_again);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(it.resumed.load(Ordering::Relaxed), 2);
    });
}
