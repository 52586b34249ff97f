//! The event that the protocols of `sync` sleep on: a synchronization event of this kernel.

use sync::event::{Behind, MaySignal};
use sync::irql::{Apc, Irql};

use crate::ke::event::{Event, EventKind};
use crate::ke::wait;
use crate::rtl::NtStatus;

/// What a thread gains that was let in: EVENT_INCREMENT.
const INCREMENT: u8 = 1;

/// See the module. A KEVENT, byte for byte.
#[repr(transparent)]
pub struct Wakeup(Event);

impl Wakeup {
    /// One that is not signalled.
    pub const fn new() -> Self {
        Self(Event::new(EventKind::Synchronization, false))
    }
}

impl Default for Wakeup {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: E1, E2, E5: a synchronization event; its waits have no timeout, are not alertable, and are at APC, where
//         no APC is delivered and no thread ended. E3: `ke::wait`, W2, and the event's
//         own lock is given back before the waiter is made ready. E4: that lock, or the switch to the waiter.
unsafe impl sync::event::Event for Wakeup {
    #[inline(always)]
    fn new() -> Self {
        Self::new()
    }

    fn wait(&self, behind: Option<Behind<'_>>, at: &mut Irql<Apc>) {
        let status = wait::sleep_behind(behind, at, |at| wait::for_single(&self.0, None, at));
        debug_assert!(status == NtStatus::SUCCESS, "E1");
    }

    unsafe fn set<L: MaySignal>(event: *const Self, at: &mut Irql<L>) {
        // SAFETY: the caller's: it is there until its waiter may have returned; E3 of this implementation says that it is not touched
        //         afterwards.
        unsafe { (*event).0.set(INCREMENT, at) };
    }

    #[inline(always)]
    fn current_thread() -> usize {
        arch::pcr::current_thread().addr()
    }
}
