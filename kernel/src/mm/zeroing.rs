//! Pages cleared ahead of need, by whoever has nothing better to do: the thread of priority 0.
//!
//! ```text
//!  zeroed   0 ...... LOW ...................... wanted ......
//!           the event is set below LOW          the thread waits again from here on
//! ```
//!
//! A page that is being cleared is on no list, so it is taken, cleared and put back at DISPATCH: on one processor nobody sees it
//! missing, and nobody with a deadline waits for a thread of priority 0 that was preempted with it.
//!
//! IRQL:   the thread PASSIVE; a step raises to DISPATCH for the clearing of one page.
//! Tests:  selftest `memory_pressure::*`; mutant `mm/zeroing_without_zeroes`.

use core::sync::atomic::{AtomicU32, Ordering};

use sync::irql::{Dispatch, Irql, Passive};

use super::frames::Counts;
use super::physical;
use crate::ke::event::{Event, EventKind};
use crate::ke::timer::Due;
use crate::ke::{thread, wait};
use crate::rtl::NtStatus;

/// Fewer zeroed pages than this, and the thread is woken.
pub const LOW: u32 = 64;
/// The most that are kept.
const MOST: u32 = 1024;

/// There is work.
static WORK: Event = Event::new(EventKind::Synchronization, true);

/// Who wants no page to be cleared now: self-tests that count them.
static PAUSED: AtomicU32 = AtomicU32::new(0);
/// Processors that are clearing a page.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// How many zeroed pages there should be: an eighth of those free or zeroed, up to `MOST`.
pub const fn wanted(counts: &Counts) -> u32 {
    let share = (counts.free + counts.zeroed) / 8;
    if share < MOST { share } else { MOST }
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Cleared,
    Enough,
    Paused,
}

/// Clears a page, if more are wanted.
fn step(at: &mut Irql<Passive>) -> Step {
    let at = &mut at.raise::<Dispatch>();
    BUSY.fetch_add(1, Ordering::SeqCst);
    let done = if PAUSED.load(Ordering::SeqCst) != 0 {
        Step::Paused
    } else if physical::zero_one(wanted, at) {
        Step::Cleared
    } else {
        Step::Enough
    };
    BUSY.fetch_sub(1, Ordering::Release);
    done
}

/// Starts the thread. An image does so that wants it.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
pub fn start(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    // It never ends, so nobody needs the reference.
    thread::spawn_zero_page_thread(run, at).map(drop)
}

/// Clears what is wanted, and waits until there is more to do. Never returns.
fn run(at: &mut Irql<Passive>, _: usize) {
    loop {
        // A pause ends untold.
        let due = match step(at) {
            Step::Cleared => continue,
            Step::Enough => None,
            Step::Paused => Some(Due::In(100_000)),
        };
        let _ = wait::for_single(&WORK, due, at);
    }
}

/// Clears what is wanted at once: for an image without the thread.
pub fn fill(at: &mut Irql<Passive>) {
    while step(at) == Step::Cleared {}
}

/// Fewer than [`LOW`] are left: by the DPC of `physical`.
pub(super) fn wake(at: &mut Irql<Dispatch>) {
    WORK.set(0, at);
}

/// No page is cleared until this is dropped; on return, none is being cleared. At PASSIVE.
pub struct Pause(());

impl Pause {
    /// Begins it.
    pub fn begin(_: &mut Irql<Passive>) -> Self {
        PAUSED.fetch_add(1, Ordering::SeqCst);
        // Each is at DISPATCH for the clearing of one page.
        while BUSY.load(Ordering::SeqCst) != 0 {
            arch::cpu::spin_hint();
        }
        Self(())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        PAUSED.fetch_sub(1, Ordering::SeqCst);
    }
}
