//! A thread of a machine for tests: what waits, objects and the scheduler need of one, as the shipped one has it, and its end.

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use sync::SpinLock;
use sync::attention::{Attention, Signs};
use sync::handoff::Handoff;
use sync::irql::{Dispatch, Irql, Level, Passive, ThreadLock};
use sync::wait_word::WaitWord;

use super::super::mutant::{self, Held};
use super::super::object::{Header, kind};
use super::super::queue::{self, Queue, QueueEntry};
use super::super::sched::{self, Schedulable};
use super::super::timer::{KTimer, TimerKind};
use super::super::wait::block::WaitBlock;
use super::super::wait::signal;
use super::Machine;

/// Wait blocks that a thread brings along, besides that of its timeout.
pub const OWN_OBJECTS: usize = 3;

/// See the module. Each field is what the shipped thread's of the same name is.
pub struct Thread {
    header: Header,
    pub(in crate::ke) sched: Schedulable,
    pub(in crate::ke) context: UnsafeCell<arch::switch::Context>,
    #[cfg_attr(not(feature = "verifier"), expect(dead_code, reason = "the checked build's"))]
    pub(in crate::ke) stack_user: AtomicU32,
    pub(in crate::ke) increment: AtomicU8,
    pub(in crate::ke) cycles: AtomicU64,
    pub(in crate::ke) handoff: Handoff,
    pub(in crate::ke) wait: WaitWord,
    pub(crate) attention: Attention,
    pub(in crate::ke) next_ready: AtomicPtr<Thread>,
    pub(in crate::ke) lock: SpinLock<(), ThreadLock>,
    pub(in crate::ke) queue: AtomicPtr<Queue>,
    pub(in crate::ke) queue_entry: AtomicPtr<QueueEntry>,
    pub(in crate::ke) blocks: UnsafeCell<[WaitBlock; OWN_OBJECTS + 1]>,
    pub(in crate::ke) timer: KTimer,
    registered: UnsafeCell<(*mut WaitBlock, usize)>,
    pub(in crate::ke) held: Held,
    name: Name,
    /// It has left its stack for good.
    ended: AtomicBool,
    /// Written before it runs.
    machine: Cell<Option<&'static Machine>>,
    /// The same.
    number: Cell<usize>,
}

/// For reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(&'static str);

impl Name {
    /// That text.
    pub const fn new(text: &'static str) -> Self {
        Self(text)
    }
}

// SAFETY: as the shipped thread's.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl Thread {
    /// One that no processor has run, of no machine.
    pub(in crate::ke) const fn new(sched: Schedulable, name: Name) -> Self {
        Self {
            header: Header::new(kind::THREAD, 0),
            sched,
            context: UnsafeCell::new(arch::switch::Context::empty()),
            stack_user: AtomicU32::new(0),
            increment: AtomicU8::new(0),
            cycles: AtomicU64::new(0),
            handoff: Handoff::new(),
            wait: WaitWord::new(),
            attention: Attention::new(),
            next_ready: AtomicPtr::new(ptr::null_mut()),
            lock: SpinLock::new(()),
            queue: AtomicPtr::new(ptr::null_mut()),
            queue_entry: AtomicPtr::new(ptr::null_mut()),
            blocks: UnsafeCell::new([const { WaitBlock::new() }; OWN_OBJECTS + 1]),
            timer: KTimer::new(TimerKind::Notification),
            registered: UnsafeCell::new((ptr::null_mut(), 0)),
            held: Held::new(),
            name,
            ended: AtomicBool::new(false),
            machine: Cell::new(None),
            number: Cell::new(0),
        }
    }

    /// It is `machine`'s, where it is called `number`. Before it runs.
    pub(super) fn enter(&self, machine: &'static Machine, number: usize) {
        self.machine.set(Some(machine));
        self.number.set(number);
    }

    /// The dispatcher object.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whose it is.
    pub fn machine(&self) -> &'static Machine {
        self.machine.get().expect("a thread of a machine")
    }

    /// Its number on its machine.
    pub fn number(&self) -> usize {
        self.number.get()
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name.0
    }

    /// Has it left its stack for good?
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The scheduler's part, to look at.
    pub fn scheduling(&self) -> &Schedulable {
        &self.sched
    }

    /// # Safety
    /// As the shipped one.
    pub(in crate::ke) unsafe fn of<'a>(part: NonNull<Schedulable>) -> &'a Thread {
        // SAFETY: the caller's.
        unsafe { &*part.as_ptr().byte_sub(core::mem::offset_of!(Thread, sched)).cast::<Thread>() }
    }

    pub(in crate::ke) fn part(&self) -> NonNull<Schedulable> {
        let this = ptr::from_ref(self).cast_mut();
        // SAFETY: a field of a reference is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*this).sched) }
    }

    pub(in crate::ke) fn cycles(&self) -> u64 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Does it hold a mutant?
    pub fn holds_mutants(&self) -> bool {
        !self.held.is_empty()
    }

    /// # Safety
    /// As the shipped one.
    pub(in crate::ke) unsafe fn set_registered(&self, blocks: &mut [WaitBlock]) {
        // SAFETY: nobody looks before the commit.
        unsafe { *self.registered.get() = (blocks.as_mut_ptr(), blocks.len()) };
    }

    /// # Safety
    /// As the shipped one.
    #[expect(clippy::mut_from_ref, reason = "they are the looker's while it looks")]
    pub(in crate::ke) unsafe fn registered(&self) -> &mut [WaitBlock] {
        // SAFETY: written before the commit that the look came after; the wait isn't over, so they are there.
        unsafe {
            let (first, count) = *self.registered.get();
            core::slice::from_raw_parts_mut(first, count)
        }
    }
}

/// What the shipped thread does to others when it ends, in the same order: the running thread is to do nothing afterwards.
pub fn end(at: &mut Irql<Passive>) {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { current(at).unbound() };
    let mut at = at.raise::<Dispatch>();
    give_up_all(me, &mut at);
    if let Some(thread) = signal::end_of(&me.header, &mut at) {
        // SAFETY: its wait was won just now.
        unsafe { sched::make_ready(thread, 0, &mut *at) };
    }
}

fn give_up_all(me: &Thread, at: &mut Irql<Dispatch>) {
    mutant::abandon_all(me, at);
    if me.attention.any(Signs::IN_QUEUE) {
        queue::leave(me, at);
    }
}

/// The running thread ends on its virtual processor: as the shipped one, without what it has not got, APCs, an exit status, extended
/// registers.
pub(super) fn exit(at: &mut Irql<Passive>) -> ! {
    // SAFETY: used by this thread's code alone.
    let me = unsafe { current(at).unbound() };
    let nothing = at.nothing_in_service();
    let mut at = core::mem::ManuallyDrop::new(at.raise::<Dispatch>());
    give_up_all(me, &mut at);
    sched::charge_running(&mut at);
    let joins = signal::end_of(&me.header, &mut at);
    // SAFETY: the wait of `joins` was won just now.
    unsafe { sched::leave_for_good(joins, &mut at, nothing) }
}

/// Its last switch is behind it.
pub(in crate::ke) fn left_for_good(thread: NonNull<Thread>) {
    // SAFETY: threads live for ever here.
    unsafe { thread.as_ref() }.ended.store(true, Ordering::Relaxed);
}

/// Nobody frees threads here.
pub(in crate::ke) fn is_anything_gone() -> bool {
    false
}

/// As above.
pub(in crate::ke) fn collect_gone(at: &mut Irql<Passive>) {
    at.check();
}

/// A quantum, in time stamps. When one is over is the test's to say (`tick`).
pub(in crate::ke) fn quantum() -> i64 {
    1 << 40
}

/// A thread by its reference: those of a machine live for ever.
pub struct ThreadRef(&'static Thread);

impl Deref for ThreadRef {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        self.0
    }
}

std::thread_local! {
    static CURRENT: Cell<Option<&'static Thread>> = const { Cell::new(None) };
}

/// This thread of the host plays `thread`.
pub(super) fn become_current(thread: &'static Thread) {
    CURRENT.set(Some(thread));
}

/// The thread that this thread of the host plays.
pub(super) fn mine() -> &'static Thread {
    CURRENT.get().expect("a thread of a machine")
}

/// Its machine.
pub(in crate::ke) fn machine_of_current() -> &'static Machine {
    mine().machine()
}

/// The running thread.
pub fn current<'a, L: Level>(at: &'a Irql<L>) -> Current<'a> {
    at.check();
    Current { thread: mine(), token: PhantomData }
}

/// The running thread, as [`current`] gives it.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    thread: &'static Thread,
    token: PhantomData<&'a ()>,
}

impl Current<'_> {
    /// Past the borrow of the token.
    ///
    /// # Safety
    /// As the shipped one.
    pub(in crate::ke) unsafe fn unbound(self) -> &'static Thread {
        self.thread
    }
}

impl Deref for Current<'_> {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        self.thread
    }
}
