//! Who waits for whom, told when a wait takes too long: the checked build's help with deadlocks.
//!
//! A wait for what a thread holds (a mutant, a lock of the executive) or is (its end) that lasts longer than the limit is printed with what
//! its holder waits for, what *its* holder waits for, and so on. If that leads back to a thread of the chain, nobody in it ever goes on:
//! a deadlock, and the report says so.
//!
//! Owns:       `Blocked`, what a thread notes of its wait; the list of all threads that were started and have not ended; the timer.
//! IRQL:       DISPATCH: notes by the thread itself, reports by the timer's DPC. So a report needs no thread, which might wait as well.
//! Locks:      the list's, and a thread's note, both of rank `ThreadLock`, one at a time.
//! Invariants: C1 a thread is in the list from before it starts until it ends; so those in it hold their own reference, and who finds one
//!                there, under the list's lock, may take another.
//!             C2 a thread's note is there from `begin` to `end` only, so before its wait returns to who asked for it. What it leads to
//!                stays as long as its lock is held: an object, or a lock of the executive, is its waiter's while that waits.
//!             C3 a holder is told by its address, read without the object's lock, and is nothing but a number until it is found in the list.
//!             C4 there is a note that was not judged => the timer is set, or its DPC is about to look.
//!             C5 who was let in, and has not run since, is no waiter, though its note is there: its wait is over, or what it waits for
//!                is its own. (A thread that waits for what it has is not told: that is a bugcheck, or granted.)
//! Deadlock:   the chain is followed twice. A wait that is the same the second time lasted in between, and what a waiting thread held
//!             then it holds all the while, unless somebody else releases a resource in its place. So if both times are the same, with no
//!             other way out of any of the waits, it is one.
//! Ordering:   C4: a note, a fence, a look at `ARMED`; the DPC clears that, a fence, looks at the notes.
//! Rarely:     each wait is judged once. A timer that finds none to come is not set again, so a machine at rest is left alone.
//! Not seen:   who shares a resource or a push lock, or has a rundown's uses: those chains end there. A wait for several objects is told by
//!             the first of them that has a holder; an event or a semaphore has none.
//! Tests:      selftest `ex::who_is_let_in_is_in_no_deadlock`; crash `mutants_in_a_circle`, `locks_in_a_chain`, `circle_with_a_timeout`, `held_for_long`.

use core::cell::Cell;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

use sync::SpinLock;
use sync::event::Behind;
use sync::irql::{Apc, Dispatch, Irql, Passive, ThreadLock};
use sync::wait_word::Look;

use super::super::dpc::Dpc;
use super::super::object::{Header, kind};
use super::super::thread::{Name, Thread, ThreadRef};
use super::super::timer::{Due, Options, Timer, TimerKind};
use super::super::{clock, mutant, thread};
use super::lost;

/// Limit in 100 ns; 0: nothing is told. Written at the start.
static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_MILLISECONDS * MILLISECOND);
/// The limit where none is set.
pub const DEFAULT_MILLISECONDS: u64 = 10_000;
const MILLISECOND: u64 = 10_000;
/// Threads that a chain is followed through.
const LONGEST: usize = 8;
/// Waits that are judged by one look; the next look has the rest.
const AT_ONCE: usize = 16;

/// Waits over the limit that were judged, and circles that were told as deadlocks.
static JUDGED: AtomicU32 = AtomicU32::new(0);
static DEADLOCKS: AtomicU32 = AtomicU32::new(0);

/// How many waits over the limit were judged since the start, and how many deadlocks were told.
pub fn judged_and_deadlocks() -> (u32, u32) {
    (JUDGED.load(Ordering::Relaxed), DEADLOCKS.load(Ordering::Relaxed))
}

/// Sets the limit, in milliseconds; 0: nothing is told.
pub(crate) fn set_limit(milliseconds: u64) {
    LIMIT.store(milliseconds.saturating_mul(MILLISECOND), Ordering::Relaxed);
}

/// Sets another limit, not 0, when waits are under way.
pub fn change_limit(milliseconds: u64, at: &mut Irql<Passive>) {
    set_limit(milliseconds);
    ARMED.store(true, Ordering::Relaxed);
    set_timer(LIMIT.load(Ordering::Relaxed), &mut at.raise::<Dispatch>());
}

/// What a thread waits for, as its wait says it.
#[derive(Clone, Copy)]
pub(super) struct For {
    /// Its object; of several, the first that has a holder, or just the first. Null: time alone.
    object: *const Header,
    /// Something else would end it: another object, its timeout.
    has_another_way_out: bool,
    /// It needs all of several.
    all: bool,
}

impl For {
    /// One object.
    #[inline(always)]
    pub(super) fn one(object: &Header, timed: bool) -> Self {
        Self { object, has_another_way_out: timed, all: false }
    }

    /// Time alone.
    #[inline(always)]
    pub(super) fn time() -> Self {
        Self { object: ptr::null(), has_another_way_out: true, all: false }
    }

    /// Several objects, one of which, or all, the thread needs.
    pub(super) fn several<'a>(
        objects: impl Iterator<Item = &'a Header> + Clone,
        any: bool,
        timed: bool,
    ) -> Self {
        let mut all = objects.clone();
        let is_held = |object: &&Header| has_holder(object.kind()) && !object.is_signalled();
        let object = objects.clone().find(is_held).or_else(|| all.next());
        let another = timed || any && objects.count() > 1;
        Self { object: object.map_or(ptr::null(), ptr::from_ref), has_another_way_out: another, all: !any }
    }
}

fn has_holder(kind: u8) -> bool {
    matches!(kind, kind::MUTANT | kind::THREAD)
}

/// A wait under way (C2).
struct Note {
    what: For,
    /// The lock that the thread sleeps behind, if it does, whose event the object is.
    behind: Option<Behind<'static>>,
}

/// A thread's part.
pub(in crate::ke) struct Blocked {
    note: SpinLock<Option<Note>, ThreadLock>,
    /// For the next wait: the thread's own.
    behind: Cell<Option<Behind<'static>>>,
    /// When the wait began, in 100 ns; 0: none. Written by the thread, with the note.
    since: AtomicU64,
    /// `since` of the last wait that was judged.
    judged: AtomicU64,
    /// `super::lost`.
    pub(in crate::ke) lost: lost::Part,
    /// C1; under the list's lock.
    next: Cell<*const Thread>,
    previous: Cell<*const Thread>,
}

impl Blocked {
    pub(in crate::ke) const fn new() -> Self {
        Self {
            note: SpinLock::new(None),
            behind: Cell::new(None),
            since: AtomicU64::new(0),
            judged: AtomicU64::new(0),
            lost: lost::Part::new(),
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
        }
    }

    fn is_judged(&self, since: u64) -> bool {
        self.judged.load(Ordering::Relaxed) == since
    }
}

/// Runs `wait`, the running thread's sleep behind a lock of the executive, with that noted.
pub(crate) fn sleep_behind<R>(
    behind: Option<Behind<'_>>,
    at: &mut Irql<Apc>,
    wait: impl FnOnce(&mut Irql<Apc>) -> R,
) -> R {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { thread::current(at).unbound() };
    // SAFETY: C2: it is used under the lock of the note that it gets into, which is gone before `wait` returns.
    let behind = behind.map(|it| unsafe { core::mem::transmute::<Behind<'_>, Behind<'static>>(it) });
    me.blocked.behind.set(behind);
    let result = wait(at);
    me.blocked.behind.set(None);
    result
}

/// There is a note, for [`end`].
#[must_use]
pub(super) struct Noted(());

/// `me`, the running thread, whose wait for `what` is committed, is about to block.
pub(super) fn begin(me: &Thread, what: For, at: &mut Irql<Dispatch>) -> Noted {
    let it = &me.blocked;
    *it.note.lock(at) = Some(Note { what, behind: it.behind.get() });
    it.since.store(clock::interrupt_time_precise().max(1), Ordering::Relaxed);
    let limit = LIMIT.load(Ordering::Relaxed);
    if limit != 0 {
        arm(limit, at);
    }
    Noted(())
}

/// It goes on: nobody looks at what it waited for any more.
pub(super) fn end(me: &Thread, _: Noted, at: &mut Irql<Dispatch>) {
    me.blocked.since.store(0, Ordering::Relaxed);
    lost::wait_is_over(me);
    *me.blocked.note.lock(at) = None;
}

/// Is `thread` in a wait that is noted? For who holds the list's lock.
pub(super) fn is_noted(thread: &Thread) -> bool {
    thread.blocked.since.load(Ordering::Relaxed) != 0
}

/// Begins a look at the wait of `thread`, if it is for all of several objects and nobody is at it. True: the thread and its objects stay
/// until the caller ends the look.
pub(super) fn begin_look(thread: &Thread, at: &mut Irql<Dispatch>) -> bool {
    let note = thread.blocked.note.lock(at);
    // C2: what is committed now is the wait that is noted.
    note.as_ref().is_some_and(|note| note.what.all) && thread.wait.begin_look() == Look::Begun
}

/// C4.
static ARMED: AtomicBool = AtomicBool::new(false);
static TIMER: Timer = Timer::new(TimerKind::Notification);
static LOOKS: Dpc = Dpc::new(|_, at, _| look(at));

/// A wait may have to be judged in `delay`: the timer is set unless it is (C4).
fn arm(delay: u64, at: &mut Irql<Dispatch>) {
    fence(Ordering::SeqCst);
    if !ARMED.load(Ordering::Relaxed) && !ARMED.swap(true, Ordering::AcqRel) {
        set_timer(delay, at);
    }
}

fn set_timer(delay: u64, at: &mut Irql<Dispatch>) {
    // It may be late by as much as a quarter, to be set less often.
    let options = Options { tolerance: LIMIT.load(Ordering::Relaxed) / 4, ..Options::default() };
    TIMER.set(Due::In(delay), options, Some(&LOOKS), at);
}

/// Judges the waits that have lasted too long.
fn look(at: &mut Irql<Dispatch>) {
    ARMED.store(false, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let (now, limit) = (clock::interrupt_time_precise(), LIMIT.load(Ordering::Relaxed));
    let mut found = [const { None }; AT_ONCE];
    let next = collect(&mut found, now, limit, at);
    lost::look(at);
    for thread in found.into_iter().flatten() {
        lost::examine(&thread, at);
        judge(&thread, now, at);
    }
    if let Some(since) = next {
        arm((since + limit).saturating_sub(now), at);
    }
}

/// The last thread (C1).
struct Live {
    last: *const Thread,
}

// SAFETY: the threads in the list stay while they are in it (C1), and are `Sync`.
unsafe impl Send for Live {}

static LIVE: SpinLock<Live, ThreadLock> = SpinLock::new(Live { last: ptr::null() });
/// The first (C1): under the lock. Beside it, so that a debugger finds it.
static FIRST: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// Where a debugger finds the threads when all stands still: the address of the pointer to the first; and in each thread the offsets of the
/// pointer to the next, of the stack pointer that a switch saved, of the number of the processor whose stack is the thread's, plus one (0: its
/// registers are saved), of the thread's number and of its name.
pub(crate) fn for_debuggers() -> (u64, [u32; 5]) {
    use core::mem::offset_of;
    let offsets = [
        offset_of!(Thread, blocked) + offset_of!(Blocked, next),
        offset_of!(Thread, context),
        offset_of!(Thread, stack_user),
        thread::NUMBER_AT,
        thread::NAME_AT,
    ];
    ((&raw const FIRST).addr() as u64, offsets.map(|offset| offset as u32))
}

/// `thread` is about to be started.
pub(in crate::ke) fn enter(thread: &Thread, at: &mut Irql<Dispatch>) {
    let mut live = LIVE.lock(at);
    thread.blocked.next.set(ptr::null());
    thread.blocked.previous.set(live.last);
    // SAFETY: C1.
    match unsafe { live.last.as_ref() } {
        Some(last) => last.blocked.next.set(thread),
        None => FIRST.store(ptr::from_ref(thread).cast_mut(), Ordering::Relaxed),
    }
    live.last = thread;
}

/// The running thread ends.
pub(in crate::ke) fn leave(me: &Thread, at: &mut Irql<Dispatch>) {
    let mut live = LIVE.lock(at);
    let (previous, next) = (me.blocked.previous.get(), me.blocked.next.get());
    // SAFETY: C1.
    unsafe {
        match previous.as_ref() {
            Some(previous) => previous.blocked.next.set(next),
            None => FIRST.store(next.cast_mut(), Ordering::Relaxed),
        }
        match next.as_ref() {
            Some(next) => next.blocked.previous.set(previous),
            None => live.last = previous,
        }
    }
}

/// Calls `f` with each thread of the list, until it breaks.
pub(super) fn for_each<R>(at: &mut Irql<Dispatch>, mut f: impl FnMut(&Thread) -> Option<R>) -> Option<R> {
    let _live = LIVE.lock(at);
    let mut next = FIRST.load(Ordering::Relaxed).cast_const();
    // SAFETY: C1.
    while let Some(thread) = unsafe { next.as_ref() } {
        if let Some(result) = f(thread) {
            return Some(result);
        }
        next = thread.blocked.next.get();
    }
    None
}

/// The waits that were not judged and are over the limit, as many as there is room for; when the first of all others began.
fn collect(
    found: &mut [Option<ThreadRef>; AT_ONCE],
    now: u64,
    limit: u64,
    at: &mut Irql<Dispatch>,
) -> Option<u64> {
    let mut slots = found.iter_mut().peekable();
    let mut first = None;
    for_each(at, |thread| {
        let since = thread.blocked.since.load(Ordering::Relaxed);
        if since != 0 && !thread.blocked.is_judged(since) {
            match slots.next_if(|_| now.saturating_sub(since) >= limit) {
                Some(slot) => *slot = Some(thread.reference()),
                None => first = Some(first.map_or(since, |first: u64| first.min(since))),
            }
        }
        None::<()>
    });
    first
}

/// The thread at `address`, if there is one (C3).
fn live(address: usize, at: &mut Irql<Dispatch>) -> Option<ThreadRef> {
    for_each(at, |thread| (ptr::from_ref(thread).addr() == address).then(|| thread.reference()))
}

/// What a thread waits for that waits for another's end.
const END: &str = "the end";

/// One link of a chain: a thread, and what it waits for. `what` is empty: for nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link {
    thread: usize,
    number: u64,
    name: Name,
    since: u64,
    what: &'static str,
    address: usize,
    has_another_way_out: bool,
    holder: usize,
}

impl Link {
    fn of(thread: &Thread, at: &mut Irql<Dispatch>) -> Self {
        let (number, name) = (thread.number(), thread.name());
        let guard = thread.blocked.note.lock(at);
        let since = thread.blocked.since.load(Ordering::Relaxed);
        let waits = since != 0 && thread.wait.is_waiting();
        let told = guard.as_ref().filter(|_| waits).map(Note::tell);
        // Its own: it was let in, and has not run since.
        let told = told.filter(|&(.., holder)| holder != ptr::from_ref(thread).addr());
        let (what, address, holder) = told.unwrap_or(("", 0, 0));
        let has_another_way_out = guard.as_ref().is_none_or(|note| note.what.has_another_way_out);
        let thread = ptr::from_ref(thread).addr();
        Self { thread, number, name, since, what, address, has_another_way_out, holder }
    }
}

impl Note {
    /// What is waited for, where it is, and who has it. Under the note's lock (C2).
    fn tell(&self) -> (&'static str, usize, usize) {
        if let Some(behind) = &self.behind {
            let (what, address) = behind.what();
            return (what, address, behind.holder());
        }
        // SAFETY: C2.
        let Some(object) = (unsafe { self.what.object.as_ref() }) else { return ("time", 0, 0) };
        let address = self.what.object.addr();
        match object.kind() {
            // SAFETY: the kind says what it heads.
            kind::MUTANT => ("mutant", address, unsafe { mutant::of(object) }.holder()),
            // A thread's header is its first field.
            kind::THREAD => (END, address, address),
            _ => ("object", address, 0),
        }
    }
}

/// A chain: the threads, each waiting for the next; and where the last leads back to, if it does.
#[derive(PartialEq, Eq)]
struct Chain {
    links: [Option<Link>; LONGEST],
    back_to: Option<usize>,
}

impl Chain {
    fn follow(first: &ThreadRef, at: &mut Irql<Dispatch>) -> Self {
        let mut chain = Self { links: [None; LONGEST], back_to: None };
        let mut thread = Some(first.clone());
        for place in 0..LONGEST {
            let Some(it) = thread else { break };
            let link = Link::of(&it, at);
            chain.links[place] = Some(link);
            let back_to = chain.links().position(|earlier| earlier.thread == link.holder);
            if back_to.is_some() {
                chain.back_to = back_to;
                break;
            }
            thread = if link.holder == 0 { None } else { live(link.holder, at) };
        }
        chain
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().flatten()
    }

    /// Those that wait for each other.
    fn circle(&self) -> impl Iterator<Item = &Link> {
        self.links().skip(self.back_to.unwrap_or(LONGEST))
    }
}

/// Tells of the wait of `thread`, if it is for what somebody has; what waits in its circle is told by that, too.
fn judge(thread: &ThreadRef, now: u64, at: &mut Irql<Dispatch>) {
    let chain = Chain::follow(thread, at);
    let again = Chain::follow(thread, at);
    let Some(first) = chain.links[0].filter(|first| !thread.blocked.is_judged(first.since)) else { return };
    thread.blocked.judged.store(first.since, Ordering::Relaxed);
    JUDGED.fetch_add(1, Ordering::Relaxed);
    let back_to = chain.back_to.filter(|_| chain == again);
    // The end of a thread may be long in coming.
    let is_usual = matches!(first.what, "" | "time" | "object") || first.what == END && back_to.is_none();
    if is_usual {
        return;
    }
    for (place, link) in chain.links().enumerate() {
        crate::warn!("{} {}", if place == 0 { "waits long:" } else { "  of" }, Told(link, now));
    }
    let Some(back_to) = back_to.and_then(|place| chain.links[place]) else { return };
    let ends = chain.circle().any(|link| link.has_another_way_out);
    DEADLOCKS.fetch_add(u32::from(!ends), Ordering::Relaxed);
    let kind = if ends { "a circle that may end" } else { "deadlock" };
    crate::warn!("  of thread {} again: {kind}, {} threads", back_to.number, chain.circle().count());
    for link in chain.circle() {
        if let Some(other) = live(link.thread, at) {
            other.blocked.judged.store(link.since, Ordering::Relaxed);
        }
    }
}

struct Told<'a>(&'a Link, u64);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(link, now) = self;
        write!(f, "thread {} \"{}\", which waits for ", link.number, link.name.as_str())?;
        match link.what {
            "" => return f.write_str("nothing"),
            END => f.write_str(END)?,
            what if link.address == 0 => f.write_str(what)?,
            what => write!(f, "{what} {:#x}", link.address)?,
        }
        write!(f, " for {} ms", now.saturating_sub(link.since) / MILLISECOND)
    }
}
