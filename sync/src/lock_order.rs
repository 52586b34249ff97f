//! Lock-order validator of the checked build, for locks whose order the types don't know: those of drivers, which are an
//! address, and interrupt locks, whose level is known at run time only.
//!
//! It keeps a graph: an edge a → b says that b was once acquired while a was held, and where. An acquire that would close a
//! cycle is reported before it can deadlock, even if the processors never meet: DRIVER_VERIFIER_DETECTED_VIOLATION with NT's
//! parameters for it (0x1001, the lock, the call site of this acquire, the call site of the recorded one).
//!
//! Locks are told apart by class: the address, or what [`set_class`] registered for it. Storage is fixed; what doesn't fit is
//! not watched, and [`unwatched`] counts it. A try acquire can't deadlock: it makes no edge, but is held.
//!
//! IRQL:       any but NMI; works at HIGH, so that an interrupt can't come back in on the same processor.
//! Locks:      one word of its own, innermost of all: nothing is called while it is held.
//! Invariants: I1 the graph has no cycle. I2 an address in `held[n]` is held by processor n.
//! Tests:      the unit tests below and in raw.rs, interrupt_lock.rs.

#[cfg(not(all(feature = "verifier", not(loom))))]
pub(crate) use off::*;
#[cfg(all(feature = "verifier", not(loom)))]
pub(crate) use on::*;
#[cfg(all(feature = "verifier", not(loom)))]
pub use on::{forget, set_class, unwatched};

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

    const CLASSES: usize = 256;
    const EDGES: usize = 1024;
    const NAMED: usize = 256;
    const DEPTH: usize = 16;
    const PROCESSORS: usize = 64;
    /// NT's "deadlock detected".
    const DEADLOCK: u64 = 0x1001;

    /// One bit for each class.
    type Classes = [u64; CLASSES / 64];

    #[derive(Clone, Copy)]
    struct Edge {
        from: usize,
        to: usize,
        site: usize,
    }

    #[derive(Clone, Copy)]
    struct Held {
        address: usize,
        /// `None`: not watched, the table of classes was full.
        class: Option<usize>,
        site: usize,
    }

    #[derive(Clone, Copy)]
    struct Stack {
        held: [Held; DEPTH],
        depth: usize,
    }

    /// What would deadlock: the other call site.
    struct Cycle(usize);

    struct Graph {
        /// A class's key: the address of a lock, or of what was registered for it. 0: free again.
        keys: [usize; CLASSES],
        classes: usize,
        /// Registered: address of a lock, key of its class.
        named: [(usize, usize); NAMED],
        names: usize,
        /// Bit b of `after[a]`: there is an edge a → b.
        after: [Classes; CLASSES],
        edges: [Edge; EDGES],
        edge_count: usize,
        held: [Stack; PROCESSORS],
        unwatched: u64,
    }

    struct Validator {
        word: Word,
        graph: UnsafeCell<Graph>,
    }

    // SAFETY: the graph is reached through `with_graph` alone, which holds the word.
    unsafe impl Sync for Validator {}

    static VALIDATOR: Validator = Validator {
        word: Word::new(),
        graph: UnsafeCell::new(Graph {
            keys: [0; CLASSES],
            classes: 0,
            named: [(0, 0); NAMED],
            names: 0,
            after: [[0; CLASSES / 64]; CLASSES],
            edges: [Edge { from: 0, to: 0, site: 0 }; EDGES],
            edge_count: 0,
            held: [Stack { held: [Held { address: 0, class: None, site: 0 }; DEPTH], depth: 0 }; PROCESSORS],
            unwatched: 0,
        }),
    };

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

    #[track_caller]
    fn here() -> usize {
        core::ptr::from_ref(Location::caller()).addr()
    }

    /// The lock at `address` is about to be waited for.
    #[track_caller]
    pub(crate) fn acquiring(address: usize) {
        let (processor, site) = (arch::cpu::number() as usize, here());
        if let Err(Cycle(other)) = with_graph(|graph| graph.acquire(processor, address, site)) {
            let parameters = [DEADLOCK, address as u64, site as u64, other as u64];
            arch::fatal(stop::DRIVER_VERIFIER_DETECTED_VIOLATION, parameters);
        }
    }

    /// The lock at `address` was taken without waiting.
    #[track_caller]
    pub(crate) fn acquired_by_try(address: usize) {
        let (processor, site) = (arch::cpu::number() as usize, here());
        with_graph(|graph| {
            let class = graph.class_of(address);
            graph.push(processor, Held { address, class, site });
        });
    }

    /// The lock at `address` was released; in any order.
    pub(crate) fn released(address: usize) {
        let processor = arch::cpu::number() as usize;
        with_graph(|graph| graph.held[processor].remove(address));
    }

    /// From now on the lock at `address` is one of the class that `key`, the address of something that stays, stands for.
    pub fn set_class(address: usize, key: usize) {
        with_graph(|graph| {
            graph.forget(address..address + 1);
            if graph.names == NAMED {
                graph.unwatched += 1;
                return;
            }
            graph.named[graph.names] = (address, key);
            graph.names += 1;
        });
    }

    /// The locks at these addresses are gone: their memory was freed or is being initialised.
    pub fn forget(addresses: Range<usize>) {
        with_graph(|graph| graph.forget(addresses));
    }

    /// How many acquires were not watched, because a table was full.
    pub fn unwatched() -> u64 {
        with_graph(|graph| graph.unwatched)
    }

    fn contains(set: &Classes, class: usize) -> bool {
        set[class / 64] & 1 << (class % 64) != 0
    }

    fn insert(set: &mut Classes, class: usize) {
        set[class / 64] |= 1 << (class % 64);
    }

    impl Stack {
        fn remove(&mut self, address: usize) {
            let held = &mut self.held[..self.depth];
            if let Some(i) = held.iter().rposition(|held| held.address == address) {
                held.copy_within(i + 1.., i);
                self.depth -= 1;
            }
        }
    }

    impl Graph {
        /// The class of a lock, made at its first acquire.
        fn class_of(&mut self, address: usize) -> Option<usize> {
            let named = self.named[..self.names].iter().find(|(named, _)| *named == address);
            let key = named.map_or(address, |(_, key)| *key);
            let known = &self.keys[..self.classes];
            if let Some(class) = known.iter().position(|&known| known == key) {
                return Some(class);
            }
            let class = known.iter().position(|&known| known == 0).unwrap_or(self.classes);
            *self.keys.get_mut(class)? = key;
            self.classes = self.classes.max(class + 1);
            Some(class)
        }

        fn push(&mut self, processor: usize, held: Held) {
            let stack = &mut self.held[processor];
            if held.class.is_none() || stack.depth == DEPTH {
                self.unwatched += 1;
            }
            if stack.depth < DEPTH {
                stack.held[stack.depth] = held;
                stack.depth += 1;
            }
        }

        fn acquire(&mut self, processor: usize, address: usize, site: usize) -> Result<(), Cycle> {
            let Stack { held, depth } = self.held[processor];
            if held[..depth].iter().any(|held| held.address == address) {
                // Recursion: the lock itself knows, and says so with a code of its own.
                return Ok(());
            }
            let class = self.class_of(address);
            if let Some(to) = class {
                for outer in &held[..depth] {
                    if let Some(from) = outer.class {
                        self.link(from, to, outer.site, site)?;
                    }
                }
            }
            self.push(processor, Held { address, class, site });
            Ok(())
        }

        /// Adds the edge `from` → `to`, unless it would close a cycle (I1).
        fn link(&mut self, from: usize, to: usize, outer_site: usize, site: usize) -> Result<(), Cycle> {
            if contains(&self.after[from], to) {
                return Ok(());
            }
            if from == to {
                return Err(Cycle(outer_site));
            }
            if let Some(first) = self.first_step(to, from) {
                return Err(Cycle(self.site_of(to, first)));
            }
            if self.edge_count == EDGES {
                self.unwatched += 1;
                return Ok(());
            }
            insert(&mut self.after[from], to);
            self.edges[self.edge_count] = Edge { from, to, site };
            self.edge_count += 1;
            Ok(())
        }

        /// The first class on a path from `start` to `goal`, if there is a path.
        fn first_step(&self, start: usize, goal: usize) -> Option<usize> {
            (0..self.classes).find(|&first| contains(&self.after[start], first) && self.reaches(first, goal))
        }

        fn reaches(&self, start: usize, goal: usize) -> bool {
            let mut seen: Classes = [0; CLASSES / 64];
            insert(&mut seen, start);
            // Each round adds the successors of what was seen; at most one round for each class.
            loop {
                if contains(&seen, goal) {
                    return true;
                }
                let mut grown = seen;
                for class in (0..self.classes).filter(|&class| contains(&seen, class)) {
                    grown.iter_mut().zip(&self.after[class]).for_each(|(set, after)| *set |= after);
                }
                if grown == seen {
                    return false;
                }
                seen = grown;
            }
        }

        fn site_of(&self, from: usize, to: usize) -> usize {
            let edges = &self.edges[..self.edge_count];
            edges.iter().find(|edge| (edge.from, edge.to) == (from, to)).map_or(0, |edge| edge.site)
        }

        fn forget(&mut self, addresses: Range<usize>) {
            let mut i = 0;
            while i < self.names {
                if addresses.contains(&self.named[i].0) {
                    self.names -= 1;
                    self.named[i] = self.named[self.names];
                } else {
                    i += 1;
                }
            }
            for stack in &mut self.held {
                while let Some(held) =
                    stack.held[..stack.depth].iter().find(|h| addresses.contains(&h.address))
                {
                    stack.remove(held.address);
                }
            }
            for class in 0..self.classes {
                if self.keys[class] != 0 && addresses.contains(&self.keys[class]) {
                    self.forget_class(class);
                }
            }
        }

        fn forget_class(&mut self, class: usize) {
            self.keys[class] = 0;
            self.after[class] = [0; CLASSES / 64];
            for after in &mut self.after {
                after[class / 64] &= !(1 << (class % 64));
            }
            let mut i = 0;
            while i < self.edge_count {
                if self.edges[i].from == class || self.edges[i].to == class {
                    self.edge_count -= 1;
                    self.edges[i] = self.edges[self.edge_count];
                } else {
                    i += 1;
                }
            }
        }
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
