//! The interrupt object: an ISR, what it shares with the code below it, and where it is connected.
//!
//! The ISR and [`Interrupt::synchronize`] reach the shared data through one [`InterruptLock`], held at the synchronize IRQL, so
//! they exclude each other on all processors. Several objects may name one lock (messages of one device): then each must be
//! connected at or below its level. An object that has its lock in itself needs no static: see `connection`.
//!
//! IRQL:       connect and disconnect at PASSIVE or APC; the ISR at the synchronize IRQL; synchronize at or below that.
//! Invariants: I1 `state` is a place exactly while a slot of that vector's chain holds the object's `Link`; only the caller that
//!                moved it to `BUSY` changes it.
//!             I2 a connected object stays where it is, and lives, until its disconnect has returned: `&'static`, or promised.
//!             I3 `link.object` is written before the link is published, and not while it is.
//! Not as NT:  the lock comes with the data that it protects. The object isn't tied to one vector for life.
//! Sources:    WDK, `IoConnectInterruptEx`, `KeSynchronizeExecution`, "Introduction to Interrupt Service Routines".

use core::borrow::Borrow;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use sync::InterruptLock;
use sync::irql::{AtOrBelow, Below, Device, Dispatch, Irql, MayBlock};

use super::routing::{self, ConnectError, Request, Route};
use crate::ke::bugcheck::{RoutineKind, StopCode, bugcheck};

/// What an ISR says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// Its device wanted something, and doesn't assert its line for that any more.
    Claimed,
    /// Its device wants nothing.
    NotMine,
}

/// An interrupt service routine: gets what it shares with the code below it, and the synchronize IRQL.
pub type ServiceRoutine<T> = fn(&mut T, &mut Irql<Device>) -> Claim;

const IDLE: u32 = 0;
const BUSY: u32 = 1;
/// Connected, and its vector is being moved.
const MOVING: u32 = 2;
/// Above it: a place. Vector in bits 8–15, slot in bits 0–7.
const PLACED: u32 = 1 << 16;

/// What a chain sees of an object of any type.
pub(super) struct Link {
    /// The `Interrupt` itself (I3).
    object: AtomicPtr<()>,
    run: unsafe fn(*const (), &mut Irql<Device>) -> Claim,
}

impl Link {
    #[inline]
    pub(super) fn run(&self, at: &mut Irql<Device>) -> Claim {
        // Published after it was written (I3), and read after the slot's Acquire.
        let object = self.object.load(Ordering::Relaxed);
        // SAFETY: `run` is of the type that `object` is (`connect_raw`), which lives while it is connected (I2), and it is: the link
        //         was reached through its slot.
        unsafe { (self.run)(object, at) }
    }
}

/// An interrupt object around an ISR that shares a `T` with the code below it, behind the lock `K`: somebody else's, or its own.
#[doc(alias = "KINTERRUPT")]
pub struct Interrupt<T: Send + 'static, K = &'static InterruptLock<T>> {
    link: Link,
    /// `IDLE`, `BUSY`, `MOVING` or a place (I1).
    state: AtomicU32,
    shared: K,
    routine: ServiceRoutine<T>,
}

/// An interrupt object with its lock in itself.
pub type OwnInterrupt<T> = Interrupt<T, InterruptLock<T>>;

impl<T: Send + 'static, K: Borrow<InterruptLock<T>>> Interrupt<T, K> {
    /// An object that is connected to nothing. `shared` has the synchronize IRQL.
    pub const fn new(shared: K, routine: ServiceRoutine<T>) -> Self {
        Self {
            link: Link { object: AtomicPtr::new(ptr::null_mut()), run: Self::run },
            state: AtomicU32::new(IDLE),
            shared,
            routine,
        }
    }

    /// Connects it: from now on the ISR is called for the interrupts of `request.source`.
    ///
    /// # Errors
    /// Why it can't be; then it is connected to nothing, or still where it was.
    #[doc(alias = "IoConnectInterrupt")]
    #[doc(alias = "KeConnectInterrupt")]
    pub fn connect<L: MayBlock + Below<Dispatch>>(
        &'static self,
        request: &Request,
        at: &mut Irql<L>,
    ) -> Result<Route, ConnectError> {
        // SAFETY: `&'static`.
        unsafe { self.connect_raw(request, at) }
    }

    /// [`connect`](Self::connect) for an object that isn't static.
    ///
    /// # Errors
    /// As `connect`.
    ///
    /// # Safety
    /// The object is neither moved nor freed until a [`disconnect`](Self::disconnect) that returned true has returned (I2).
    pub unsafe fn connect_raw<L: MayBlock + Below<Dispatch>>(
        &self,
        request: &Request,
        at: &mut Irql<L>,
    ) -> Result<Route, ConnectError> {
        if request.level > self.shared.borrow().level() {
            return Err(ConnectError::AboveSynchronizeIrql);
        }
        if self.state.compare_exchange(IDLE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(ConnectError::Connected);
        }
        let route = match routing::bind(request, at) {
            Ok(route) => route,
            Err(error) => {
                self.state.store(IDLE, Ordering::Release);
                return Err(error);
            }
        };
        self.link.object.store(ptr::from_ref(self).cast_mut().cast(), Ordering::Relaxed);
        // SAFETY: alive and shared until the withdraw in `disconnect` (I2).
        let slot = unsafe { super::chain::of(route.vector).publish(NonNull::from(&self.link), at) };
        let Some(slot) = slot else {
            routing::unbind(route.vector, at);
            self.state.store(IDLE, Ordering::Release);
            return Err(ConnectError::ChainFull);
        };
        routing::open(route.vector, at);
        self.state.store(PLACED | u32::from(route.vector) << 8 | u32::from(slot), Ordering::Release);
        Ok(route)
    }

    /// Disconnects it, and returns when no processor is in its ISR any more: it is then touched by nobody, and may be
    /// connected again. False if it was not connected.
    ///
    /// Called with interrupts enabled: this processor may be the one whose EOI is waited for. The last one on a line masks it first. A
    /// level line that its device asserts stays masked and asserted, harmlessly.
    #[doc(alias = "IoDisconnectInterrupt")]
    #[doc(alias = "KeDisconnectInterrupt")]
    pub fn disconnect<L: MayBlock + Below<Dispatch>>(&self, at: &mut Irql<L>) -> bool {
        let Some(place) = self.claim_place(BUSY) else { return false };
        let vector = (place >> 8) as u8;
        routing::close(vector, at);
        super::chain::of(vector).withdraw(place as u8, at);
        routing::unbind(vector, at);
        self.state.store(IDLE, Ordering::Release);
        true
    }

    /// Has the interrupt delivered to a processor of `affinity` from now on; if it goes to one already, to that. An ISR that is under
    /// way ends where it is, beside one on the new processor that waits for the lock.
    ///
    /// Who shares the source is asked too: only what all affinities have in common is possible. A line is moved here; of
    /// messages, the device has to be told [`Route::message`], and those on their way still arrive where they went.
    ///
    /// # Errors
    /// Then everything is as before.
    #[doc(alias = "IoSetAffinityInterrupt")]
    pub fn retarget<L: MayBlock + Below<Dispatch>>(
        &self,
        affinity: u64,
        at: &mut Irql<L>,
    ) -> Result<Route, ConnectError> {
        routing::change(at, |routing, at| {
            let place = self.claim_for_a_move(at).ok_or(ConnectError::NotConnected)?;
            let result = routing.retarget((place >> 8) as u8, affinity, at);
            self.state.store(place, Ordering::Release);
            result
        })
    }

    /// At DISPATCH until the move is over: who waits for it doesn't do so in the place of who moves it.
    fn claim_for_a_move(&self, at: &mut Irql<Dispatch>) -> Option<u32> {
        at.check();
        self.claim_place(MOVING)
    }

    /// Takes the place out of `state` for a change (I1); nothing when there is none. Waits for a move, which is short.
    fn claim_place(&self, change: u32) -> Option<u32> {
        loop {
            let place = self.state.load(Ordering::Relaxed);
            if place >= PLACED {
                let claimed =
                    self.state.compare_exchange(place, change, Ordering::Acquire, Ordering::Relaxed);
                if claimed.is_ok() {
                    return Some(place);
                }
            } else if place != MOVING {
                return None;
            }
            arch::cpu::spin_hint();
        }
    }

    /// Runs `f` at the synchronize IRQL while the ISR runs on no processor, with what it shares.
    ///
    /// # Bugchecks
    /// IRQL_NOT_GREATER_OR_EQUAL from above the synchronize IRQL.
    #[doc(alias = "KeSynchronizeExecution")]
    #[track_caller]
    pub fn synchronize<L: AtOrBelow<Device>, R>(
        &self,
        at: &mut Irql<L>,
        f: impl FnOnce(&mut T, &mut Irql<Device>) -> R,
    ) -> R {
        let mut guard = self.shared.borrow().lock(at);
        let (shared, at) = guard.parts();
        f(shared, at)
    }

    /// Is it connected? Stale at once.
    pub fn is_connected(&self) -> bool {
        self.state.load(Ordering::Relaxed) >= MOVING
    }

    /// What the chain calls.
    ///
    /// # Safety
    /// `object` is a `Self` that lives until this returns.
    unsafe fn run(object: *const (), at: &mut Irql<Device>) -> Claim {
        // SAFETY: as the caller promised.
        let object = unsafe { &*object.cast::<Self>() };
        let lock = object.shared.borrow();
        let mut guard = lock.lock(at);
        let (shared, at) = guard.parts();
        let claim = (object.routine)(shared, at);
        // In every build: the guard's drop would cover up a raise that the ISR forgot.
        let (found, wanted) = (at.level(), lock.level().cr8());
        if found != wanted {
            bugcheck(
                StopCode::IrqlUnexpectedValue,
                [found.into(), wanted.into(), object.routine as usize as u64, RoutineKind::Isr as u64],
            );
        }
        claim
    }
}
