//! Critical and guarded regions: the running thread lets no normal kernel APCs in, or no kernel APCs at all.
//!
//! A region is a guard: it ends in its scope, in the reverse order of its begin, and what can be delivered then is, before the guard's drop
//! has returned, or as soon as the level is PASSIVE.
//!
//! Ordering: the end of a region stores the count and looks for APCs without a fence. An insert on another processor that sees the old
//!           count interrupts this one (queue.rs), so what the look misses the interrupt finds.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering;

use sync::attention::Signs;
use sync::irql::{Irql, Level};

use super::super::thread::{self, Thread};
use super::super::wait::CanWait;
use super::deliver::deliver_or_request;

const CRITICAL: u32 = 1;
const GUARDED: u32 = 1 << 16;

/// A region that the running thread is in. Use it as the `&mut Irql<L>` that it derefs to.
#[must_use = "dropping it at once ends the region"]
pub struct Region<'a, L: CanWait, const KIND: u32> {
    at: &'a mut Irql<L>,
}

/// No normal kernel APCs, and no termination.
pub type Critical<'a, L> = Region<'a, L, CRITICAL>;
/// No kernel APCs at all.
pub type Guarded<'a, L> = Region<'a, L, GUARDED>;

/// The running thread lets no normal kernel APC in, nor is it ended or suspended, until the guard is dropped.
#[doc(alias = "KeEnterCriticalRegion")]
#[doc(alias = "FsRtlEnterFileSystem")]
#[inline(always)]
pub fn enter_critical<L: CanWait>(at: &mut Irql<L>) -> Critical<'_, L> {
    Region::enter(at)
}

/// The running thread lets no kernel APC in until the guard is dropped.
#[doc(alias = "KeEnterGuardedRegion")]
#[inline(always)]
pub fn enter_guarded<L: CanWait>(at: &mut Irql<L>) -> Guarded<'_, L> {
    Region::enter(at)
}

/// Is the running thread in a region of either kind, or at APC?
#[doc(alias = "KeAreApcsDisabled")]
pub fn are_disabled<L: Level>(at: &Irql<L>) -> bool {
    thread::current(at).apc.disables() != 0 || arch::irql::current() != 0
}

/// Is the running thread in a guarded region, or at APC?
#[doc(alias = "KeAreAllApcsDisabled")]
pub fn are_all_disabled<L: Level>(at: &Irql<L>) -> bool {
    thread::current(at).apc.disables() >= GUARDED || arch::irql::current() != 0
}

impl<'a, L: CanWait, const KIND: u32> Region<'a, L, KIND> {
    #[inline(always)]
    fn enter(at: &'a mut Irql<L>) -> Self {
        // By the thread itself: an APC in between leaves it as it was.
        let count = &thread::current(at).apc.disables;
        count.store(count.load(Ordering::Relaxed).wrapping_add(KIND), Ordering::Relaxed);
        Self { at }
    }

    #[inline(always)]
    fn me(&self) -> thread::Current<'_> {
        thread::current(self.at)
    }
}

impl<L: CanWait, const KIND: u32> Drop for Region<'_, L, KIND> {
    #[inline(always)]
    fn drop(&mut self) {
        let count = &self.me().apc.disables;
        let now = count.load(Ordering::Relaxed).wrapping_sub(KIND);
        count.store(now, Ordering::Relaxed);
        if now & (KIND * 0xFFFF) == 0 && self.me().attention.any(Signs::KERNEL) {
            deliver_or_request(self.at);
        }
    }
}

/// The running thread holds no mutant any more, which kept normal APCs out: what has come meanwhile is delivered. Behind the release, at
/// the caller's level.
#[inline(always)]
pub(in crate::ke) fn mutants_released<L: CanWait>(me: &Thread, at: &mut Irql<L>) {
    if me.attention.any(Signs::KERNEL) {
        deliver_or_request(at);
    }
}

impl<L: CanWait, const KIND: u32> Deref for Region<'_, L, KIND> {
    type Target = Irql<L>;

    #[inline(always)]
    fn deref(&self) -> &Irql<L> {
        self.at
    }
}

impl<L: CanWait, const KIND: u32> DerefMut for Region<'_, L, KIND> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Irql<L> {
        self.at
    }
}
