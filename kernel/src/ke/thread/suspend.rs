//! Suspension and freezing: a thread that is suspended waits, in a normal kernel APC, for an object of its own.
//!
//! So it is suspended once it takes normal APCs: not in a critical region, nor while it holds a mutant; until then the count has no effect. A
//! suspension that is over before the APC was delivered leaves an APC that returns at once.
//!
//! IRQL:       at or below DISPATCH.
//! Locks:      that of the object `resumed`.
//! Invariants: S1 `resumed` is signalled <=> `suspended` and `frozen` are zero: all three under its lock.
//!             S2 not signalled => the APC is queued, under way, or about to be queued by whoever made it so. An APC that finds it
//!                signalled returns.
//! Sources:    WDK, `PsSuspendThread`'s users; Win32, `SuspendThread`, `ResumeThread`.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};

use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, Passive};

use super::super::apc::{self, KApc, NormalRoutine, ProcessorMode};
use super::super::object::{Header, kind};
use super::super::wait::signal::Woken;
use super::super::{sched, wait};
use super::Thread;
use crate::rtl::NtStatus;

/// A thread can be suspended this often.
pub const MAXIMUM_SUSPEND_COUNT: u32 = 127;

/// A thread's part.
pub(super) struct Suspension {
    apc: KApc,
    /// S1.
    resumed: Header,
    /// S1.
    suspended: AtomicU32,
    /// S1.
    frozen: AtomicU32,
}

impl Suspension {
    pub(super) const fn new() -> Self {
        Self {
            apc: KApc::new(
                ProcessorMode::Kernel,
                nothing_to_do,
                None,
                Some(wait_until_resumed),
                ptr::null_mut(),
            ),
            resumed: Header::new(kind::NOTIFICATION_EVENT, 1),
            suspended: AtomicU32::new(0),
            frozen: AtomicU32::new(0),
        }
    }

    /// That of a thread that has ended, whose APC was taken out, becomes a new one's.
    pub(super) fn renew(&mut self) {
        self.resumed.set_signal_state(1);
        *self.suspended.get_mut() = 0;
        *self.frozen.get_mut() = 0;
    }
}

/// The kernel routine: it all is in the normal one.
unsafe extern "win64" fn nothing_to_do(
    _: *mut KApc,
    _: *mut Option<NormalRoutine>,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) {
}

/// # Safety
/// The normal routine of the thread's own suspension, at PASSIVE, in that thread.
unsafe extern "win64" fn wait_until_resumed(_: *mut c_void, _: *mut c_void, _: *mut c_void) {
    // SAFETY: the caller's level, whose token isn't used meanwhile.
    unsafe {
        Irql::<Passive>::lend(|at| {
            // SAFETY: used by this thread's code alone.
            let me = super::current(at).unbound();
            let _ = wait::for_single(&me.suspension.resumed, None, at);
        });
    }
}

/// Which of the two counts.
#[derive(Clone, Copy)]
enum Count {
    Suspended,
    Frozen,
}

impl Thread {
    /// Suspends it, once more; how often it was before.
    ///
    /// # Errors
    /// STATUS_SUSPEND_COUNT_EXCEEDED; STATUS_THREAD_IS_TERMINATING if it has ended.
    #[doc(alias = "KeSuspendThread")]
    #[doc(alias = "PsSuspendThread")]
    pub fn suspend<L>(&self, at: &mut Irql<L>) -> Result<u32, NtStatus>
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        self.stop(Count::Suspended, at)
    }

    /// Takes one suspension back; how often it was suspended before. At zero it goes on, if it isn't frozen.
    #[doc(alias = "KeResumeThread")]
    #[doc(alias = "PsResumeThread")]
    pub fn resume<L>(&self, at: &mut Irql<L>) -> u32
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        self.go_on(Count::Suspended, false, at)
    }

    /// Stops it as [`suspend`](Self::suspend) does, on another count; how often it was frozen before.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    #[doc(alias = "KeFreezeAllThreads")]
    pub fn freeze<L>(&self, at: &mut Irql<L>) -> Result<u32, NtStatus>
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        self.stop(Count::Frozen, at)
    }

    /// Takes one [`freeze`](Self::freeze) back.
    #[doc(alias = "KeThawAllThreads")]
    pub fn thaw<L>(&self, at: &mut Irql<L>) -> u32
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        self.go_on(Count::Frozen, false, at)
    }

    /// It goes on, however often it was suspended and frozen; how often it was suspended.
    #[doc(alias = "KeForceResumeThread")]
    pub fn force_resume<L>(&self, at: &mut Irql<L>) -> u32
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let _ = self.go_on(Count::Frozen, true, at);
        self.go_on(Count::Suspended, true, at)
    }

    /// How often it is suspended. Stale at once.
    pub fn suspend_count(&self) -> u32 {
        self.suspension.suspended.load(Ordering::Relaxed)
    }

    fn count(&self, count: Count) -> &AtomicU32 {
        match count {
            Count::Suspended => &self.suspension.suspended,
            Count::Frozen => &self.suspension.frozen,
        }
    }

    fn is_to_run(&self) -> bool {
        [Count::Suspended, Count::Frozen].iter().all(|&it| self.count(it).load(Ordering::Relaxed) == 0)
    }

    fn stop<L>(&self, count: Count, at: &mut Irql<L>) -> Result<u32, NtStatus>
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        if self.is_terminated() {
            return Err(NtStatus::THREAD_IS_TERMINATING);
        }
        let resumed = &self.suspension.resumed;
        let (before, first) = {
            let mut guard = resumed.lock(at);
            let _ = guard.parts();
            let before = self.count(count).load(Ordering::Relaxed);
            if before == MAXIMUM_SUSPEND_COUNT {
                return Err(NtStatus::SUSPEND_COUNT_EXCEEDED);
            }
            let first = self.is_to_run();
            self.count(count).store(before + 1, Ordering::Relaxed);
            resumed.set_signal_state(0);
            (before, first)
        };
        if first {
            let apc = NonNull::from(&self.suspension.apc);
            // SAFETY: 1. part of the thread, which takes it out of its queue when it ends. 2. the routines are this module's. False: it is
            //         queued still, and will find the object as it is now.
            let _ = unsafe { apc::insert(apc, self, [ptr::null_mut(); 2], 0, at) };
        }
        Ok(before)
    }

    fn go_on<L>(&self, count: Count, wholly: bool, at: &mut Irql<L>) -> u32
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let resumed = &self.suspension.resumed;
        let mut raised = at.raise::<Dispatch>();
        let mut woken = Woken::new();
        let before = {
            let mut guard = resumed.lock(&mut raised);
            let _ = guard.parts();
            let before = self.count(count).load(Ordering::Relaxed);
            if before == 0 {
                return 0;
            }
            self.count(count).store(if wholly { 0 } else { before - 1 }, Ordering::Relaxed);
            if self.is_to_run() {
                resumed.set_signal_state(1);
                // SAFETY: the lock is held.
                unsafe { woken.satisfy(resumed) };
            }
            before
        };
        if !woken.is_empty() {
            woken.finish(0, &mut raised);
            sched::after_signal::<L>(&mut raised);
        }
        before
    }
}
