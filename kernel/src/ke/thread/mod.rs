//! Threads: what one is, who may touch what of it, and references to it.
//!
//! Owns:       [`Thread`], [`ThreadRef`], who the current one is. Not: making and ending them (`create`), running them (`sched`).
//! IRQL:       as each function says; [`current`] at any level in a thread's context.
//! Invariants: I1 a thread's memory stays while `references` is not zero. A thread that was started and has not left its stack for
//!                good holds one itself.
//!             I2 `context` is written by the switch away from it, and read by the switch to it, by the processor that has the thread: on
//!                it, or off a queue. `sync::handoff` and `PrcbLock` keep the two apart.
//!             I3 `blocks` and `timer` are used by the thread's own wait alone, but for what is registered: that, under the
//!                object's lock.
//!             I4 `space` is the address space that it is attached to (`mm::process::here`), loaded wherever it runs. The thread
//!                itself writes it; who switches to or from it reads it.
//!             I5 `trims_nothing` is the thread's own.
//!             I6 `extended` is where its extended registers are when it doesn't run (`ke::extended`, I1): written by the thread itself,
//!                read by who switches to or from it.
//!             I7 `blocked`: as `wait::chain` says.
//! Sources:    WDK, `PsCreateSystemThread`, "Windows Kernel-Mode Process and Thread Manager".

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use sync::SpinLock;
use sync::attention::Attention;
use sync::handoff::Handoff;
use sync::irql::ThreadLock;
use sync::irql::{Irql, Level};
use sync::wait_word::WaitWord;

use super::apc::ApcState;
use super::extended::Area;
use super::mutant::Held;
use super::object::{Header, kind};
use super::queue::{Queue, QueueEntry};
use super::sched::Schedulable;
use super::timer::{KTimer, TimerKind};
use super::wait::block::WaitBlock;
#[cfg(feature = "verifier")]
use super::wait::chain::Blocked;
use crate::rtl::NtStatus;

mod create;
pub(crate) mod stack;
mod suspend;
mod terminate;

#[cfg(feature = "verifier")]
pub use create::are_any_on_their_way;
pub(crate) use create::become_idle;
#[cfg(feature = "verifier")]
pub(crate) use create::count_as_ended;
pub(crate) use create::spawn_zero_page_thread;
pub(in crate::ke) use create::{Cache, collect_gone, is_anything_gone, left_for_good, quantum};
pub use create::{Options, Routine, exit, spawn, start_first, trim};
pub use suspend::MAXIMUM_SUSPEND_COUNT;

/// Wait blocks that a thread brings along: three for a caller without an array of its own, one for its timeout.
#[doc(alias = "THREAD_WAIT_OBJECTS")]
pub const OWN_OBJECTS: usize = 3;

/// NT's KTHREAD, as far as this kernel needs one. Drivers know its address, and that it is a dispatcher object.
#[repr(C)]
pub struct Thread {
    header: Header,
    /// TSC ticks in ring 3: written by the entries from there, on the processor that runs it.
    user_cycles: AtomicU64,
    /// The scheduler's part.
    pub(in crate::ke) sched: Schedulable,
    /// I2.
    pub(in crate::ke) context: UnsafeCell<arch::switch::Context>,
    pub(in crate::ke) handoff: Handoff,
    /// `sched::verify`, I1.
    #[cfg(feature = "verifier")]
    pub(in crate::ke) stack_user: AtomicU32,
    /// It makes or hides pages of paged pool (`mm::paged::trimming`): by itself.
    #[cfg(feature = "verifier")]
    pub(crate) trims_nothing: Cell<bool>,
    /// It counts as one that has ended, and will: by itself.
    #[cfg(feature = "verifier")]
    is_as_good_as_ended: Cell<bool>,
    /// Whoever wins it ends the thread's wait.
    pub(in crate::ke) wait: WaitWord,
    /// What it is to look at: any writes, as each sign's owner says.
    pub(crate) attention: Attention,
    /// In a list of threads whose waits ended (`wait::signal`): by the winner.
    pub(in crate::ke) next_ready: AtomicPtr<Thread>,
    /// What the winner gives it if it can't be made ready at once: read by who does.
    pub(in crate::ke) increment: AtomicU8,
    pub(in crate::ke) lock: SpinLock<(), ThreadLock>,
    references: AtomicU32,
    exit_status: AtomicU32,
    /// With what whoever ended it wants it to end: before the sign that says so.
    pub(in crate::ke) terminate_with: AtomicU32,
    pub(in crate::ke) apc: ApcState,
    suspension: suspend::Suspension,
    #[cfg(feature = "verifier")]
    pub(in crate::ke) blocked: Blocked,
    /// The queue that it belongs to: written by itself.
    pub(in crate::ke) queue: AtomicPtr<Queue>,
    /// What a queue gave it: by whoever ended its wait for that, or itself.
    pub(in crate::ke) queue_entry: AtomicPtr<QueueEntry>,
    /// TSC ticks that it ran: written by the processor that runs it.
    pub(in crate::ke) cycles: AtomicU64,
    /// I3: for up to [`OWN_OBJECTS`], and the last for the timeout.
    pub(in crate::ke) blocks: UnsafeCell<[WaitBlock; OWN_OBJECTS + 1]>,
    /// I3.
    pub(in crate::ke) timer: KTimer,
    /// The blocks of a wait for all, for who looks at it: written by the thread before it commits.
    registered: UnsafeCell<Registered>,
    /// I4; null: none.
    pub(crate) space: Cell<*const ()>,
    /// I6; null: none.
    pub(in crate::ke) extended: Cell<*mut Area>,
    /// Mutants that it holds (mutant.rs, I2).
    pub(in crate::ke) held: Held,
    /// Written once, before it starts.
    number: AtomicU64,
    name: UnsafeCell<Name>,
    start: UnsafeCell<create::Start>,
    pub(in crate::ke) stack: UnsafeCell<Option<stack::Stack>>,
}

// SAFETY: I2 to I7 say who is at the cells, and when; `name`, `start` and `stack` are written before the thread starts and by whoever
// took the last reference, or left the stack. The rest is atomics and locks.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

const _: () = assert!(
    core::mem::offset_of!(Thread, user_cycles) == arch::pcr::THREAD_USER_CYCLES,
    "the entries from ring 3 write it"
);

/// Where the blocks of a wait for all are.
struct Registered {
    first: *mut WaitBlock,
    count: usize,
}

/// For reports: up to 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    bytes: [u8; 15],
    len: u8,
}

/// For debuggers: where a thread has its number and its name, 15 bytes and how many of them it has.
#[cfg(feature = "verifier")]
pub(in crate::ke) const NUMBER_AT: usize = core::mem::offset_of!(Thread, number);
#[cfg(feature = "verifier")]
pub(in crate::ke) const NAME_AT: usize = core::mem::offset_of!(Thread, name);

impl Name {
    /// The first 15 bytes of `text`, cut between characters.
    pub const fn new(text: &str) -> Self {
        let text = text.as_bytes();
        let mut len = if text.len() < 15 { text.len() } else { 15 };
        while len < text.len() && len > 0 && text[len] & 0xC0 == 0x80 {
            len -= 1;
        }
        let mut bytes = [0; 15];
        bytes.split_at_mut(len).0.copy_from_slice(text.split_at(len).0);
        Self { bytes, len: len as u8 }
    }

    /// Its first eight bytes, for the trace.
    pub(in crate::ke) fn start(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.bytes;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // It was cut between characters.
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl Thread {
    /// A thread that was not started, with one reference.
    pub(in crate::ke) const fn new(sched: Schedulable, name: Name) -> Self {
        Self {
            header: Header::new(kind::THREAD, 0),
            user_cycles: AtomicU64::new(0),
            sched,
            context: UnsafeCell::new(arch::switch::Context::empty()),
            handoff: Handoff::new(),
            #[cfg(feature = "verifier")]
            stack_user: AtomicU32::new(0),
            #[cfg(feature = "verifier")]
            trims_nothing: Cell::new(false),
            #[cfg(feature = "verifier")]
            is_as_good_as_ended: Cell::new(false),
            wait: WaitWord::new(),
            attention: Attention::new(),
            next_ready: AtomicPtr::new(core::ptr::null_mut()),
            increment: AtomicU8::new(0),
            lock: SpinLock::new(()),
            references: AtomicU32::new(1),
            exit_status: AtomicU32::new(NtStatus::PENDING.0),
            terminate_with: AtomicU32::new(NtStatus::PENDING.0),
            apc: ApcState::new(),
            suspension: suspend::Suspension::new(),
            #[cfg(feature = "verifier")]
            blocked: Blocked::new(),
            queue: AtomicPtr::new(core::ptr::null_mut()),
            queue_entry: AtomicPtr::new(core::ptr::null_mut()),
            cycles: AtomicU64::new(0),
            blocks: UnsafeCell::new([const { WaitBlock::new() }; OWN_OBJECTS + 1]),
            timer: KTimer::new(TimerKind::Notification),
            registered: UnsafeCell::new(Registered { first: core::ptr::null_mut(), count: 0 }),
            space: Cell::new(core::ptr::null()),
            extended: Cell::new(core::ptr::null_mut()),
            held: Held::new(),
            number: AtomicU64::new(0),
            name: UnsafeCell::new(name),
            start: UnsafeCell::new(create::Start::none()),
            stack: UnsafeCell::new(None),
        }
    }

    /// Makes an ended thread one that was not started, with two references, its maker's and its own: what [`new`](Self::new) would, but that
    /// its stack is kept, and what its end has left as it was at the start. Every field is named, so that a new one is decided on.
    #[inline(always)]
    pub(in crate::ke) fn renew(&mut self, part: Schedulable, new_name: Name) {
        let Self {
            header,
            user_cycles,
            sched,
            handoff,
            wait,
            increment,
            references,
            exit_status,
            cycles,
            attention,
            terminate_with,
            apc,
            suspension,
            space,
            #[cfg(feature = "verifier")]
                stack_user: _,
            // Back where it was before each call.
            #[cfg(feature = "verifier")]
                trims_nothing: _,
            // Taken by its end.
            #[cfg(feature = "verifier")]
                is_as_good_as_ended: _,
            name,
            // It waits for nothing, and is in no list.
            #[cfg(feature = "verifier")]
                blocked: _,
            // Written before they are used.
            context: _,
            next_ready: _,
            registered: _,
            number: _,
            start: _,
            // It has left its queue, and every entry that it was given was taken.
            queue: _,
            queue_entry: _,
            // Free; registered nowhere, the last at most with the thread's own timer; not set; empty; given back; kept.
            lock: _,
            blocks: _,
            timer: _,
            held: _,
            extended: _,
            stack: _,
        } = self;
        *header = Header::new(kind::THREAD, 0);
        *user_cycles.get_mut() = 0;
        *sched = part;
        *handoff = Handoff::new();
        *wait = WaitWord::new();
        *increment.get_mut() = 0;
        *references.get_mut() = 2;
        *exit_status.get_mut() = NtStatus::PENDING.0;
        *cycles.get_mut() = 0;
        *attention = Attention::new();
        *terminate_with.get_mut() = NtStatus::PENDING.0;
        apc.renew();
        suspension.renew();
        *space.get_mut() = core::ptr::null();
        *name.get_mut() = new_name;
    }

    /// The dispatcher object: signalled when the thread has ended.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The scheduler's part, to look at.
    pub fn scheduling(&self) -> &Schedulable {
        &self.sched
    }

    /// The thread whose scheduling part `part` is.
    ///
    /// # Safety
    /// It is part of a thread, which stays for `'a`.
    #[inline(always)]
    pub(in crate::ke) unsafe fn of<'a>(part: NonNull<Schedulable>) -> &'a Thread {
        // SAFETY: the caller's.
        unsafe { &*part.as_ptr().byte_sub(core::mem::offset_of!(Thread, sched)).cast::<Thread>() }
    }

    /// Says where the blocks of its wait for all are.
    ///
    /// # Safety
    /// By the thread itself, before it commits; they stay until the wait is over.
    pub(in crate::ke) unsafe fn set_registered(&self, blocks: &mut [WaitBlock]) {
        // SAFETY: nobody looks before the commit.
        unsafe { *self.registered.get() = Registered { first: blocks.as_mut_ptr(), count: blocks.len() } };
    }

    /// The same blocks.
    ///
    /// # Safety
    /// By who has begun a look at its wait, which it has not ended.
    #[expect(clippy::mut_from_ref, reason = "they are the looker's while it looks")]
    pub(in crate::ke) unsafe fn registered(&self) -> &mut [WaitBlock] {
        // SAFETY: written before the commit that the look came after; the wait isn't over, so they are there.
        unsafe {
            let Registered { first, count } = core::ptr::read(self.registered.get());
            core::slice::from_raw_parts_mut(first, count)
        }
    }

    /// As the queues have it.
    #[inline(always)]
    pub(in crate::ke) fn part(&self) -> NonNull<Schedulable> {
        // With the thread's provenance, so that `of` may go back.
        let this = core::ptr::from_ref(self).cast_mut();
        // SAFETY: a field of a reference is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*this).sched) }
    }

    /// Its name.
    pub fn name(&self) -> Name {
        // SAFETY: written before the thread was started or referenced by others.
        unsafe { *self.name.get() }
    }

    /// A number that no other thread had or will have.
    #[doc(alias = "PsGetThreadId")]
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// With what it ended; STATUS_PENDING before.
    #[doc(alias = "PsGetThreadExitStatus")]
    pub fn exit_status(&self) -> NtStatus {
        NtStatus(self.exit_status.load(Ordering::Acquire))
    }

    /// TSC ticks that it ran up to its last switch.
    pub fn cycles(&self) -> u64 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Those of them in user mode, up to the last time that it left that. NMIs that came there count as its own.
    #[doc(alias = "KeQueryRuntimeThread")]
    pub fn user_cycles(&self) -> u64 {
        self.user_cycles.load(Ordering::Relaxed)
    }

    /// Those in kernel mode, with the interrupts that it was hit by. Of a thread that runs: too few by what came since its last switch.
    pub fn kernel_cycles(&self) -> u64 {
        self.cycles().saturating_sub(self.user_cycles())
    }

    /// Is `address` in the page below its stack? For reports: of a thread that doesn't run elsewhere.
    pub(in crate::ke) fn stack_guards(&self, address: u64) -> bool {
        // SAFETY: written before the thread was started.
        unsafe { (*self.stack.get()).as_ref() }.is_some_and(|stack| stack.guards(address))
    }

    /// The lowest address of its stack, and where it ends; nothing for an idle thread, which has its processor's.
    #[doc(alias = "IoGetStackLimits")]
    pub fn stack(&self) -> Option<(u64, u64)> {
        // SAFETY: written before the thread was started.
        unsafe { (*self.stack.get()).as_ref() }.map(|stack| (stack.bottom(), stack.top()))
    }

    /// Has it ended?
    pub fn is_terminated(&self) -> bool {
        self.header.is_signalled()
    }

    /// A reference more.
    #[doc(alias = "ObReferenceObject")]
    pub fn reference(&self) -> ThreadRef {
        let before = self.references.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before != 0, "I1");
        ThreadRef { thread: NonNull::from(self) }
    }
}

/// A counted reference: the thread's memory stays as long as it.
pub struct ThreadRef {
    thread: NonNull<Thread>,
}

// SAFETY: a reference to what is `Sync`, counted atomically.
unsafe impl Send for ThreadRef {}
// SAFETY: as above.
unsafe impl Sync for ThreadRef {}

impl ThreadRef {
    /// The reference stays counted, until [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> NonNull<Thread> {
        let thread = self.thread;
        core::mem::forget(self);
        thread
    }

    /// Takes it over again.
    ///
    /// # Safety
    /// It came from [`into_raw`](Self::into_raw), once, or is one that a new thread was made with.
    pub unsafe fn from_raw(thread: NonNull<Thread>) -> Self {
        Self { thread }
    }
}

impl Deref for ThreadRef {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        // SAFETY: I1.
        unsafe { self.thread.as_ref() }
    }
}

impl Clone for ThreadRef {
    fn clone(&self) -> Self {
        self.reference()
    }
}

impl Drop for ThreadRef {
    /// At any level: who frees the memory is seen to later, if this is the last.
    fn drop(&mut self) {
        if self.references.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            create::last_reference_gone(self.thread);
        }
    }
}

/// The running thread. It stays while its own code runs, so for as long as a token of that code.
#[doc(alias = "KeGetCurrentThread")]
#[inline(always)]
pub fn current<'a, L: Level>(at: &'a Irql<L>) -> Current<'a> {
    at.check();
    Current { thread: arch::pcr::current_thread().cast(), token: PhantomData }
}

/// The running thread, as [`current`] gives it.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    thread: *const Thread,
    token: PhantomData<&'a ()>,
}

impl Current<'_> {
    /// The thread, for as long as the caller is that thread: past the borrow of the token, for a wait that needs that.
    ///
    /// # Safety
    /// It is used by code of this thread alone, or of an interrupt of it.
    #[inline(always)]
    pub(in crate::ke) unsafe fn unbound(self) -> &'static Thread {
        // SAFETY: GS names the running thread, from before the first is started.
        unsafe { &*self.thread }
    }
}

impl Deref for Current<'_> {
    type Target = Thread;

    #[inline(always)]
    fn deref(&self) -> &Thread {
        // SAFETY: as in `unbound`, and the token lives.
        unsafe { &*self.thread }
    }
}
