//! Resource: NT's ERESOURCE, a shared and exclusive lock that a thread may take again, and that knows its owners.
//!
//! [`policy`] has the rules. Here they get a lock, lists of waiters, and sleep.
//!
//! Owns:       [`Resource`]. Not: the critical region that its callers have to be in, the report of deadlocks (the kernel's).
//! IRQL:       acquired at PASSIVE or APC; released and converted up to DISPATCH.
//! Locks:      its own, of rank `ObjectLock`. Nothing is taken, allocated or signalled under it.
//! Invariants: R1 `policy` and both lists are accessed under the lock.
//!             R2 a waiter's node is in place from when it is put into a list until its event is set; whoever takes it off, under
//!                the lock, makes its thread an owner there, and is the one to set the event.
//!             R3 a list leads to its newest waiter, each waiter to the next newer one, the newest to the oldest.
//! Ordering:   the lock; who is let in, by the event (E4).
//! Memory:     the first owner's entry is in the resource. A table for more sharers at once is got before a thread waits or
//!             shares, never under the lock or in a release; without memory it is tried again after a pause, as on NT, or a try
//!             fails.
//! Not as NT:  a waiter is made an owner by who lets it in, not by itself, so nobody steps in between; no boosts.
//! Tests:      tests/models/tests/resource.rs (exclusion, no lost wakeup, node lifetime); tests/props/tests/resource.rs (the rules,
//!             against a list); the unit tests below.
//! Sources:    WDK, "Introduction to ERESOURCE Routines", `ExAcquireSharedStarveExclusive`, `ExAcquireSharedWaitForExclusive`,
//!             `ExConvertExclusiveToSharedLite`; ERESOURCE's layout as in ddk/wdm.h.

use core::marker::PhantomData;
use core::pin::pin;
use core::ptr::{self, NonNull};

use crate::event::{Behind, Event, MaySignal, MayWait};
use crate::irql::{Apc, Irql, ObjectLock, stop};
#[cfg(feature = "verifier")]
use crate::prim::Ordering;
use crate::prim::{AtomicUsize, UnsafeCell, const_unless_loom};
use crate::spin::SpinLock;

pub mod policy;

pub use policy::{Access, OwnerEntry};
use policy::{Admitted, Answer, Policy};

/// Memory for the owners of a resource that are more than one.
///
/// # Safety
/// `allocate` gives as many entries as asked for, which nobody else uses until they are given to `free`.
pub unsafe trait Tables {
    /// `len` entries, uninitialised; nothing when there is no memory, at once.
    fn allocate<L: MaySignal>(len: u32, at: &mut Irql<L>) -> Option<NonNull<[OwnerEntry]>>;

    /// Takes them back.
    ///
    /// # Safety
    /// They came from `allocate`, and nobody uses them.
    unsafe fn free<L: MaySignal>(table: NonNull<[OwnerEntry]>, at: &mut Irql<L>);

    /// Waits a moment, after an `allocate` without success.
    fn pause<L: MayWait>(at: &mut Irql<L>);
}

/// A thread that waits, on its own stack.
struct Waiter<E> {
    /// R3. Under the lock while it is in a list; then by who took it off.
    next: UnsafeCell<*mut Waiter<E>>,
    thread: usize,
    access: Access,
    event: E,
}

/// In a model, the end of a node is an access to all of it, which must come after every other.
#[cfg(loom)]
impl<E> Drop for Waiter<E> {
    fn drop(&mut self) {
        self.next.with_mut(|_| ());
    }
}

/// The newest waiter of a list (R3), or null.
struct Newest<E>(*mut Waiter<E>);

// SAFETY: it leads to nodes that any thread may reach under the lock (R1, R2).
unsafe impl<E> Send for Newest<E> {}

impl<E> Newest<E> {
    /// # Safety
    /// R1; `waiter` is in no list, and R2 holds for it from here on.
    unsafe fn push(&mut self, waiter: *mut Waiter<E>) {
        // SAFETY: R2 for `waiter` and for what the list leads to.
        unsafe {
            let oldest = if self.0.is_null() { waiter } else { (*self.0).next.with(|next| *next) };
            (*waiter).next.with_mut(|next| *next = oldest);
            if !self.0.is_null() {
                (*self.0).next.with_mut(|next| *next = waiter);
            }
        }
        self.0 = waiter;
    }

    /// Takes the oldest, or all: a chain from the oldest that ends in null.
    ///
    /// # Safety
    /// R1.
    unsafe fn take(&mut self, all: bool) -> *mut Waiter<E> {
        let newest = self.0;
        if newest.is_null() {
            return newest;
        }
        // SAFETY: R2.
        unsafe {
            let oldest = (*newest).next.with(|next| *next);
            let last = if all { newest } else { oldest };
            let rest = (*last).next.with_mut(|next| core::mem::replace(&mut *next, ptr::null_mut()));
            if last == newest {
                self.0 = ptr::null_mut();
            } else {
                (*newest).next.with_mut(|next| *next = rest);
            }
            oldest
        }
    }
}

/// See the module.
#[repr(C)]
#[doc(alias = "ERESOURCE")]
pub struct Resource<E: Event, T: Tables> {
    /// NT's list of all resources.
    _links: [usize; 2],
    policy: UnsafeCell<Policy<Newest<E>>>,
    /// Checked build: the exclusive owner, or 0, for reports. Written under the lock.
    holder: AtomicUsize,
    _reserved: usize,
    lock: SpinLock<(), ObjectLock>,
    _tables: PhantomData<fn() -> T>,
}

crate::nt_layout! {
    [E: Event, T: Tables] Resource<E, T> = "ERESOURCE" {
        _links => "SystemResourcesList", policy => "OwnerTable" ..= "NumberOfExclusiveWaiters", holder => "Reserved2",
        _reserved => "Address", lock => "SpinLock",
    }
}

// SAFETY: `policy` is accessed under the lock (R1).
unsafe impl<E: Event, T: Tables> Sync for Resource<E, T> {}
// SAFETY: nobody waits for one that can be moved; the rest is plain data.
unsafe impl<E: Event, T: Tables> Send for Resource<E, T> {}

impl<E: Event, T: Tables> Resource<E, T> {
    const_unless_loom! {
        /// One that nobody owns.
        #[doc(alias = "ExInitializeResourceLite")]
        pub const fn new() -> Self {
            Self {
                _links: [0; 2],
                policy: UnsafeCell::new(Policy::new(Newest(ptr::null_mut()), Newest(ptr::null_mut()))),
                holder: AtomicUsize::new(0),
                _reserved: 0,
                lock: SpinLock::new(()),
                _tables: PhantomData,
            }
        }
    }

    fn with<L: MaySignal, R>(&self, at: &mut Irql<L>, f: impl FnOnce(&mut Policy<Newest<E>>) -> R) -> R {
        let _locked = self.lock.lock(at);
        self.policy.with_mut(|policy| {
            // SAFETY: R1.
            let policy = unsafe { &mut *policy };
            let result = f(policy);
            #[cfg(feature = "verifier")]
            self.holder.store(policy.exclusive_owner(), Ordering::Relaxed);
            result
        })
    }

    /// Waits until this thread has it.
    #[doc(alias = "ExAcquireResourceExclusiveLite")]
    #[doc(alias = "ExAcquireResourceSharedLite")]
    #[doc(alias = "ExAcquireSharedStarveExclusive")]
    #[doc(alias = "ExAcquireSharedWaitForExclusive")]
    pub fn acquire<L: MayWait>(&self, access: Access, at: &mut Irql<L>) {
        let thread = E::current_thread();
        loop {
            match self.with(at, |policy| policy.acquire(thread, access)) {
                Answer::Granted => return,
                Answer::NoRoom => {
                    if !self.grow(at) {
                        T::pause(at);
                    }
                }
                Answer::Wait => {
                    if self.wait(thread, access, at) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes it if this thread can have it at once, and says so: NT's acquire routines without `Wait`. Also false if that takes
    /// memory and there is none.
    #[must_use = "it is owned if this says so"]
    #[doc(alias = "ExTryToAcquireResourceExclusiveLite")]
    pub fn try_acquire<L: MayWait>(&self, access: Access, at: &mut Irql<L>) -> bool {
        self.acquire_at_once(access, at)
    }

    /// What proves that a try never waits is its bound: at such a level one can signal, but neither sleep nor pause.
    fn acquire_at_once<L: MaySignal>(&self, access: Access, at: &mut Irql<L>) -> bool {
        let thread = E::current_thread();
        loop {
            match self.with(at, |policy| policy.acquire(thread, access)) {
                Answer::Granted => return true,
                Answer::NoRoom if self.grow(at) => {}
                Answer::NoRoom | Answer::Wait => return false,
            }
        }
    }

    /// Asks again, and waits if it still must; false: there is no room.
    #[cold]
    fn wait<L: MayWait>(&self, thread: usize, access: Access, at: &mut Irql<L>) -> bool {
        let waiter = pin!(Waiter { next: UnsafeCell::new(ptr::null_mut()), thread, access, event: E::new() });
        let waiter = waiter.into_ref().get_ref();
        // From before others know of the node until they have forgotten it.
        let mut at = at.raise::<Apc>();
        let answer = self.with(&mut at, |policy| {
            let answer = policy.acquire(thread, access);
            if answer == Answer::Wait {
                policy.wait(access);
                let list = match access {
                    Access::Exclusive => &mut policy.exclusive_waiters,
                    _ => &mut policy.shared_waiters,
                };
                // SAFETY: R1; it stays in place until its event is set (R2).
                unsafe { list.push(ptr::from_ref(waiter).cast_mut()) };
            }
            answer
        });
        if answer == Answer::Wait {
            let behind = Behind::lock("resource", self, Some(&self.holder));
            waiter.event.wait(Some(behind), &mut at);
        }
        answer != Answer::NoRoom
    }

    /// Makes the table larger, or somebody else did meanwhile; false: there is no memory.
    #[cold]
    fn grow<L: MaySignal>(&self, at: &mut Irql<L>) -> bool {
        let len = self.with(at, |policy| policy.next_table_len());
        let Some(table) = T::allocate(len, at) else { return false };
        // SAFETY: it is new, and `set_table`'s until it is given back.
        if let Some(old) = self.with(at, |policy| unsafe { policy.set_table(table) }) {
            // SAFETY: given back.
            unsafe { T::free(old, at) };
        }
        true
    }

    /// Ends one of this thread's holds.
    ///
    /// # Bugchecks
    /// RESOURCE_NOT_OWNED.
    #[doc(alias = "ExReleaseResourceLite")]
    pub fn release<L: MaySignal>(&self, at: &mut Irql<L>) {
        self.release_for(E::current_thread(), at);
    }

    /// Ends one of `owner`'s holds.
    ///
    /// # Bugchecks
    /// RESOURCE_NOT_OWNED.
    #[doc(alias = "ExReleaseResourceForThreadLite")]
    pub fn release_for<L: MaySignal>(&self, owner: usize, at: &mut Irql<L>) {
        self.let_in(owner, Policy::release, at);
    }

    /// Turns this thread's exclusive ownership into a shared one.
    ///
    /// # Bugchecks
    /// RESOURCE_NOT_OWNED.
    #[doc(alias = "ExConvertExclusiveToSharedLite")]
    pub fn convert_to_shared<L: MaySignal>(&self, at: &mut Irql<L>) {
        self.let_in(E::current_thread(), Policy::convert, at);
    }

    fn let_in<L: MaySignal>(
        &self,
        owner: usize,
        change: impl FnOnce(&mut Policy<Newest<E>>, usize) -> Result<Admitted, policy::NotOwned>,
        at: &mut Irql<L>,
    ) {
        let first = self.with(at, |policy| {
            let admitted = change(policy, owner).ok()?;
            // SAFETY: R1.
            let first = unsafe {
                match admitted {
                    Admitted::Nobody => ptr::null_mut(),
                    Admitted::OneExclusive => policy.exclusive_waiters.take(false),
                    Admitted::AllShared => policy.shared_waiters.take(true),
                }
            };
            let mut waiter = first;
            while !waiter.is_null() {
                // SAFETY: R2: its event is not set yet.
                let (thread, access, next) =
                    unsafe { ((*waiter).thread, (*waiter).access, (*waiter).next.with(|next| *next)) };
                policy.admit(thread, access);
                waiter = next;
            }
            Some(first)
        });
        let Some(mut waiter) = first else { self.not_owned(owner) };
        while !waiter.is_null() {
            // SAFETY: R2: we took it off. It is read before its event is set; E3.
            waiter = unsafe {
                let next = (*waiter).next.with(|next| *next);
                E::set(&raw const (*waiter).event, at);
                next
            };
        }
    }

    #[cold]
    fn not_owned(&self, owner: usize) -> ! {
        arch::fatal(stop::RESOURCE_NOT_OWNED, [ptr::from_ref(self).addr() as u64, owner as u64, 0, 0]);
    }

    /// How often this thread has it, and whether exclusively.
    #[doc(alias = "ExIsResourceAcquiredSharedLite")]
    #[doc(alias = "ExIsResourceAcquiredExclusiveLite")]
    pub fn held<L: MaySignal>(&self, at: &mut Irql<L>) -> (u32, bool) {
        self.with(at, |policy| policy.held_by(E::current_thread()))
    }

    /// How many wait shared, and how many exclusively. Stale at once.
    #[doc(alias = "ExGetSharedWaiterCount")]
    #[doc(alias = "ExGetExclusiveWaiterCount")]
    pub fn waiting<L: MaySignal>(&self, at: &mut Irql<L>) -> (u32, u32) {
        self.with(at, |policy| policy.waiting())
    }

    /// Lets `owner` be the owner in this thread's place.
    ///
    /// # Bugchecks
    /// RESOURCE_NOT_OWNED.
    #[doc(alias = "ExSetResourceOwnerPointer")]
    pub fn set_owner<L: MaySignal>(&self, owner: usize, at: &mut Irql<L>) {
        let thread = E::current_thread();
        if self.with(at, |policy| policy.set_owner(thread, owner)).is_err() {
            self.not_owned(thread);
        }
    }

    /// Calls `f` with each owner and its count, under the resource's lock: for reports.
    pub fn for_each_owner<L: MaySignal>(&self, at: &mut Irql<L>, f: impl FnMut((usize, u32))) {
        self.with(at, |policy| policy.owner_counts().for_each(f));
    }

    /// Gives its memory back, and says so, if nobody owns it.
    #[doc(alias = "ExReinitializeResourceLite")]
    pub fn reinitialize<L: MaySignal>(&self, at: &mut Irql<L>) -> bool {
        let (is_free, table) = self.with(at, |policy| match policy.owners() {
            0 => (true, policy.take_table()),
            _ => (false, None),
        });
        if let Some(table) = table {
            // SAFETY: taken; it has no owners, and nobody waits (P2, P3).
            unsafe { T::free(table, at) };
        }
        is_free
    }

    /// Gives its memory back, when nobody owns it or asks any more.
    #[doc(alias = "ExDeleteResourceLite")]
    pub fn delete<L: MaySignal>(self, at: &mut Irql<L>) {
        if let Some(table) = self.with(at, Policy::take_table) {
            // SAFETY: taken, and `self` ends.
            unsafe { T::free(table, at) };
        }
    }
}

impl<E: Event, T: Tables> Default for Resource<E, T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Tables of the host's memory, for tests.
#[cfg(not(target_os = "none"))]
pub mod hosted {
    use super::{Irql, MaySignal, MayWait, NonNull, OwnerEntry, Tables};

    /// See the module.
    pub struct HeapTables;

    // SAFETY: a slice of its own each time.
    unsafe impl Tables for HeapTables {
        fn allocate<L: MaySignal>(len: u32, _: &mut Irql<L>) -> Option<NonNull<[OwnerEntry]>> {
            let entries = vec![OwnerEntry::FREE; len as usize];
            Some(NonNull::from(Box::leak(entries.into_boxed_slice())))
        }

        unsafe fn free<L: MaySignal>(table: NonNull<[OwnerEntry]>, _: &mut Irql<L>) {
            // SAFETY: leaked by `allocate`.
            drop(unsafe { Box::from_raw(table.as_ptr()) });
        }

        fn pause<L: MayWait>(_: &mut Irql<L>) {
            unreachable!("the host has memory")
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
