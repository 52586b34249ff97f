//! The tree of virtual address descriptors: which pages of an address space are taken, and by what.
//!
//! Owns:       [`Tree`], [`Node`], [`Span`]. Not: what a descriptor says (`process`), where a node's memory comes from.
//! IRQL:       that of the lock around it. No operation allocates, and none takes more than a few steps a level of the tree.
//! Invariants: I1 a node in the tree is valid memory that the tree alone reaches, until `remove` gives it back.
//!             I2 spans don't overlap; in order of their first pages they are the tree's order.
//!             I3 the heights of a node's two sides differ by one at most (AVL).
//!             I4 `low`, `high`, `hole` and `height` are those of the node's whole subtree.
//! Gaps:       a node knows the largest hole between the spans of its subtree, counted from a 64 KiB boundary on, so the lowest
//!             and the highest hole that is large enough are found on one way down. Memory is handed out from such a boundary only.
//! Not as NT:  NT's nodes have parent pointers and no summary of their holes; it searches from hints.
//! Tests:      tests/props/tests/mm_vad.rs (all, against a sorted list).

use core::ptr::NonNull;

/// Pages in a row: virtual addresses divided by the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: u64,
    /// Behind the last.
    pub end: u64,
}

impl Span {
    /// How many.
    pub const fn pages(self) -> u64 {
        self.end - self.first
    }

    /// None?
    pub const fn is_empty(self) -> bool {
        self.first >= self.end
    }

    /// Is `page` one of them?
    pub const fn contains(self, page: u64) -> bool {
        self.first <= page && page < self.end
    }

    /// Are all of `other`?
    pub const fn covers(self, other: Span) -> bool {
        self.first <= other.first && other.end <= self.end
    }

    /// Do both have a page?
    pub const fn overlaps(self, other: Span) -> bool {
        self.first < other.end && other.first < self.end && !self.is_empty() && !other.is_empty()
    }
}

/// Pages of NT's allocation granularity, 64 KiB: what is reserved begins at a multiple of it.
#[doc(alias = "MM_ALLOCATION_GRANULARITY")]
pub const GRANULARITY: u64 = 16;

/// Which hole is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The lowest addresses.
    BottomUp,
    /// The highest (MEM_TOP_DOWN).
    TopDown,
}

type Link<T> = Option<NonNull<Node<T>>>;

/// One descriptor: its span, and what it says.
#[derive(Debug)]
pub struct Node<T> {
    span: Span,
    left: Link<T>,
    right: Link<T>,
    /// Of the subtree: first page, behind the last page, pages of the largest hole in between.
    low: u64,
    high: u64,
    hole: u64,
    height: u8,
    /// The descriptor.
    pub value: T,
}

// SAFETY: its links lead to nodes that the same tree owns (I1), so a node moves between threads only with its whole tree, or alone.
unsafe impl<T: Send> Send for Node<T> {}

/// Pages of the hole from `from` up to `to`, of those from the first boundary on.
const fn hole(from: u64, to: u64) -> u64 {
    to.saturating_sub(from.next_multiple_of(GRANULARITY))
}

impl<T> Node<T> {
    /// In no tree.
    pub const fn new(span: Span, value: T) -> Self {
        Self { span, left: None, right: None, low: span.first, high: span.end, hole: 0, height: 1, value }
    }

    /// Its pages.
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Gives one that is in no tree another span.
    ///
    /// # Safety
    /// It is in no tree (I2).
    pub unsafe fn set_span(&mut self, span: Span) {
        self.span = span;
    }

    /// I4 from the two sides.
    fn update(&mut self) {
        let (left, right) = (get(&self.left), get(&self.right));
        let height = |side: Option<&Node<T>>| side.map_or(0, |side| side.height);
        self.height = height(left).max(height(right)) + 1;
        let mut most = 0;
        self.low = self.span.first;
        self.high = self.span.end;
        if let Some(left) = left {
            self.low = left.low;
            most = left.hole.max(hole(left.high, self.span.first));
        }
        if let Some(right) = right {
            self.high = right.high;
            most = most.max(right.hole).max(hole(self.span.end, right.low));
        }
        self.hole = most;
    }

    /// Height of the left side less that of the right one.
    fn balance(&self) -> i32 {
        let height = |link: &Link<T>| get(link).map_or(0, |side| i32::from(side.height));
        height(&self.left) - height(&self.right)
    }
}

fn get<T>(link: &Link<T>) -> Option<&Node<T>> {
    // SAFETY: links lead to nodes of the tree (I1), which whoever has the link borrowed has borrowed, too.
    link.map(|node| unsafe { node.as_ref() })
}

fn get_mut<T>(node: &mut NonNull<Node<T>>) -> &mut Node<T> {
    // SAFETY: as in `get`; there is one link to each node, and it is borrowed uniquely.
    unsafe { node.as_mut() }
}

/// The node's left side comes up in its place.
fn rotate_right<T>(mut node: NonNull<Node<T>>) -> NonNull<Node<T>> {
    let Some(mut up) = get_mut(&mut node).left.take() else { return node };
    get_mut(&mut node).left = get_mut(&mut up).right.take();
    get_mut(&mut node).update();
    get_mut(&mut up).right = Some(node);
    get_mut(&mut up).update();
    up
}

/// The node's right side comes up in its place.
fn rotate_left<T>(mut node: NonNull<Node<T>>) -> NonNull<Node<T>> {
    let Some(mut up) = get_mut(&mut node).right.take() else { return node };
    get_mut(&mut node).right = get_mut(&mut up).left.take();
    get_mut(&mut node).update();
    get_mut(&mut up).left = Some(node);
    get_mut(&mut up).update();
    up
}

/// I3 and I4 for a node whose sides have both, and differ in height by two at most.
fn settle<T>(mut node: NonNull<Node<T>>) -> NonNull<Node<T>> {
    let this = get_mut(&mut node);
    this.update();
    let leans = |link: &Link<T>| get(link).map_or(0, Node::balance);
    match this.balance() {
        2.. => {
            if leans(&this.left) < 0 {
                this.left = this.left.map(rotate_left);
            }
            rotate_right(node)
        }
        ..=-2 => {
            if leans(&this.right) > 0 {
                this.right = this.right.map(rotate_right);
            }
            rotate_left(node)
        }
        _ => node,
    }
}

fn insert<T>(link: Link<T>, new: NonNull<Node<T>>, first: u64) -> NonNull<Node<T>> {
    let Some(mut node) = link else { return new };
    let this = get_mut(&mut node);
    let side = if first < this.span.first { &mut this.left } else { &mut this.right };
    *side = Some(insert(side.take(), new, first));
    settle(node)
}

/// Takes the lowest node out: the rest, and the node.
fn take_lowest<T>(mut node: NonNull<Node<T>>) -> (Link<T>, NonNull<Node<T>>) {
    let this = get_mut(&mut node);
    match this.left.take() {
        None => (this.right.take(), node),
        Some(left) => {
            let (rest, lowest) = take_lowest(left);
            this.left = rest;
            (Some(settle(node)), lowest)
        }
    }
}

/// Takes the node that begins at `first` out: the rest, and the node.
fn remove<T>(link: Link<T>, first: u64) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    let this = get_mut(&mut node);
    if first != this.span.first {
        let side = if first < this.span.first { &mut this.left } else { &mut this.right };
        let (rest, found) = remove(side.take(), first);
        *side = rest;
        return (Some(settle(node)), found);
    }
    let (left, right) = (this.left.take(), this.right.take());
    let rest = match (left, right) {
        (None, side) | (side, None) => side,
        (left, Some(right)) => {
            let (rest, mut next) = take_lowest(right);
            get_mut(&mut next).left = left;
            get_mut(&mut next).right = rest;
            Some(settle(next))
        }
    };
    (rest, Some(node))
}

/// The descriptors of one address space.
#[derive(Debug)]
pub struct Tree<T> {
    root: Link<T>,
    count: usize,
}

// SAFETY: it owns its nodes (I1).
unsafe impl<T: Send> Send for Tree<T> {}

impl<T> Tree<T> {
    /// None.
    pub const fn new() -> Self {
        Self { root: None, count: 0 }
    }

    /// How many.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The one that `page` belongs to.
    pub fn find(&self, page: u64) -> Option<&Node<T>> {
        self.first_overlap(Span { first: page, end: page + 1 })
    }

    /// As [`find`](Self::find), to change what it says.
    pub fn find_mut(&mut self, page: u64) -> Option<&mut Node<T>> {
        let mut link = self.root;
        loop {
            // SAFETY: I1, and `self` is borrowed uniquely for as long as the result.
            let node = unsafe { link?.as_mut() };
            if node.span.contains(page) {
                return Some(node);
            }
            link = if page < node.span.first { node.left } else { node.right };
        }
    }

    /// The lowest one that has a page of `span`.
    pub fn first_overlap(&self, span: Span) -> Option<&Node<T>> {
        self.first_from(span.first).filter(|node| node.span.overlaps(span))
    }

    /// The one that `page` belongs to, else the next above it.
    pub fn first_from(&self, page: u64) -> Option<&Node<T>> {
        let (mut link, mut best) = (get(&self.root), None);
        while let Some(node) = link {
            link = if page < node.span.end {
                best = Some(node);
                get(&node.left)
            } else {
                get(&node.right)
            };
        }
        best
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Node<T>> {
        core::iter::successors(self.first_from(0), |node| self.first_from(node.span.end))
    }

    /// Adds one. False: its span is empty, or overlaps another's; nothing was changed.
    ///
    /// # Safety
    /// The node is valid, in no tree, and reached by nobody else until [`remove`](Self::remove) gives it back (I1).
    #[must_use = "a node that was not inserted is still the caller's"]
    pub unsafe fn insert(&mut self, mut node: NonNull<Node<T>>) -> bool {
        // SAFETY: the caller's.
        let new = unsafe { node.as_mut() };
        if new.span.is_empty() || self.first_overlap(new.span).is_some() {
            return false;
        }
        (new.left, new.right) = (None, None);
        new.update();
        let first = new.span.first;
        self.root = Some(insert(self.root.take(), node, first));
        self.count += 1;
        true
    }

    /// Takes the one that `page` belongs to out; it is the caller's.
    #[must_use = "the node's memory is the caller's"]
    pub fn remove(&mut self, page: u64) -> Option<NonNull<Node<T>>> {
        let first = self.find(page)?.span.first;
        let (rest, found) = remove(self.root.take(), first);
        self.root = rest;
        self.count -= usize::from(found.is_some());
        found
    }

    /// Leaves the one that `page` belongs to with `rest` of its pages. False: `rest` is not a part of it, or empty.
    #[must_use = "nothing was changed if it is false"]
    pub fn shrink(&mut self, page: u64, rest: Span) -> bool {
        let fits = |node: &Node<T>| node.span.covers(rest) && !rest.is_empty();
        if !self.find(page).is_some_and(fits) {
            return false;
        }
        let Some(mut node) = self.remove(page) else { return false };
        get_mut(&mut node).span = rest;
        // SAFETY: just removed, so the tree's own until now.
        unsafe { self.insert(node) }
    }

    /// Cuts `hole` out of the middle of the one that has it; `upper` becomes its part behind the hole, with the value that it
    /// has. False: `hole` doesn't leave a page on both sides; nothing was changed.
    ///
    /// # Safety
    /// As [`insert`](Self::insert), for `upper`.
    #[must_use = "a node that was not inserted is still the caller's"]
    pub unsafe fn split(&mut self, hole: Span, mut upper: NonNull<Node<T>>) -> bool {
        let Some(span) = self.find(hole.first).map(Node::span) else { return false };
        let both = span.first < hole.first && hole.end < span.end && !hole.is_empty();
        if !both || !self.shrink(span.first, Span { first: span.first, end: hole.first }) {
            return false;
        }
        get_mut(&mut upper).span = Span { first: hole.end, end: span.end };
        // SAFETY: the caller's; nothing is left where it goes.
        unsafe { self.insert(upper) }
    }

    /// `pages` free pages in a row within `bounds`, from a boundary of the granularity on. Bottom up the lowest such place; top down
    /// the highest.
    pub fn find_gap(&self, pages: u64, bounds: Span, search: Search) -> Option<Span> {
        if pages == 0 {
            return None;
        }
        let first = match search {
            Search::BottomUp => lowest(&self.root, pages, bounds.first, bounds.end),
            Search::TopDown => highest(&self.root, pages, bounds.first, bounds.end),
        }?;
        Some(Span { first, end: first + pages })
    }

    /// Checks I2 to I4: for tests.
    pub fn verify(&self) -> Result<(), &'static str> {
        fn check<T>(link: &Link<T>, low: u64, high: u64) -> Result<usize, &'static str> {
            let Some(node) = get(link) else { return Ok(0) };
            if node.span.is_empty() || node.span.first < low || node.span.end > high {
                return Err("spans out of order");
            }
            if node.balance().abs() > 1 {
                return Err("a side is too high");
            }
            let count = check(&node.left, low, node.span.first)? + check(&node.right, node.span.end, high)?;
            let height = |link: &Link<T>| get(link).map_or(0, |side| side.height);
            let mut most = 0;
            if let Some(left) = get(&node.left) {
                most = left.hole.max(hole(left.high, node.span.first));
            }
            if let Some(right) = get(&node.right) {
                most = most.max(right.hole).max(hole(node.span.end, right.low));
            }
            let low = get(&node.left).map_or(node.span.first, |left| left.low);
            let high = get(&node.right).map_or(node.span.end, |right| right.high);
            let whole = (node.low, node.high, node.hole) == (low, high, most)
                && node.height == height(&node.left).max(height(&node.right)) + 1;
            if whole { Ok(count + 1) } else { Err("a summary is wrong") }
        }
        if check(&self.root, 0, u64::MAX)? == self.count { Ok(()) } else { Err("nodes miscounted") }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The lowest boundary in `from..to` with `pages` behind it that no node of the subtree has.
fn lowest<T>(link: &Link<T>, pages: u64, from: u64, to: u64) -> Option<u64> {
    let place = |from: u64, to: u64| (hole(from, to) >= pages).then_some(from.next_multiple_of(GRANULARITY));
    let Some(node) = get(link) else { return place(from, to) };
    if to <= from {
        return None;
    }
    // A subtree without a hole of that size has none but at its edges; both are looked at by whoever knows what is beside them.
    if node.low < to && node.high > from && node.hole < pages {
        return place(from, to.min(node.low)).or_else(|| place(from.max(node.high), to));
    }
    let (before, behind) = (node.span.first.min(to), node.span.end.max(from));
    lowest(&node.left, pages, from, before).or_else(|| lowest(&node.right, pages, behind, to))
}

/// The highest one.
fn highest<T>(link: &Link<T>, pages: u64, from: u64, to: u64) -> Option<u64> {
    let place =
        |from: u64, to: u64| (hole(from, to) >= pages).then(|| (to - pages) / GRANULARITY * GRANULARITY);
    let Some(node) = get(link) else { return place(from, to) };
    if to <= from {
        return None;
    }
    if node.low < to && node.high > from && node.hole < pages {
        return place(from.max(node.high), to).or_else(|| place(from, to.min(node.low)));
    }
    let (before, behind) = (node.span.first.min(to), node.span.end.max(from));
    highest(&node.right, pages, behind, to).or_else(|| highest(&node.left, pages, from, before))
}
