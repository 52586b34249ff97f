//! KQUEUE, with the wait word and the hand-off as shipped: inserts against threads that ask for an entry, wait for one, time out, are
//! ended by an APC, or wait for something else. An entry that was inserted is taken once, by one thread, or is still queued; what a lost
//! wait was offered goes to the next or stays; no thread waits beside an entry while fewer than the limit run, and none is
//! handed one above it; who has an entry and doesn't wait is counted.
//!
//! The steps of kernel/ke/queue.rs (insert, hand on, remove, stop, go on) and of kernel/ke/wait (`timeout::in_queue`, attend.rs) are
//! copied, around what is shipped: the queue's logic is the kernel's own. Left out: what a thread looks at before it blocks
//! (tests/attention.rs). A thread's timer is whether it is set, under its lock (what its table does: tests/timer.rs). Lists and counts
//! are loom cells under the queue's lock. A thread goes on where it is made ready.
//!
//! Bounds:
//! - none, the exploration is complete (`complete::*`), with a lock that blocks in the place of the object's as shipped, which
//!   spins: what is taken of that is that it excludes and orders, which tests/bit_lock.rs shows;
//! - with the lock as shipped: three preemptions, one idle look;
//! - an insert, a wait, its timeout and a wait elsewhere, all four at once, and the lock as shipped: two preemptions, and no idle look
//!   explored: behind one, the rest of an execution runs once, fairly.
#![cfg(loom)]

use std::collections::VecDeque;
use std::sync::atomic::AtomicU32 as Count;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::bit_lock::LockWord;
use sync::handoff::{Handoff, Wake};
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::wait_word::{Claim, WaitWord};

const SUCCESS: u32 = 0;
const TIMEOUT: u32 = 0x102;
const APC: u32 = 0xC0;
/// No entry.
const NONE: usize = usize::MAX;

/// What a thread does, one after the other. At the end it works on its entry for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Asks for an entry.
    Removes,
    /// The same, with a timeout.
    RemovesInTime,
    /// Works, until it is run again.
    Works,
    /// Waits for something else, for ever.
    Waits,
    /// Waits for something else, and that is over by the time that it has stopped.
    Waited,
}

/// What a processor does.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Runs the thread of this number.
    Runs(usize),
    /// Inserts the entry of this number, at the tail.
    Inserts(usize),
    /// The timer of a thread expires, if it is set.
    Expires(usize),
    /// An APC is queued to a thread, and ends its wait.
    Interrupts(usize),
}

struct Scene {
    maximum: usize,
    threads: &'static [&'static [Step]],
    /// One after the other, before the others begin.
    first: &'static [Act],
    /// At once, a processor each.
    processors: &'static [&'static [Act]],
}

/// The queue's lock.
trait Lock: Sized + Send + Sync + 'static {
    fn new() -> Self;
    /// Holds it for `f`.
    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R;
}

/// As shipped: who waits spins.
struct Shipped(LockWord<ObjectLock>);

impl Lock for Shipped {
    fn new() -> Self {
        Self(LockWord::new(4))
    }

    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        let _guard = self.0.lock(at);
        f()
    }
}

/// Loom's own: who waits is passed over until it is free, so no execution is endless.
struct Blocking(Mutex<()>);

impl Lock for Blocking {
    fn new() -> Self {
        Self(Mutex::new(()))
    }

    fn locked<R>(&self, _: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        let _guard = self.0.lock().unwrap();
        f()
    }
}

struct Inside {
    entries: VecDeque<usize>,
    /// Threads whose blocks are registered, in order.
    waiters: Vec<usize>,
    current: usize,
}

#[derive(Default)]
struct Entry {
    queued: AtomicBool,
    /// For the judge, so no accesses of the model's.
    inserted: Count,
    taken: Count,
}

/// Its own, while it runs.
#[derive(Clone, Copy)]
struct Context {
    next: usize,
    belongs: bool,
    is_timed: bool,
}

struct Thread<K> {
    steps: &'static [Step],
    wait: WaitWord,
    handoff: Handoff,
    context: UnsafeCell<Context>,
    /// The timer's lock, and whether it is set.
    timer: (K, UnsafeCell<bool>),
    /// `queue_entry`.
    entry: AtomicUsize,
    /// For the judge: waits that others were told they had ended by something else than an entry, and such that it saw.
    told: Count,
    seen: Count,
}

struct World<K> {
    lock: K,
    inside: UnsafeCell<Inside>,
    maximum: usize,
    entries: [Entry; 2],
    threads: Vec<Thread<K>>,
}

// SAFETY: cells are accessed under the lock, or by who has the thread: what the models check.
unsafe impl<K: Lock> Sync for World<K> {}
// SAFETY: as above.
unsafe impl<K: Lock> Send for World<K> {}

impl<K: Lock> Thread<K> {
    fn new(steps: &'static [Step]) -> Self {
        let it = Self {
            steps,
            wait: WaitWord::new(),
            handoff: Handoff::new(),
            context: UnsafeCell::new(Context { next: 0, belongs: false, is_timed: false }),
            timer: (K::new(), UnsafeCell::new(false)),
            entry: AtomicUsize::new(NONE),
            told: Count::new(0),
            seen: Count::new(0),
        };
        it.handoff.run();
        it
    }

    /// By itself.
    fn own<R>(&self, f: impl FnOnce(&mut Context) -> R) -> R {
        // SAFETY: loom checks it.
        self.context.with_mut(|context| f(unsafe { &mut *context }))
    }

    /// Under its timer's lock.
    fn timer_locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce(&mut bool) -> R) -> R {
        // SAFETY: loom checks it.
        self.timer.0.locked(at, || self.timer.1.with_mut(|is_set| f(unsafe { &mut *is_set })))
    }

    /// Its next step.
    fn step(&self) -> Option<Step> {
        self.own(|context| {
            let step = self.steps.get(context.next).copied();
            context.next += 1;
            step
        })
    }
}

impl Inside {
    fn has_entry_and_room(&self, maximum: usize) -> bool {
        !self.entries.is_empty() && self.current < maximum
    }
}

impl<K: Lock> World<K> {
    fn new(scene: &Scene) -> Arc<Self> {
        let inside = Inside { entries: VecDeque::new(), waiters: Vec::new(), current: 0 };
        Arc::new(Self {
            lock: K::new(),
            inside: UnsafeCell::new(inside),
            maximum: scene.maximum,
            entries: Default::default(),
            threads: scene.threads.iter().map(|steps| Thread::new(steps)).collect(),
        })
    }

    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce(&mut Inside) -> R) -> R {
        // SAFETY: loom checks it.
        self.lock.locked(at, || self.inside.with_mut(|inside| f(unsafe { &mut *inside })))
    }

    /// `Queue::insert`.
    fn insert(&self, number: usize, at: &mut Irql<Dispatch>) {
        let entry = &self.entries[number];
        if entry.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        entry.inserted.fetch_add(1, Ordering::Relaxed);
        let woken = self.locked(at, |inside| {
            inside.entries.push_back(number);
            self.hand_on(inside)
        });
        self.finish(&woken, at);
    }

    /// `Queue::hand_on`: whom the caller is to make ready.
    fn hand_on(&self, inside: &mut Inside) -> Vec<usize> {
        let mut woken = Vec::new();
        for waiter in inside.waiters.clone().into_iter().rev() {
            if !inside.has_entry_and_room(self.maximum) {
                break;
            }
            let claim = self.threads[waiter].wait.claim(SUCCESS);
            if matches!(claim, Claim::Wake | Claim::Noted) {
                inside.waiters.retain(|&it| it != waiter);
                self.take_for(waiter, inside);
                if claim == Claim::Wake {
                    woken.push(waiter);
                }
            }
        }
        woken
    }

    /// `Queue::take_for`.
    fn take_for(&self, thread: usize, inside: &mut Inside) {
        assert!(inside.current < self.maximum, "an entry is handed on above the limit");
        let entry = inside.entries.pop_front().expect("an entry");
        let before = self.threads[thread].entry.swap(entry, Ordering::Relaxed);
        assert_eq!(before, NONE, "a thread is handed a second entry");
        inside.current += 1;
    }

    /// `Queue::stops`.
    fn stops(&self, at: &mut Irql<Dispatch>) {
        let woken = self.locked(at, |inside| {
            inside.current -= 1;
            self.hand_on(inside)
        });
        self.finish(&woken, at);
    }

    /// `Queue::goes_on`.
    fn goes_on(&self, at: &mut Irql<Dispatch>) {
        self.locked(at, |inside| inside.current += 1);
    }

    /// `Woken::finish`.
    fn finish(&self, woken: &[usize], at: &mut Irql<Dispatch>) {
        for &number in woken {
            self.make_ready(number, at);
        }
    }

    fn make_ready(&self, number: usize, at: &mut Irql<Dispatch>) {
        let me = &self.threads[number];
        if me.handoff.wake() == Wake::Now {
            me.handoff.run();
            if self.ended(number, me.wait.status(), at) || self.attempts(number, at) {
                self.run(number, at);
            }
        }
    }

    /// The thread goes on, until it blocks or works.
    fn run(&self, number: usize, at: &mut Irql<Dispatch>) {
        let me = &self.threads[number];
        while let Some(step) = me.step() {
            match step {
                Step::Works => return,
                Step::Removes | Step::RemovesInTime => {
                    // `Queue::join`.
                    let belonged = me.own(|context| {
                        context.is_timed = step == Step::RemovesInTime;
                        core::mem::replace(&mut context.belongs, true)
                    });
                    if belonged {
                        self.stops(at);
                    }
                    if !self.attempts(number, at) {
                        return;
                    }
                }
                Step::Waited => {
                    self.stops(at);
                    self.goes_on(at);
                }
                Step::Waits => {
                    me.wait.commit_at_once();
                    self.stops(at);
                    assert!(!me.handoff.saved(), "nobody ends this wait");
                    return;
                }
            }
        }
    }

    /// `Queue::remove` from where it waits. False: the thread has blocked.
    fn attempts(&self, number: usize, at: &mut Irql<Dispatch>) -> bool {
        while let Some(status) = self.in_queue(number, at) {
            if self.ended(number, status, at) {
                return true;
            }
        }
        false
    }

    /// `timeout::in_queue`, up to the end of the wait: its status; `None`: the thread goes on elsewhere.
    fn in_queue(&self, number: usize, at: &mut Irql<Dispatch>) -> Option<u32> {
        let me = &self.threads[number];
        me.wait.begin();
        if me.own(|context| context.is_timed) {
            me.timer_locked(at, |is_set| *is_set = true);
        }
        let ended = self.locked(at, |inside| {
            if inside.has_entry_and_room(self.maximum) {
                Err(if me.wait.withdraw(SUCCESS) {
                    self.take_for(number, inside);
                    SUCCESS
                } else {
                    me.wait.status()
                })
            } else {
                inside.waiters.push(number);
                me.wait.commit()
            }
        });
        match ended {
            Err(status) => Some(status),
            Ok(()) if me.handoff.saved() => {
                me.handoff.run();
                Some(me.wait.status())
            }
            Ok(()) => None,
        }
    }

    /// The rest of `timeout::in_queue` and of `Queue::remove`. False: to be tried again, behind an APC.
    fn ended(&self, number: usize, status: u32, at: &mut Irql<Dispatch>) -> bool {
        let me = &self.threads[number];
        if status != TIMEOUT && me.own(|context| context.is_timed) {
            me.timer_locked(at, |is_set| *is_set = false);
        }
        if status == SUCCESS {
            let entry = &self.entries[me.entry.swap(NONE, Ordering::Relaxed)];
            entry.taken.fetch_add(1, Ordering::Relaxed);
            entry.queued.store(false, Ordering::Release);
            return true;
        }
        me.seen.fetch_add(1, Ordering::Relaxed);
        self.locked(at, |inside| inside.waiters.retain(|&it| it != number));
        if status == TIMEOUT {
            self.goes_on(at);
        }
        status == TIMEOUT
    }

    fn act(&self, act: Act, at: &mut Irql<Dispatch>) {
        match act {
            Act::Runs(number) => self.run(number, at),
            Act::Inserts(number) => self.insert(number, at),
            Act::Expires(number) => {
                let thread = &self.threads[number];
                let claim = thread.timer_locked(at, |is_set| {
                    if core::mem::take(is_set) { thread.wait.claim(TIMEOUT) } else { Claim::Lost }
                });
                self.end(number, claim, at);
            }
            Act::Interrupts(number) => self.end(number, self.threads[number].wait.claim(APC), at),
        }
    }

    /// The wait of a thread was claimed by something else than an entry.
    fn end(&self, number: usize, claim: Claim, at: &mut Irql<Dispatch>) {
        if claim != Claim::Lost {
            self.threads[number].told.fetch_add(1, Ordering::Relaxed);
        }
        if claim == Claim::Wake {
            self.make_ready(number, at);
        }
    }

    /// All have acted.
    fn judge(&self, at: &mut Irql<Dispatch>) {
        self.locked(at, |inside| {
            for (number, entry) in self.entries.iter().enumerate() {
                let queued = inside.entries.iter().filter(|&&it| it == number).count() as u32;
                let (inserted, taken) =
                    (entry.inserted.load(Ordering::Relaxed), entry.taken.load(Ordering::Relaxed));
                assert_eq!(inserted, taken + queued, "an entry is lost, or had twice");
            }
            let waits = !inside.waiters.is_empty();
            assert!(!waits || !inside.has_entry_and_room(self.maximum), "a thread waits beside an entry");
            let mut running = 0;
            for (number, thread) in self.threads.iter().enumerate() {
                let is_registered = inside.waiters.contains(&number);
                let last = thread.own(|context| thread.steps.get(context.next.wrapping_sub(1)).copied());
                assert_eq!(
                    is_registered,
                    thread.wait.is_waiting() && last != Some(Step::Waits),
                    "a block is left, or missing"
                );
                let runs = thread.own(|context| context.belongs) && !thread.wait.is_waiting();
                running += usize::from(runs);
                let (told, seen) = (thread.told.load(Ordering::Relaxed), thread.seen.load(Ordering::Relaxed));
                assert_eq!(told, seen, "a timeout or an APC is lost, or seen by who has an entry");
            }
            assert_eq!(inside.current, running, "who runs is not who is counted");
        });
    }
}

fn scenario<K: Lock>(scene: &Scene) {
    let world = World::<K>::new(scene);
    on_processor::<Dispatch, _>(0, |at| scene.first.iter().for_each(|&act| world.act(act, at)));
    let (mine, others) = scene.processors.split_first().expect("a processor");
    let others: Vec<_> = (1..)
        .zip(others)
        .map(|(number, &acts)| {
            let world = world.clone();
            thread::spawn(move || {
                on_processor::<Dispatch, _>(number, |at| acts.iter().for_each(|&act| world.act(act, at)));
            })
        })
        .collect();
    on_processor::<Dispatch, _>(0, |at| mine.iter().for_each(|&act| world.act(act, at)));
    for other in others {
        other.join().unwrap();
    }
    on_processor::<Dispatch, _>(0, |at| world.judge(at));
}

use Act::{Expires, Inserts, Interrupts, Runs};
use Step::{Removes, RemovesInTime, Waited, Waits, Works};

macro_rules! scenes {
    ($(fn $name:ident() {
        up to $maximum:literal, threads $threads:expr, first $first:expr, then $processors:expr
    })*) => {
        $(#[test] fn $name() {
            const SCENE: Scene =
                Scene { maximum: $maximum, threads: &$threads, first: &$first, processors: &$processors };
            explore_looks(Some(3), 1, || scenario::<Shipped>(&SCENE));
        })*

        mod complete {
            use super::*;
            $(#[test] fn $name() {
                const SCENE: Scene =
                    Scene { maximum: $maximum, threads: &$threads, first: &$first, processors: &$processors };
                explore(None, || scenario::<Blocking>(&SCENE));
            })*
        }
    };
}

scenes! {
    fn an_insert_against_a_wait() {
        up to 1, threads [&[Removes]], first [], then [&[Runs(0)], &[Inserts(0)]]
    }
    fn two_inserts_against_a_wait() {
        up to 1, threads [&[Removes]], first [], then [&[Runs(0)], &[Inserts(0)], &[Inserts(1)]]
    }
    fn one_entry_inserted_by_two_against_a_wait() {
        up to 1, threads [&[Removes]], first [], then [&[Runs(0)], &[Inserts(0)], &[Inserts(0)]]
    }
    fn inserts_against_two_waits_of_which_one_may_run() {
        up to 1, threads [&[Removes], &[Removes]], first [],
        then [&[Runs(0)], &[Runs(1)], &[Inserts(0), Inserts(1)]]
    }
    fn inserts_against_two_waits() {
        up to 2, threads [&[Removes], &[Removes]], first [],
        then [&[Runs(0)], &[Runs(1)], &[Inserts(0), Inserts(1)]]
    }
    fn an_insert_against_a_wait_and_its_timeout() {
        up to 1, threads [&[RemovesInTime]], first [], then [&[Runs(0)], &[Inserts(0)], &[Expires(0)]]
    }
    fn an_insert_against_a_wait_and_an_apc() {
        up to 1, threads [&[Removes]], first [], then [&[Runs(0)], &[Inserts(0)], &[Interrupts(0)]]
    }
    fn an_insert_against_a_timeout_and_an_apc() {
        up to 1, threads [&[RemovesInTime]], first [Runs(0)],
        then [&[Inserts(0)], &[Expires(0)], &[Interrupts(0)]]
    }
    // The one that times out waits last, and is offered the entry first.
    fn an_insert_against_the_timeout_of_one_of_two() {
        up to 1, threads [&[RemovesInTime], &[Removes]], first [Runs(1), Runs(0)],
        then [&[Inserts(0)], &[Expires(0)]]
    }
    fn inserts_against_the_timeout_of_one_of_two() {
        up to 2, threads [&[RemovesInTime], &[Removes]], first [Runs(1), Runs(0)],
        then [&[Inserts(0)], &[Expires(0)], &[Inserts(1)]]
    }
    fn inserts_against_the_timeout_of_one_of_two_that_then_waits_elsewhere() {
        up to 1, threads [&[RemovesInTime, Waits], &[Removes]], first [Runs(1), Runs(0)],
        then [&[Inserts(0)], &[Expires(0)], &[Inserts(1)]]
    }
    // A thread that has an entry, and one that waits for another, or comes to.
    fn an_insert_against_a_wait_elsewhere() {
        up to 1, threads [&[Removes, Works, Waits], &[Removes]], first [Inserts(0), Runs(0), Runs(1)],
        then [&[Runs(0)], &[Inserts(1)]]
    }
    fn an_insert_and_a_wait_against_a_wait_elsewhere() {
        up to 1, threads [&[Removes, Works, Waits], &[Removes]], first [Inserts(0), Runs(0)],
        then [&[Runs(0)], &[Runs(1)], &[Inserts(1)]]
    }
    fn an_insert_and_a_timeout_against_a_wait_elsewhere() {
        up to 1, threads [&[Removes, Works, Waits], &[RemovesInTime]], first [Inserts(0), Runs(0), Runs(1)],
        then [&[Runs(0)], &[Inserts(1)], &[Expires(1)]]
    }
    fn an_insert_and_a_wait_against_a_wait_elsewhere_that_is_over() {
        up to 1, threads [&[Removes, Works, Waited], &[Removes]], first [Inserts(0), Runs(0)],
        then [&[Runs(0)], &[Runs(1)], &[Inserts(1)]]
    }
    fn an_insert_and_a_wait_against_who_comes_for_the_next() {
        up to 1, threads [&[Removes, Works, Removes], &[Removes]], first [Inserts(0), Runs(0)],
        then [&[Runs(0)], &[Runs(1)], &[Inserts(1)]]
    }
    fn a_wait_and_its_timeout_against_a_wait_elsewhere_beside_an_entry() {
        up to 1, threads [&[Removes, Works, Waits], &[RemovesInTime]], first [Inserts(0), Runs(0), Inserts(1)],
        then [&[Runs(0)], &[Runs(1)], &[Expires(1)]]
    }
}

#[test]
fn an_insert_a_wait_and_its_timeout_against_a_wait_elsewhere() {
    const SCENE: Scene = Scene {
        maximum: 1,
        threads: &[&[Removes, Works, Waits], &[RemovesInTime]],
        first: &[Inserts(0), Runs(0)],
        processors: &[&[Runs(0)], &[Runs(1)], &[Inserts(1)], &[Expires(1)]],
    };
    explore_looks(Some(2), 0, || scenario::<Shipped>(&SCENE));
}
