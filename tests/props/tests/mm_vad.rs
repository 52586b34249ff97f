//! The tree of descriptors against a sorted list: what is found, which hole is the lowest or highest that is large enough, what a
//! split leaves; overlaps are refused. The tree's own invariants are verified throughout.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use kernel::mm::vad::{GRANULARITY, Node, Search, Span, Tree};
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 200 } else { 4000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 250 };

/// Pages that there are.
const ALL: Span = Span { first: 32, end: 32 + 4000 };

struct Model {
    tree: Tree<u64>,
    /// First page: end, value.
    list: BTreeMap<u64, (u64, u64)>,
    next: u64,
}

fn new(span: Span, value: u64) -> NonNull<Node<u64>> {
    NonNull::new(Box::into_raw(Box::new(Node::new(span, value)))).unwrap()
}

fn free(node: NonNull<Node<u64>>) -> Node<u64> {
    // SAFETY: made by `new`, and in no tree.
    *unsafe { Box::from_raw(node.as_ptr()) }
}

impl Model {
    fn overlaps(&self, span: Span) -> bool {
        self.list.range(..span.end).next_back().is_some_and(|(_, &(end, _))| end > span.first)
    }

    fn find(&self, page: u64) -> Option<(Span, u64)> {
        let (&first, &(end, value)) = self.list.range(..=page).next_back()?;
        (page < end).then_some((Span { first, end }, value))
    }

    fn first_from(&self, page: u64) -> Option<(Span, u64)> {
        self.find(page).or_else(|| {
            let (&first, &(end, value)) = self.list.range(page..).next()?;
            Some((Span { first, end }, value))
        })
    }

    /// The first hole that fits, of all from one side on.
    fn gap(&self, pages: u64, bounds: Span, search: Search) -> Option<u64> {
        let mut holes = Vec::new();
        let mut from = bounds.first;
        for (&first, &(end, _)) in &self.list {
            holes.push((from, first.min(bounds.end)));
            from = from.max(end);
        }
        holes.push((from, bounds.end));
        let fits = |&(from, to): &(u64, u64)| {
            let low = from.next_multiple_of(GRANULARITY);
            (low + pages <= to).then(|| (low, (to - pages) / GRANULARITY * GRANULARITY))
        };
        match search {
            Search::BottomUp => holes.iter().find_map(fits).map(|(low, _)| low),
            Search::TopDown => holes.iter().rev().find_map(fits).map(|(_, high)| high),
        }
    }

    fn insert(&mut self, span: Span) {
        self.next += 1;
        let refused = span.is_empty() || self.overlaps(span);
        let node = new(span, self.next);
        // SAFETY: a new node.
        if unsafe { self.tree.insert(node) } {
            assert!(!refused, "{span:?} overlaps");
            self.list.insert(span.first, (span.end, self.next));
        } else {
            assert!(refused, "{span:?} does not overlap");
            free(node);
        }
    }

    fn remove(&mut self, page: u64) {
        let wanted = self.find(page);
        let found = self.tree.remove(page).map(|node| {
            let node = free(node);
            (node.span(), node.value)
        });
        assert_eq!(found, wanted);
        if let Some((span, _)) = wanted {
            self.list.remove(&span.first);
        }
    }

    fn split(&mut self, page: u64, pages: u64) {
        let hole = Span { first: page, end: page + pages };
        self.next += 1;
        let upper = new(ALL, self.next);
        let fits = self
            .find(page)
            .filter(|(span, _)| span.first < hole.first && hole.end < span.end && !hole.is_empty());
        // SAFETY: a new node.
        let done = unsafe { self.tree.split(hole, upper) };
        assert_eq!(done, fits.is_some());
        match fits {
            Some((span, value)) => {
                self.list.insert(span.first, (hole.first, value));
                self.list.insert(hole.end, (span.end, self.next));
            }
            None => drop(free(upper)),
        }
    }

    fn shrink(&mut self, page: u64, rest: Span) {
        let fits = self.find(page).filter(|(span, _)| span.covers(rest) && !rest.is_empty());
        assert_eq!(self.tree.shrink(page, rest), fits.is_some());
        if let Some((span, value)) = fits {
            self.list.remove(&span.first);
            self.list.insert(rest.first, (rest.end, value));
        }
    }

    fn step(&mut self, random: u64) {
        let kind = random as u8 % 16;
        let page = ALL.first + (random >> 8) % ALL.pages();
        let size = if random >> 63 == 0 { random >> 24 & 15 } else { random >> 24 & 127 };
        match kind {
            0..6 => {
                let from = if random >> 62 & 1 == 0 { page / GRANULARITY * GRANULARITY } else { page };
                self.insert(Span { first: from, end: (from + size).min(ALL.end) });
            }
            6..9 => self.remove(page),
            9 => self.split(page, size % 9),
            10 => {
                let from = page + (random >> 40 & 3);
                self.shrink(page, Span { first: from, end: from + size });
            }
            11 => {
                let found = self.tree.find_mut(page).map(|node| {
                    node.value += 1 << 32;
                    node.value
                });
                let span = self.find(page).map(|(span, _)| span.first);
                let wanted = span.and_then(|first| self.list.get_mut(&first)).map(|(_, value)| {
                    *value += 1 << 32;
                    *value
                });
                assert_eq!(found, wanted);
            }
            _ => {
                let search = if kind.is_multiple_of(2) { Search::BottomUp } else { Search::TopDown };
                let bounds = match random >> 60 & 3 {
                    0 => Span { first: page, end: ALL.end },
                    1 => Span { first: ALL.first, end: page },
                    2 => Span { first: page, end: page + (random >> 40 & 1023) },
                    _ => ALL,
                };
                let found = self.tree.find_gap(size, bounds, search);
                let wanted = if size == 0 { None } else { self.gap(size, bounds, search) };
                assert_eq!(found.map(|span| span.first), wanted, "{size} pages {search:?} in {bounds:?}");
                if let Some(span) = found {
                    assert!(span.pages() == size && bounds.covers(span));
                }
            }
        }
        let pair = |node: &Node<u64>| (node.span(), node.value);
        assert_eq!(self.tree.find(page).map(pair), self.find(page));
        assert_eq!(self.tree.first_from(page).map(pair), self.first_from(page));
        let span = Span { first: page, end: page + size };
        assert_eq!(self.tree.first_overlap(span).is_some(), !span.is_empty() && self.overlaps(span));
    }
}

fn run(numbers: &[u64]) {
    let mut model = Model { tree: Tree::new(), list: BTreeMap::new(), next: 0 };
    for (at, &random) in numbers.iter().enumerate() {
        model.step(random);
        if at % 64 == 0 {
            model.tree.verify().unwrap();
        }
    }
    model.tree.verify().unwrap();
    assert_eq!(model.tree.count(), model.list.len());
    let all: Vec<_> =
        model.tree.iter().map(|node| (node.span().first, (node.span().end, node.value))).collect();
    assert_eq!(all, model.list.iter().map(|(&first, &it)| (first, it)).collect::<Vec<_>>());
    for first in model.list.into_keys() {
        free(model.tree.remove(first).unwrap());
    }
    assert_eq!(model.tree.count(), 0);
}

proptest! {
    // 250 times 4000 steps.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn the_tree_says_what_a_sorted_list_says(numbers in prop::collection::vec(any::<u64>(), STEPS)) {
        run(&numbers);
    }
}

#[test]
fn a_tree_of_descriptors_in_a_row_stays_low() {
    let mut tree = Tree::new();
    let count = if cfg!(miri) { 100 } else { 100_000 };
    for at in 0..count {
        // SAFETY: a new node.
        assert!(unsafe { tree.insert(new(Span { first: at * 16, end: at * 16 + 16 }, at)) });
    }
    tree.verify().unwrap();
    let bounds = Span { first: 0, end: (count + 1) * 16 };
    assert_eq!(tree.find_gap(16, bounds, Search::BottomUp).map(|span| span.first), Some(count * 16));
    for at in 0..count {
        assert_eq!(free(tree.remove(at * 16).unwrap()).value, at);
    }
    assert_eq!(tree.verify(), Ok(()));
}
