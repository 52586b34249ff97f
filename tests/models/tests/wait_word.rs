//! `wait_word`, with the objects' locks, lock sets and the hand-off as shipped: a wait for any or all of two objects against signals, a
//! timeout and an APC ends once, by one of them; a loser takes nothing; nobody touches an object when the wait may have returned.
//!
//! The steps of kernel/ke/wait (single.rs, multiple.rs, signal.rs) are copied, around what is shipped. What an object holds is loom cells under
//! its lock. The thread goes on where it is made ready, and then frees the object whose signaller has been and gone: that writes its
//! cells and its lock, so a later access by anybody is reported. The objects are synchronization events.
//!
//! Bounds, of the waiter with
//! - each pair of {signal A, signal B, timeout, APC}: none, the exploration is complete (`complete::*`), with locks that block in
//!   the place of those as shipped, which spin: what else is modelled is the same. Of what the objects' locks are this takes that
//!   they exclude and order, which models/bit_lock.rs and props/locks.rs show of them;
//! - each pair, and the locks as shipped: three preemptions, one idle look;
//! - all four, and the locks as shipped: two preemptions, and no idle look explored: behind one, the rest of an execution runs
//!   once, fairly.
#![cfg(loom)]

use std::sync::atomic::AtomicBool;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::bit_lock::LockWord;
use sync::handoff::{Handoff, Wake};
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::lock_set::LockSet;
use sync::wait_word::{Claim, Look, Unsatisfied, WaitWord};

const TIMEOUT: u32 = 0x102;
const APC: u32 = 0xC0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Any,
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Actor {
    Signal(usize),
    Ends(u32),
}

struct Inside {
    signalled: bool,
    /// The wait block that is registered.
    waiter: bool,
    freed: bool,
    /// For the judge: set, taken.
    sets: u32,
    takes: u32,
}

/// An object's lock.
trait Lock: Sized + Send + Sync + 'static {
    fn new() -> Self;
    /// Holds it for `f`.
    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R;
    /// Holds those of both objects, taken in the order of their addresses, which is the array's.
    fn both_locked<R>(both: [&Self; 2], at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R;
}

/// As shipped: who waits spins.
struct Shipped(LockWord<ObjectLock>);

impl Lock for Shipped {
    fn new() -> Self {
        Self(LockWord::new(1))
    }

    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        let _guard = self.0.lock(at);
        f()
    }

    fn both_locked<R>(both: [&Self; 2], at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        let mut words = both.map(|lock| &lock.0);
        let _set = LockSet::lock(&mut words, at);
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

    fn both_locked<R>(both: [&Self; 2], _: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        let _guards = both.map(|lock| lock.0.lock().unwrap());
        f()
    }
}

struct Object<K> {
    lock: K,
    inside: UnsafeCell<Inside>,
}

struct World<K> {
    objects: [Object<K>; 2],
    kind: Kind,
    actors: &'static [Actor],
    wait: WaitWord,
    handoff: Handoff,
    context: UnsafeCell<u32>,
    returned: AtomicU32,
    status: AtomicU32,
    /// For the judge, so no access of the model's: a timeout or an APC was told that it ends the wait.
    told: AtomicBool,
}

// SAFETY: cells are accessed under locks, or by who has the thread: what the models check.
unsafe impl<K: Lock> Sync for World<K> {}
// SAFETY: as above.
unsafe impl<K: Lock> Send for World<K> {}

impl<K: Lock> Object<K> {
    fn new() -> Self {
        let inside = Inside { signalled: false, waiter: false, freed: false, sets: 0, takes: 0 };
        Self { lock: K::new(), inside: UnsafeCell::new(inside) }
    }

    /// Under its lock.
    fn with<R>(&self, f: impl FnOnce(&mut Inside) -> R) -> R {
        self.inside.with_mut(|inside| {
            // SAFETY: loom checks it.
            let inside = unsafe { &mut *inside };
            assert!(!inside.freed, "an object is touched after the wait has returned");
            f(inside)
        })
    }

    fn locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce(&mut Inside) -> R) -> R {
        self.lock.locked(at, || self.with(f))
    }
}

fn take(inside: &mut Inside) {
    assert!(inside.signalled, "taken and not signalled");
    inside.signalled = false;
    inside.takes += 1;
}

impl<K: Lock> World<K> {
    fn new(kind: Kind, actors: &'static [Actor]) -> Arc<Self> {
        let it = Self {
            objects: [Object::new(), Object::new()],
            kind,
            actors,
            wait: WaitWord::new(),
            handoff: Handoff::new(),
            context: UnsafeCell::new(0),
            returned: AtomicU32::new(0),
            status: AtomicU32::new(0),
            told: AtomicBool::new(false),
        };
        it.handoff.run();
        Arc::new(it)
    }

    /// multiple.rs, up to the switch.
    fn wait(&self, at: &mut Irql<Dispatch>) {
        self.wait.begin();
        let ended = match self.kind {
            Kind::Any => self.register_each(at),
            Kind::All => self.register_all(at),
        };
        match ended {
            Some(status) => self.go_on(status, at),
            None => {
                // SAFETY: loom checks it.
                self.context.with_mut(|context| unsafe { *context = 1 });
                if self.handoff.saved() {
                    self.resume(at);
                }
            }
        }
    }

    fn register_each(&self, at: &mut Irql<Dispatch>) -> Option<u32> {
        for (index, object) in (0..).zip(&self.objects) {
            let ended = object.locked(at, |inside| {
                if inside.signalled {
                    if !self.wait.withdraw(index) {
                        return Some(self.wait.status());
                    }
                    take(inside);
                    return Some(index);
                }
                inside.waiter = true;
                None
            });
            if ended.is_some() {
                return ended;
            }
        }
        self.wait.commit().err()
    }

    fn both_locked<R>(&self, at: &mut Irql<Dispatch>, f: impl FnOnce() -> R) -> R {
        K::both_locked(self.objects.each_ref().map(|object| &object.lock), at, f)
    }

    fn register_all(&self, at: &mut Irql<Dispatch>) -> Option<u32> {
        self.both_locked(at, || {
            if self.objects.iter().all(|object| object.with(|inside| inside.signalled)) {
                if !self.wait.withdraw(0) {
                    return Some(self.wait.status());
                }
                self.objects.iter().for_each(|object| object.with(take));
                return Some(0);
            }
            self.objects.iter().for_each(|object| object.with(|inside| inside.waiter = true));
            self.wait.commit().err()
        })
    }

    fn resume(&self, at: &mut Irql<Dispatch>) {
        self.handoff.run();
        // SAFETY: loom checks it.
        self.context.with(|context| assert_eq!(unsafe { *context }, 1, "resumed before it was saved"));
        self.go_on(self.wait.status(), at);
    }

    /// The wait is over: the blocks are taken out, and the thread returns.
    fn go_on(&self, status: u32, at: &mut Irql<Dispatch>) {
        assert_eq!(self.returned.fetch_add(1, Ordering::Relaxed), 0, "the wait returned twice");
        self.status.store(status, Ordering::Relaxed);
        for object in &self.objects {
            object.locked(at, |inside| inside.waiter = false);
        }
        for (index, object) in (0..).zip(&self.objects) {
            let ended_it = if self.kind == Kind::Any { status == index } else { status == 0 };
            // Whoever signalled it has let go; nobody else ever knows of it.
            if ended_it || !self.actors.contains(&Actor::Signal(index as usize)) {
                object.locked(at, |_| ());
                // SAFETY: loom checks it: an access that is not ordered before this is a race.
                object.inside.with_mut(|inside| unsafe { (*inside).freed = true });
            }
        }
    }

    /// event.rs and signal.rs.
    fn signal(&self, index: usize, at: &mut Irql<Dispatch>) {
        let object = &self.objects[index];
        let (mut ready, mut look) = (false, false);
        object.locked(at, |inside| {
            inside.signalled = true;
            inside.sets += 1;
            if !inside.waiter {
                return;
            }
            match self.kind {
                Kind::Any => {
                    let claim = self.wait.claim(index as u32);
                    if claim == Claim::Wake || claim == Claim::Noted {
                        take(inside);
                        inside.waiter = false;
                        ready = claim == Claim::Wake;
                    }
                }
                Kind::All => look = self.wait.begin_look() == Look::Begun,
            }
        });
        if ready || look && self.look_at_all(at) {
            self.make_ready(at);
        }
    }

    fn look_at_all(&self, at: &mut Irql<Dispatch>) -> bool {
        loop {
            let taken = self.both_locked(at, || {
                let all = self.objects.iter().all(|object| object.with(|inside| inside.signalled));
                if all {
                    for object in &self.objects {
                        object.with(|inside| {
                            take(inside);
                            inside.waiter = false;
                        });
                    }
                }
                all
            });
            if taken {
                self.wait.satisfied(0);
                return true;
            }
            match self.wait.unsatisfied() {
                Unsatisfied::WaitsOn => return false,
                Unsatisfied::Again => {}
                Unsatisfied::Ended => return true,
            }
        }
    }

    fn make_ready(&self, at: &mut Irql<Dispatch>) {
        if self.handoff.wake() == Wake::Now {
            self.resume(at);
        }
    }

    fn act(&self, actor: Actor, at: &mut Irql<Dispatch>) {
        match actor {
            Actor::Signal(index) => self.signal(index, at),
            Actor::Ends(status) => {
                let claim = self.wait.claim(status);
                if claim != Claim::Lost {
                    self.told.store(true, Ordering::Relaxed);
                }
                if claim == Claim::Wake {
                    self.make_ready(at);
                }
            }
        }
    }

    /// All have acted: one winner, whose objects were taken, and nothing else was.
    fn judge(&self) {
        let returned = self.returned.load(Ordering::Relaxed) == 1;
        let status = self.status.load(Ordering::Relaxed);
        for (index, object) in (0..).zip(&self.objects) {
            // SAFETY: everybody has been joined.
            object.inside.with(|inside| {
                // SAFETY: as above.
                let inside = unsafe { &*inside };
                let wins = returned && if self.kind == Kind::Any { status == index } else { status == 0 };
                assert_eq!(inside.takes, u32::from(wins), "taken by a loser, or not by the winner");
                assert_eq!(inside.signalled, inside.sets > inside.takes, "a signal is lost");
                assert!(returned != inside.waiter, "a block is left, or missing");
            });
        }
        // SAFETY: as above.
        let signalled =
            self.objects.each_ref().map(|it| it.inside.with(|inside| unsafe { (*inside).signalled }));
        let satisfiable = match self.kind {
            Kind::Any => signalled[0] || signalled[1],
            Kind::All => signalled[0] && signalled[1],
        };
        assert!(returned || !satisfiable, "the wait goes on, and could have ended");
        assert!(returned || !self.told.load(Ordering::Relaxed), "a timeout or an APC is lost");
    }
}

fn scenario<K: Lock>(kind: Kind, actors: &'static [Actor]) {
    let world = World::<K>::new(kind, actors);
    let others: Vec<_> = (1..)
        .zip(actors)
        .map(|(number, &actor)| {
            let world = world.clone();
            thread::spawn(move || on_processor::<Dispatch, _>(number, |at| world.act(actor, at)))
        })
        .collect();
    on_processor::<Dispatch, _>(0, |at| world.wait(at));
    for other in others {
        other.join().unwrap();
    }
    world.judge();
}

const A: Actor = Actor::Signal(0);
const B: Actor = Actor::Signal(1);
const T: Actor = Actor::Ends(TIMEOUT);
const P: Actor = Actor::Ends(APC);

macro_rules! pairs {
    ($(fn $name:ident() { $kind:ident $actors:expr })*) => {
        $(#[test] fn $name() {
            explore_looks(Some(3), 1, || scenario::<Shipped>(Kind::$kind, &$actors));
        })*

        mod complete {
            use super::*;
            $(#[test] fn $name() {
                explore(None, || scenario::<Blocking>(Kind::$kind, &$actors));
            })*
        }
    };
}

pairs! {
    fn any_against_both_signals() { Any [A, B] }
    fn any_against_a_signal_and_the_timeout() { Any [A, T] }
    fn any_against_the_later_signal_and_the_timeout() { Any [B, T] }
    fn any_against_a_signal_and_an_apc() { Any [A, P] }
    fn any_against_the_later_signal_and_an_apc() { Any [B, P] }
    fn any_against_the_timeout_and_an_apc() { Any [T, P] }
    fn all_against_both_signals() { All [A, B] }
    fn all_against_a_signal_and_the_timeout() { All [A, T] }
    fn all_against_the_later_signal_and_the_timeout() { All [B, T] }
    fn all_against_a_signal_and_an_apc() { All [A, P] }
    fn all_against_the_later_signal_and_an_apc() { All [B, P] }
    fn all_against_the_timeout_and_an_apc() { All [T, P] }
}

#[test]
fn any_against_everything() {
    explore_looks(Some(2), 0, || scenario::<Shipped>(Kind::Any, &[A, B, T, P]));
}

#[test]
fn all_against_everything() {
    explore_looks(Some(2), 0, || scenario::<Shipped>(Kind::All, &[A, B, T, P]));
}
