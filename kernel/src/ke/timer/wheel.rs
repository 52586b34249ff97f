//! The timer table of one processor: a wheel of wheels, in which the earliest timer is found by a bit scan.
//!
//! Time is cut into ticks of 2⁸ units of 100 ns (25.6 µs). A timer stands where its tick first differs from the wheel's own
//! `now`: the level is the highest group of four bits in which they differ, the digit is the timer's group there, and the slot is
//! level * 16 + digit. So all in a lower slot expire before all in a higher one, and insert and cancel are a few instructions however
//! many timers there are. When the wheel's time reaches the start of a slot above level 0, it is opened: its timers are
//! spread over the levels below, so each is moved at most once a level: work grows with what expires, not with what is armed.
//! A timer that is alone in its slot is not moved.
//!
//! Each slot remembers the earliest tick put into it since it was last empty. The clock is armed for that, not for the
//! start of the slot: no interrupt comes just to spread timers. It may be stale after a cancel, then the interrupt is one too
//! early and the slot is opened by it.
//!
//! What is due already when it is set, is set for the present: a time after that of the latest look. So what is set by who
//! is called in a look is not due in it, and each timer's tick follows from its due time. A periodic timer goes on at the first
//! multiple of its period after the latest look: it keeps its grid, and what it missed altogether it doesn't make up for, which
//! would add to the load that made it late.
//!
//! Digit 0 of a level is never used, since a timer's digit is above that of `now`. So slot 0 is free for those that were found due
//! with others, in order, until they are given out; and the last slot, which no tick leads to, for those that were refused, until
//! the look is over. In both they are linked as in any other: who holds the lock between two steps of a look may take them out.
//!
//! IRQL:       under the table's lock (rank `TimerTableLock`, timer/mod.rs). Pure: no clock, no processor.
//! Invariants: I1 a linked timer's tick is that of its rounded due time, and after `now`, and its slot is the one described above
//!                for the present `now`; but for those in DUE and REFUSED.
//!             I2 a slot's bit in `occupied` is set exactly while something is linked there; `first` and `last` mean something
//!                then.
//!             I3 `earliest` of an occupied slot is at most the least tick in it, and at least the slot's start.
//!             I4 a timer's links and slot number are accessed under the lock of the table that it is in.
//!             I5 `now` is at most the tick of `looked`. What is armed is due after `looked`.
//! Tests:      tests/props/tests/timers.rs against a sorted list (never early, never lost, order, coalescing, wrap-around).

use core::hint::cold_path;
use core::num::NonZeroU64;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use super::{ABSOLUTE, KTimer, Links};

/// A tick is 2^SHIFT units of 100 ns.
const SHIFT: u32 = 8;
const BITS: u32 = 4;
/// As many as a byte can name: 14 levels for the 56 bits of a tick, and a rest.
const SLOTS: usize = 256;
/// See the module.
const DUE: u8 = 0;
/// See the module.
const REFUSED: u8 = u8::MAX;

/// The tick at which something due at `due` (100 ns) may expire: the first that is not before it.
#[inline(always)]
fn tick_of(due: u64) -> u64 {
    due.saturating_add((1 << SHIFT) - 1) >> SHIFT
}

/// The same for a time that is at most [`LAST`].
#[inline(always)]
fn near_tick_of(due: u64) -> u64 {
    due.wrapping_add((1 << SHIFT) - 1) >> SHIFT
}

/// The latest due time: the start of the last tick.
pub const LAST: u64 = u64::MAX >> SHIFT << SHIFT;

/// When a tick begins, in 100 ns.
#[inline(always)]
fn start_of(tick: u64) -> u64 {
    tick << SHIFT
}

#[derive(Clone, Copy)]
struct Slot {
    first: *mut KTimer,
    last: *mut KTimer,
    /// I3.
    earliest: u64,
    /// So that a slot is found by a shift.
    _pad: u64,
}

/// See the module.
pub struct Wheel {
    /// In ticks.
    now: u64,
    /// The latest time that was looked at, less its fraction of a tick (100 ns).
    looked: u64,
    /// By how much the system time has been changed, as far as this table's absolute timers have been moved (100 ns).
    shifted: u64,
    /// I2.
    occupied: [u64; SLOTS / 64],
    slots: [Slot; SLOTS],
}

// SAFETY: the pointers lead to linked timers, which are reached under the table's lock on whichever processor (I4).
unsafe impl Send for Wheel {}

impl Default for Wheel {
    fn default() -> Self {
        Self::new()
    }
}

impl Wheel {
    /// An empty table at time zero.
    pub const fn new() -> Self {
        let empty = Slot { first: ptr::null_mut(), last: ptr::null_mut(), earliest: 0, _pad: 0 };
        Self { now: 0, looked: 0, shifted: 0, occupied: [0; SLOTS / 64], slots: [empty; SLOTS] }
    }

    /// The interrupt time of system time `system`, as far as this table knows of changes of the system time; `first` is what
    /// lay between the two at the start. A change moves the timers of one table after the other: what is set by this is moved by it
    /// if, and only if, it has not come to this table yet.
    pub fn interrupt_time_of(&self, system: u64, first: u64) -> u64 {
        system.saturating_sub(first.wrapping_add(self.shifted)).min(LAST)
    }

    /// When the clock must next interrupt for this table, in 100 ns; `u64::MAX`: not at all.
    #[inline(always)]
    pub fn earliest(&self) -> u64 {
        self.first().map_or(u64::MAX, |number| start_of(self.slots[usize::from(number)].earliest))
    }

    /// The first occupied slot.
    #[inline(always)]
    fn first(&self) -> Option<u8> {
        for (index, &word) in (0..).zip(&self.occupied) {
            if word != 0 {
                return Some(index * 64 + word.trailing_zeros() as u8);
            }
        }
        None
    }

    /// The tick that a slot begins with. The digits above it come from `now`, those below are zero.
    #[inline(always)]
    fn start(&self, number: u8) -> u64 {
        let (level, digit) = (u32::from(number) >> BITS, u64::from(number) & ((1 << BITS) - 1));
        let below = level * BITS;
        (self.now >> below >> BITS << BITS | digit) << below
    }

    /// Sets `timer` for `due` (100 ns), or for the present if that is over, and links it, to expire at its due time rounded as
    /// its tolerance allows. Returns when that is (100 ns) if it is the earliest of its slot: else it can't be the table's.
    ///
    /// # Safety
    /// `timer` is valid and in no table, nobody else touches it now, and it stays valid until it has left this one.
    #[inline(always)]
    pub unsafe fn arm(&mut self, timer: *mut KTimer, mut due: u64, mut options: u8) -> Option<u64> {
        if due <= self.looked {
            cold_path();
            // I5. It is due, and no change of the system time makes it wait.
            (due, options) = (self.looked + 1, options & !ABSOLUTE);
        }
        // SAFETY: the caller's.
        unsafe {
            (*timer).due.store(due, Ordering::Relaxed);
            *(*timer).options.get() = options;
        }
        let tick = if options == 0 { near_tick_of(due) } else { tick_of(KTimer::tolerant(due, options)) };
        // SAFETY: the caller's; I5.
        unsafe { self.link(timer, tick) }.then(|| start_of(tick))
    }

    /// Links `timer`, which has expired, for the next multiple of `period` (100 ns, not zero) from its due time. Its first due time may have
    /// been one of the system's clock; what comes is counted from there, whatever that clock says.
    ///
    /// # Safety
    /// As [`arm`](Self::arm).
    pub unsafe fn arm_again(&mut self, timer: *mut KTimer, period: u64) {
        // SAFETY: the caller's.
        unsafe {
            let due = (*timer).due.load(Ordering::Relaxed).saturating_add(period);
            let missed = self.looked.checked_sub(due).map_or(0, |late| late / period + 1);
            let due = due.saturating_add(missed.saturating_mul(period)).min(LAST);
            (*timer).due.store(due, Ordering::Relaxed);
            *(*timer).options.get() &= !ABSOLUTE;
            let tick = tick_of((*timer).effective_due());
            self.link(timer, tick);
        }
    }

    /// True: its slot has no earlier one.
    ///
    /// # Safety
    /// As [`arm`](Self::arm); `tick` is after `now`.
    #[inline(always)]
    unsafe fn link(&mut self, timer: *mut KTimer, tick: u64) -> bool {
        debug_assert!(tick > self.now, "I1");
        // SAFETY: they differ (the caller's).
        let difference = unsafe { NonZeroU64::new_unchecked(tick ^ self.now) };
        let below = difference.ilog2() & !(BITS - 1);
        let digit = (tick >> below) & ((1 << BITS) - 1);
        // SAFETY: the caller's.
        unsafe { self.append(digit as u32 + ((below / BITS) << BITS), timer, tick) }
    }

    /// As [`link`](Self::link), in slot `number`.
    ///
    /// # Safety
    /// As [`arm`](Self::arm).
    #[inline(always)]
    unsafe fn append(&mut self, number: u32, timer: *mut KTimer, tick: u64) -> bool {
        let slot = &mut self.slots[number as usize % SLOTS];
        let word = &mut self.occupied[number as usize % SLOTS / 64];
        let occupied = *word | 1 << (number % 64);
        // SAFETY: the caller's; `last` is linked in an occupied slot (I2), and links are ours under the lock (I4).
        unsafe {
            let links = &mut *(*timer).links.get();
            links.next = ptr::null_mut();
            *(*timer).slot.get() = number as u8;
            if *word != occupied {
                *word = occupied;
                slot.earliest = tick;
                slot.first = timer;
                slot.last = timer;
                links.previous = ptr::null_mut();
                return true;
            }
            links.previous = slot.last;
            (*(*slot.last).links.get()).next = timer;
            slot.last = timer;
            if tick < slot.earliest {
                slot.earliest = tick;
                return true;
            }
        }
        false
    }

    /// Takes `timer` out.
    ///
    /// # Safety
    /// `timer` is linked in this table.
    #[inline(always)]
    pub unsafe fn remove(&mut self, timer: *mut KTimer) {
        // SAFETY: the caller's, and I4; neighbours are linked too.
        unsafe {
            let Links { next, previous } = *(*timer).links.get();
            let number = *(*timer).slot.get();
            match previous.as_ref() {
                Some(previous) => (*previous.links.get()).next = next,
                None if next.is_null() => return self.empty(number),
                None => self.slots[usize::from(number)].first = next,
            }
            match next.as_ref() {
                Some(next) => (*next.links.get()).previous = previous,
                None => self.slots[usize::from(number)].last = previous,
            }
        }
    }

    #[inline(always)]
    fn empty(&mut self, number: u8) {
        self.occupied[usize::from(number) / 64] &= !(1 << (number % 64));
    }

    /// Moves the wheel's time to `now` (100 ns), giving every timer that is due to `expire`, which has it to itself: it is
    /// linked no more. Where that returns false it goes back, to be tried again by a later look.
    pub fn advance(&mut self, now: u64, mut expire: impl FnMut(&mut Self, *mut KTimer) -> bool) {
        while let Some(timer) = NonNull::new(self.next_due(now)) {
            if !expire(self, timer.as_ptr()) {
                // SAFETY: it was in this table, and is in none now.
                unsafe { self.refuse(timer.as_ptr(), now) };
            }
        }
    }

    /// One step of an [`advance`](Self::advance) to `now`: takes out the first timer that is due. Null: there is none, and the
    /// wheel's time is `now`. The lock may be let go of between the steps.
    #[inline(always)]
    pub(super) fn next_due(&mut self, now: u64) -> *mut KTimer {
        self.looked = start_of(now >> SHIFT);
        match self.plainly_due(now) {
            Some(timer) => timer.as_ptr(),
            None => {
                cold_path();
                self.open_to_next_due(now)
            }
        }
    }

    /// The same for what is found due most often: a timer without tolerance that is alone in its slot. Such a timer in the first
    /// occupied slot is the first one due, if it is due.
    #[inline(always)]
    fn plainly_due(&mut self, now: u64) -> Option<NonNull<KTimer>> {
        let word = NonZeroU64::new(self.occupied[0])?;
        let timer = self.slots[word.trailing_zeros() as usize].first;
        // SAFETY: it is linked (I2), hence valid, and ours under the lock (I4).
        let plain = unsafe {
            (*(*timer).links.get()).next.is_null()
                && *(*timer).options.get() == 0
                && (*timer).due.load(Ordering::Relaxed) <= start_of(now >> SHIFT)
        };
        if !plain {
            return None;
        }
        // Its bit is the lowest.
        self.occupied[0] = word.get() & (word.get() - 1);
        NonNull::new(timer)
    }

    /// [`next_due`](Self::next_due) of any timer.
    #[inline(never)]
    fn open_to_next_due(&mut self, now: u64) -> *mut KTimer {
        let to = now >> SHIFT;
        while let Some(number) = self.first() {
            let slot = &mut self.slots[usize::from(number)];
            if slot.earliest > to || number == REFUSED {
                if self.start(number) > to || number == REFUSED {
                    break;
                }
                self.open(number, to);
                continue;
            }
            let timer = slot.first;
            // SAFETY: it is linked, hence valid, and ours under the lock (I4).
            let (next, tick) = unsafe { ((*(*timer).links.get()).next, tick_of((*timer).effective_due())) };
            if let Some(next) = NonNull::new(next) {
                cold_path();
                if number == DUE {
                    slot.first = next.as_ptr();
                    // SAFETY: it is linked, too.
                    unsafe { (*next.as_ref().links.get()).previous = ptr::null_mut() };
                    return timer;
                }
                self.open(number, to);
            } else if tick > to {
                // `earliest` was that of one that was cancelled.
                cold_path();
                self.open(number, to);
            } else {
                self.empty(number);
                return timer;
            }
        }
        self.finish(to);
        ptr::null_mut()
    }

    /// `timer`, which [`next_due`](Self::next_due) gave out, is to be tried again by a look after this one: the clock is armed
    /// for the next tick.
    ///
    /// # Safety
    /// As [`arm`](Self::arm).
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn refuse(&mut self, timer: *mut KTimer, now: u64) {
        // SAFETY: the caller's.
        let _ = unsafe { self.append(REFUSED.into(), timer, (now >> SHIFT) + 1) };
    }

    /// The wheel's time comes to the start of a slot: what is due in it goes to DUE, what isn't to the levels below.
    #[inline(never)]
    fn open(&mut self, number: u8, to: u64) {
        let mut timer = self.slots[usize::from(number)].first;
        self.now = self.start(number);
        self.empty(number);
        while !timer.is_null() {
            // SAFETY: it was linked, hence valid (I2), and is ours under the lock (I4).
            let (next, tick) = unsafe { ((*(*timer).links.get()).next, tick_of((*timer).effective_due())) };
            // SAFETY: it is in no table now; the start is at most `to`, and so before a tick after that.
            unsafe {
                if tick > to {
                    self.link(timer, tick);
                } else {
                    self.append(DUE.into(), timer, tick);
                }
            }
            timer = next;
        }
    }

    /// Nothing is due any more: the wheel's time comes to `to`, those refused to the tick after it.
    #[inline(always)]
    fn finish(&mut self, to: u64) {
        self.now = self.now.max(to);
        if self.occupied[usize::from(REFUSED) / 64] >> (REFUSED % 64) != 0 {
            self.link_refused();
        }
    }

    #[cold]
    #[inline(never)]
    fn link_refused(&mut self) {
        let mut timer = self.slots[usize::from(REFUSED)].first;
        self.empty(REFUSED);
        while !timer.is_null() {
            // SAFETY: as in `open`.
            unsafe {
                let next = (*(*timer).links.get()).next;
                self.link(timer, self.now + 1);
                timer = next;
            }
        }
    }

    /// The system time changed by `delta` (100 ns, two's complement): timers with an absolute due time keep it, so their due
    /// time on this wheel moves the other way.
    pub fn move_absolute(&mut self, delta: u64) {
        self.shifted = self.shifted.wrapping_add(delta);
        let mut moved: *mut KTimer = ptr::null_mut();
        for number in 0..SLOTS {
            if self.occupied[number / 64] & 1 << (number % 64) == 0 {
                continue;
            }
            let mut timer = self.slots[number].first;
            while !timer.is_null() {
                // SAFETY: linked (I2), ours under the lock (I4); `remove` leaves the links of what it takes out to us.
                unsafe {
                    let next = (*(*timer).links.get()).next;
                    if *(*timer).options.get() & ABSOLUTE != 0 {
                        self.remove(timer);
                        (*(*timer).links.get()).next = moved;
                        moved = timer;
                    }
                    timer = next;
                }
            }
        }
        while !moved.is_null() {
            // SAFETY: taken out just now, still valid under the lock.
            unsafe {
                let next = (*(*moved).links.get()).next;
                let due = (*moved).due.load(Ordering::Relaxed);
                let due = due.checked_add_signed((delta as i64).wrapping_neg());
                let due = due.unwrap_or(if (delta as i64) < 0 { LAST } else { 0 });
                self.arm(moved, due.min(LAST), *(*moved).options.get());
                moved = next;
            }
        }
    }
}
