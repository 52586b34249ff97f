//! A thread of a machine for tests: what waits and objects need of one, as the shipped one has it, and its end.

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::AtomicPtr;

use sync::SpinLock;
use sync::attention::{Attention, Signs};
use sync::handoff::Handoff;
use sync::irql::{Dispatch, Irql, Level, Passive, ThreadLock};
use sync::wait_word::WaitWord;

use super::super::mutant::{self, Held};
use super::super::object::{Header, kind};
use super::super::queue::{self, Queue, QueueEntry};
use super::super::sched;
use super::super::timer::{KTimer, TimerKind};
use super::super::wait::block::WaitBlock;
use super::super::wait::signal;
use super::Machine;

/// Wait blocks that a thread brings along, besides that of its timeout.
pub const OWN_OBJECTS: usize = 3;

/// See the module. Each field is what the shipped thread's of the same name is.
pub struct Thread {
    header: Header,
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
    machine: &'static Machine,
    number: usize,
}

// SAFETY: as the shipped thread's.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl Thread {
    pub(super) fn new(machine: &'static Machine, number: usize) -> Self {
        Self {
            header: Header::new(kind::THREAD, 0),
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
            machine,
            number,
        }
    }

    /// The dispatcher object.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whose it is.
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// Its number on its machine.
    pub fn number(&self) -> usize {
        self.number
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
    mutant::abandon_all(me, &mut at);
    if me.attention.any(Signs::IN_QUEUE) {
        queue::leave(me, &mut at);
    }
    if let Some(thread) = signal::end_of(&me.header, &mut at) {
        // SAFETY: its wait was won just now.
        unsafe { sched::make_ready(thread, 0, &mut *at) };
    }
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
    mine().machine
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
