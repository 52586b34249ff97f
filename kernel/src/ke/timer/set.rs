//! Setting, cancelling and expiring, on the processors' tables. The rules are in the module above.

use core::cell::UnsafeCell;
use core::hint::cold_path;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use arch::level::DISPATCH;
use arch::trace::{self, Kind, about};
use sync::bit_lock::{HeldBit, LockWord};
use sync::deadline::Earliest;
use sync::deferred::Call;
use sync::irql::{AtOrBelow, Below, Dispatch, Irql, ObjectLock, TimerTableLock};
use sync::spin::SpinLock;
use sync::timer::{self, After};

use super::wheel::Wheel;
use super::{ABSOLUTE, Due, Header, KDpc, KTimer, Options, Timer, flag};
use crate::ke::dpc::{self, Dpc};
use crate::ke::prcb::{self, Prcb, Processor};
use crate::ke::wait::signal::Woken;
use crate::ke::{clock, dispatch, shared_data};

/// One processor's timers: in its PRCB.
pub struct Table {
    timers: timer::Table<Wheel>,
    /// Threads whose waits expired timers have ended, if `has_woken`: own processor, in the retire loop and the look behind it.
    woken: UnsafeCell<Woken>,
    has_woken: AtomicBool,
}

// SAFETY: `woken` is its own processor's, at DISPATCH; the rest is locked or atomic.
unsafe impl Sync for Table {}

impl Table {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            timers: timer::Table::new(Wheel::new()),
            woken: UnsafeCell::new(Woken::new()),
            has_woken: AtomicBool::new(false),
        }
    }

    /// When the processor's clock must interrupt for it (100 ns); `u64::MAX`: not at all. Exact on the table's own processor
    /// but for what others have set and not yet asked a look for.
    #[inline(always)]
    pub(in crate::ke) fn earliest(&self) -> u64 {
        self.timers.earliest().get()
    }

    /// The same, for its processor's clock.
    pub(in crate::ke) fn deadline(&self) -> &Earliest {
        self.timers.earliest()
    }
}

// SAFETY: `processor` is written by `try_set`, with each set.
unsafe impl timer::Timed for KTimer {
    type Wheel = Wheel;

    #[inline(always)]
    fn word(&self) -> &LockWord<ObjectLock> {
        &self.header.word
    }

    #[inline(always)]
    unsafe fn table(&self) -> &timer::Table<Wheel> {
        // SAFETY: 1. it is in a table, and its lock is held (the caller's), so nobody writes. 2. The number is that of a processor.
        unsafe { &prcb::get_unchecked((*self.processor.get()).into()).prcb().timers.timers }
    }
}

// SAFETY: the slots' lists are those of what is linked (wheel.rs, I1, I2).
unsafe impl timer::Wheel for Wheel {
    type Timer = KTimer;

    #[inline(always)]
    fn next_due(&mut self, now: u64) -> Option<NonNull<KTimer>> {
        NonNull::new(self.next_due(now))
    }

    #[inline(always)]
    fn earliest(&self) -> u64 {
        self.earliest()
    }

    #[inline(always)]
    unsafe fn remove(&mut self, timer: NonNull<KTimer>) {
        // SAFETY: the caller's.
        unsafe { self.remove(timer.as_ptr()) };
    }

    #[inline(always)]
    unsafe fn refuse(&mut self, timer: NonNull<KTimer>, now: u64) {
        // SAFETY: the caller's.
        unsafe { self.refuse(timer.as_ptr(), now) };
    }
}

/// Sets `timer`, taking it out of its table first if it is in one, which is what is returned. Not signalled until it expires;
/// `dpc` is queued at each expiry, and the timer stands in the table of the processor that the DPC is for.
///
/// # Safety
/// 1. `timer` stays valid until it is in no table any more, `dpc` for as long as `dpc::insert` asks from then on.
/// 2. As `dpc::insert`'s 2, with null arguments.
#[doc(alias = "KeSetTimerEx")]
#[doc(alias = "KeSetCoalescableTimer")]
#[inline(always)]
pub unsafe fn set<L>(
    timer: NonNull<KTimer>,
    due: Due,
    options: Options,
    dpc: Option<NonNull<KDpc>>,
    at: &mut Irql<L>,
) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    const { assert!(L::HIGHEST <= DISPATCH) };
    at.check();
    let how = |bits, absolute| pack(bits, KTimer::options(options.tolerance, absolute), options.period_ms);
    let dpc = dpc.map_or(ptr::null_mut(), NonNull::as_ptr);
    match due {
        Due::In(after) => {
            let due = clock::interrupt_time_precise().wrapping_add(after.min(FAR));
            // SAFETY: the caller's.
            unsafe { set_at::<L>(timer, due, how(0, false), dpc, at) }
        }
        // SAFETY: the caller's. Reckoned with under the table's lock, so that no change of the system time misses it.
        Due::At(system) => unsafe { set_at::<L>(timer, system, how(flag::ABSOLUTE, true), dpc, at) },
    }
}

/// [`set`], the due time in interrupt time, or in system time if `how` says that it is absolute.
///
/// # Safety
/// As [`set`].
#[inline(always)]
unsafe fn set_at<L>(timer: NonNull<KTimer>, due: u64, how: u64, dpc: *mut KDpc, at: &mut Irql<L>) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    // SAFETY: the caller's.
    match unsafe { try_set::<L, true>(timer, due, how, dpc, at) } {
        Some(was_set) => was_set,
        None => {
            cold_path();
            // SAFETY: the caller's; `at` is borrowed and unused meanwhile.
            unsafe { set_again::<L>(timer, due, how, dpc) }
        }
    }
}

/// The header's bits, the timer's options and its period in one register: bits 32-55, 56-63, 0-31 of what a set is told besides its
/// due time. The header's bits must be those below 2³¹ whose low byte is clear.
#[inline(always)]
const fn pack(bits: u32, options: u8, period: u32) -> u64 {
    ((bits >> 8) as u64) << 32 | (options as u64) << 56 | period as u64
}

/// What [`pack`] packed.
#[inline(always)]
const fn unpack(how: u64) -> (u32, u8, u32) {
    (((how >> 32) as u32 & 0xFF_FFFF) << 8, (how >> 56) as u8, how as u32)
}

/// What is due later than in 29,000 years is due then: so no due time is near the end of its range.
const FAR: u64 = 1 << 63;

/// [`set`] of a timer that may be set already, and for a certain processor; the rest as [`set_at`].
///
/// # Safety
/// As [`set`], with a token for L that is borrowed and unused.
#[inline(never)]
unsafe fn set_again<L>(timer: NonNull<KTimer>, due: u64, how: u64, dpc: *mut KDpc) -> bool
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    // SAFETY: the caller's.
    unsafe { Irql::<L>::lend(|at| try_set::<L, false>(timer, due, how, dpc, at)) }.unwrap_or(false)
}

/// [`set`], inlined if it is `PLAIN`: that it was set, or has a DPC for a certain processor, is left to [`set_again`];
/// nothing is returned, and nothing was changed.
///
/// # Safety
/// As [`set`].
#[inline(always)]
unsafe fn try_set<L, const PLAIN: bool>(
    timer: NonNull<KTimer>,
    due: u64,
    how: u64,
    dpc: *mut KDpc,
    at: &mut Irql<L>,
) -> Option<bool>
where
    L: Below<ObjectLock> + AtOrBelow<Dispatch>,
{
    let mut at = at.raise::<Dispatch>();
    let (here, at) = Prcb::here(&mut at);
    // SAFETY: null, or valid (the caller's 1).
    let target = unsafe { dpc.as_ref() }.and_then(KDpc::target);
    if PLAIN && target.is_some() {
        cold_path();
        return None;
    }
    let place = target.and_then(prcb::get).map_or(here, Processor::prcb);
    // SAFETY: the caller's.
    let set = unsafe { timer::set::<_, _, _, PLAIN>(timer, Setting { place, due, how, dpc }, at) }?;
    Some(if set.sooner { rearm_after(place, set.was_set) } else { set.was_set })
}

/// What [`set_at`] is told, and whose table that makes.
struct Setting<'a> {
    place: &'a Prcb,
    due: u64,
    how: u64,
    dpc: *mut KDpc,
}

// SAFETY: 1. see `arm`. 2. ABSOLUTE alone.
unsafe impl timer::Setting<KTimer> for Setting<'_> {
    const FLAGS: u32 = flag::ABSOLUTE;

    #[inline(always)]
    fn table(&self) -> &timer::Table<Wheel> {
        &self.place.timers.timers
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        unpack(self.how).0
    }

    #[inline(always)]
    unsafe fn arm(&self, timer: NonNull<KTimer>, wheel: &mut Wheel) -> Option<u64> {
        let (_, options, period) = unpack(self.how);
        let due = if options & ABSOLUTE == 0 { self.due } else { absolute(wheel, self.due) };
        // SAFETY: both locks are held, and it is in no table; valid as long as it is in one (`set`'s caller's 1).
        unsafe {
            let it = timer.as_ref();
            about(Kind::TimerSet, 0, it, due);
            it.header.set_signal_state(0);
            it.period.store(period, Ordering::Relaxed);
            it.dpc.store(self.dpc, Ordering::Relaxed);
            *it.processor.get() = self.place.number() as u16;
            wheel.arm(timer.as_ptr(), due, options)
        }
    }
}

/// The interrupt time of system time `system`, for a timer that goes into `wheel`.
#[cold]
#[inline(never)]
fn absolute(wheel: &Wheel, system: u64) -> u64 {
    wheel.interrupt_time_of(system, clock::first_offset())
}

/// [`rearm`] for the timer of a set, whose answer is passed through: so nothing of the set has to outlive the call.
#[cold]
#[inline(never)]
fn rearm_after(place: &Prcb, was_set: bool) -> bool {
    rearm(place.number(), arch::cpu::number());
    was_set
}

/// The clock of processor `number` may be armed too late (I3). At DISPATCH on processor `here`.
#[inline]
fn rearm(number: u32, here: u32) {
    let Some(processor) = prcb::get(number) else { return };
    let prcb = processor.prcb();
    if number != here {
        if prcb.tick.deadline().is_late_for(prcb.timers.deadline()) {
            dispatch::request_on(prcb);
        }
        return;
    }
    rearm_here(prcb);
}

/// [`rearm`] of this processor's own.
#[inline]
fn rearm_here(prcb: &Prcb) {
    if prcb.timers.earliest() >= prcb.tick.armed() {
        return;
    }
    // SAFETY: CR8 goes from DISPATCH, the caller's level, to 15 and back with no token in use; the block is this processor's.
    unsafe {
        arch::irql::set(arch::level::HIGH);
        prcb.tick.arm(prcb.timers.earliest(), clock::interrupt_time_precise());
        arch::irql::set(DISPATCH);
    }
}

/// Takes `timer` out of its table. True: it was set, and the DPC of that setting will not run (a periodic one's may, for an
/// earlier expiry).
///
/// # Safety
/// `timer` is valid until this returns.
#[doc(alias = "KeCancelTimer")]
#[inline(always)]
pub unsafe fn cancel<L: Below<ObjectLock>>(timer: NonNull<KTimer>, at: &mut Irql<L>) -> bool {
    // SAFETY: the caller's.
    unsafe { timer::cancel(timer, at) }
}

/// The retire loop finds that the clock is armed later than the table's earliest timer: expires what is due, calling its DPCs
/// or leaving them in the queues, and arms the clock for the next. At DISPATCH on the DPC stack.
///
/// "Now" is when the clock interrupted, if anything was due then: that is who asks for most looks. What became due
/// since is armed for at the end, by the time as it is then, and so interrupts at once.
#[inline(never)]
pub(in crate::ke) fn look(here: &Prcb, at: &mut Irql<Dispatch>) {
    let mut now = here.tick.interrupted();
    if here.timers.earliest() > now {
        cold_path();
        now = clock::interrupt_time_precise();
        if here.timers.earliest() > now {
            return rearm_here(here);
        }
    }
    while let Some(call) = next_call(here, now, at) {
        // SAFETY: passed just now, at DISPATCH on the DPC stack.
        unsafe { dispatch::make_ordinary(here, &call) };
    }
    rearm_here(here);
}

/// Expires timers until one has a DPC that is to be called at once. Nothing: all that was due has expired.
#[inline(always)]
fn next_call(here: &Prcb, now: u64, at: &mut Irql<Dispatch>) -> Option<Call> {
    let expired = |it: &KTimer, wheel: &mut Wheel, _: &mut HeldBit<'_, ObjectLock>| {
        if trace::ENABLED {
            about(Kind::TimerExpire, 0, it, it.due.load(Ordering::Relaxed));
        }
        it.header.set_signal_state(1);
        // SAFETY: its lock is held.
        if !unsafe { it.header.first_waiter() }.is_null() {
            cold_path();
            // SAFETY: as above.
            unsafe { end_waits(here, &it.header) };
        }
        let period = it.period.load(Ordering::Relaxed);
        let after = if period == 0 {
            After::Out
        } else {
            cold_path();
            next_period(wheel, it, period);
            After::Again
        };
        (after, NonNull::new(it.dpc.load(Ordering::Relaxed)))
    };
    let call = |dpc: Option<NonNull<KDpc>>, at: &mut Irql<TimerTableLock>| {
        // SAFETY: `set`'s caller promised the DPC; who cancels and then frees it flushes, and the flush waits for this
        //         processor's present work. The retire loop that got us here looks at its queues after this.
        dpc.and_then(|dpc| unsafe { dpc::expired(here, dpc, at) })
    };
    // SAFETY: 1. the table is this processor's. 2. `next_period` links it in this wheel.
    unsafe { here.timers.timers.expire(now, at, expired, call) }
}

/// Ends waits for a timer that has expired; their threads are made ready by the look behind the retire loop ([`finish_waits`]), so that
/// expiry needs no test for it.
///
/// # Safety
/// Its lock is held, and the table's of `here`, whose token is not in use.
#[cold]
#[inline(never)]
unsafe fn end_waits(here: &Prcb, header: &Header) {
    here.timers.has_woken.store(true, Ordering::Relaxed);
    here.sched.ask_quantum_look();
    // SAFETY: own processor, in the retire loop, which doesn't nest.
    let woken = unsafe { &mut *here.timers.woken.get() };
    // SAFETY: the caller's.
    unsafe { woken.satisfy(header) };
}

/// Makes the threads ready whose waits expired timers have ended. Own processor, at DISPATCH.
pub(in crate::ke) fn finish_waits(here: &Prcb, at: &mut Irql<Dispatch>) {
    if here.timers.has_woken.load(Ordering::Relaxed) {
        here.timers.has_woken.store(false, Ordering::Relaxed);
        // SAFETY: as in `end_waits`.
        let woken = core::mem::replace(unsafe { &mut *here.timers.woken.get() }, Woken::new());
        woken.finish(0, at);
    }
}

/// Sets `timer`, which has just expired, for its next expiry, `period` milliseconds after this one: after its due time, so that
/// lateness doesn't add up.
#[cold]
#[inline(never)]
fn next_period(wheel: &mut Wheel, timer: &KTimer, period: u32) {
    // SAFETY: `sync::timer` gives both, taken off the wheel and still INSERTED.
    unsafe { wheel.arm_again(ptr::from_ref(timer).cast_mut(), u64::from(period) * 10_000) };
}

/// Sets the system time; timers with an absolute due time move with it. Returns the old one.
#[doc(alias = "KeSetSystemTime")]
pub fn set_system_time<L>(system: u64, at: &mut Irql<L>) -> u64
where
    L: Below<ObjectLock>,
{
    static SETTING: SpinLock<(), ObjectLock> = SpinLock::new(());
    let mut setting = SETTING.lock(at);
    let ((), at) = setting.parts();
    let old = clock::system_time_precise();
    let delta = system.wrapping_sub(old);
    // Whoever reads the new time sets timers by it. Where that makes them due earlier than they are, it must not be read before
    // the tables know of it; where later, not after.
    let forwards = (delta as i64) >= 0;
    if forwards {
        shared_data::shift_system_time(delta);
    }
    let (here, at) = Prcb::here(at);
    for processor in prcb::all() {
        let prcb = processor.prcb();
        // SAFETY: it links again what it finds.
        unsafe { prcb.timers.timers.change(at, |wheel| wheel.move_absolute(delta)) };
        rearm(prcb.number(), here.number());
    }
    if !forwards {
        shared_data::shift_system_time(delta);
    }
    old
}

impl Timer {
    /// Sets it; true if it was set before. See [`set`].
    #[doc(alias = "KeSetTimerEx")]
    #[inline(always)]
    pub fn set<L>(
        &'static self,
        due: Due,
        options: Options,
        dpc: Option<&'static Dpc>,
        at: &mut Irql<L>,
    ) -> bool
    where
        L: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        // SAFETY: both are `'static`, and a `Dpc` may be queued with any arguments.
        unsafe { set(self.as_raw(), due, options, dpc.map(Dpc::as_raw), at) }
    }

    /// Takes it out of its table; see [`cancel`].
    #[doc(alias = "KeCancelTimer")]
    #[inline(always)]
    pub fn cancel<L: Below<ObjectLock>>(&'static self, at: &mut Irql<L>) -> bool {
        // SAFETY: it is `'static`.
        unsafe { cancel(self.as_raw(), at) }
    }
}
