//! `attention`: what is left for a thread is seen to: in the middle of its wait, or by the thread before it blocks, or by the processor that
//! switches to it, or by an interrupt of the one that runs it.
//!
//! What stands for an interrupt is a counter; what is left counts as seen to if the thread found the sign where it would block, its wait was
//! ended by a claim that wakes it, or a processor that switches to it, or runs it, was told.
//! Bound: two threads without a limit on preemptions; three with at most three.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use models::{explore, on_processor};
use sync::SpinLock;
use sync::attention::{Attention, Signs};
use sync::irql::{Dispatch, PrcbLock, ThreadLock};
use sync::wait_word::{Claim, Openness, WaitWord};

const KERNEL_APC: u32 = 0x100;
const SIGNAL: u32 = 0;
/// In no processor's hands.
const NOWHERE: u32 = u32::MAX;
/// In the queue of that processor, with its number.
const READY: u32 = 1 << 8;

struct Thread {
    attention: Attention,
    wait: WaitWord,
    lock: SpinLock<(), ThreadLock>,
    /// The processor that runs it: changed under that one's lock.
    place: AtomicU32,
    /// What was left, under `lock`.
    queued: AtomicU32,
}

struct Machine {
    thread: Thread,
    processors: [SpinLock<(), PrcbLock>; 2],
    /// Somebody sees to it: bit 0 the thread, 1 an interrupt, 2 a switch.
    seen: AtomicU32,
    regions: AtomicBool,
}

impl Machine {
    fn new(place: u32) -> Self {
        Self {
            thread: Thread {
                attention: Attention::new(),
                wait: WaitWord::new(),
                lock: SpinLock::new(()),
                place: AtomicU32::new(place),
                queued: AtomicU32::new(0),
            },
            processors: [SpinLock::new(()), SpinLock::new(())],
            seen: AtomicU32::new(0),
            regions: AtomicBool::new(false),
        }
    }

    /// As kernel/ke/apc/queue.rs, `insert`. What it did to the wait.
    fn insert(&self, number: u32) -> Claim {
        on_processor::<Dispatch, _>(number, |at| {
            let it = &self.thread;
            let mut guard = it.lock.lock(at);
            let ((), at) = guard.parts();
            it.queued.store(1, Ordering::Relaxed);
            it.attention.raise(Signs::SPECIAL_APC);
            let claim = it
                .wait
                .claim_if(KERNEL_APC, |open| open.to_kernel_apcs() && !self.regions.load(Ordering::Relaxed));
            if claim == Claim::Lost {
                // As kernel/ke/sched/change.rs, `runs_on`.
                loop {
                    let place = it.place.load(Ordering::Relaxed);
                    if place == NOWHERE {
                        break;
                    }
                    let guard = self.processors[(place & !READY) as usize].lock(&mut *at);
                    let found = it.place.load(Ordering::Relaxed);
                    drop(guard);
                    if found == place {
                        if place & READY == 0 {
                            self.seen.fetch_or(2, Ordering::Release);
                        }
                        break;
                    }
                }
            }
            claim
        })
    }

    /// The thread, on `number`: waits. True: it would block.
    fn waits(&self, number: u32, at_once: bool) -> bool {
        on_processor::<Dispatch, _>(number, |_| {
            let it = &self.thread;
            let open = Openness::KERNEL_APC;
            let committed = if at_once {
                it.wait.commit_open_at_once(open);
                true
            } else {
                it.wait.begin_open(open);
                it.wait.commit_open(open).is_ok()
            };
            if !committed {
                self.seen.fetch_or(1, Ordering::Relaxed);
                return false;
            }
            // As kernel/ke/wait/attend.rs.
            if it.attention.any(Signs::BEFORE_A_WAIT) && it.wait.claim(KERNEL_APC) == Claim::Wake {
                self.seen.fetch_or(1, Ordering::Relaxed);
                return false;
            }
            true
        })
    }

    /// Processor `number` switches to the thread, as kernel/ke/sched/local.rs, `switch_to`.
    fn switches_to(&self, number: u32) {
        on_processor::<Dispatch, _>(number, |at| {
            let guard = self.processors[number as usize].lock(at);
            self.thread.place.store(number, Ordering::Relaxed);
            if self.thread.attention.any(Signs::KERNEL) {
                self.seen.fetch_or(4, Ordering::Relaxed);
            }
            drop(guard);
        });
    }

    /// It is made ready for `number`, by whoever ended its wait, as kernel/ke/sched/ready.rs.
    fn put(&self, number: u32) {
        on_processor::<Dispatch, _>(number, |at| {
            let mut guard = self.thread.lock.lock(at);
            let ((), at) = guard.parts();
            let guard = self.processors[number as usize].lock(at);
            self.thread.place.store(READY | number, Ordering::Relaxed);
            drop(guard);
        });
    }

    /// And from it, to wait.
    fn switches_from(&self, number: u32) {
        on_processor::<Dispatch, _>(number, |at| {
            let guard = self.processors[number as usize].lock(at);
            self.thread.place.store(NOWHERE, Ordering::Relaxed);
            drop(guard);
        });
    }

    /// When all are done: nothing is left that nobody sees to.
    fn verify(&self, blocked: bool, claim: Claim) {
        let woken = blocked && claim == Claim::Wake;
        assert!(self.seen.load(Ordering::Relaxed) != 0 || woken, "left behind: blocked {blocked}, {claim:?}");
        assert!(claim != Claim::Wake || blocked, "a thread that goes on was woken");
    }
}

fn against_a_wait(at_once: bool) {
    let machine = Arc::new(Machine::new(0));
    let other = {
        let machine = machine.clone();
        thread::spawn(move || machine.insert(1))
    };
    let blocked = machine.waits(0, at_once);
    let claim = other.join().unwrap();
    // The interrupt that was sent before it blocked finds another thread: it doesn't count.
    if blocked {
        machine.seen.store(0, Ordering::Relaxed);
    }
    machine.verify(blocked, claim);
}

#[test]
fn an_insert_ends_a_wait_or_the_thread_finds_it() {
    explore(None, || against_a_wait(true));
}

#[test]
fn an_insert_meets_a_wait_in_progress() {
    explore(None, || against_a_wait(false));
}

/// A signal, too: one of the two ends the wait; if it was the signal, the thread runs on, and has what was left told by its next switch.
#[test]
fn an_insert_and_a_signal_end_a_wait_once() {
    explore(Some(3), || {
        let machine = Arc::new(Machine::new(0));
        let inserts = {
            let machine = machine.clone();
            thread::spawn(move || machine.insert(1))
        };
        let signals = {
            let machine = machine.clone();
            thread::spawn(move || machine.thread.wait.claim(SIGNAL))
        };
        let blocked = machine.waits(0, false);
        let (insert, signal) = (inserts.join().unwrap(), signals.join().unwrap());
        let wakes = [insert, signal].iter().filter(|&&claim| claim == Claim::Wake).count();
        assert_eq!(wakes, usize::from(blocked), "a thread that blocks is woken once, and no other");
        let ended = [insert, signal].iter().filter(|&&claim| claim != Claim::Lost).count();
        assert!(ended <= 1, "ended twice");
        if signal == Claim::Wake {
            // It is switched to again, behind the insert.
            machine.switches_to(0);
        } else if signal == Claim::Noted {
            // It runs on, and the interrupt that was sent to it counts.
            assert!(!blocked);
        }
        assert!(machine.seen.load(Ordering::Relaxed) != 0 || (blocked && insert == Claim::Wake));
    });
}

/// The thread is ready, or runs, and is switched to while something is left for it.
#[test]
fn an_insert_meets_a_switch_to_the_thread() {
    explore(None, || {
        let machine = Arc::new(Machine::new(READY));
        let other = {
            let machine = machine.clone();
            thread::spawn(move || machine.insert(1))
        };
        machine.switches_to(0);
        let _ = other.join().unwrap();
        assert!(machine.seen.load(Ordering::Relaxed) != 0, "left behind");
    });
}

/// It goes from one processor to the other: the one that runs it in the end knows.
#[test]
fn an_insert_meets_a_migration() {
    explore(Some(3), || {
        let machine = Arc::new(Machine::new(0));
        let other = {
            let machine = machine.clone();
            thread::spawn(move || machine.insert(1))
        };
        machine.switches_from(0);
        // An interrupt that came up to here may find the thread gone.
        machine.seen.store(0, Ordering::Relaxed);
        machine.put(1);
        machine.switches_to(1);
        let sent = other.join().unwrap();
        assert_eq!(sent, Claim::Lost, "it waits for nothing");
        assert!(machine.seen.load(Ordering::Relaxed) != 0, "left behind on the new processor");
    });
}
