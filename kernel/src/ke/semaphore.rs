//! Semaphores: NT's KSEMAPHORE.
//!
//! IRQL:    release at or below DISPATCH; waiting is `wait`'s.
//! Sources: WDK, `KeInitializeSemaphore`, `KeReleaseSemaphore`, `KeReadStateSemaphore`.

use core::hint::cold_path;

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock};

use super::object::{Header, kind};
use super::sched;
use super::wait::Waitable;
use super::wait::signal::{self, Woken};
use crate::rtl::NtStatus;

/// A count that waits take one from. NT's KSEMAPHORE, byte for byte.
#[repr(C)]
pub struct Semaphore {
    header: Header,
    limit: i32,
    _pad: u32,
}

const _: () = assert!(size_of::<Semaphore>() == 32 && core::mem::offset_of!(Semaphore, limit) == 24);

sync::nt_layout! { [] Semaphore = "KSEMAPHORE" { header => "Header", limit => "Limit", } }

impl Semaphore {
    /// With a count, which never gets above `limit`.
    ///
    /// # Panics
    /// Unless 0 <= `count` <= `limit` and 0 < `limit`.
    #[doc(alias = "KeInitializeSemaphore")]
    pub const fn new(count: i32, limit: i32) -> Self {
        assert!(0 <= count && count <= limit && limit > 0);
        Self { header: Header::new(kind::SEMAPHORE, count), limit, _pad: 0 }
    }

    /// The count. Stale at once.
    #[doc(alias = "KeReadStateSemaphore")]
    pub fn count(&self) -> i32 {
        self.header.signal_state()
    }
}

impl Semaphore {
    /// Adds `adjustment` to the count, which ends as many waits; the threads are boosted by `increment`. Returns the old count.
    ///
    /// # Errors
    /// STATUS_SEMAPHORE_LIMIT_EXCEEDED where it would get above its limit, or the adjustment is not above zero: nothing is changed.
    #[doc(alias = "KeReleaseSemaphore")]
    pub fn release<L>(&self, increment: u8, adjustment: i32, at: &mut Irql<L>) -> Result<i32, NtStatus>
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let mut raised = at.raise::<Dispatch>();
        let guard = self.header.lock(&mut raised);
        let before = self.header.signal_state();
        let after = before.checked_add(adjustment).filter(|&after| adjustment > 0 && after <= self.limit);
        let Some(after) = after else { return Err(NtStatus::SEMAPHORE_LIMIT_EXCEEDED) };
        // SAFETY: the lock is held.
        if unsafe { self.header.first_waiter() }.is_null() {
            self.header.set_signal_state(after);
            return Ok(before);
        }
        // SAFETY: as above, and somebody waits; a wait for a semaphore takes one of its count alone.
        let first = if after == 1 { unsafe { signal::claim_first(&self.header) } } else { None };
        if let Some(thread) = first {
            drop(guard);
            // SAFETY: its wait was won just now.
            unsafe { sched::make_ready_and_leave::<L>(thread, increment, &mut raised) };
        } else {
            cold_path();
            let mut woken = Woken::new();
            self.header.set_signal_state(after);
            // SAFETY: the lock is held.
            unsafe { woken.satisfy(&self.header) };
            drop(guard);
            woken.finish(increment, &mut raised);
            sched::after_signal::<L>(&mut raised);
        }
        Ok(before)
    }
}

impl Waitable for Semaphore {
    #[inline(always)]
    fn kind(&self) -> u8 {
        kind::SEMAPHORE
    }

    #[inline(always)]
    fn header(&self) -> &Header {
        &self.header
    }
}
