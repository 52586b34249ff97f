//! Dispatcher objects as objects: events, semaphores, mutants and timers, with types, names and handles.
//!
//! Owns:       their types, and what becomes of them at their end. Not: what they do (`ke`).
//! IRQL:       made up to DISPATCH; the rest as the objects' own.
//! Invariants: W1 a timer's end takes it out of its table: no expiry finds it, nor is under way when its memory goes.
//!             W2 a mutant that a thread still holds outlives its object: that thread has it in its list. What is left so is freed, when it
//!                was released or abandoned, as a later mutant is made or ends.
//! Not as NT:  a mutant that is held when its last reference goes stays its owner's, which NT makes it lose.
//! Tests:      selftest `ob_dispatcher::*`; mutants `ended_timer_left_in_its_table`, `held_mutant_freed`.
//! Sources:    WDK, `ZwCreateEvent`, "Introduction to Kernel Dispatcher Objects"; the rights' own descriptions.

use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, Passive};

use super::access::{AccessMask, GenericMapping};
use super::reference::ObRef;
use super::types::{Body, ObjectType};
use crate::ke::event::{Event, EventKind};
use crate::ke::mutant::Mutant;
use crate::ke::object::Header;
use crate::ke::semaphore::Semaphore;
use crate::ke::timer::{self, Due, KTimer, Options, TimerKind};
use crate::ke::wait::{self, Waitable};
use crate::mm::pool::{Owned, Tag};
use crate::rtl::NtStatus;

/// To read its state.
pub const QUERY_STATE: AccessMask = AccessMask(1);
/// To set, reset, release or cancel it.
pub const MODIFY_STATE: AccessMask = AccessMask(2);
/// All of an event, a semaphore or a timer.
pub const ALL_ACCESS: AccessMask = AccessMask::STANDARD_RIGHTS_ALL.with(QUERY_STATE).with(MODIFY_STATE);
/// All of a mutant: who waits for it may release it.
pub const MUTANT_ALL_ACCESS: AccessMask = AccessMask::STANDARD_RIGHTS_ALL.with(QUERY_STATE);

const fn mapping(modify: AccessMask, all: AccessMask) -> GenericMapping {
    GenericMapping {
        read: AccessMask::STANDARD_RIGHTS_READ.with(QUERY_STATE),
        write: AccessMask::STANDARD_RIGHTS_WRITE.with(modify),
        execute: AccessMask::STANDARD_RIGHTS_EXECUTE.with(AccessMask::SYNCHRONIZE),
        all,
    }
}

const MAPPING: GenericMapping = mapping(MODIFY_STATE, ALL_ACCESS);

/// An event that is an object.
pub struct EventObject(Event);

impl EventObject {
    /// Signalled or not.
    pub const fn new(kind: EventKind, signalled: bool) -> Self {
        Self(Event::new(kind, signalled))
    }
}

impl Deref for EventObject {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0
    }
}

impl Body for EventObject {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<EventObject> =
            ObjectType::new("Event", Tag::new(b"Even"), MAPPING, ALL_ACCESS);
        &TYPE
    }

    fn dispatcher(&self) -> Option<&Header> {
        Some(self.0.header())
    }
}

/// A semaphore that is an object.
pub struct SemaphoreObject(Semaphore);

impl SemaphoreObject {
    /// With a count, which never gets above `limit`.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER unless 0 <= `count` <= `limit` and 0 < `limit`.
    pub const fn new(count: i32, limit: i32) -> Result<Self, NtStatus> {
        if count < 0 || count > limit || limit <= 0 {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        Ok(Self(Semaphore::new(count, limit)))
    }
}

impl Deref for SemaphoreObject {
    type Target = Semaphore;

    fn deref(&self) -> &Semaphore {
        &self.0
    }
}

impl Body for SemaphoreObject {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<SemaphoreObject> =
            ObjectType::new("Semaphore", Tag::new(b"Sema"), MAPPING, ALL_ACCESS);
        &TYPE
    }

    fn dispatcher(&self) -> Option<&Header> {
        Some(self.0.header())
    }
}

/// A timer that is an object. It has no DPC, as that would have to stay as long.
pub struct TimerObject(KTimer);

impl TimerObject {
    /// Not set, not signalled.
    pub const fn new(kind: TimerKind) -> Self {
        Self(KTimer::new(kind))
    }

    /// Sets it; true if it was set before. It is an object's: one that is just a value could be forgotten in a table.
    #[doc(alias = "ZwSetTimer")]
    pub fn set<L>(this: &ObRef<Self>, due: Due, options: Options, at: &mut Irql<L>) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        // SAFETY: an object's body, so it stays in its place until `delete` has taken it out (W1).
        unsafe { timer::set(this.0.pointer(), due, options, None, at) }
    }

    /// Takes it out of its table; true if it was set.
    #[doc(alias = "ZwCancelTimer")]
    pub fn cancel<L: Below<ObjectLock>>(&self, at: &mut Irql<L>) -> bool {
        // SAFETY: borrowed until this returns.
        unsafe { timer::cancel(self.0.pointer(), at) }
    }

    /// Is it in a table? Stale at once.
    pub fn is_set(&self) -> bool {
        self.0.is_set()
    }
}

impl Body for TimerObject {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<TimerObject> =
            ObjectType::new("Timer", Tag::new(b"TimO"), MAPPING, ALL_ACCESS);
        &TYPE
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        // Also one that has just expired: it waits for that to be over.
        self.cancel(at);
    }

    fn dispatcher(&self) -> Option<&Header> {
        Some(self.0.header())
    }
}

const MUTANT_TAG: Tag = Tag::new(b"Muta");

/// What a mutant object leads to (W2).
struct Left {
    mutant: Mutant,
    /// The next that is left.
    next: AtomicPtr<Left>,
}

/// Mutants that threads hold, of objects that have ended: a stack of them, taken as a whole.
static LEFT: AtomicPtr<Left> = AtomicPtr::new(ptr::null_mut());

/// A mutant that is an object.
pub struct MutantObject(Option<Owned<Left>>);

impl MutantObject {
    /// Free.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn new(at: &mut Irql<Passive>) -> Result<Self, NtStatus> {
        // Here, too: where memory is short, no later one may come to its end.
        free_left(at);
        // SAFETY: in the pool before anybody can wait for it; the drop below keeps it there while it is held.
        let mutant = unsafe { Mutant::new() };
        let left = Left { mutant, next: AtomicPtr::new(ptr::null_mut()) };
        let left = Owned::try_new(MUTANT_TAG, left, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        Ok(Self(Some(left)))
    }
}

impl Deref for MutantObject {
    type Target = Mutant;

    fn deref(&self) -> &Mutant {
        &self.0.as_ref().expect("taken by the drop alone").mutant
    }
}

impl Body for MutantObject {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<MutantObject> = ObjectType::new(
            "Mutant",
            MUTANT_TAG,
            mapping(AccessMask::NONE, MUTANT_ALL_ACCESS),
            MUTANT_ALL_ACCESS,
        );
        &TYPE
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        free_left(at);
        if let Some(left) = self.0.take() {
            end(left, at);
        }
    }

    fn dispatcher(&self) -> Option<&Header> {
        Some(Mutant::header(self))
    }
}

impl Drop for MutantObject {
    /// One that never became an object was never waited for: nobody could have it by now but who moved it, which takes a free one.
    fn drop(&mut self) {
        if let Some(left) = self.0.take() {
            assert!(left.mutant.state() > 0, "an object's end leaves it (W2)");
        }
    }
}

/// Frees it if nobody holds it, or the running thread does; else it is left.
fn end(left: Owned<Left>, at: &mut Irql<Passive>) {
    // By its lock: who has released it is done with it then.
    if wait::poll(&left.mutant, at) == NtStatus::TIMEOUT {
        put(left);
        return;
    }
    while left.mutant.release(0, at).is_ok_and(|before| before != 0) {}
}

fn put(left: Owned<Left>) {
    let left = left.into_raw();
    let mut top = LEFT.load(Ordering::Relaxed);
    loop {
        // SAFETY: ours until the exchange.
        unsafe { left.as_ref() }.next.store(top, Ordering::Relaxed);
        match LEFT.compare_exchange(top, left.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(found) => top = found,
        }
    }
}

/// Looks at all that was left.
fn free_left(at: &mut Irql<Passive>) {
    let mut next = LEFT.swap(ptr::null_mut(), Ordering::Acquire);
    while let Some(left) = ptr::NonNull::new(next) {
        // SAFETY: put there by `put`, and taken as a part of the whole: nobody else's.
        let left = unsafe { Owned::from_raw(left, MUTANT_TAG) };
        next = left.next.load(Ordering::Relaxed);
        end(left, at);
    }
}
