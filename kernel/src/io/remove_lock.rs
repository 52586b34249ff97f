//! Remove locks: a device that goes waits until all that use it have let go.
//!
//! | count | |
//! |---|---|
//! | 1 | in use by nobody |
//! | 1 + n | n have acquired it |
//! | n, removed | n are still to release it; at 0 the event is set |
//!
//! IRQL:       acquired and released up to DISPATCH; removed at PASSIVE.
//! Invariants: L1 `io_count` falls to zero only behind `removed`, and once; then nobody has it.
//! Ordering:   who acquires counts first and looks at `removed` then, who removes sets `removed` first and counts down then, each by SeqCst:
//!             so one of them sees the other. A release is AcqRel: what it covered comes before the wait's end.
//! Not as NT:  tags are not kept, the checked variant's block neither.
//! Tests:      tests/props/tests/io_remove_lock.rs; selftest `io_start::a_removal_waits_for_all`.
//! Sources:    WDK, `IoInitializeRemoveLock`, `IoAcquireRemoveLock`, `IoReleaseRemoveLockAndWait`, "Using Remove Locks".

use core::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use sync::event::{MaySignal, MayWait};
use sync::irql::Irql;

use crate::ke::event::{Event, EventKind};
use crate::ke::wait::{self, CanWait};
use crate::rtl::NtStatus;

/// NT's IO_REMOVE_LOCK, byte for byte, without the checked variant's block.
#[repr(C)]
#[doc(alias = "IO_REMOVE_LOCK")]
pub struct KRemoveLock {
    removed: AtomicU8,
    _reserved: [u8; 3],
    io_count: AtomicI32,
    remove_event: Event,
}

const _: () = assert!(size_of::<KRemoveLock>() == 32);

sync::nt_layout! {
    [] KRemoveLock = "IO_REMOVE_LOCK_COMMON_BLOCK" {
        removed => "Removed", _reserved => "Reserved", io_count => "IoCount", remove_event => "RemoveEvent",
    }
}

impl KRemoveLock {
    /// In use by nobody.
    #[doc(alias = "IoInitializeRemoveLock")]
    #[expect(
        clippy::new_without_default,
        reason = "it is a part of a device's state, which has a default or not"
    )]
    pub const fn new() -> Self {
        Self {
            removed: AtomicU8::new(0),
            _reserved: [0; 3],
            io_count: AtomicI32::new(1),
            remove_event: Event::new(EventKind::Synchronization, false),
        }
    }

    /// The device stays until [`release`](Self::release).
    ///
    /// # Errors
    /// STATUS_DELETE_PENDING: it goes.
    #[doc(alias = "IoAcquireRemoveLock")]
    pub fn acquire<L: MaySignal>(&self, at: &mut Irql<L>) -> Result<(), NtStatus> {
        self.io_count.fetch_add(1, Ordering::SeqCst);
        if self.removed.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        self.release(at);
        Err(NtStatus::DELETE_PENDING)
    }

    /// Lets go; for each acquire once.
    #[doc(alias = "IoReleaseRemoveLock")]
    pub fn release<L: MaySignal>(&self, at: &mut Irql<L>) {
        // L1.
        if self.io_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.remove_event.set(0, at);
        }
    }

    /// Nobody acquires it any more; returns when all have let go, the caller's own acquire included.
    #[doc(alias = "IoReleaseRemoveLockAndWait")]
    pub fn release_and_wait<L: MayWait + MaySignal + CanWait>(&self, at: &mut Irql<L>) {
        self.removed.store(1, Ordering::SeqCst);
        self.io_count.fetch_sub(1, Ordering::SeqCst);
        if self.io_count.fetch_sub(1, Ordering::SeqCst) > 1 {
            let _ = wait::for_single(&self.remove_event, None, at);
        }
    }

    /// Has its removal begun? Stale at once, unless true.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed) != 0
    }
}
