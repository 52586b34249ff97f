//! The graph of the lock-order validator: classes of locks, which was acquired under which, and what each processor holds.
//!
//! A plain data structure of fixed size: who may touch it, and when, is lock_order.rs.
//!
//! Invariants: I1 the graph has no cycle. I2 an address in `held[n]` is held by processor n.

use core::ops::Range;
use core::panic::Location;

/// Where a lock was acquired.
pub(super) type Site = &'static Location<'static>;

/// For what is not in use.
const NOWHERE: Site = Location::caller();

const CLASSES: usize = 256;
const EDGES: usize = 1024;
const NAMED: usize = 256;
const DEPTH: usize = 16;
const PROCESSORS: usize = 64;

/// One bit for each class.
type Classes = [u64; CLASSES / 64];

#[derive(Clone, Copy)]
struct Edge {
    from: usize,
    to: usize,
    site: Site,
}

#[derive(Clone, Copy)]
struct Held {
    address: usize,
    /// `None`: not watched, the table of classes was full.
    class: Option<usize>,
    site: Site,
}

#[derive(Clone, Copy)]
struct Stack {
    held: [Held; DEPTH],
    depth: usize,
}

/// What would deadlock: the other call site.
pub(super) struct Cycle(pub(super) Site);

/// See the module.
pub(super) struct Graph {
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
    /// Nothing was acquired yet.
    pub(super) const fn new() -> Self {
        Self {
            keys: [0; CLASSES],
            classes: 0,
            named: [(0, 0); NAMED],
            names: 0,
            after: [[0; CLASSES / 64]; CLASSES],
            edges: [Edge { from: 0, to: 0, site: NOWHERE }; EDGES],
            edge_count: 0,
            held: [Stack { held: [Held { address: 0, class: None, site: NOWHERE }; DEPTH], depth: 0 };
                PROCESSORS],
            unwatched: 0,
        }
    }

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

    /// `processor` took a lock at `site` without waiting.
    pub(super) fn tried(&mut self, processor: usize, address: usize, site: Site) {
        let class = self.class_of(address);
        self.push(processor, Held { address, class, site });
    }

    /// `processor` gave a lock back.
    pub(super) fn released(&mut self, processor: usize, address: usize) {
        self.held[processor].remove(address);
    }

    /// The lock is of the class that `key` stands for; what was known about it is forgotten.
    pub(super) fn set_class(&mut self, address: usize, key: usize) {
        self.forget(address..address + 1);
        if self.names == NAMED {
            self.unwatched += 1;
            return;
        }
        self.named[self.names] = (address, key);
        self.names += 1;
    }

    /// How often a table was full.
    pub(super) fn unwatched(&self) -> u64 {
        self.unwatched
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

    /// `processor` is about to wait for a lock at `site`.
    pub(super) fn acquire(&mut self, processor: usize, address: usize, site: Site) -> Result<(), Cycle> {
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
    fn link(&mut self, from: usize, to: usize, outer_site: Site, site: Site) -> Result<(), Cycle> {
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

    fn site_of(&self, from: usize, to: usize) -> Site {
        let edges = &self.edges[..self.edge_count];
        edges.iter().find(|edge| (edge.from, edge.to) == (from, to)).map_or(NOWHERE, |edge| edge.site)
    }

    /// The locks at these addresses are gone.
    pub(super) fn forget(&mut self, addresses: Range<usize>) {
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
            while let Some(held) = stack.held[..stack.depth].iter().find(|h| addresses.contains(&h.address)) {
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
