//! Lock-order validator of the checked build, for locks whose order the types don't know: those of drivers, which are an
//! address, and interrupt locks, whose level is known at run time only.
//!
//! It keeps a graph: an edge a → b says that b was once acquired while a was held, and where. An acquire that would close a
//! cycle is reported before it can deadlock, even if the processors never meet: DRIVER_VERIFIER_DETECTED_VIOLATION with NT's
//! parameters for it (0x1001, the lock, the call site of this acquire, the call site of the recorded one).
//!
//! Locks are told apart by class: the address, or what [`set_class`] registered for it. Storage is fixed; what doesn't fit is
//! not watched: [`unwatched`] counts it, and [`set_full_hook`] has the first time told. A try acquire can't deadlock: it makes no edge, but is held.
//!
//! IRQL:       any but NMI; works at HIGH, so that an interrupt can't come back in on the same processor.
//! Locks:      one word of its own, innermost of all: nothing is called while it is held.
//! Invariants: graph.rs.
//! Tests:      tests/props/tests/lock_order.rs (against a naive graph), lock_order_full.rs; the unit tests below and in raw.rs, interrupt_lock.rs.

#[cfg(all(feature = "verifier", not(loom)))]
mod graph;

#[cfg(not(all(feature = "verifier", not(loom))))]
pub(crate) use off::*;
#[cfg(all(feature = "verifier", not(loom)))]
pub(crate) use on::*;
#[cfg(all(feature = "verifier", not(loom)))]
pub use on::{forget, set_class, set_full_hook, unwatched};

/// Nothing is watched, and it costs nothing.
#[cfg(not(all(feature = "verifier", not(loom))))]
mod off {
    #[inline(always)]
    pub(crate) fn acquiring(_address: usize) {}

    #[inline(always)]
    pub(crate) fn acquired_by_try(_address: usize) {}

    #[inline(always)]
    pub(crate) fn released(_address: usize) {}
}

/// What a lock of this crate is in the graph: a place whose address is its class, forgotten with it. A lock may move until it
/// is first acquired; one that moves later leaves what is known about it behind.
pub(crate) struct Identity(
    #[cfg(all(feature = "verifier", not(loom)))]
    #[expect(dead_code, reason = "it is there to have an address of its own")]
    u8,
);

impl Identity {
    pub(crate) const fn new() -> Self {
        Self(
            #[cfg(all(feature = "verifier", not(loom)))]
            0,
        )
    }

    pub(crate) fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}

#[cfg(all(feature = "verifier", not(loom)))]
impl Drop for Identity {
    fn drop(&mut self) {
        forget(self.address()..self.address() + 1);
    }
}

/// A watched acquire; ended when dropped.
pub(crate) struct Watched(usize);

impl Watched {
    /// Before the lock at `address` is waited for.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn acquire(address: usize) -> Self {
        acquiring(address);
        Self(address)
    }
}

impl Drop for Watched {
    #[inline(always)]
    fn drop(&mut self) {
        released(self.0);
    }
}

#[cfg(all(feature = "verifier", not(loom)))]
mod on {
    use core::ops::Range;
    use core::panic::Location;

    use crate::irql::stop;
    use crate::prim::UnsafeCell;
    use crate::word::Word;

    use super::graph::{Cycle, Graph, Site};
    use crate::Once;

    /// NT's "deadlock detected".
    const DEADLOCK: u64 = 0x1001;

    struct Validator {
        word: Word,
        graph: UnsafeCell<Graph>,
    }

    // SAFETY: the graph is reached through `with_graph` alone, which holds the word.
    unsafe impl Sync for Validator {}

    static VALIDATOR: Validator = Validator { word: Word::new(), graph: UnsafeCell::new(Graph::new()) };

    fn with_graph<R>(f: impl FnOnce(&mut Graph) -> R) -> R {
        let level = arch::irql::current();
        // SAFETY: to HIGH and back before anything else runs here.
        unsafe { arch::irql::set(15) };
        VALIDATOR.word.acquire();
        // SAFETY: the word is held, and `f` can't come back here: it has only the graph.
        let result = VALIDATOR.graph.with_mut(|graph| f(unsafe { &mut *graph }));
        // SAFETY: acquired above; the graph's borrow is over.
        unsafe { VALIDATOR.word.release() };
        // SAFETY: as above.
        unsafe { arch::irql::set(level) };
        result
    }

    static FULL: Once<fn(Site)> = Once::new();

    /// Has `hook` called when a table is full for the first time, with the place of the call that is not watched: at that caller's
    /// level, and under what it holds. The first hook stays.
    pub fn set_full_hook(hook: fn(&'static Location<'static>)) {
        FULL.call_once(|| hook);
    }

    /// [`with_graph`], for what may find a table full.
    fn grow<R>(site: Site, f: impl FnOnce(&mut Graph) -> R) -> R {
        let (result, is_first) = with_graph(|graph| {
            let before = graph.unwatched();
            let result = f(graph);
            (result, before == 0 && graph.unwatched() != 0)
        });
        if is_first && let Some(hook) = FULL.get() {
            hook(site);
        }
        result
    }

    /// The lock at `address` is about to be waited for.
    #[track_caller]
    pub(crate) fn acquiring(address: usize) {
        let (processor, site): (_, Site) = (arch::cpu::number() as usize, Location::caller());
        if let Err(Cycle(other)) = grow(site, |graph| graph.acquire(processor, address, site)) {
            let parameters = [DEADLOCK.into(), (address as u64).into(), site.into(), other.into()];
            arch::fatal_at(stop::DRIVER_VERIFIER_DETECTED_VIOLATION, parameters);
        }
    }

    /// The lock at `address` was taken without waiting.
    #[track_caller]
    pub(crate) fn acquired_by_try(address: usize) {
        let (processor, site) = (arch::cpu::number() as usize, Location::caller());
        grow(site, |graph| graph.tried(processor, address, site));
    }

    /// The lock at `address` was released; in any order.
    pub(crate) fn released(address: usize) {
        let processor = arch::cpu::number() as usize;
        with_graph(|graph| graph.released(processor, address));
    }

    /// From now on the lock at `address` is one of the class that `key`, the address of something that stays, stands for.
    #[track_caller]
    pub fn set_class(address: usize, key: usize) {
        grow(Location::caller(), |graph| graph.set_class(address, key));
    }

    /// The locks at these addresses are gone: their memory was freed or is being initialised.
    pub fn forget(addresses: Range<usize>) {
        with_graph(|graph| graph.forget(addresses));
    }

    /// How many acquires were not watched, because a table was full.
    pub fn unwatched() -> u64 {
        with_graph(|graph| graph.unwatched())
    }
}

#[cfg(all(test, feature = "verifier", not(loom)))]
mod tests {
    use super::*;
    use arch::stop::{Stop, catch};

    /// Addresses that no lock has: a test's own, as the graph is everybody's.
    fn nested(outer: usize, inner: usize) -> Option<Stop> {
        catch(|| {
            let _outer = Watched::acquire(outer);
            let _inner = Watched::acquire(inner);
        })
    }

    #[test]
    fn a_cycle_of_three_is_found_and_names_both_sites() {
        let [a, b, c] = [0x1001, 0x1002, 0x1003];
        assert_eq!(nested(a, b), None);
        assert_eq!(nested(b, c), None);
        assert_eq!(nested(a, c), None);
        let stop = nested(c, a).expect("a cycle");
        assert_eq!((stop.code, stop.parameters[0], stop.parameters[1]), (0xC4, 0x1001, a as u64));
        assert_ne!(stop.parameters[2], 0);
        assert_ne!(stop.parameters[3], 0);
        assert_eq!(nested(a, c), None, "a report changes nothing");
    }

    #[test]
    fn locks_of_one_class_do_not_nest_and_share_their_order() {
        let [a, b, other] = [0x2001, 0x2002, 0x2003];
        let class = 0x2FFF;
        set_class(a, class);
        set_class(b, class);
        assert!(nested(a, b).is_some());
        assert_eq!(nested(a, other), None);
        assert!(nested(other, b).is_some());
    }

    #[test]
    fn forgotten_locks_may_come_back_in_another_order() {
        let [a, b] = [0x3001, 0x3002];
        assert_eq!(nested(a, b), None);
        forget(a..a + 1);
        assert_eq!(nested(b, a), None);
        assert!(nested(a, b).is_some());
    }

    #[test]
    fn a_try_makes_no_edge_but_counts_as_held() {
        let [a, b] = [0x4001, 0x4002];
        let outer = Watched::acquire(a);
        acquired_by_try(b);
        released(b);
        drop(outer);
        assert_eq!(nested(b, a), None);
        acquired_by_try(a);
        let inner = catch(|| drop(Watched::acquire(b)));
        released(a);
        assert!(inner.is_some(), "b → a is known, and a is held");
    }

    #[test]
    fn release_in_any_order() {
        let [a, b, c] = [0x5001, 0x5002, 0x5003];
        let (outer, inner) = (Watched::acquire(a), Watched::acquire(b));
        drop(outer);
        drop(inner);
        drop(Watched::acquire(c));
        assert_eq!(nested(c, a), None, "nothing was held when c was acquired");
        assert_eq!(nested(c, b), None);
        assert!(nested(b, a).is_some());
    }
}
