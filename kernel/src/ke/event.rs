//! Events: NT's KEVENT, and the safe [`Event`].
//!
//! IRQL:    set, reset and clear at or below DISPATCH; waiting is `wait`'s.
//! Sources: WDK, `KeInitializeEvent`, `KeSetEvent`, `KeResetEvent`, `KeClearEvent`, `KePulseEvent`, `KeReadStateEvent`.

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};

use core::hint::cold_path;

use super::object::{Header, kind};
use super::sched;
use super::wait::Waitable;
use super::wait::signal::{self, Woken};

/// Whom a signal wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// All that wait; it stays signalled until it is reset.
    Notification = kind::NOTIFICATION_EVENT,
    /// One that waits, in the order of their waits; it is reset by that.
    Synchronization = kind::SYNCHRONIZATION_EVENT,
}

/// An event. NT's KEVENT, byte for byte.
#[repr(transparent)]
pub struct Event {
    header: Header,
}

const _: () = assert!(size_of::<Event>() == 24);

sync::nt_layout! { [] Event = "KEVENT" { header => "Header", } }

impl Event {
    /// Signalled or not.
    #[doc(alias = "KeInitializeEvent")]
    pub const fn new(kind: EventKind, signalled: bool) -> Self {
        Self { header: Header::new(kind as u8, signalled as i32) }
    }

    /// Is it signalled? Stale at once.
    #[doc(alias = "KeReadStateEvent")]
    pub fn is_signalled(&self) -> bool {
        self.header.is_signalled()
    }
}

impl Event {
    /// Signals it; threads that this wakes are boosted by `increment`. True: it was signalled before.
    #[doc(alias = "KeSetEvent")]
    #[inline(always)]
    pub fn set<L>(&self, increment: u8, at: &mut Irql<L>) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let mut raised = at.raise::<Dispatch>();
        let guard = self.header.lock(&mut raised);
        let before = self.header.signal_state();
        // SAFETY: the lock is held.
        if unsafe { self.header.first_waiter() }.is_null() {
            self.header.set_signal_state(1);
            return before > 0;
        }
        'one: {
            if guard.bits() as u8 != kind::SYNCHRONIZATION_EVENT || before > 0 {
                break 'one;
            }
            // SAFETY: as above, and somebody waits; a wait for an event takes its signal alone.
            let Some(thread) = (unsafe { signal::claim_first(&self.header) }) else { break 'one };
            drop(guard);
            // SAFETY: its wait was won just now.
            unsafe { sched::make_ready_and_leave::<L>(thread, increment, &mut raised) };
            return false;
        }
        cold_path();
        let mut woken = Woken::new();
        self.header.set_signal_state(1);
        // SAFETY: the lock is held.
        unsafe { woken.satisfy(&self.header) };
        drop(guard);
        woken.finish(increment, &mut raised);
        sched::after_signal::<L>(&mut raised);
        before > 0
    }

    /// [`set`](Self::set), but that no other thread runs here yet: the caller waits next, or looks.
    pub(super) fn set_and_stay(&self, increment: u8, at: &mut Irql<Dispatch>) {
        let mut woken = Woken::new();
        {
            let _guard = self.header.lock(&mut *at);
            self.header.set_signal_state(1);
            // SAFETY: the lock is held.
            unsafe { woken.satisfy(&self.header) };
        }
        woken.finish(increment, at);
        sched::leave_a_look(at);
    }

    /// Wakes those that wait now, all or one, and leaves it not signalled. True: it was signalled before.
    #[doc(alias = "KePulseEvent")]
    pub fn pulse<L>(&self, increment: u8, at: &mut Irql<L>) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let mut raised = at.raise::<Dispatch>();
        let mut woken = Woken::new();
        let before = {
            let mut guard = self.header.lock(&mut raised);
            let (_, _inner) = guard.parts();
            let before = self.header.signal_state();
            self.header.set_signal_state(1);
            // SAFETY: the lock is held.
            unsafe { woken.satisfy(&self.header) };
            self.header.set_signal_state(0);
            before
        };
        if !woken.is_empty() {
            woken.finish(increment, &mut raised);
            sched::after_signal::<L>(&mut raised);
        }
        before > 0
    }

    /// Makes it not signalled. True: it was.
    #[doc(alias = "KeResetEvent")]
    #[doc(alias = "KeClearEvent")]
    pub fn reset<L>(&self, at: &mut Irql<L>) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let mut guard = self.header.lock(at);
        let _ = guard.parts();
        let before = self.header.signal_state();
        self.header.set_signal_state(0);
        before > 0
    }
}

impl Waitable for Event {
    #[inline(always)]
    fn header(&self) -> &Header {
        &self.header
    }
}
