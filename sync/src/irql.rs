//! IRQL tokens: "this processor is at level L" as a zero-sized value that only exists as a borrow.
//!
//! Owns:       `Irql<L>`, `Raised`, `DeviceLevel`, the verifier's check. Not: the ladder itself (rank.rs), CR8 (arch).
//! Called by:  everything. A function states the level it needs by the token it takes.
//! IRQL:       that is the subject.
//! Invariants: I1 while a `&mut Irql<L>` can be used on a processor, its CR8 is within L's bounds. Kept by: tokens start only
//!                in `Irql::with`, whose caller argues it; a raise borrows the lower token for as long as it lasts.
//!             I2 no token outlives the code it was given to: it is handed out as `for<'a> &'a mut`, never by value.
//!             I3 lowering is one CR8 write and checks nothing: whatever was requested while raised is pending as an
//!                interrupt already (arch::trap, steps 4 and 5).
//! What safe code can still do: `mem::forget` a `Raised`. The level then stays high, never low; the verifier finds it at the
//!             next use of a token, and no memory safety rests on the drop.
//! Tests:      tests/refuse (I1, I2); tests/props/tests/ladder.rs; the unit tests below. Explained in docs/irql.md.
//! Sources:    SDM vol. 3, "Task and Processor Priorities"; WDK, "Managing Hardware Priorities".

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use arch::service::NothingInService;

pub use crate::rank::*;

/// Stop codes that this crate raises.
pub(crate) mod stop {
    pub(crate) const IRQL_NOT_GREATER_OR_EQUAL: u32 = 0x09;
    pub(crate) const IRQL_NOT_LESS_OR_EQUAL: u32 = 0x0A;
    pub(crate) const MAXIMUM_WAIT_OBJECTS_EXCEEDED: u32 = 0x0C;
    pub(crate) const RESOURCE_NOT_OWNED: u32 = 0xE3;
    #[cfg_attr(not(feature = "verifier"), allow(dead_code, reason = "checked build only"))]
    pub(crate) const SPIN_LOCK_ALREADY_OWNED: u32 = 0x0F;
    #[cfg_attr(not(feature = "verifier"), allow(dead_code, reason = "checked build only"))]
    pub(crate) const SPIN_LOCK_NOT_OWNED: u32 = 0x10;
    #[cfg(feature = "verifier")]
    pub(crate) const THREAD_NOT_MUTEX_OWNER: u32 = 0x11;
    #[cfg(feature = "verifier")]
    pub(crate) const MUTEX_ALREADY_OWNED: u32 = 0xBF;
    #[cfg(feature = "verifier")]
    pub(crate) const IRQL_UNEXPECTED_VALUE: u32 = 0xC8;
    #[cfg(feature = "verifier")]
    pub(crate) const DPC_WATCHDOG_VIOLATION: u32 = 0x133;
    #[cfg(all(feature = "verifier", not(loom)))]
    pub(crate) const DRIVER_VERIFIER_DETECTED_VIOLATION: u32 = 0xC4;
}

/// This processor is at level `L`, and the code that holds the borrow may rely on it.
///
/// Zero-sized; not `Copy`, `Send` or `Sync`; no `Drop`. Nobody owns one: code is handed a `&mut Irql<L>`, for a lifetime
/// that it doesn't choose, and passes it on where a level is asked for.
pub struct Irql<L: Level>(PhantomData<(L, *mut OneProcessorOnly)>);

/// Named for the compiler's message when a token is about to leave its processor: a pointer to it is neither `Send` nor `Sync`.
enum OneProcessorOnly {}

impl<L: Level> Irql<L> {
    /// The only source of tokens: runs `f` with one for `L`. Thread start, trap entry and the boundary to foreign drivers
    /// use it, each with its argument.
    ///
    /// In the checked build, `f` must return at the level it was entered at: IRQL_UNEXPECTED_VALUE otherwise.
    ///
    /// # Safety
    /// 1. CR8 is within `L`'s bounds, and whatever changes it while `f` runs restores it (I1).
    /// 2. `f` can reach no other token of this processor: the caller's own is borrowed or unused until `f` returns.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub unsafe fn with<R>(f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
        #[cfg(feature = "verifier")]
        let entered_at = arch::irql::current();
        // SAFETY: the caller's.
        let result = unsafe { Self::lend(f) };
        #[cfg(feature = "verifier")]
        verifier::same(entered_at);
        result
    }

    /// As [`with`](Self::with), for who compares the level at the end itself, and can name the culprit.
    ///
    /// # Safety
    /// As [`with`](Self::with).
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub unsafe fn lend<R>(f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
        let mut token = Irql(PhantomData);
        token.check();
        f(&mut token)
    }

    /// Raises to `H`; the level comes down when the `Raised` is dropped. Until then this token is borrowed, so nothing
    /// that needs the lower level can be called, and raises end in reverse order.
    ///
    /// One CR8 write here and one at the drop; none at all where both have the same CR8 value.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "KeRaiseIrql")]
    #[doc(alias = "KeRaiseIrqlToDpcLevel")]
    #[doc(alias = "KeRaiseIrqlToSynchLevel")]
    pub fn raise<H: Fixed>(&mut self) -> Raised<'_, H>
    where
        L: AtOrBelow<H>,
    {
        self.check();
        let from = self.known_or_read();
        #[cfg(feature = "verifier")]
        verifier::before_raise(L::HIGHEST, H::LOWEST);
        // Decided at compile time: two entries of the ladder share a CR8 value only where both are fixed.
        if L::HIGHEST != H::CR8 {
            // SAFETY: `self` is borrowed by the `Raised`, so nothing relies on the lower level until that is dropped (I1).
            unsafe { arch::irql::set(H::CR8) };
        }
        Raised {
            token: Irql(PhantomData),
            from,
            lower: PhantomData,
            #[cfg(feature = "verifier")]
            stay: verifier::Stay::begin(from, H::LOWEST),
        }
    }

    /// Raises to a device level that is known at run time.
    ///
    /// # Bugchecks
    /// From `Irql<Device>`, to a level below the current one: IRQL_NOT_GREATER_OR_EQUAL, in every build.
    #[inline]
    #[track_caller]
    pub fn raise_device(&mut self, to: DeviceLevel) -> Raised<'_, Device>
    where
        L: AtOrBelow<Device>,
    {
        self.check();
        let from = self.known_or_read();
        if from > to.0 {
            let site = core::panic::Location::caller();
            arch::fatal_at(
                stop::IRQL_NOT_GREATER_OR_EQUAL,
                [from.into(), to.0.into(), site.into(), 0_u64.into()],
            );
        }
        // SAFETY: as in `raise`; the comparison shows that this doesn't lower.
        unsafe { arch::irql::set(to.0) };
        Raised {
            token: Irql(PhantomData),
            from,
            lower: PhantomData,
            #[cfg(feature = "verifier")]
            stay: verifier::Stay::begin(from, to.0),
        }
    }

    /// The CR8 value: a constant, or read where the type gives bounds only.
    #[inline(always)]
    #[doc(alias = "KeGetCurrentIrql")]
    pub fn level(&self) -> u8 {
        self.known_or_read()
    }

    /// The verifier's check, for functions that take a token and use it in no other way. Costs nothing unless the checked
    /// build's `verifier` feature is on: then CR8 outside of the type's bounds is IRQL_UNEXPECTED_VALUE, with CR8, the
    /// bounds and the caller's `Location` as parameters.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn check(&self) {
        #[cfg(feature = "verifier")]
        verifier::within::<L>();
    }

    /// Nothing is in service on this processor: what a context switch asks for.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn nothing_in_service(&mut self) -> NothingInService
    where
        L: MayBlock,
    {
        self.check();
        // SAFETY: a handler runs at or above DISPATCH until it ended its interrupt and ever after it was interrupted itself,
        // so code at PASSIVE or APC was reached with none half-way (I1). The value is neither `Send` nor `Sync`, so a handler
        // that interrupts this code can't come by it.
        unsafe { NothingInService::assume() }
    }

    #[inline(always)]
    fn known_or_read(&self) -> u8 {
        if L::LOWEST == L::HIGHEST { L::LOWEST } else { arch::irql::current() }
    }
}

/// This processor was raised to `H`; dropping lowers it again. Use it as the `&mut Irql<H>` that it derefs to.
///
/// `DerefMut` gives out `&mut Irql<H>`, so safe code could `mem::swap` it with another token of the same type. That moves
/// nothing: a token is zero-sized, has no lifetime in its type, and says only "within H's bounds", which holds for both
/// while both can be used. What matters, the level to return to and the borrow of the lower token, is in private fields of
/// `Raised`; two of those can't be live on one processor without one borrowing from the other, so they can't be swapped.
#[must_use = "dropping it at once lowers the IRQL again"]
pub struct Raised<'a, H: Level> {
    token: Irql<H>,
    from: u8,
    lower: PhantomData<&'a mut ()>,
    #[cfg(feature = "verifier")]
    stay: verifier::Stay,
}

impl<H: Level> Raised<'_, H> {
    /// The level that the drop returns to.
    #[inline(always)]
    pub fn from(&self) -> u8 {
        self.from
    }
}

impl<H: Level> Deref for Raised<'_, H> {
    type Target = Irql<H>;

    #[inline(always)]
    fn deref(&self) -> &Irql<H> {
        // Not `&self.token`: with the address of `self` given out, the compiler would keep `from` in memory.
        // SAFETY: a token has no bytes and an alignment of 1, so any non-null address is that of one; the lifetime is that of
        //         the borrow of `self`, which has the token that it stands for.
        unsafe { NonNull::dangling().as_ref() }
    }
}

impl<H: Level> DerefMut for Raised<'_, H> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Irql<H> {
        // SAFETY: as in `deref`; references to no bytes overlap with nothing, and `self` is borrowed uniquely.
        unsafe { NonNull::dangling().as_mut() }
    }
}

impl<H: Level> Drop for Raised<'_, H> {
    #[inline(always)]
    fn drop(&mut self) {
        self.token.check();
        #[cfg(feature = "verifier")]
        self.stay.end();
        #[cfg(feature = "verifier")]
        verifier::before_lower(self.token.known_or_read(), self.from);
        // Folded when the raise was inlined, as `from` is then a constant. A run-time level is always written back.
        if H::LOWEST != H::HIGHEST || self.from != H::LOWEST {
            // SAFETY: everything that relied on the higher level borrowed from `self`, and is gone (I1).
            unsafe { arch::irql::set(self.from) };
        }
    }
}

/// A device IRQL, 3 to 11.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceLevel(u8);

impl DeviceLevel {
    /// The level, if `cr8` is a device's.
    #[inline]
    pub const fn new(cr8: u8) -> Option<Self> {
        if Device::LOWEST <= cr8 && cr8 <= Device::HIGHEST { Some(Self(cr8)) } else { None }
    }

    /// The level at which `vector` is delivered, if it is a device's.
    #[inline]
    pub const fn of_vector(vector: u8) -> Option<Self> {
        Self::new(vector >> 4)
    }

    /// The CR8 value.
    #[inline]
    pub const fn cr8(self) -> u8 {
        self.0
    }
}

#[cfg(feature = "verifier")]
pub use verifier::{set_dispatch_limit, set_raise_hook, set_stay_clock};

#[cfg(feature = "verifier")]
mod verifier {
    use super::{Level, stop};
    use arch::trace::Kind;
    use core::panic::Location;
    // Not the model checker's: a setting, not a part of any protocol.
    use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    /// Called before each raise from below DISPATCH; zero: nothing.
    static RAISE_HOOK: AtomicUsize = AtomicUsize::new(0);

    /// From now on, `hook` is called before each typed raise from below DISPATCH to it or above, at the lower level. What it raises
    /// itself calls it again.
    pub fn set_raise_hook(hook: fn()) {
        RAISE_HOOK.store(hook as usize, Ordering::Release);
    }

    #[inline]
    pub(super) fn before_raise(from: u8, to: u8) {
        use arch::level::DISPATCH;
        if from < DISPATCH && to >= DISPATCH {
            let hook = RAISE_HOOK.load(Ordering::Acquire);
            if hook != 0 {
                // SAFETY: only `set_raise_hook` stores here, and only a `fn()`.
                unsafe { core::mem::transmute::<usize, fn()>(hook)() };
            }
        }
    }

    /// Recorded while the level still is the higher one, so by the processor that it is of.
    #[inline]
    pub(super) fn before_lower(from: u8, to: u8) {
        if from >= arch::level::DISPATCH && from != to {
            arch::trace::event(Kind::Lower, u16::from(from) << 8 | u16::from(to), 0, 0);
        }
    }

    /// What stays are timed by; zero: the time stamp counter.
    static CLOCK: AtomicUsize = AtomicUsize::new(0);

    /// From now on, stays are timed by `clock`, in time stamps, which is called at or above DISPATCH. A thread that waits, or that is
    /// preempted, keeps its `Raised`: it stays nowhere meanwhile, and its own time is what counts.
    pub fn set_stay_clock(clock: fn() -> u64) {
        CLOCK.store(clock as usize, Ordering::Release);
    }

    fn now() -> u64 {
        match CLOCK.load(Ordering::Acquire) {
            0 => arch::cpu::timestamp(),
            // SAFETY: only `set_stay_clock` stores here, and only a `fn() -> u64`.
            clock => unsafe { core::mem::transmute::<usize, fn() -> u64>(clock)() },
        }
    }

    /// Time stamps that a stay at or above DISPATCH may last; 0: any.
    static LIMIT: AtomicU64 = AtomicU64::new(0);
    /// Time stamps per millisecond.
    static PER_MILLISECOND: AtomicU64 = AtomicU64::new(1);

    /// From now on, code that raised from below DISPATCH and comes back later than `milliseconds` is a
    /// DPC_WATCHDOG_VIOLATION: 1, milliseconds, limit, the `Location` of the raise. 0: no limit.
    pub fn set_dispatch_limit(milliseconds: u64, stamps_per_millisecond: u64) {
        PER_MILLISECOND.store(stamps_per_millisecond.max(1), Ordering::Relaxed);
        LIMIT.store(milliseconds.saturating_mul(stamps_per_millisecond), Ordering::Relaxed);
    }

    /// The time at or above DISPATCH of one `Raised`, if that is what took the processor there.
    pub(super) struct Stay {
        /// 0: it isn't timed.
        since: u64,
        by: &'static Location<'static>,
    }

    impl Stay {
        #[inline]
        #[track_caller]
        pub(super) fn begin(from: u8, to: u8) -> Self {
            use arch::level::DISPATCH;
            if to >= DISPATCH && from != to {
                let levels = u16::from(from) << 8 | u16::from(to);
                arch::trace::about(Kind::Raise, levels, Location::caller(), 0);
            }
            let timed = from < DISPATCH && to >= DISPATCH && LIMIT.load(Ordering::Relaxed) != 0;
            Self { since: if timed { now() } else { 0 }, by: Location::caller() }
        }

        #[inline]
        pub(super) fn end(&self) {
            let limit = LIMIT.load(Ordering::Relaxed);
            if self.since != 0 && limit != 0 {
                let lasted = now().saturating_sub(self.since);
                if lasted > limit {
                    self.report(lasted, limit);
                }
            }
        }

        #[cold]
        fn report(&self, lasted: u64, limit: u64) -> ! {
            let per = PER_MILLISECOND.load(Ordering::Relaxed);
            let parameters = [1_u64.into(), (lasted / per).into(), (limit / per).into(), self.by.into()];
            arch::fatal_at(stop::DPC_WATCHDOG_VIOLATION, parameters);
        }
    }

    /// CR8 is within L's bounds.
    #[inline]
    #[track_caller]
    pub(super) fn within<L: Level>() {
        let found = arch::irql::current();
        if found < L::LOWEST || found > L::HIGHEST {
            report(found, L::LOWEST, L::HIGHEST);
        }
    }

    /// CR8 is what it was.
    #[inline]
    #[track_caller]
    pub(super) fn same(entered_at: u8) {
        let found = arch::irql::current();
        if found != entered_at {
            report(found, entered_at, entered_at);
        }
    }

    #[cold]
    #[track_caller]
    fn report(found: u8, lowest: u8, highest: u8) -> ! {
        let parameters = [found.into(), lowest.into(), Location::caller().into(), highest.into()];
        arch::fatal_at(stop::IRQL_UNEXPECTED_VALUE, parameters);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_raise_is_undone_in_reverse_order() {
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                let mut dispatch = at.raise::<Dispatch>();
                let mut device = dispatch.raise_device(DeviceLevel::new(5).unwrap());
                let mut higher = device.raise_device(DeviceLevel::new(7).unwrap());
                let high = higher.raise::<High>();
                assert_eq!((high.from(), high.level(), arch::irql::current()), (7, 15, 15));
                drop(high);
                assert_eq!(higher.level(), 7);
                drop(higher);
                assert_eq!(device.level(), 5);
                drop(device);
                assert_eq!(arch::irql::current(), 2);
                drop(dispatch);
                assert_eq!(arch::irql::current(), 0);
            });
        }
    }

    #[test]
    fn a_run_time_raise_does_not_lower() {
        let level = |cr8| DeviceLevel::new(cr8).unwrap();
        let stop = arch::stop::catch(|| {
            // SAFETY: as above.
            unsafe {
                Irql::<Passive>::with(|at| {
                    let mut seven = at.raise_device(level(7));
                    let _five = seven.raise_device(level(5));
                });
            }
        });
        let stop = stop.expect("a bugcheck");
        assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0x09, 7, 5));
    }

    #[test]
    fn device_levels_are_3_to_11() {
        assert_eq!(
            (0..=255).filter(|&cr8| DeviceLevel::new(cr8).is_some()).collect::<Vec<_>>(),
            (3..=11).collect::<Vec<u8>>()
        );
        assert_eq!(DeviceLevel::of_vector(0xBF).map(DeviceLevel::cr8), Some(11));
        assert_eq!(DeviceLevel::of_vector(0x2F), None);
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn the_verifier_finds_a_forgotten_raise() {
        let stop = arch::stop::catch(|| {
            // SAFETY: as above; `forget` breaks the level and not I1's memory safety, which is what is tested.
            unsafe {
                Irql::<Passive>::with(|at| {
                    core::mem::forget(at.raise::<Dispatch>());
                    let _ = at.nothing_in_service();
                });
            }
        });
        let stop = stop.expect("a bugcheck");
        assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0xC8, 2, 0));
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn the_verifier_finds_a_routine_that_returns_at_another_level() {
        let stop = arch::stop::catch(|| {
            // SAFETY: as above.
            unsafe { Irql::<Passive>::with(|at| core::mem::forget(at.raise::<Dispatch>())) }
        });
        assert_eq!(stop.map(|stop| stop.code), Some(0xC8));
    }
}
