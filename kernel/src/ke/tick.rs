//! When this processor's clock interrupts: for a timer, for the shared time if it owns it, for DPCs that wait for a tick, for
//! the watchdog; otherwise never. There is no periodic tick.
//!
//! Owns:       the programmed deadline of each processor, who owns the clock. Not: what the watchdog makes of what it sees.
//! IRQL:       programming at HIGH or with IF=0: what could interrupt it programs, too.
//! Invariants: I1 `armed` is what the hardware is programmed for, in interrupt time (100 ns); `u64::MAX`: nothing. It is at most
//!                `next_due`, the least of `owner_due`, `dpc_due`, `watchdog_due` and `quantum_due`.
//!             I2 a timer table's `earliest` is at least `armed`, or a DISPATCH look is ahead that compares them (timer/mod.rs).
//!             I3 this processor owns the clock => `owner_due` is a time at most [`UPDATE`] ahead.
//!             I4 a DPC runs => `watchdog_due` is at most a limit ahead (or there is no limit): the retire loop sees to it, and from
//!                then on each look does (watchdog.rs, I1).
//! Not as NT:  one clock period for everybody does not exist; a processor that nothing is due on is not interrupted.
//! Tests:      selftest `clock::*`, `timers::*`, crash `slow_dpc`, `stuck_raised`; tests/models/tests/clock_owner.rs, tests/models/tests/timer.rs (I2).
//! Sources:    SDM vol. 3, "APIC Timer", "TSC-Deadline Mode"; WDK, bug check 0x133.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::frame::InterruptFrame;
use sync::clock_owner::{ClockOwner, Nudge};
use sync::deadline::Armed;
use sync::irql::{Clock, Dispatch, High, Irql};

use super::bugcheck::{StopCode, bugcheck};
use super::prcb::{self, Prcb};
#[cfg(feature = "verifier")]
use super::torment;
use super::watchdog::{Limits, NEVER, Sight, Violation, Watch};
use super::{clock, dpc, ipi, shared_data};
use crate::mm::shootdown;

/// The shared time is updated this often while anybody is busy, in 100 ns: drivers may rely on 15.6 ms.
pub const UPDATE: u64 = 150_000;
/// A DPC that may wait for a tick waits no longer than this, in 100 ns.
const DPC_TICK: u64 = 150_000;

/// Who keeps the shared time up to date.
pub(super) static OWNER: ClockOwner = ClockOwner::new();

/// When the owner next has the others looked at; the watchdog's round. Written by whoever owns the clock.
static NEXT_ROUND: AtomicU64 = AtomicU64::new(0);

/// A processor's share: in its PRCB. Written by its own processor at HIGH or with IF=0, so plain loads and stores do.
pub(crate) struct PerProcessor {
    armed: Armed,
    /// When the clock interrupted last: so a look that it asks for need not read the time again.
    interrupted: AtomicU64,
    owner_due: AtomicU64,
    dpc_due: AtomicU64,
    watchdog_due: AtomicU64,
    /// The end of the running thread's quantum, where another thread waits for its turn. Own processor writes, any reads.
    quantum_due: AtomicU64,
    /// The earliest of the four (I1).
    next_due: AtomicU64,
    watch: Watch,
}

fn get(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

fn set(value: &AtomicU64, to: u64) {
    value.store(to, Ordering::Relaxed);
}

impl PerProcessor {
    pub(crate) const fn new() -> Self {
        Self {
            armed: Armed::new(),
            interrupted: AtomicU64::new(0),
            owner_due: AtomicU64::new(NEVER),
            dpc_due: AtomicU64::new(NEVER),
            watchdog_due: AtomicU64::new(NEVER),
            quantum_due: AtomicU64::new(NEVER),
            next_due: AtomicU64::new(NEVER),
            watch: Watch::new(),
        }
    }

    /// What the clock is programmed for (I1).
    #[inline(always)]
    pub(super) fn armed(&self) -> u64 {
        self.armed.get()
    }

    /// When the clock interrupted last (100 ns): the processor's own.
    #[inline(always)]
    pub(super) fn interrupted(&self) -> u64 {
        get(&self.interrupted)
    }

    /// What the clock is programmed for, for who sets a timer from another processor.
    pub(super) fn deadline(&self) -> &Armed {
        &self.armed
    }

    /// Makes the clock interrupt at `due` or before.
    ///
    /// # Safety
    /// On this block's processor, at HIGH or with IF=0.
    #[inline(always)]
    pub(super) unsafe fn arm(&self, due: u64, now: u64) {
        if self.armed.lower(due) {
            // SAFETY: the caller's; the clock vector has its handler from the start.
            unsafe { clock::program(due.saturating_sub(now)) };
        }
    }

    /// The retire loop begins: the watchdog must look in time (I4). The processor's own, at DISPATCH.
    #[inline(always)]
    pub(super) fn watch_dpcs(&self) {
        if get(&self.watchdog_due) == NEVER {
            self.begin_watch();
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_watch(&self) {
        let limits = Limits::get();
        if limits.single.min(limits.total) == NEVER {
            return;
        }
        // SAFETY: CR8 goes from DISPATCH, this function's level, to 15 and back, with no token in use.
        unsafe {
            let before = arch::irql::current();
            arch::irql::set(arch::level::HIGH);
            let now = clock::interrupt_time_precise();
            prcb_here().dpc.see_stay();
            self.set_due(&self.watchdog_due, self.watch.begin(limits, now));
            self.arm(self.next(), now);
            arch::irql::set(before);
        }
    }

    /// The watchdog looks: at CLOCK, from the interrupt of `frame`.
    #[cold]
    #[inline(never)]
    fn watchdog(&self, here: &Prcb, frame: &InterruptFrame, now: u64) {
        let dpc = here.dpc.see();
        let stay_ended = dpc.is_none() && here.dpc.stay_ended();
        let sight = Sight { dpc, stay_ended, raised: is_raised(frame) };
        match self.watch.look(sight, Limits::get(), now) {
            Ok(next) => self.set_due(&self.watchdog_due, next),
            Err(Violation { kind, elapsed, limit }) => {
                let culprit = dpc.map_or(frame.rip, |seen| dpc::culprit(seen.running[0], seen.running[1]));
                bugcheck(StopCode::DpcWatchdogViolation, [kind, elapsed, limit, culprit])
            }
        }
    }

    /// The owner updates the time; and has the watchdog look, which it otherwise does when a DPC has been seen, at code at or above
    /// DISPATCH: its own here, other processors' where they are busy, by their interrupt.
    fn update(&self, here: &Prcb, frame: &InterruptFrame, now: u64) {
        let _ = shared_data::update();
        if is_raised(frame) {
            self.set_due(&self.watchdog_due, now);
        }
        if now >= get(&NEXT_ROUND) {
            set(&NEXT_ROUND, now.saturating_add(Limits::get().round()));
            let mut others = OWNER.busy() & !(1 << here.number());
            while others != 0 {
                nudge(others.trailing_zeros());
                others &= others - 1;
            }
        }
    }

    /// The earliest of the reasons that are kept here.
    #[inline(always)]
    fn next(&self) -> u64 {
        get(&self.next_due)
    }

    /// Sets one of the four. The processor's own, at HIGH, CLOCK or with IF=0, so nothing comes in between.
    fn set_due(&self, reason: &AtomicU64, due: u64) {
        set(reason, due);
        let next = get(&self.owner_due)
            .min(get(&self.dpc_due))
            .min(get(&self.watchdog_due))
            .min(get(&self.quantum_due));
        set(&self.next_due, next);
    }

    /// One of the four is due: at CLOCK, raised to HIGH.
    #[cold]
    #[inline(never)]
    fn due(&self, here: &Prcb, frame: &InterruptFrame, now: u64) {
        if get(&self.owner_due) <= now {
            let owns = OWNER.is(here.number());
            if owns {
                self.update(here, frame, now);
            }
            self.set_due(&self.owner_due, if owns { now + UPDATE } else { NEVER });
        }
        if get(&self.watchdog_due) <= now {
            self.watchdog(here, frame, now);
        }
        if get(&self.quantum_due) <= now {
            self.set_due(&self.quantum_due, NEVER);
            here.sched.ask_quantum_look();
            // SAFETY: a handler.
            unsafe { arch::pcr::request_dispatch_at_exit() };
        }
        if get(&self.dpc_due) <= now {
            self.set_due(&self.dpc_due, NEVER);
            // SAFETY: a handler.
            unsafe { arch::pcr::request_dispatch_at_exit() };
        }
    }

    /// This processor owns the clock from now on: the shared time first, then the next update (I3).
    ///
    /// # Safety
    /// As [`arm`](Self::arm).
    unsafe fn own(&self, me: u32) {
        let now = shared_data::update();
        OWNER.updated(me);
        let due = now + UPDATE;
        // Only the owner has one (I3), so the earliest is what it was, or this.
        debug_assert_eq!(get(&self.owner_due), NEVER);
        set(&self.owner_due, due);
        set(&self.next_due, self.next().min(due));
        // SAFETY: the caller's.
        unsafe { self.arm(due, now) };
    }
}

/// This processor's block, for code that has no token to show.
///
/// # Safety
/// With IF=0, or at DISPATCH or above, for as long as it is used.
#[inline(always)]
unsafe fn prcb_here() -> &'static Prcb {
    // SAFETY: GS is this processor's block, which never moves (prcb.rs, I1).
    unsafe { &*arch::pcr::prcb().cast::<Prcb>() }
}

/// Has the interrupt hit code at or above DISPATCH?
fn is_raised(frame: &InterruptFrame) -> bool {
    frame.irql >= arch::level::DISPATCH.into()
}

/// The clock interrupt.
pub(super) fn interrupt(frame: &InterruptFrame, at: &mut Irql<Clock>) {
    let mut at = at.raise::<High>();
    let (here, _) = Prcb::here(&mut at);
    let tick = &here.tick;
    let now = clock::interrupt_time_precise();
    set(&tick.interrupted, now);
    tick.armed.fired();
    if tick.next() <= now {
        tick.due(here, frame, now);
    }
    let mut next = tick.next();
    let earliest = here.timers.earliest();
    if earliest <= now {
        // What expires is seen to at DISPATCH, and so is the next timer.
        // SAFETY: a handler.
        unsafe { arch::pcr::request_dispatch_at_exit() };
    } else {
        next = next.min(earliest);
    }
    if tick.armed.lower(next) {
        // SAFETY: HIGH.
        unsafe { clock::program(next - now) };
    } else {
        // SAFETY: HIGH.
        #[cfg(feature = "verifier")]
        unsafe {
            program_torment(here)
        };
    }
    #[cfg(feature = "verifier")]
    torment::strike(here);
}

/// What is programmed for tests where something later is, in 100 ns: an interrupt that finds nothing due programs the rest.
#[cfg(feature = "verifier")]
const TORMENT: u64 = 10_000;

/// Where nothing is due, an interrupt comes soon all the same, if tests ask for it.
///
/// # Safety
/// HIGH, or IF=0, on `here`'s processor.
#[cfg(feature = "verifier")]
unsafe fn program_torment(here: &Prcb) {
    if torment::is_on() && !here.sched.is_idle() {
        // SAFETY: the caller's. It is shortened, unless the tests end it right now.
        unsafe { clock::program(TORMENT) };
    }
}

/// A DPC in `here`'s queue may wait for a tick: there will be one. At HIGH, on that processor.
pub(super) fn arm_for_dpcs(here: &Prcb) {
    let now = clock::interrupt_time_precise();
    let due = get(&here.tick.dpc_due).min(now + DPC_TICK);
    here.tick.set_due(&here.tick.dpc_due, due);
    // SAFETY: `dpc::insert` is at HIGH, and the block is its own processor's.
    unsafe { here.tick.arm(due, now) };
}

impl PerProcessor {
    /// Is the end of a quantum armed for? Stale at once, but exact on this side of it: what was queued before this is seen by
    /// the look that it asks for.
    #[inline(always)]
    pub(super) fn has_quantum(&self) -> bool {
        get(&self.quantum_due) != NEVER
    }
}

/// The running thread's quantum is over in `ticks` of the TSC, and somebody waits for that. At DISPATCH, on `here`'s processor.
pub(super) fn arm_quantum(here: &Prcb, ticks: i64) {
    debug_assert_ne!(ticks, i64::MAX, "the quantum of the idle thread, which has no end");
    // SAFETY: CR8 goes from DISPATCH to 15 and back, with no token in use.
    unsafe {
        arch::irql::set(arch::level::HIGH);
        let now = clock::interrupt_time_precise();
        let due = now + clock::units(ticks.max(0) as u64);
        here.tick.set_due(&here.tick.quantum_due, due);
        here.tick.arm(due, now);
        arch::irql::set(arch::level::DISPATCH);
    }
}

/// This processor starts, IF=0: its clock can be programmed from now on.
pub(crate) fn start() {
    // SAFETY: IF=0, and nothing was programmed: that takes an interrupt, or code that comes after this.
    unsafe {
        clock::prepare();
        wake();
    }
}

/// This processor is busy from now on. The up-call `wake`, and the start of each processor.
///
/// # Safety
/// IF=0.
pub(crate) unsafe fn wake() {
    // SAFETY: IF=0.
    let here = unsafe { prcb_here() };
    // First of all: translations that ended meanwhile.
    shootdown::wake(here);
    if OWNER.leave_idle(here.number()) {
        // SAFETY: IF=0.
        unsafe { here.tick.own(here.number()) };
    }
    #[cfg(feature = "verifier")]
    if torment::is_on() {
        // SAFETY: IF=0. It is shortened, unless the tests end it right now.
        unsafe { clock::program(TORMENT) };
    }
}

/// This processor is about to halt, after the last look for work.
///
/// # Safety
/// IF=0.
pub(super) unsafe fn go_idle() {
    // SAFETY: IF=0.
    let here = unsafe { prcb_here() };
    if let Some(busy) = OWNER.go_idle(here.number()) {
        nudge(busy);
    }
    let tick = &here.tick;
    set(&tick.quantum_due, NEVER);
    set(&tick.owner_due, NEVER);
    set(&tick.next_due, get(&tick.dpc_due).min(get(&tick.watchdog_due)));
    // What was armed for the update alone would end the halt for nothing, and be armed again by that.
    let next = tick.next().min(here.timers.earliest());
    if tick.armed() < next {
        // Another processor may have set a timer since, and relied on what was armed.
        let next = tick.armed.raise(next, here.timers.deadline());
        // SAFETY: IF=0.
        unsafe {
            if next == NEVER {
                clock::disarm();
            } else {
                clock::program(next.saturating_sub(clock::interrupt_time_precise()));
            }
        }
    }
    // Last of all: from here to the end of the halt, nothing that is ever unmapped is touched.
    shootdown::sleep(here);
}

/// The interrupt of a nudge: the clock may need an owner, or the owner has the watchdog look. At CLOCK, so that no work of
/// DISPATCH keeps it waiting.
pub(super) fn nudged(frame: &InterruptFrame, at: &mut Irql<Clock>) {
    let mut at = at.raise::<High>();
    let (here, _) = Prcb::here(&mut at);
    if is_raised(frame) {
        let now = clock::interrupt_time_precise();
        here.tick.watchdog(here, frame, now);
        // SAFETY: HIGH.
        unsafe { here.tick.arm(here.tick.next(), now) };
    }
    match OWNER.nudged(here.number()) {
        Nudge::Nothing => {}
        Nudge::Pass(busy) => nudge(busy),
        // SAFETY: HIGH.
        Nudge::Owned => unsafe { here.tick.own(here.number()) },
    }
}

/// When this processor, as the clock's owner, last updated the shared time (interrupt time, 100 ns): the page must not be older.
/// Nothing: another one owns the clock.
pub fn updated_at(at: &mut Irql<Dispatch>) -> Option<u64> {
    let (here, _) = Prcb::here(at);
    OWNER.is(here.number()).then(|| get(&here.tick.owner_due).saturating_sub(UPDATE))
}

/// What this processor's clock is programmed for (interrupt time, 100 ns). Nothing: another one owns the shared time. At HIGH, so that
/// whatever else the caller reads is of the same moment.
pub fn armed_for_update(at: &mut Irql<High>) -> Option<u64> {
    let (here, _) = Prcb::here(at);
    OWNER.is(here.number()).then(|| here.tick.armed())
}

/// When this processor's clock has it look for DPCs that wait for a tick (interrupt time, 100 ns), and what it is programmed for, which is no
/// later; nothing waits: `u64::MAX`. At HIGH, so that both are of the same moment.
pub fn armed_for_dpcs(at: &mut Irql<High>) -> (u64, u64) {
    let (here, _) = Prcb::here(at);
    (get(&here.tick.dpc_due), here.tick.armed())
}

/// When this processor's timer table wants it to look (interrupt time, 100 ns), and what its clock is programmed for. At HIGH, so that both
/// are of the same moment.
pub fn armed_for_timers(at: &mut Irql<High>) -> (u64, u64) {
    let (here, _) = Prcb::here(at);
    (here.timers.earliest(), here.tick.armed())
}

/// Is a look of the watchdog ahead here? There is for two limits after the last work of DISPATCH. Else only the clock's owner has a reason
/// to sample this processor, which may be the owner. At HIGH; an answer of no holds until the level falls below DISPATCH or such a sample.
pub fn is_watched(at: &mut Irql<High>) -> bool {
    let (here, _) = Prcb::here(at);
    get(&here.tick.watchdog_due) != NEVER
}

fn nudge(number: u32) {
    if let Some(processor) = prcb::get(number) {
        ipi::post(processor.prcb(), ipi::Request::Clock);
    }
}
