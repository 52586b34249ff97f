//! The other side of a wait: an object is signalled, and somebody's wait ends.
//!
//! Under the object's lock: claim, take, note the thread in [`Woken`]. When the lock is released, [`Woken::finish`] makes the threads
//! ready. The object isn't touched after its lock was released, so a waiter may hold it on its stack.

use core::hint::cold_path;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::Ordering;

use sync::bit_lock::LockWord;
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::lock_set::LockSet;
use sync::wait_word::{Claim, Look, Unsatisfied};

use super::super::object::{Header, kind};
use super::super::thread::Thread;
use super::super::{mutant, sched};
use super::block::{WaitBlock, WaitType};
use super::multiple::MAXIMUM_WAIT_OBJECTS;
use crate::rtl::NtStatus;

/// Threads whose waits have ended, and waits for all that are to be looked at: linked by `next_ready`, in order.
#[must_use = "the threads wait for ever"]
pub(in crate::ke) struct Woken {
    ready: Chain,
    looks: Chain,
}

struct Chain {
    first: *const Thread,
    last: *const Thread,
}

impl Chain {
    const fn new() -> Self {
        Self { first: ptr::null(), last: ptr::null() }
    }

    /// # Safety
    /// `thread` is the caller's, and stays until it is popped.
    #[inline(always)]
    unsafe fn push(&mut self, thread: &Thread) {
        thread.next_ready.store(ptr::null_mut(), Ordering::Relaxed);
        let this = ptr::from_ref(thread);
        // SAFETY: those in the chain are the caller's.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next_ready.store(this.cast_mut(), Ordering::Relaxed),
            None => self.first = this,
        }
        self.last = this;
    }

    #[inline(always)]
    fn pop<'a>(&mut self) -> Option<&'a Thread> {
        // SAFETY: in the chain, so it stays until it is made ready.
        let thread = unsafe { self.first.as_ref() }?;
        self.first = thread.next_ready.load(Ordering::Relaxed);
        if self.first.is_null() {
            self.last = ptr::null();
        }
        Some(thread)
    }
}

impl Woken {
    /// Nobody.
    #[inline(always)]
    pub(in crate::ke) const fn new() -> Self {
        Self { ready: Chain::new(), looks: Chain::new() }
    }

    /// Is there anything to finish?
    #[inline(always)]
    pub(in crate::ke) fn is_empty(&self) -> bool {
        self.ready.first.is_null() && self.looks.first.is_null()
    }

    /// The wait of `thread` was won by the caller.
    ///
    /// # Safety
    /// That; it stays until it is made ready.
    pub(in crate::ke) unsafe fn add(&mut self, thread: &Thread) {
        // SAFETY: the caller's.
        unsafe { self.ready.push(thread) };
    }

    /// Makes all ready, with a boost of `increment`. The caller holds no object's lock.
    #[inline(always)]
    pub(in crate::ke) fn finish(mut self, increment: u8, at: &mut Irql<Dispatch>) {
        while let Some(thread) = self.ready.pop() {
            // SAFETY: its wait was won by who put it here.
            unsafe { sched::make_ready(thread, increment, at) };
        }
        if !self.looks.first.is_null() {
            self.finish_looks(increment, at);
        }
    }

    #[cold]
    #[inline(never)]
    fn finish_looks(&mut self, increment: u8, at: &mut Irql<Dispatch>) {
        while let Some(thread) = self.looks.pop() {
            // SAFETY: the look was begun by who put it here.
            if unsafe { look_at_all(thread, at) } {
                // SAFETY: its wait has ended by the look.
                unsafe { sched::make_ready(thread, increment, at) };
            }
        }
    }

    /// The wait of `thread` has ended by the caller.
    ///
    /// # Safety
    /// It was won by a claim that said `Wake`, and not made ready.
    pub(in crate::ke) unsafe fn push(&mut self, thread: &Thread) {
        // SAFETY: the caller's.
        unsafe { self.ready.push(thread) };
    }

    /// `header` is signalled: ends waits until it isn't, or nobody can be satisfied any more.
    ///
    /// # Safety
    /// The caller holds its lock.
    #[inline(always)]
    pub(in crate::ke) unsafe fn satisfy(&mut self, header: &Header) {
        // SAFETY: the lock is held; registered blocks and their threads stay until they are taken out under it.
        unsafe {
            let mut block = header.first_waiter();
            while let Some(it) = block.as_mut() {
                if header.signal_state() <= 0 {
                    return;
                }
                let next = it.next();
                self.try_block(header, it);
                block = next;
            }
        }
    }

    /// # Safety
    /// As [`satisfy`](Self::satisfy); `block` is registered with `header`, which is signalled.
    #[inline(always)]
    unsafe fn try_block(&mut self, header: &Header, block: &mut WaitBlock) {
        // SAFETY: a registered block's thread waits, so it stays until its wait has ended and the block is out.
        let thread = unsafe { &*block.thread() };
        // SAFETY: the caller's; the thread is ours once the claim is won or the look has begun.
        unsafe {
            match block.kind() {
                WaitType::Any => {
                    let status = u32::from(block.key()) | abandoned(header);
                    match thread.wait.claim(status) {
                        Claim::Wake => {
                            won(thread);
                            take(header, header.kind(), thread);
                            header.unregister(block);
                            self.ready.push(thread);
                        }
                        Claim::Noted => {
                            take(header, header.kind(), thread);
                            header.unregister(block);
                        }
                        Claim::Left | Claim::Lost => {}
                    }
                }
                WaitType::All => {
                    if thread.wait.begin_look() == Look::Begun {
                        self.looks.push(thread);
                    }
                }
            }
        }
    }
}

/// For the checked build: who ended the wait of `thread`.
#[inline(always)]
fn won(_thread: &Thread) {
    #[cfg(all(target_os = "none", feature = "verifier"))]
    super::lost::won(_thread);
}

/// The usual signal of an object that releases one: the first that waits has committed, and waits for this object or for any. Its wait is
/// over by this, and the thread the caller's to make ready; the object is taken by that. `None`: nothing was done.
///
/// # Safety
/// The caller holds the lock; somebody waits; a wait for the object takes nothing but its signal, which was not stored yet.
#[inline(always)]
pub(in crate::ke) unsafe fn claim_first<'a>(header: &Header) -> Option<&'a Thread> {
    // SAFETY: registered, hence valid under the lock, and so is its thread.
    unsafe {
        let block = &mut *header.first_waiter();
        let thread = &*block.thread();
        if block.kind() != WaitType::Any || !thread.wait.claim_committed(block.key().into()) {
            cold_path();
            return None;
        }
        won(thread);
        header.unregister_first(block);
        Some(thread)
    }
}

/// The running thread ends: `header`, its own, is signalled for good. The one that waits for it, where there is one, is the caller's to make ready; if there are
/// several, they were made so.
#[inline(always)]
pub(in crate::ke) fn end_of<'a>(header: &Header, at: &mut Irql<Dispatch>) -> Option<&'a Thread> {
    let guard = header.lock(&mut *at);
    header.set_signal_state(1);
    // SAFETY: the lock is held.
    if unsafe { header.first_waiter() }.is_null() {
        return None;
    }
    // SAFETY: as above, and somebody waits; a wait for a thread takes nothing.
    let first = unsafe { claim_first(header) };
    // SAFETY: as above.
    if first.is_some() && unsafe { header.first_waiter() }.is_null() {
        return first;
    }
    cold_path();
    let mut woken = Woken::new();
    // SAFETY: as above; the first was claimed just now.
    unsafe {
        if let Some(first) = first {
            woken.push(first);
        }
        woken.satisfy(header);
    }
    drop(guard);
    woken.finish(0, at);
    None
}

/// What is added to the status of a wait that ends by `header`.
#[inline(always)]
fn abandoned(header: &Header) -> u32 {
    if header.kind() == kind::MUTANT {
        // SAFETY: the kind says what it heads.
        unsafe { mutant::of(header) }.abandoned_status()
    } else {
        0
    }
}

/// Could `thread` take `header` now? Exact under its lock.
#[inline(always)]
pub(super) fn is_free(header: &Header, kind: u8, thread: &Thread) -> bool {
    is_free_in(header.signal_state(), header, kind, thread)
}

/// [`is_free`], where the signal state is known.
#[inline(always)]
pub(super) fn is_free_in(state: i32, header: &Header, kind: u8, thread: &Thread) -> bool {
    state > 0
        || kind == kind::MUTANT
            // SAFETY: the kind says what it heads.
            && unsafe { mutant::of(header) }.is_owned_by(thread)
}

/// Takes from `header` what a wait of `thread` takes; returns what is added to its status.
///
/// # Safety
/// Its lock is held, and it [`is_free`].
#[inline(always)]
pub(super) unsafe fn take(header: &Header, kind: u8, thread: &Thread) -> u32 {
    // SAFETY: the caller's.
    unsafe { take_in(header.signal_state(), header, kind, thread) }
}

/// [`take`], where the signal state is known.
///
/// # Safety
/// As [`take`].
#[inline(always)]
pub(super) unsafe fn take_in(state: i32, header: &Header, kind: u8, thread: &Thread) -> u32 {
    match kind {
        kind::SYNCHRONIZATION_EVENT | kind::SYNCHRONIZATION_TIMER | kind::GATE => {
            header.set_signal_state(0);
            0
        }
        kind::SEMAPHORE => {
            header.set_signal_state(state - 1);
            0
        }
        // SAFETY: the kind says what it heads; the caller's.
        kind::MUTANT => unsafe { mutant::of(header).take(thread, state) },
        _ => 0,
    }
}

/// Looks at a wait for all of `thread` under all of its objects' locks: true if it has ended, and the thread is the caller's to
/// make ready.
///
/// # Safety
/// The caller began the look.
pub(super) unsafe fn look_at_all(thread: &Thread, at: &mut Irql<Dispatch>) -> bool {
    loop {
        // SAFETY: written before the wait was committed, and the thread stays where it is until the look has ended (W1).
        let blocks = unsafe { thread.registered() };
        // SAFETY: as above, for the objects: they stay while somebody waits for them.
        let taken = unsafe { take_all(blocks, thread, at) };
        if let Some(status) = taken {
            won(thread);
            thread.wait.satisfied(status.0);
            return true;
        }
        match thread.wait.unsatisfied() {
            Unsatisfied::WaitsOn => return false,
            Unsatisfied::Again => {}
            Unsatisfied::Ended => return true,
        }
    }
}

/// Takes all objects of `blocks` for `thread` if all are free, and the blocks out; the status of the wait.
///
/// # Safety
/// Blocks and objects stay meanwhile, and the blocks are registered.
unsafe fn take_all(blocks: &mut [WaitBlock], thread: &Thread, at: &mut Irql<Dispatch>) -> Option<NtStatus> {
    // SAFETY: the caller's; the locks of all are held in the closure.
    unsafe {
        locked(blocks, at, |blocks| {
            all_free(blocks, thread).then(|| {
                for block in &mut *blocks {
                    let object = block.object();
                    (*object).unregister(block);
                }
                take_each(blocks, thread)
            })
        })
    }
    .flatten()
}

/// Runs `f` with the locks of the objects of `blocks` held. `None`: one of them is named twice, and `f` didn't run.
///
/// # Safety
/// The objects that the blocks are prepared for stay meanwhile.
pub(super) unsafe fn locked<'a, R>(
    blocks: &'a mut [WaitBlock],
    at: &mut Irql<Dispatch>,
    f: impl FnOnce(&'a mut [WaitBlock]) -> R,
) -> Option<R> {
    // Not initialised: most waits for all are for a few.
    let mut words = [const { MaybeUninit::<&LockWord<ObjectLock>>::uninit() }; MAXIMUM_WAIT_OBJECTS];
    let words = &mut words[..blocks.len()];
    for (slot, block) in words.iter_mut().zip(&*blocks) {
        // SAFETY: the caller's.
        slot.write(unsafe { &(*block.object()).word });
    }
    // SAFETY: each was written just now.
    let set = LockSet::lock(unsafe { words.assume_init_mut() }, at);
    (set.len() == blocks.len()).then(|| f(blocks))
}

/// The objects of `blocks`.
///
/// # Safety
/// They stay meanwhile.
unsafe fn objects(blocks: &[WaitBlock]) -> impl Iterator<Item = &Header> {
    // SAFETY: the caller's.
    blocks.iter().map(|block| unsafe { &*block.object() })
}

/// Could `thread` take all objects of `blocks`?
///
/// # Safety
/// Their locks are held.
pub(super) unsafe fn all_free(blocks: &[WaitBlock], thread: &Thread) -> bool {
    // SAFETY: held locks are there.
    unsafe { objects(blocks) }.all(|object| is_free(object, object.kind(), thread))
}

/// Takes all objects of `blocks` for `thread`; the status of the wait.
///
/// # Safety
/// Their locks are held, and they are [`all_free`].
pub(super) unsafe fn take_each(blocks: &[WaitBlock], thread: &Thread) -> NtStatus {
    let mut status = NtStatus::SUCCESS;
    // SAFETY: the caller's.
    unsafe {
        for object in objects(blocks) {
            if take(object, object.kind(), thread) != 0 {
                status = NtStatus::ABANDONED_WAIT_0;
            }
        }
    }
    status
}
