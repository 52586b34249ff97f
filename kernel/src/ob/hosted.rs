//! What objects need of a machine, for host tests: the host's memory, and a test that does the worker's work.

use core::ptr::NonNull;
use std::alloc::{self, Layout};
use std::cell::Cell;
use std::sync::Mutex;

use arch::level::PASSIVE;
use sync::irql::{Below, Irql, Passive, PoolAccess};
use sync::pile::Pile;

use super::delete;
use crate::mm::Exhausted;
use crate::mm::pool::Tag;

/// Its waiters are threads of the host.
pub(crate) type PushLock<T> = sync::PushLock<T, sync::event::hosted::ThreadEvent>;

/// In front of each block: its size and tag, and 16 bytes as the pool aligns.
const PREFIX: usize = 16;

thread_local! {
    /// Blocks that this thread has allocated and nobody has freed. So a test that frees what it has allocated ends with none.
    static BLOCKS: Cell<isize> = const { Cell::new(0) };
}

/// Blocks that this thread of the host has allocated, less those that it has freed.
pub fn blocks() -> isize {
    BLOCKS.get()
}

thread_local! {
    static IS_REFUSING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, with all of this thread's allocations refused.
pub fn refusing<R>(f: impl FnOnce() -> R) -> R {
    IS_REFUSING.set(true);
    let result = f();
    IS_REFUSING.set(false);
    result
}

/// Are this thread's allocations refused?
pub fn is_refusing() -> bool {
    IS_REFUSING.get()
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + PREFIX, PREFIX).expect("an object's size")
}

pub(super) fn allocate<L: Below<PoolAccess>>(
    tag: Tag,
    bytes: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, Exhausted> {
    at.check();
    if IS_REFUSING.get() {
        return Err(Exhausted);
    }
    // SAFETY: not of size zero.
    let block = NonNull::new(unsafe { alloc::alloc(layout(bytes)) }).ok_or(Exhausted)?;
    BLOCKS.set(BLOCKS.get() + 1);
    // SAFETY: the prefix, and what is behind it.
    unsafe {
        block.cast::<(usize, u32)>().write((bytes, tag.value()));
        Ok(block.add(PREFIX))
    }
}

/// # Safety
/// A block of [`allocate`], with its tag, that nobody uses any more.
pub(super) unsafe fn free<L: Below<PoolAccess>>(block: NonNull<u8>, tag: Tag, at: &mut Irql<L>) {
    at.check();
    // SAFETY: the caller's.
    unsafe {
        let block = block.sub(PREFIX);
        let (bytes, found) = block.cast::<(usize, u32)>().read();
        assert_eq!(found, tag.value(), "freed with another tag");
        alloc::dealloc(block.as_ptr(), layout(bytes));
    }
    BLOCKS.set(BLOCKS.get() - 1);
}

pub(super) fn is_passive() -> bool {
    arch::irql::current() == PASSIVE
}

thread_local! {
    /// A thread's own, so that tests in parallel don't end each other's objects. It lives for ever.
    static PILE: &'static Pile = new_pile();
    static IS_ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Miri takes what only an ended thread knew for lost.
static PILES: Mutex<Vec<&'static Pile>> = Mutex::new(Vec::new());

#[expect(clippy::disallowed_methods, reason = "of a host's tests, where memory doesn't run out")]
fn new_pile() -> &'static Pile {
    let pile: &'static Pile = Box::leak(Box::default());
    PILES.lock().expect("nobody panics with it").push(pile);
    pile
}

pub(super) fn pile() -> &'static Pile {
    PILE.with(|pile| *pile)
}

pub(super) fn check_level() {
    assert!(arch::irql::current() <= arch::level::DISPATCH, "released above DISPATCH");
}

pub(super) fn ask_for_work() {
    IS_ASKED.set(true);
}

/// As the worker that ends what this thread has released above PASSIVE. False: none was asked for.
pub fn work(at: &mut Irql<Passive>) -> bool {
    let is_asked = IS_ASKED.take();
    delete::work(at);
    is_asked
}
