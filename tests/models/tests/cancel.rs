//! `cancel`: a request in a cancel-safe queue ends exactly once, by who takes it or by its cancellation, and behind all that was done
//! to it before.
//!
//! A request's content is a loom cell, which is written by who makes it and by who ends it, so loom reports an end that is not
//! ordered behind. The queue is a list under the raw lock, as a driver has it. The canceller holds the global cancel lock up to its call
//! of the routine, and releases it there.
//! Bound: two and three threads; every interleaving with two, two preemptions and two idle looks with three.
#![cfg(loom)]

use std::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread;
use models::explore_looks;
use sync::cancel::{self, Cancelled, Queue, RoutineSlot};
use sync::raw::{self, KSpinLock};

/// What a routine's address is the address of.
struct Routine;

struct Request {
    cancelled: Cancelled,
    routine: RoutineSlot<Routine>,
    content: UnsafeCell<u32>,
    /// How it ended, in the order of the ends: 1 taken, 2 cancelled.
    taken: AtomicU32,
    ended_cancelled: AtomicU32,
}

impl Request {
    fn new() -> Self {
        Self {
            cancelled: Cancelled::new(),
            routine: RoutineSlot::new(),
            content: UnsafeCell::new(0),
            taken: AtomicU32::new(0),
            ended_cancelled: AtomicU32::new(0),
        }
    }

    fn touch(&self) {
        // SAFETY: loom checks it.
        self.content.with_mut(|content| unsafe { *content += 1 });
    }

    fn ends(&self) -> (u32, u32) {
        (self.taken.load(Relaxed), self.ended_cancelled.load(Relaxed))
    }
}

struct Csq {
    lock: KSpinLock,
    list: UnsafeCell<Vec<NonNull<Request>>>,
}

impl Csq {
    fn list<R>(&self, f: impl FnOnce(&mut Vec<NonNull<Request>>) -> R) -> R {
        // SAFETY: under the lock: loom checks it.
        self.list.with_mut(|list| f(unsafe { &mut *list }))
    }
}

// SAFETY: a list under a lock, in order.
unsafe impl Queue for Csq {
    type Request = Request;
    type Routine = Routine;
    type Held = u8;
    type Insert = ();
    type Wanted = ();

    unsafe fn cancelled<'r>(&self, request: NonNull<Request>) -> &'r Cancelled {
        // SAFETY: requests outlive the model's threads.
        unsafe { &request.as_ref().cancelled }
    }

    unsafe fn routine<'r>(&self, request: NonNull<Request>) -> &'r RoutineSlot<Routine> {
        // SAFETY: as above.
        unsafe { &request.as_ref().routine }
    }

    fn acquire(&self) -> u8 {
        // SAFETY: the model uses no token.
        unsafe { raw::acquire(&self.lock) }
    }

    fn release(&self, held: u8) {
        // SAFETY: as above.
        unsafe { raw::release(&self.lock, held) };
    }

    unsafe fn insert(&self, request: NonNull<Request>, (): ()) -> Result<(), u32> {
        self.list(|list| list.push(request));
        Ok(())
    }

    unsafe fn remove(&self, request: NonNull<Request>) {
        self.list(|list| {
            let place = list.iter().position(|it| *it == request).expect("a removed one was in the queue");
            list.remove(place);
        });
    }

    unsafe fn peek(&self, after: Option<NonNull<Request>>, (): ()) -> Option<NonNull<Request>> {
        self.list(|list| {
            let from = after.map_or(0, |after| list.iter().position(|it| *it == after).expect("in it") + 1);
            list.get(from).copied()
        })
    }

    unsafe fn complete_cancelled(&self, request: NonNull<Request>) {
        // SAFETY: as above.
        let request = unsafe { request.as_ref() };
        request.touch();
        request.ended_cancelled.fetch_add(1, Relaxed);
    }
}

struct World {
    cancel_lock: KSpinLock,
    queue: Csq,
    requests: [Request; 2],
}

// SAFETY: what is not atomic is loom's cells.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn queue(&self, at: usize) {
        let request = &self.requests[at];
        request.touch();
        let routine = NonNull::<Routine>::dangling().as_ptr();
        // SAFETY: it is ours, and `cancel` ends in `cancelled`.
        unsafe { cancel::insert(&self.queue, request.into(), routine, ()) }.expect("it takes all");
    }

    /// `IoCancelIrp`.
    fn cancel(&self, at: usize) {
        let request = &self.requests[at];
        // SAFETY: the model uses no token.
        let old = unsafe { raw::acquire(&self.cancel_lock) };
        let routine = cancel::request(&request.cancelled, &request.routine);
        // SAFETY: as above.
        unsafe { raw::release(&self.cancel_lock, old) };
        if !routine.is_null() {
            // SAFETY: taken just now.
            unsafe { cancel::cancelled(&self.queue, request.into()) };
        }
    }

    fn take(&self) {
        if let Some(request) = cancel::take_next(&self.queue, ()) {
            // SAFETY: requests outlive the threads.
            let request = unsafe { request.as_ref() };
            request.touch();
            request.taken.fetch_add(1, Relaxed);
        }
    }
}

/// No limit.
const ALL: (Option<usize>, u32) = (None, u32::MAX);

fn live(
    prepared: usize,
    (preemptions, looks): (Option<usize>, u32),
    lives: &'static [fn(&World)],
    then: fn(&World),
) {
    explore_looks(preemptions, looks, move || {
        let world = Arc::new(World {
            cancel_lock: KSpinLock::new(),
            queue: Csq { lock: KSpinLock::new(), list: UnsafeCell::new(Vec::new()) },
            requests: [Request::new(), Request::new()],
        });
        (0..prepared).for_each(|at| world.queue(at));
        let threads: Vec<_> = lives[1..]
            .iter()
            .zip(1..)
            .map(|(life, number)| {
                let world = world.clone();
                thread::spawn(move || {
                    let _entered = arch::cpu::enter(number);
                    life(&world)
                })
            })
            .collect();
        lives[0](&world);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        then(&world);
    });
}

#[test]
fn queued_while_it_is_cancelled_it_ends_cancelled() {
    live(0, ALL, &[|w| w.queue(0), |w| w.cancel(0)], |w| {
        assert_eq!(w.requests[0].ends(), (0, 1));
        assert!(w.queue.list(|list| list.is_empty()));
    });
}

#[test]
fn taken_while_it_is_cancelled_it_ends_once() {
    live(1, ALL, &[World::take, |w| w.cancel(0)], |w| {
        let (taken, cancelled) = w.requests[0].ends();
        assert_eq!(taken + cancelled, 1);
        assert!(w.queue.list(|list| list.is_empty()));
    });
}

#[test]
fn who_takes_passes_over_what_is_being_cancelled() {
    live(2, ALL, &[World::take, |w| w.cancel(0)], |w| {
        let (ends, second) = (w.requests[0].ends(), w.requests[1].ends());
        assert!(
            ends == (1, 0) && second == (0, 0) || ends == (0, 1) && second == (1, 0),
            "{ends:?} {second:?}"
        );
    });
}

#[test]
fn two_cancel_it_and_one_of_them_ends_it() {
    live(1, ALL, &[|w| w.cancel(0), |w| w.cancel(0)], |w| assert_eq!(w.requests[0].ends(), (0, 1)));
}

#[test]
fn queued_taken_and_cancelled_on_three_processors() {
    live(0, (Some(2), 2), &[|w| w.queue(0), World::take, |w| w.cancel(0)], |w| {
        let (taken, cancelled) = w.requests[0].ends();
        assert_eq!(taken + cancelled, 1);
        assert!(w.queue.list(|list| list.is_empty()));
    });
}
