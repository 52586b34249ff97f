//! Callback objects: names by which one driver tells others that something happened.
//!
//! Owns:       [`Callback`], [`Registration`]. Not: what the names mean.
//! IRQL:       notifying up to DISPATCH, and routines run at the notifier's level; what registers and unregisters may wait.
//! Locks:      a callback's list, rank `ObjectLock`; held while nothing is called.
//! Invariants: C1 a list is in the order of its registrations' numbers, which is that in which they came. So who has called one goes on with the
//!                next that has a higher number, whatever came and went meanwhile.
//!             C2 a routine is called under its registration's rundown, which is waited for before the registration leaves the list.
//! Not as NT:  what is registered while others are told may or may not be told; NT doesn't say either.
//! Tests:      selftest `ex_callbacks::*`, `paths::callbacks`; mutant `threads/callback_unregistered_without_a_wait`.
//! Sources:    WDK, "Callback Objects", `ExCreateCallback`, `ExRegisterCallback`, `ExNotifyCallback`, `ExUnregisterCallback`.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::SpinLock;
use sync::event::{MaySignal, MayWait};
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, Passive, PoolAccess};

use super::Rundown;
use crate::ke::bugcheck::{RoutineKind, StopCode, bugcheck};
use crate::mm::pool::Tag;
use crate::ob::{self, AccessMask, Body, GenericMapping, Namespace, ObRef, ObjectType, Path, Permanence};
use crate::rtl::{NtStatus, WideStr, vec};
use crate::wide;

/// A driver's routine: its context, and what whoever notifies says.
#[doc(alias = "PCALLBACK_FUNCTION")]
pub type Routine = unsafe extern "win64" fn(*mut c_void, *mut c_void, *mut c_void);

/// Those that NT has from the start.
const NAMES: [&WideStr; 3] =
    [wide!("\\Callback\\SetSystemTime"), wide!("\\Callback\\PowerState"), wide!("\\Callback\\ProcessorAdd")];

/// See the module.
#[doc(alias = "CALLBACK_OBJECT")]
pub struct Callback {
    /// May several be registered at once?
    allows_several: bool,
    list: SpinLock<List, ObjectLock>,
}

struct List {
    /// The last one that was given out.
    number: u64,
    /// C1.
    entries: Vec<ObRef<Registration>>,
}

/// A routine that is told.
pub struct Registration {
    callback: ObRef<Callback>,
    routine: Routine,
    context: *mut c_void,
    /// C2.
    running: Rundown,
    number: AtomicU64,
}

// SAFETY: the context is the routine's, which may be called by any thread (`Callback::register`).
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

/// A registration that is somebody's to end. One that is dropped stays for ever.
#[must_use = "only `unregister` ends it"]
pub struct Registered(ObRef<Registration>);

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask::STANDARD_RIGHTS_READ,
    write: AccessMask::STANDARD_RIGHTS_WRITE.with(AccessMask(1)),
    execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
    all: AccessMask(0x001F_0001),
};

impl Body for Callback {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Callback> =
            ObjectType::new("Callback", Tag::new(b"Call"), MAPPING, MAPPING.all);
        &TYPE
    }
}

impl Body for Registration {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Registration> =
            ObjectType::new("CallbackRegistration", Tag::new(b"CbRg"), MAPPING, MAPPING.all);
        &TYPE
    }
}

/// Makes the directory and NT's own callbacks.
pub(crate) fn start(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let names = ob::namespace();
    names.add_type(Callback::object_type().any(), at)?;
    names.make_directory(Path::new(wide!("\\Callback")), Permanence::Permanent, at)?;
    NAMES.into_iter().try_for_each(|name| {
        Callback::create(names, Path::new(name), Permanence::Permanent, true, at).map(drop)
    })
}

impl Callback {
    /// One without a name and without anybody who is told.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn unnamed(allows_several: bool, at: &mut Irql<Passive>) -> Result<ObRef<Self>, NtStatus> {
        ob::create(Self { allows_several, list: SpinLock::new(List { number: 0, entries: Vec::new() }) }, at)
    }

    /// The one at `path`, which is made if it isn't there.
    ///
    /// # Errors
    /// As [`Namespace::open`] and [`Namespace::enter`].
    #[doc(alias = "ExCreateCallback")]
    pub fn create(
        names: &Namespace,
        path: Path<'_>,
        permanence: Permanence,
        allows_several: bool,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef<Self>, NtStatus> {
        loop {
            match names.open_as(path, at) {
                Err(NtStatus::OBJECT_NAME_NOT_FOUND) => {}
                found => return found,
            }
            let new = Self::unnamed(allows_several, at)?;
            match names.enter(path, &new.clone().upcast(), permanence, at) {
                // Another one was first.
                Err(NtStatus::OBJECT_NAME_COLLISION) => {}
                entered => return entered.map(|()| new),
            }
        }
    }

    /// Has `routine` told from now on.
    ///
    /// # Errors
    /// STATUS_UNSUCCESSFUL: somebody is told already, and several may not be; STATUS_INSUFFICIENT_RESOURCES. NT returns null for either.
    ///
    /// # Safety
    /// Until [`Registered::unregister`] has returned, `routine` may be called with `context` and whatever two numbers or addresses somebody
    /// notifies with, by any thread, at up to DISPATCH.
    #[doc(alias = "ExRegisterCallback")]
    pub unsafe fn register<L: MayWait + Below<PoolAccess> + Below<ObjectLock>>(
        this: &ObRef<Self>,
        routine: Routine,
        context: *mut c_void,
        at: &mut Irql<L>,
    ) -> Result<Registered, NtStatus> {
        let (callback, number) = (this.clone(), AtomicU64::new(0));
        let new =
            ob::create(Registration { callback, routine, context, running: Rundown::new(), number }, at)?;
        {
            let mut list = this.list.lock(at);
            if !this.allows_several && !list.entries.is_empty() {
                drop(list);
                return Err(NtStatus::UNSUCCESSFUL);
            }
            // C1. Ordered by the lock.
            let number = list.number + 1;
            new.number.store(number, Relaxed);
            vec::push(&mut list.entries, new.clone())?;
            list.number = number;
        }
        Ok(Registered(new))
    }

    /// Calls each routine that is registered, in the order in which they came.
    ///
    /// # Bugchecks
    /// IRQL_UNEXPECTED_VALUE: a routine returns at another level: that, the one that it was called at, its address, its kind.
    #[doc(alias = "ExNotifyCallback")]
    pub fn notify<L>(&self, first: usize, second: usize, at: &mut Irql<L>)
    where
        L: MaySignal + Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let [first, second] = [first, second].map(core::ptr::with_exposed_provenance_mut::<c_void>);
        let mut last = 0;
        while let Some(next) = self.next(last, at) {
            last = next.number();
            let level = arch::irql::current();
            // SAFETY: C2: it is registered, so this is as `register` was promised.
            unsafe { (next.routine)(next.context, first, second) };
            let after = arch::irql::current();
            if after != level {
                let (routine, kind) = (next.routine as usize as u64, RoutineKind::Callback as u64);
                bugcheck(StopCode::IrqlUnexpectedValue, [after.into(), level.into(), routine, kind]);
            }
            // SAFETY: acquired by `next`.
            unsafe { next.running.release(at) };
        }
    }

    /// The first behind `last` that isn't about to leave, whose rundown is acquired.
    fn next<L: Below<ObjectLock>>(&self, last: u64, at: &mut Irql<L>) -> Option<ObRef<Registration>> {
        let list = self.list.lock(at);
        list.entries.iter().find(|entry| entry.number() > last && entry.running.acquire()).cloned()
    }
}

impl Registration {
    fn number(&self) -> u64 {
        self.number.load(Relaxed)
    }
}

impl Registered {
    /// Ends it: the routine isn't called any more, and no call of it is under way. Called by the routine itself, it waits for ever.
    #[doc(alias = "ExUnregisterCallback")]
    pub fn unregister<L: MayWait + Below<ObjectLock>>(self, at: &mut Irql<L>) {
        // C2.
        self.0.running.wait(at);
        let gone = {
            let mut list = self.0.callback.list.lock(at);
            let place = list.entries.iter().position(|entry| entry.is(&self.0));
            let gone = place.map(|place| list.entries.remove(place));
            let memory = list.entries.is_empty().then(|| core::mem::take(&mut list.entries));
            (gone, memory)
        };
        // References and memory go when the lock isn't held.
        drop(gone);
    }
}
