//! The word that a wait is won by: signals, a timeout, alerts and APCs race, and one of them ends the wait.
//!
//! | state | who sets it | what a winner does |
//! |---|---|---|
//! | `Over` | the winner; also: no wait | nothing: lost |
//! | `InProgress` | the thread, before it registers with the first object | sets `Over`: the thread finds it when it would commit |
//! | `Committed` | the thread, registered everywhere, about to switch | sets `Over` and makes the thread ready |
//! | `Examining` | a signaller of one object of a wait for all | leaves a note: the examiner acts on it |
//!
//! The status is in the same word, so that whoever sees `Over` has it; so is what else than its objects and its timeout may end the wait
//! ([`Openness`]), which an alert or an APC is decided by. A wait for *all* of its objects can't be judged under the lock of
//! one. Its signaller makes the word `Examining`, which keeps the thread where it is, lets go of its own object, and looks at all of
//! them under all their locks. What comes meanwhile is noted: another signal as `AGAIN`, anything else with its status
//! as `ENDED`, which takes effect if the look finds the wait not satisfied.
//!
//! Owns:       [`WaitWord`].
//! Called by:  kernel/ke/wait.
//! IRQL:       at or below DISPATCH by the thread, DISPATCH by the others, who got there by an object's lock or the thread's own.
//! Invariants: I1 from `begin` or `commit_at_once` to the end of the wait, exactly one of all claims and looks ends it, or the
//!                thread itself does.
//!             I2 a look that finds AGAIN looks again: no signal that came during a look is lost.
//! Ordering:   AcqRel throughout: who ends a wait sees what its thread stored before, and the thread what the winner stored.
//!             `commit*` has a SeqCst fence behind it, the partner of the one between "an APC is queued" and its claim
//!             (`sync::attention`).
//! Tests:      tests/models/tests/wait_word.rs (I1, I2).

use crate::prim::{AtomicU64, Ordering, const_unless_loom, fence};

const OVER: u64 = 0;
const IN_PROGRESS: u64 = 1;
const COMMITTED: u64 = 2;
const EXAMINING: u64 = 3;
const STATE: u64 = 3;
/// With EXAMINING.
const AGAIN: u64 = 1 << 2;
/// With EXAMINING; the status is in the upper half.
const ENDED: u64 = 1 << 3;
/// An [`Openness`].
const OPEN: u64 = 7 << 4;

/// What may end a wait, besides what it is for and its timeout. All that is usual is zero, so that a claim need not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Openness(u64);

impl Openness {
    /// A kernel APC: a wait at PASSIVE.
    pub const KERNEL_APC: Self = Self(0);
    /// Nothing: a wait at APC.
    pub const NOTHING: Self = Self(1 << 4);
    const ALERTABLE: u64 = 1 << 5;
    const USER_MODE: u64 = 1 << 6;

    /// An alert as well; if it is for the user's `mode`, a user APC, too.
    pub const fn alertable(self, user_mode: bool) -> Self {
        Self(self.0 | Self::ALERTABLE | if user_mode { Self::USER_MODE } else { 0 })
    }

    /// May a kernel APC end it?
    pub const fn to_kernel_apcs(self) -> bool {
        self.0 & Self::NOTHING.0 == 0
    }

    /// May an alert end it; one of user mode?
    pub const fn to_alerts(self, of_user_mode: bool) -> bool {
        self.0 & Self::ALERTABLE != 0 && (!of_user_mode || self.0 & Self::USER_MODE != 0)
    }
}

/// See the module.
pub struct WaitWord(AtomicU64);

/// How a claim went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// The wait is over by this claim, and its thread, which has switched away or is about to, is the caller's to make ready.
    Wake,
    /// The wait is over by this claim; the thread finds it by itself.
    Noted,
    /// A signaller looks at the wait. If it finds it unsatisfied, it ends it with this claim's status.
    Left,
    /// There is no wait, or somebody else ended it.
    Lost,
}

/// How a look at a wait for all may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Look {
    /// The caller examines: the wait can't end until it says how it went.
    Begun,
    /// Somebody else does, and will look again.
    Left,
    /// There is no wait any more.
    Lost,
}

/// What follows from a look that found the wait unsatisfied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Unsatisfied {
    /// The thread waits on.
    WaitsOn,
    /// A signal came meanwhile: look again.
    Again,
    /// Something else ended the wait meanwhile; the thread is the caller's to make ready.
    Ended,
}

const fn over(status: u32) -> u64 {
    OVER | (status as u64) << 32
}

impl WaitWord {
    const_unless_loom! {
        /// No wait.
        pub const fn new() -> Self {
            Self(AtomicU64::new(OVER))
        }
    }

    /// The thread begins to register with its objects.
    #[inline(always)]
    pub fn begin(&self) {
        self.begin_open(Openness::KERNEL_APC);
    }

    /// [`begin`](Self::begin), where `open` may end the wait, too. Its commit says the same.
    #[inline(always)]
    pub fn begin_open(&self, open: Openness) {
        self.0.store(IN_PROGRESS | open.0, Ordering::Release);
    }

    /// The thread is registered everywhere. `Err`: the wait is over, with this status.
    #[inline(always)]
    pub fn commit(&self) -> Result<(), u32> {
        self.commit_open(Openness::KERNEL_APC)
    }

    /// [`commit`](Self::commit) of what was begun with `open`.
    #[inline(always)]
    pub fn commit_open(&self, open: Openness) -> Result<(), u32> {
        let (from, to) = (IN_PROGRESS | open.0, COMMITTED | open.0);
        let result = self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        fence(Ordering::SeqCst);
        result.map(|_| ()).map_err(|found| (found >> 32) as u32)
    }

    /// `begin` and `commit` in one, under the lock of the one object that the thread has just registered with.
    #[inline(always)]
    pub fn commit_at_once(&self) {
        self.commit_open_at_once(Openness::KERNEL_APC);
    }

    /// [`commit_at_once`](Self::commit_at_once), where `open` may end the wait, too.
    #[inline(always)]
    pub fn commit_open_at_once(&self, open: Openness) {
        self.0.store(COMMITTED | open.0, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The thread ends its own wait with `status`, if nobody has: true. False: somebody did, or is looking at it.
    #[inline(always)]
    pub fn withdraw(&self, status: u32) -> bool {
        // Nobody but this thread opens it: what is read stays so until the wait is over or looked at.
        let found = self.0.load(Ordering::Relaxed);
        matches!(found & STATE, IN_PROGRESS | COMMITTED)
            && self.0.compare_exchange(found, over(status), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the wait with `status`, if nobody has: by whoever satisfied a wait for any, or by a timeout, an alert, an APC.
    #[inline(always)]
    pub fn claim(&self, status: u32) -> Claim {
        if self.claim_committed(status) { Claim::Wake } else { self.claim_otherwise(status) }
    }

    /// The usual case alone: the thread has committed a wait that no alert would end, and it is over by this. False: nothing was
    /// done.
    #[inline(always)]
    pub fn claim_committed(&self, status: u32) -> bool {
        self.0.compare_exchange(COMMITTED, over(status), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn claim_otherwise(&self, status: u32) -> Claim {
        self.claim_if(status, |_| true)
    }

    /// [`claim`](Self::claim) of a wait that is `wanted` by what it is open for; else it is lost. What `wanted` reads is not older than
    /// the wait.
    #[inline(always)]
    pub fn claim_if(&self, status: u32, wanted: impl Fn(Openness) -> bool) -> Claim {
        let mut found = self.0.load(Ordering::Acquire);
        loop {
            if found & STATE == OVER || !wanted(Openness(found & OPEN)) {
                return Claim::Lost;
            }
            let (to, won) = match found & STATE {
                COMMITTED => (over(status), Claim::Wake),
                IN_PROGRESS => (over(status), Claim::Noted),
                EXAMINING if found & ENDED == 0 => (found | ENDED | (status as u64) << 32, Claim::Left),
                _ => return Claim::Lost,
            };
            match self.0.compare_exchange(found, to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return won,
                Err(now) => found = now,
            }
        }
    }

    /// A signaller would look at this wait for all; it holds the lock of an object that the thread is registered with.
    pub fn begin_look(&self) -> Look {
        let mut found = self.0.load(Ordering::Acquire);
        loop {
            let (to, begun) = match found & STATE {
                COMMITTED => (EXAMINING | found & OPEN, Look::Begun),
                EXAMINING => (found | AGAIN, Look::Left),
                _ => return Look::Lost,
            };
            match self.0.compare_exchange(found, to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return begun,
                Err(now) => found = now,
            }
        }
    }

    /// The look found all objects signalled and took them: the wait is over with `status`, and the thread the caller's to make
    /// ready.
    pub fn satisfied(&self, status: u32) {
        // A store would do: nobody else writes the word but by a read-modify-write. But loom lets such a one that came before a plain store
        // undo it (tests/models/tests/litmus.rs), and this is rare.
        self.0.swap(over(status), Ordering::Release);
    }

    /// The look found an object that isn't signalled.
    pub fn unsatisfied(&self) -> Unsatisfied {
        let mut found = self.0.load(Ordering::Acquire);
        loop {
            let (to, next) = if found & ENDED != 0 {
                (found & !0xFFFF_FFFF | OVER, Unsatisfied::Ended)
            } else if found & AGAIN != 0 {
                (EXAMINING | found & OPEN, Unsatisfied::Again)
            } else {
                (COMMITTED | found & OPEN, Unsatisfied::WaitsOn)
            };
            match self.0.compare_exchange(found, to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return next,
                Err(now) => found = now,
            }
        }
    }

    /// Has something been left for the look that is under way? For who makes it, with the locks of all objects: whoever has signalled one
    /// before, and found the look, has left this.
    pub fn is_to_be_looked_at_again(&self) -> bool {
        self.0.load(Ordering::Acquire) & AGAIN != 0
    }

    /// With what the last wait ended: by its thread, afterwards.
    #[inline(always)]
    pub fn status(&self) -> u32 {
        (self.0.load(Ordering::Acquire) >> 32) as u32
    }

    /// Is a wait under way? Stale at once, for whoever is not its thread.
    pub fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STATE != OVER
    }
}

impl Default for WaitWord {
    fn default() -> Self {
        Self::new()
    }
}
