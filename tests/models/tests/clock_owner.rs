//! `clock_owner`: one owner at a time, and a busy processor never without an owner or somebody who is about to look.
//!
//! A processor is a thread that leaves idle, goes idle and takes nudges. A nudge is a bit that the nudged one polls, sent with
//! Release and taken with Acquire, which is what `arch::apic::send` promises of vector 0x2F. When all are done, the nudges
//! still under way are taken; then, if anybody is busy, somebody owns the clock. The shared time is a loom cell that each
//! owner writes without further order, so that two owners, or one that does not see what the last one wrote, are reported.
//! Bound: two processors, with up to three steps each without a limit on preemptions, with four at most three; three processors
//! with two steps each, at most two.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use models::explore_looks;
use sync::clock_owner::{ClockOwner, Nudge};

#[derive(Clone, Copy)]
enum Step {
    Leave,
    Go,
    Poll,
    /// The owner's clock interrupt.
    Update,
}
use Step::{Go, Leave, Poll, Update};

struct Machine {
    owner: ClockOwner,
    nudged: AtomicU64,
    time: UnsafeCell<u32>,
    /// Somebody has updated the time since all were idle, at the start: who leaves idle must find it so.
    fresh: AtomicBool,
}

// SAFETY: the time is written by the owner of the clock: what the model checks.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    fn update(&self) {
        // SAFETY: loom checks it.
        self.time.with_mut(|time| unsafe { *time += 1 });
    }

    fn take_over(&self, me: u32) {
        self.update();
        self.fresh.store(true, Ordering::Relaxed);
        self.owner.updated(me);
    }

    fn nudge(&self, number: u32) {
        self.nudged.fetch_or(1 << number, Ordering::Release);
    }

    fn poll(&self, me: u32) {
        if self.nudged.load(Ordering::Relaxed) & 1 << me == 0 {
            return;
        }
        self.nudged.fetch_and(!(1 << me), Ordering::Acquire);
        match self.owner.nudged(me) {
            Nudge::Nothing => {}
            Nudge::Owned => self.take_over(me),
            Nudge::Pass(other) => self.nudge(other),
        }
    }

    fn step(&self, me: u32, step: Step) {
        match step {
            Leave => {
                if self.owner.leave_idle(me) {
                    self.take_over(me);
                }
                assert!(self.fresh.load(Ordering::Relaxed), "a time from before all were idle");
            }
            Go => {
                if let Some(busy) = self.owner.go_idle(me) {
                    self.nudge(busy);
                }
            }
            Poll => self.poll(me),
            Update => {
                if self.owner.is(me) {
                    self.update();
                }
            }
        }
    }
}

/// Processor n takes `lives[n]`; those in `busy` are so from the start, the lowest of them as the owner.
fn run(busy: u32, lives: &'static [&'static [Step]]) {
    let machine = Arc::new(Machine {
        owner: ClockOwner::new(),
        nudged: AtomicU64::new(0),
        time: UnsafeCell::new(0),
        fresh: AtomicBool::new(false),
    });
    let all = 0..lives.len() as u32;
    all.clone().filter(|me| busy & 1 << me != 0).for_each(|me| machine.step(me, Leave));
    let threads: Vec<_> = all
        .clone()
        .skip(1)
        .map(|me| {
            let machine = machine.clone();
            thread::spawn(move || lives[me as usize].iter().for_each(|&step| machine.step(me, step)))
        })
        .collect();
    lives[0].iter().for_each(|&step| machine.step(0, step));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    while machine.nudged.load(Ordering::Relaxed) != 0 {
        all.clone().for_each(|me| machine.poll(me));
    }
    let owners = all.filter(|&me| machine.owner.is(me)).count();
    assert_eq!(machine.owner.is_unowned(), owners == 0);
    assert!(owners == 1 || machine.owner.busy() == 0, "busy, and nobody owns the clock");
}

#[test]
fn one_becomes_busy_as_the_owner_goes_idle() {
    explore_looks(None, 2, || run(0b01, &[&[Update, Go], &[Leave, Update]]));
}

#[test]
fn the_heir_goes_idle_before_it_is_nudged() {
    explore_looks(None, 2, || run(0b11, &[&[Go, Leave], &[Go, Leave, Poll]]));
}

#[test]
fn both_come_and_go() {
    explore_looks(Some(3), 2, || run(0, &[&[Leave, Update, Go, Leave], &[Leave, Go, Leave, Poll]]));
}

#[test]
fn three_pass_the_clock_on() {
    explore_looks(Some(2), 2, || run(0b011, &[&[Update, Go], &[Go, Poll], &[Leave, Update]]));
}

#[test]
fn three_race_for_a_clock_that_nobody_owns() {
    explore_looks(Some(2), 2, || run(0, &[&[Leave, Go], &[Leave, Go], &[Leave, Poll]]));
}
