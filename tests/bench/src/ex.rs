//! The executive's locks that nobody else wants: acquire and release. Lists without a lock, and blocks at hand.

use core::ptr::NonNull;

use kernel::ex::lookaside::Lookaside;
use kernel::ex::{FastMutex, PushLock, Resource, Rundown, fast_mutex};
use kernel::mm::pool::Tag;
use sync::irql::{Irql, Passive};
use sync::resource::Access;
use sync::slist::{Entry, Header};

use crate::measure::{count, failed};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("ex::fast_mutex", fast_mutex_pair).at_most(20),
    passive("ex::push_lock_exclusive", push_lock_exclusive).at_most(20),
    passive("ex::push_lock_shared", push_lock_shared).at_most(20),
    passive("ex::rundown_use", rundown_use),
    passive("ex::resource_exclusive", resource_exclusive),
    passive("ex::resource_shared", resource_shared),
    passive("ex::slist_pop_and_push", slist),
    passive("ex::lookaside_allocate_and_free", lookaside),
];

static MUTEX: FastMutex<()> = fast_mutex(());
static LOCK: PushLock<()> = PushLock::new(());
static RUNDOWN: Rundown = Rundown::new();
static RESOURCE: Resource = Resource::new();
static HEADER: Header = Header::new();
static ENTRY: Entry = Entry::new();
static LIST: Lookaside = Lookaside::new(Tag::new(b"BenL"), 64);

fn prepare(at: &mut Irql<Passive>) {
    // SAFETY: a static, pushed once.
    unsafe { HEADER.push(NonNull::from(&ENTRY)) };
    if let Ok(block) = LIST.allocate(at) {
        // SAFETY: just allocated.
        unsafe { LIST.free(block, at) };
    }
}

#[inline(never)]
fn fast_mutex_pair(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(MUTEX.lock(at)))
}

#[inline(never)]
fn push_lock_exclusive(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(LOCK.exclusive(at)))
}

#[inline(never)]
fn push_lock_shared(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(LOCK.shared(at)))
}

#[inline(never)]
fn rundown_use(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(RUNDOWN.protect(at)))
}

#[inline(never)]
fn resource_exclusive(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        RESOURCE.acquire(Access::Exclusive, at);
        RESOURCE.release(at);
    })
}

#[inline(never)]
fn resource_shared(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        RESOURCE.acquire(Access::Shared, at);
        RESOURCE.release(at);
    })
}

#[inline(never)]
fn slist(_: &mut Irql<Passive>) -> u32 {
    count(|| {
        if let Some(entry) = HEADER.pop() {
            // SAFETY: popped; a static.
            unsafe { HEADER.push(entry) };
        } else {
            failed();
        }
    })
}

#[inline(never)]
fn lookaside(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        if let Ok(block) = LIST.allocate(at) {
            // SAFETY: just allocated.
            unsafe { LIST.free(block, at) };
        } else {
            failed();
        }
    })
}
