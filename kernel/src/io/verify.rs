//! What the checked build watches of packets: that STATUS_PENDING is returned exactly where the packet is marked.
//!
//! A driver's routine returns a status; the location that it was called with is unwound, marked or not. Which comes first nobody
//! knows, and the later one may find the packet, or the caller's stack, gone. So both meet at a tracker, which is in neither: whoever
//! comes second compares, and frees it. Several calls share a location if drivers skip theirs; they are a chain, and all owe the same.
//!
//! Owns:       the trackers, the checks.
//! IRQL:       up to DISPATCH; takes no lock.
//! Invariants: I1 a tracker's number is in its location from the call until the location is unwound.
//!             I2 a tracker is free, or both or one of its two ends are still to come; who comes second frees it.
//! Ordering:   the exchange of the state is AcqRel, so the second sees what the first wrote.
//! Not as NT:  without a free tracker a call is not watched, and counted.
//! Tests:      tests/props/tests/io_packets.rs; crash `irp_pending_unmarked`, `irp_marked_not_pending`.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::bugcheck;
use super::layout::{Dispatch, KIrp, KStackLocation};
use super::violation::{Violation, violation};
use crate::ke::bugcheck::{RoutineKind, StopCode};
use crate::rtl::NtStatus;

const FREE: u32 = 0;
const CALLED: u32 = 1;
const RETURNED_PENDING: u32 = 2;
const RETURNED_OTHER: u32 = 3;
const UNWOUND_MARKED: u32 = 4;
const UNWOUND_UNMARKED: u32 = 5;

/// How many calls can be watched at once.
const TRACKERS: usize = 1024;

struct Tracker {
    state: AtomicU32,
    /// Number of the call that shares the location, above; 0: none.
    outer: AtomicU32,
    location: AtomicUsize,
    routine: AtomicUsize,
    /// What a routine returned, for the report.
    status: AtomicU32,
}

static ALL: [Tracker; TRACKERS] = [const {
    Tracker {
        state: AtomicU32::new(FREE),
        outer: AtomicU32::new(0),
        location: AtomicUsize::new(0),
        routine: AtomicUsize::new(0),
        status: AtomicU32::new(0),
    }
}; TRACKERS];

/// Where the search for a free one begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static UNWATCHED: AtomicUsize = AtomicUsize::new(0);

/// Calls that were not watched, for want of a tracker.
pub fn unwatched() -> usize {
    UNWATCHED.load(Ordering::Relaxed)
}

/// Calls that have not both returned and been unwound.
pub fn under_way() -> usize {
    ALL.iter().filter(|tracker| tracker.state.load(Ordering::Relaxed) != FREE).count()
}

/// A call that is watched; number 0: not.
pub(super) struct Call {
    number: u32,
    level: u8,
    routine: Dispatch,
}

/// `routine` is about to be called with `location`.
///
/// # Safety
/// The location is the caller's.
pub(super) unsafe fn enter(location: NonNull<KStackLocation>, routine: Dispatch) -> Call {
    let level = arch::irql::current();
    let place = location.as_ptr();
    let start = NEXT.fetch_add(1, Ordering::Relaxed);
    for at in 0..TRACKERS {
        let number = (start + at) % TRACKERS;
        let tracker = &ALL[number];
        if tracker.state.load(Ordering::Relaxed) != FREE
            || tracker.state.compare_exchange(FREE, CALLED, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            continue;
        }
        let number = number as u32 + 1;
        // SAFETY: the caller's.
        let before = unsafe { (*place).tracker };
        // A copied location has the number of another one's call in it.
        let shared = before != 0 && ALL[before as usize - 1].location.load(Ordering::Relaxed) == place.addr();
        tracker.outer.store(if shared { before } else { 0 }, Ordering::Relaxed);
        tracker.location.store(place.addr(), Ordering::Relaxed);
        tracker.routine.store(routine as usize, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { (*place).tracker = number };
        return Call { number, level, routine };
    }
    UNWATCHED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's.
    unsafe { (*place).tracker = 0 };
    Call { number: 0, level, routine }
}

impl Call {
    /// It returned `status`. The packet may be gone.
    pub(super) fn returned(self, status: NtStatus, irp: NonNull<KIrp>) {
        let (found, routine) = (arch::irql::current(), self.routine as usize);
        if found != self.level {
            let parameters =
                [found.into(), self.level.into(), routine as u64, RoutineKind::DriverDispatch as u64];
            bugcheck(StopCode::IrqlUnexpectedValue, parameters);
        }
        if self.number == 0 {
            return;
        }
        let tracker = &ALL[self.number as usize - 1];
        tracker.status.store(status.0, Ordering::Relaxed);
        let pending = status == NtStatus::PENDING;
        let state = if pending { RETURNED_PENDING } else { RETURNED_OTHER };
        let unwound = tracker.state.swap(state, Ordering::AcqRel);
        if unwound != CALLED {
            compare(pending, unwound == UNWOUND_MARKED, routine, irp, status.0);
            tracker.free();
        }
    }
}

impl Tracker {
    fn free(&self) {
        self.location.store(0, Ordering::Relaxed);
        self.state.store(FREE, Ordering::Release);
    }
}

fn compare(pending: bool, marked: bool, routine: usize, irp: NonNull<KIrp>, status: u32) {
    match (pending, marked) {
        (true, false) => violation(Violation::PendingUnmarked, routine, irp.addr().get(), status),
        (false, true) => violation(Violation::MarkedNotPending, routine, irp.addr().get(), status),
        _ => {}
    }
}

/// A location is unwound.
///
/// # Safety
/// It is the caller's.
pub(super) unsafe fn unwinds(location: *mut KStackLocation, marked: bool, irp: NonNull<KIrp>) {
    // SAFETY: the caller's.
    let mut number = unsafe { core::mem::take(&mut (*location).tracker) };
    while number != 0 {
        let tracker = &ALL[number as usize - 1];
        if tracker.location.load(Ordering::Relaxed) != location.addr() {
            break;
        }
        number = tracker.outer.load(Ordering::Relaxed);
        let state = if marked { UNWOUND_MARKED } else { UNWOUND_UNMARKED };
        let returned = tracker.state.swap(state, Ordering::AcqRel);
        if returned != CALLED {
            let routine = tracker.routine.load(Ordering::Relaxed);
            let status = tracker.status.load(Ordering::Relaxed);
            compare(returned == RETURNED_PENDING, marked, routine, irp, status);
            tracker.free();
        }
    }
}

/// A packet begins its way back.
///
/// # Safety
/// It is the caller's.
pub(super) unsafe fn completes(irp: NonNull<KIrp>) {
    // SAFETY: the caller's.
    let (status, cancelable) =
        unsafe { ((*irp.as_ptr()).io_status.status, (*irp.as_ptr()).cancel_routine.is_set()) };
    if status == NtStatus::PENDING {
        violation(Violation::CompletedPending, 0, irp.addr().get(), status.0);
    }
    if cancelable {
        violation(Violation::CompletedCancelable, 0, irp.addr().get(), status.0);
    }
}
