//! `ownership`, with the wait word, the objects' locks, lock sets and the hand-off as shipped: a mutant's release, or its owner's end,
//! against waits for it. Each release gives it to one waiter or leaves it free; whose wait it ended owns it, and has it in its list with
//! what it held before; nobody else does.
//!
//! The steps of kernel/ke/wait (single.rs, multiple.rs, timeout.rs, signal.rs) and of ke/mutant.rs are copied, around what is shipped. Signal
//! states and lists of waiters are loom cells under the mutants' locks. A thread goes on where it is made ready. It then releases what
//! what it held all along, out of order, and what it has got, which is the next release for those who wait behind it.
//! Bound: two threads: none. Three: three preemptions, one idle look.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::bit_lock::LockWord;
use sync::handoff::{Handoff, Wake};
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::lock_set::LockSet;
use sync::ownership::{Held, Ownable, Ownership};
use sync::wait_word::{Claim, Look, Openness, Unsatisfied, WaitWord};

const ABANDONED: u32 = 0x80;
const TIMEOUT: u32 = 0x102;
const THREADS: usize = 3;

#[derive(Clone, Copy)]
enum Wait {
    /// For the first, for ever: registered and committed in one.
    Single,
    /// For the first, with a timeout.
    Timed,
    Any,
    All,
}

#[derive(Clone, Copy)]
enum Role {
    /// Holds the mutant of this number from the start, and releases it.
    Releases(usize),
    /// The same, and ends without.
    Ends(usize),
    /// Waits, and releases what it gets.
    Waits(Wait),
    /// The timeout of the thread of this number.
    TimesOut(usize),
}

struct Inside {
    state: i32,
    abandoned: bool,
    /// Threads whose blocks are registered, in order.
    waiters: Vec<usize>,
}

struct Mutant {
    word: LockWord<ObjectLock>,
    inside: UnsafeCell<Inside>,
    ownership: Ownership<Self>,
}

impl Ownable for Mutant {
    type Owner = Thread;

    fn ownership(&self) -> &Ownership<Self> {
        &self.ownership
    }
}

struct Thread {
    number: usize,
    wait: WaitWord,
    kind: Option<Wait>,
    handoff: Handoff,
    held: Held<Mutant>,
    /// Held by it all along: its list is not empty when others are at it.
    own: Mutant,
    context: UnsafeCell<u32>,
    returned: AtomicU32,
}

struct World {
    mutants: [Mutant; 2],
    threads: [Thread; THREADS],
    /// How often a mutant was got by a wait.
    got: AtomicU32,
}

// SAFETY: cells are accessed under locks, or by who has the thread: what the models check.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl Mutant {
    fn new() -> Self {
        let inside = Inside { state: 1, abandoned: false, waiters: Vec::new() };
        Self { word: LockWord::new(2), inside: UnsafeCell::new(inside), ownership: Ownership::new() }
    }

    /// Under its lock.
    fn with<R>(&self, f: impl FnOnce(&mut Inside) -> R) -> R {
        // SAFETY: loom checks it.
        self.inside.with_mut(|inside| f(unsafe { &mut *inside }))
    }

    fn is_free(&self) -> bool {
        self.with(|inside| inside.state > 0)
    }

    /// `Mutant::take`, of one that is free: what it adds to the status.
    fn take(&self, thread: &Thread) -> u32 {
        // SAFETY: as in mutant.rs, which loom checks: locked, free, and the list is the caller's.
        unsafe { thread.held.acquire(self, thread) };
        self.with(|inside| {
            assert_eq!(inside.state, 1, "taken and not free");
            inside.state = 0;
            if core::mem::take(&mut inside.abandoned) { ABANDONED } else { 0 }
        })
    }

    fn abandoned(&self) -> u32 {
        self.with(|inside| if inside.abandoned { ABANDONED } else { 0 })
    }

    fn unregister(&self, thread: &Thread) {
        self.with(|inside| inside.waiters.retain(|&it| it != thread.number));
    }
}

impl Thread {
    fn new(number: usize, role: Option<&Role>) -> Self {
        let kind = if let Some(Role::Waits(kind)) = role { Some(*kind) } else { None };
        Self {
            number,
            wait: WaitWord::new(),
            kind,
            handoff: Handoff::new(),
            held: Held::new(),
            own: Mutant::new(),
            context: UnsafeCell::new(0),
            returned: AtomicU32::new(0),
        }
    }
}

impl World {
    fn new(roles: &'static [Role]) -> Arc<Self> {
        let it = Arc::new(Self {
            mutants: [Mutant::new(), Mutant::new()],
            threads: core::array::from_fn(|number| Thread::new(number, roles.get(number))),
            got: AtomicU32::new(0),
        });
        for (thread, role) in it.threads.iter().zip(roles) {
            thread.handoff.run();
            match *role {
                Role::Releases(mutant) | Role::Ends(mutant) => drop(it.mutants[mutant].take(thread)),
                Role::Waits(_) => drop(thread.own.take(thread)),
                Role::TimesOut(_) => {}
            }
        }
        it
    }

    /// What `me` waits for.
    fn objects(&self, me: &Thread) -> &[Mutant] {
        match me.kind {
            Some(Wait::Any | Wait::All) => &self.mutants,
            _ => &self.mutants[..1],
        }
    }

    /// A wait of `me`, up to the switch.
    fn wait(&self, me: &Thread, at: &mut Irql<Dispatch>) {
        let ended = match me.kind.unwrap() {
            Wait::Single => self.register_at_once(me, at),
            Wait::Timed | Wait::Any => {
                me.wait.begin();
                self.register_each(me, at)
            }
            Wait::All => {
                me.wait.begin();
                self.register_all(me, at)
            }
        };
        match ended {
            Some(status) => self.go_on(me, status, at),
            None => {
                // SAFETY: loom checks it.
                me.context.with_mut(|context| unsafe { *context = 1 });
                if me.handoff.saved() {
                    self.resume(me, at);
                }
            }
        }
    }

    /// single.rs.
    fn register_at_once(&self, me: &Thread, at: &mut Irql<Dispatch>) -> Option<u32> {
        let mutant = &self.mutants[0];
        let _guard = mutant.word.lock(at);
        if mutant.is_free() {
            return Some(mutant.take(me));
        }
        mutant.with(|inside| inside.waiters.push(me.number));
        me.wait.commit_open_at_once(Openness::KERNEL_APC);
        None
    }

    /// multiple.rs; for one object timeout.rs, which commits under its lock.
    fn register_each(&self, me: &Thread, at: &mut Irql<Dispatch>) -> Option<u32> {
        for (index, mutant) in (0..).zip(self.objects(me)) {
            let _guard = mutant.word.lock(&mut *at);
            if mutant.is_free() && me.wait.withdraw(index) {
                return Some(index + mutant.take(me));
            }
            if mutant.is_free() {
                return Some(me.wait.status());
            }
            mutant.with(|inside| inside.waiters.push(me.number));
            if matches!(me.kind, Some(Wait::Timed)) {
                return me.wait.commit().err();
            }
        }
        me.wait.commit().err()
    }

    fn register_all(&self, me: &Thread, at: &mut Irql<Dispatch>) -> Option<u32> {
        let mut words = self.mutants.each_ref().map(|mutant| &mutant.word);
        let _set = LockSet::lock(&mut words, at);
        if self.mutants.iter().all(Mutant::is_free) {
            if !me.wait.withdraw(0) {
                return Some(me.wait.status());
            }
            return Some(self.take_each(me));
        }
        self.mutants.iter().for_each(|mutant| mutant.with(|inside| inside.waiters.push(me.number)));
        me.wait.commit().err()
    }

    fn take_each(&self, thread: &Thread) -> u32 {
        self.mutants.iter().fold(0, |status, mutant| status | mutant.take(thread))
    }

    fn resume(&self, me: &Thread, at: &mut Irql<Dispatch>) {
        me.handoff.run();
        // SAFETY: loom checks it.
        me.context.with(|context| assert_eq!(unsafe { *context }, 1, "resumed before it was saved"));
        self.go_on(me, me.wait.status(), at);
    }

    /// The wait is over: the blocks are taken out, and the thread has what it waited for.
    fn go_on(&self, me: &Thread, status: u32, at: &mut Irql<Dispatch>) {
        assert_eq!(me.returned.fetch_add(1, Ordering::Relaxed), 0, "the wait returned twice");
        let by_objects = status & !ABANDONED < 2;
        let alone = matches!(me.kind, Some(Wait::Single | Wait::Timed));
        for mutant in self.objects(me) {
            // Who ended a wait for all, or for this mutant alone, by a release has taken the blocks out.
            let known = matches!(me.kind, Some(Wait::All)) && by_objects || alone && status == 0;
            if !known {
                let _guard = mutant.word.lock(&mut *at);
                mutant.unregister(me);
            }
        }
        let got = match me.kind.unwrap() {
            _ if !by_objects => &self.mutants[..0],
            Wait::Single | Wait::Timed => &self.mutants[..1],
            Wait::Any => core::slice::from_ref(&self.mutants[(status & !ABANDONED) as usize]),
            Wait::All => &self.mutants,
        };
        // It is behind what was got, for once.
        self.release(&me.own, me, false, at);
        for mutant in got.iter().rev() {
            // SAFETY: the thread runs, so its list is its own: loom checks it.
            let first = unsafe { me.held.first() };
            assert!(
                first.is_some_and(|it| core::ptr::eq(it, mutant)),
                "not in the list of whom it was given"
            );
            assert!(mutant.ownership.is_by(me), "owned by another");
            self.got.fetch_add(1, Ordering::Relaxed);
            self.release(mutant, me, false, at);
        }
        // SAFETY: as above.
        assert!(unsafe { me.held.first() }.is_none(), "more than it was given");
    }

    /// `Mutant::release`, or one step of `abandon_all`, of a mutant that `me` holds once; signal.rs.
    fn release(&self, mutant: &Mutant, me: &Thread, abandons: bool, at: &mut Irql<Dispatch>) {
        let (mut ready, mut looks) = (Vec::new(), Vec::new());
        {
            let _guard = mutant.word.lock(&mut *at);
            assert!(mutant.ownership.is_by(me), "owned by another");
            // SAFETY: as in mutant.rs, which loom checks.
            unsafe { me.held.release(mutant) };
            mutant.with(|inside| {
                assert_eq!(inside.state, 0, "released and not held");
                (inside.state, inside.abandoned) = (1, abandons);
            });
            for number in mutant.with(|inside| inside.waiters.clone()) {
                if !mutant.is_free() {
                    break;
                }
                let thread = &self.threads[number];
                if matches!(thread.kind, Some(Wait::All)) {
                    if thread.wait.begin_look() == Look::Begun {
                        looks.push(thread);
                    }
                    continue;
                }
                let key = self.objects(thread).iter().position(|it| core::ptr::eq(it, mutant)).unwrap();
                let claim = thread.wait.claim(key as u32 | mutant.abandoned());
                if claim == Claim::Wake || claim == Claim::Noted {
                    let _ = mutant.take(thread);
                    mutant.unregister(thread);
                }
                if claim == Claim::Wake {
                    ready.push(thread);
                }
            }
        }
        looks.retain(|thread| self.look_at_all(thread, at));
        for thread in ready.into_iter().chain(looks) {
            if thread.handoff.wake() == Wake::Now {
                self.resume(thread, at);
            }
        }
    }

    fn look_at_all(&self, thread: &Thread, at: &mut Irql<Dispatch>) -> bool {
        loop {
            let taken = {
                let mut words = self.mutants.each_ref().map(|mutant| &mutant.word);
                let _set = LockSet::lock(&mut words, at);
                self.mutants.iter().all(Mutant::is_free).then(|| {
                    self.mutants.iter().for_each(|mutant| mutant.unregister(thread));
                    self.take_each(thread)
                })
            };
            if let Some(status) = taken {
                thread.wait.satisfied(status);
                return true;
            }
            match thread.wait.unsatisfied() {
                Unsatisfied::WaitsOn => return false,
                Unsatisfied::Again => {}
                Unsatisfied::Ended => return true,
            }
        }
    }

    fn act(&self, number: usize, role: Role, at: &mut Irql<Dispatch>) {
        let me = &self.threads[number];
        match role {
            Role::Releases(mutant) => self.release(&self.mutants[mutant], me, false, at),
            Role::Ends(mutant) => self.release(&self.mutants[mutant], me, true, at),
            Role::Waits(_) => self.wait(me, at),
            Role::TimesOut(target) => {
                let target = &self.threads[target];
                if target.wait.claim(TIMEOUT) == Claim::Wake && target.handoff.wake() == Wake::Now {
                    self.resume(target, at);
                }
            }
        }
    }

    /// All have acted, and every mutant was released: all waits are over, each mutant is free, and nobody's.
    fn judge(&self, gets: core::ops::RangeInclusive<u32>) {
        for mutant in &self.mutants {
            mutant.with(|inside| {
                assert_eq!(inside.state, 1, "held by nobody who is left");
                assert!(inside.waiters.is_empty(), "a block is left");
            });
        }
        for thread in self.threads.iter().filter(|thread| thread.kind.is_some()) {
            assert_eq!(thread.returned.load(Ordering::Relaxed), 1, "a wait goes on, and could have ended");
        }
        assert!(gets.contains(&self.got.load(Ordering::Relaxed)), "got too often, or too rarely");
    }
}

fn scenario(roles: &'static [Role], gets: core::ops::RangeInclusive<u32>) {
    let world = World::new(roles);
    let others: Vec<_> = (1..roles.len())
        .map(|number| {
            let world = world.clone();
            thread::spawn(move || {
                on_processor::<Dispatch, _>(number as u32, |at| world.act(number, roles[number], at));
            })
        })
        .collect();
    on_processor::<Dispatch, _>(0, |at| world.act(0, roles[0], at));
    for other in others {
        other.join().unwrap();
    }
    world.judge(gets);
}

#[test]
fn released_against_a_wait() {
    explore(None, || scenario(&[Role::Waits(Wait::Single), Role::Releases(0)], 1..=1));
}

#[test]
fn abandoned_against_a_wait() {
    explore(None, || scenario(&[Role::Waits(Wait::Single), Role::Ends(0)], 1..=1));
}

#[test]
fn released_against_a_wait_and_its_timeout() {
    let roles = &[Role::Waits(Wait::Timed), Role::Releases(0), Role::TimesOut(0)];
    explore_looks(Some(3), 1, || scenario(roles, 0..=1));
}

#[test]
fn abandoned_against_a_wait_and_its_timeout() {
    let roles = &[Role::Waits(Wait::Timed), Role::Ends(0), Role::TimesOut(0)];
    explore_looks(Some(3), 1, || scenario(roles, 0..=1));
}

#[test]
fn both_released_against_a_wait_for_any() {
    let roles = &[Role::Waits(Wait::Any), Role::Releases(0), Role::Releases(1)];
    explore_looks(Some(3), 1, || scenario(roles, 1..=1));
}

#[test]
fn released_and_abandoned_against_a_wait_for_any() {
    let roles = &[Role::Waits(Wait::Any), Role::Releases(1), Role::Ends(0)];
    explore_looks(Some(3), 1, || scenario(roles, 1..=1));
}

#[test]
fn both_released_against_a_wait_for_all() {
    let roles = &[Role::Waits(Wait::All), Role::Releases(0), Role::Releases(1)];
    explore_looks(Some(3), 1, || scenario(roles, 2..=2));
}

#[test]
fn released_while_two_wait() {
    let roles = &[Role::Waits(Wait::Single), Role::Releases(0), Role::Waits(Wait::Single)];
    explore_looks(Some(3), 1, || scenario(roles, 2..=2));
}
