//! The checked build's eye on wakeups that are lost. Each is a bugcheck that names both sides, not a thread that waits for ever.
//!
//! DRIVER_VERIFIER_DETECTED_VIOLATION: one of the numbers below, the thread that waits, the rest as it says.
//!
//! **Not told**: an object is let go of signalled, and a wait that it should have ended is not over (object.rs, I2). Looked for at each
//! release of an object's lock, by whoever holds it: exact, since the one condition only changes under that lock, and the other,
//! once false, stays so while the thread is registered. A queue's thread is left behind where an entry is queued and one more may run.
//!
//! **All left behind**: all objects of a wait for all are signalled, and it goes on. That isn't judged under one lock, so it is looked for where
//! the wait is over the limit (`chain`), once: as a signaller looks, with the right to do so and all of the locks. Who signals meanwhile
//! leaves a note under one of them, so if there is none it is exact, too.
//!
//! **Won, and not made ready**: a thread's wait was ended, and whoever did it gave the thread to no processor. In between, who ends a wait stays
//! at DISPATCH on one processor, or leaves the rest to that processor's next look (timers). So a suspect is found guilty if it is in the same
//! wait when a threaded DPC has run on every processor since: those run at PASSIVE, behind whatever was under way there. However slow a
//! processor is, or its host, the verdict waits for it. Suspects are looked for with the waits that last too long (`chain`), so as
//! long as anybody waits at all, not more than a limit after the loss.
//!
//! IRQL:       DISPATCH; the threaded DPCs at PASSIVE.
//! Locks:      an object's is held by the caller; the list of threads is `chain`'s.
//! Invariants: L1 `serial` is the number of the thread's present wait: written by itself, as it is over and before the next.
//!             L2 `given` is the serial of the wait behind which the thread was last given a processor: by whoever gives it one.
//! Tests:      crash `signalled_behind_its_lock`, `queue_entry_behind_its_lock`, `all_signalled_by_hand`, `wakeup_dropped`,
//!             `queue_wakeup_dropped`; mutants `threads/one_of_many_is_told`, `threads/won_and_not_made_ready`.

use super::super::bugcheck::{StopCode, bugcheck};
use super::super::object::{Header, kind};
use super::super::queue;
use super::super::thread::Thread;
use super::block::WaitType;
use crate::rtl::NtStatus;

/// What parameter 1 says.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
enum Violation {
    /// The object; the thread that let go of it, signalled.
    NotTold = 0x2007,
    /// The first of its objects; the thread that let go of one of them, signalled, last.
    #[cfg(target_os = "none")]
    AllLeft = 0x2009,
    /// The status that its wait ended with; the thread that ended it, 0: by a timeout, an alert or an APC.
    #[cfg(target_os = "none")]
    NotMadeReady = 0x2008,
}

fn lost(what: Violation, thread: &Thread, how: u64, by: u64) -> ! {
    bugcheck(
        StopCode::DriverVerifierDetectedViolation,
        [what as u64, core::ptr::from_ref(thread) as u64, how, by],
    )
}

/// The object's lock is about to be released by its drop.
pub(in crate::ke) struct OnRelease<'a>(pub(in crate::ke) &'a Header);

impl Drop for OnRelease<'_> {
    fn drop(&mut self) {
        // Only signalled objects are looked at further.
        if self.0.is_signalled() {
            left_nobody(self.0);
        }
    }
}

/// The thread that runs here; 0 on a host.
fn running() -> u64 {
    #[cfg(target_os = "none")]
    return arch::pcr::current_thread().addr() as u64;
    #[cfg(not(target_os = "none"))]
    0
}

#[inline(never)]
fn left_nobody(header: &Header) {
    // SAFETY: the kind says so; its lock is held.
    if header.kind() == kind::QUEUE && !unsafe { queue::headed(header) }.has_entry_and_room() {
        return;
    }
    // SAFETY: the lock is held; registered blocks and their threads stay until they are taken out under it.
    unsafe {
        let mut block = header.first_waiter();
        while let Some(it) = block.as_ref() {
            let thread = &*it.thread();
            let is_timeout = it.key() == NtStatus::TIMEOUT.0 as u16;
            if it.kind() == WaitType::Any && !is_timeout && thread.wait.is_waiting() {
                lost(Violation::NotTold, thread, core::ptr::from_ref(header) as u64, running());
            }
            #[cfg(target_os = "none")]
            if it.kind() == WaitType::All {
                round::let_go_of_one(thread);
            }
            block = it.next();
        }
    }
}

#[cfg(target_os = "none")]
pub use round::drop_the_wakeup_of;
#[cfg(target_os = "none")]
pub(in crate::ke) use round::{Part, given, wait_is_over, won};
#[cfg(target_os = "none")]
pub(super) use round::{examine, look};

#[cfg(target_os = "none")]
mod round {
    use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    use sync::irql::{Dispatch, Irql, Passive};

    use super::super::super::dpc::Dpc;
    use super::super::super::prcb::{self, MAX_PROCESSORS};
    use super::super::super::sched;
    use super::super::super::thread::Thread;
    use super::super::{chain, signal};
    use super::{Violation, lost};

    /// A thread's part.
    pub(in crate::ke) struct Part {
        /// L1.
        serial: AtomicU64,
        /// L2.
        given: AtomicU64,
        /// The wait for which it is a suspect: by a round, under the list's lock.
        suspect: AtomicU64,
        /// Who let go of an object of its wait for all, signalled, last.
        let_go: AtomicPtr<Thread>,
        /// Who ended its wait, where that was a signal: by the winner.
        winner: AtomicPtr<Thread>,
    }

    const NEVER: u64 = 0;

    impl Part {
        pub(in crate::ke) const fn new() -> Self {
            Self {
                serial: AtomicU64::new(1),
                given: AtomicU64::new(NEVER),
                suspect: AtomicU64::new(NEVER),
                let_go: AtomicPtr::new(core::ptr::null_mut()),
                winner: AtomicPtr::new(core::ptr::null_mut()),
            }
        }
    }

    /// The running thread, `me`, goes on behind a wait, or runs elsewhere than before.
    pub(in crate::ke) fn wait_is_over(me: &Thread) {
        let lost = &me.blocked.lost;
        lost.winner.store(core::ptr::null_mut(), Ordering::Relaxed);
        lost.serial.store(lost.serial.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The running thread has won the wait of `thread` by a signal.
    pub(in crate::ke) fn won(thread: &Thread) {
        let me = arch::pcr::current_thread().cast::<Thread>().cast_mut();
        thread.blocked.lost.winner.store(me, Ordering::Relaxed);
    }

    /// `thread`, whose wait is over, is given a processor by the caller.
    pub(in crate::ke) fn given(thread: &Thread) {
        let lost = &thread.blocked.lost;
        lost.given.store(lost.serial.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The running thread, with its lock held, lets go of a signalled object that `thread` needs with others.
    pub(super) fn let_go_of_one(thread: &Thread) {
        let me = arch::pcr::current_thread().cast::<Thread>().cast_mut();
        thread.blocked.lost.let_go.store(me, Ordering::Relaxed);
    }

    /// Looks at the wait of `thread`, if it is for all of several objects, as who signals one of them does: it must not find all of them
    /// signalled, unless somebody has just found it at that.
    pub(in crate::ke::wait) fn examine(thread: &Thread, at: &mut Irql<Dispatch>) {
        if !chain::begin_look(thread, at) {
            return;
        }
        // SAFETY: the look was begun, so the blocks and their objects stay; the locks of all are held in the closure.
        unsafe {
            let first = thread.registered().first().map_or(0, |block| block.object() as u64);
            let all_left = signal::locked(thread.registered(), at, |blocks| {
                signal::all_free(blocks, thread) && !thread.wait.is_to_be_looked_at_again()
            });
            if all_left == Some(true) {
                let by = thread.blocked.lost.let_go.load(Ordering::Relaxed).addr() as u64;
                lost(Violation::AllLeft, thread, first, by);
            }
            if signal::look_at_all(thread, at) {
                sched::make_ready(thread, 0, at);
            }
        }
    }

    /// The wait that `thread` is in, if it has ended and nobody gave the thread a processor since.
    fn suspicion(thread: &Thread) -> Option<u64> {
        let lost = &thread.blocked.lost;
        let serial = lost.serial.load(Ordering::Relaxed);
        let over = chain::is_noted(thread) && !thread.wait.is_waiting();
        (over && lost.given.load(Ordering::Relaxed) != serial).then_some(serial)
    }

    /// Processors that have not passed in the round under way; 0: none is.
    static LEFT: AtomicU32 = AtomicU32::new(0);
    static PASSES: [Dpc<Passive>; MAX_PROCESSORS] = [const { Dpc::new(|_, at, _| pass(at)) }; MAX_PROCESSORS];

    /// Begins a round, if there are suspects and none is under way.
    pub(in crate::ke::wait) fn look(at: &mut Irql<Dispatch>) {
        if LEFT.load(Ordering::Acquire) != 0 {
            return;
        }
        let mut suspects = false;
        chain::for_each(at, |thread| {
            let suspicion = suspicion(thread);
            suspects |= suspicion.is_some();
            thread.blocked.lost.suspect.store(suspicion.unwrap_or(NEVER), Ordering::Relaxed);
            None::<()>
        });
        if !suspects {
            return;
        }
        LEFT.store(prcb::count(), Ordering::Release);
        for (number, pass) in (0..prcb::count()).zip(&PASSES) {
            pass.set_target(Some(number));
            pass.queue([0; 2], at);
        }
    }

    /// A processor has nothing under way of what was when the round began; the last one judges.
    fn pass(at: &mut Irql<Passive>) {
        // Who gave a thread a processor before its own pass is seen by the judge.
        if LEFT.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        chain::for_each(&mut at.raise::<Dispatch>(), |thread| {
            let part = &thread.blocked.lost;
            let suspect = part.suspect.load(Ordering::Relaxed);
            if suspect != NEVER && suspicion(thread) == Some(suspect) {
                let winner = part.winner.load(Ordering::Relaxed).addr() as u64;
                lost(Violation::NotMadeReady, thread, thread.wait.status().into(), winner);
            }
            None::<()>
        });
    }

    /// Ends the wait of `thread` and tells nobody, as a signal would that forgets whom it woke: for tests, which end with that.
    pub fn drop_the_wakeup_of(thread: &Thread) {
        won(thread);
        let _ = thread.wait.claim(0);
    }
}
