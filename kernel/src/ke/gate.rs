//! Gates: NT's KGATE, a synchronization event for the kernel's own use, waited for alone and without a timeout.
//!
//! IRQL:    signal at or below DISPATCH, wait at PASSIVE or APC.
//! Sources: the public symbols' `KGATE`; there is no WDK page.

use core::hint::cold_path;

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};

use super::object::{Header, kind};
use super::sched;
use super::wait::signal::{self, Woken};
use super::wait::{self, CanWait};

/// A gate. NT's KGATE, byte for byte.
#[repr(transparent)]
pub struct Gate {
    header: Header,
}

const _: () = assert!(size_of::<Gate>() == 24);

impl Gate {
    /// Closed.
    #[doc(alias = "KeInitializeGate")]
    pub const fn new() -> Self {
        Self { header: Header::new(kind::GATE, 0) }
    }

    /// Lets one through: the first that waits, else the next that comes.
    #[doc(alias = "KeSignalGateBoostPriority")]
    pub fn signal<L>(&self, increment: u8, at: &mut Irql<L>)
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let mut raised = at.raise::<Dispatch>();
        let guard = self.header.lock(&mut raised);
        if self.header.signal_state() > 0 {
            return;
        }
        // SAFETY: the lock is held.
        if unsafe { self.header.first_waiter() }.is_null() {
            self.header.set_signal_state(1);
            return;
        }
        // SAFETY: as above, and somebody waits; a wait for a gate takes its signal alone.
        if let Some(thread) = unsafe { signal::claim_first(&self.header) } {
            drop(guard);
            // SAFETY: its wait was won just now.
            unsafe { sched::make_ready_and_leave::<L>(thread, increment, &mut raised) };
            return;
        }
        // An APC ends its wait, or has: whoever waits behind it, else the next.
        cold_path();
        let mut woken = Woken::new();
        self.header.set_signal_state(1);
        // SAFETY: the lock is held.
        unsafe { woken.satisfy(&self.header) };
        drop(guard);
        woken.finish(increment, &mut raised);
        sched::after_signal::<L>(&mut raised);
    }

    /// Goes through, when it is let through.
    #[doc(alias = "KeWaitForGate")]
    pub fn wait<L: CanWait>(&self, at: &mut Irql<L>) {
        // Neither a timeout nor an alert ends it.
        let _ = wait::for_single(&self.header, None, at);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
