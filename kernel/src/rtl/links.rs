//! The links of a binary tree whose nodes are part of what is in it: RTL_SPLAY_LINKS, and with a balance RTL_BALANCED_LINKS.
//!
//! Owns:       [`Links`], the ways from node to node, rotation, splaying. Not: a table around a tree (generic_table.rs, avl_table.rs),
//!             balance (balance.rs).
//! IRQL:       any; who may access a tree when is its owner's rule.
//! Invariants: L1 a node's children have it for their parent; whoever leads itself is the outermost: a splay tree's root, or the head of a
//!                balanced tree, whose right child is the root.
//! Why not one tree with `mm::vad`: these links are NT's bytes, with a parent and no more; a descriptor's node has summaries of its
//!             subtree in place of a parent, which each step of a change renews. What both share is the word AVL.
//! Tests:      tests/props/tests/rtl_tables.rs.
//! Sources:    WDK, `RtlSplay`, `RtlDelete`, `RtlRealSuccessor`, `RtlRealPredecessor`, `RtlSubtreeSuccessor`; D. Sleator and R. Tarjan,
//!             "Self-adjusting binary search trees", 1985.

use core::ptr::{self, NonNull};

/// A side of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// Links to a node's parent and children, with a `B` behind them. NT's bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Links<B = ()> {
    /// L1.
    pub parent: *mut Links<B>,
    /// What is less.
    pub left: *mut Links<B>,
    /// What is greater.
    pub right: *mut Links<B>,
    /// The tree's own.
    pub extra: B,
}

/// NT's RTL_SPLAY_LINKS, byte for byte.
#[doc(alias = "RTL_SPLAY_LINKS")]
pub type SplayLinks = Links<()>;

sync::nt_layout! {
    [] SplayLinks = "RTL_SPLAY_LINKS" { parent => "Parent", left => "LeftChild", right => "RightChild", }
}

/// A node.
pub(super) type Node<B> = NonNull<Links<B>>;

/// A node's child.
///
/// # Safety
/// As everything here: `node` is a tree's (L1), which nobody else accesses meanwhile.
pub(super) unsafe fn child<B>(node: Node<B>, side: Side) -> Option<Node<B>> {
    // SAFETY: the caller's.
    NonNull::new(unsafe {
        match side {
            Side::Left => (*node.as_ptr()).left,
            Side::Right => (*node.as_ptr()).right,
        }
    })
}

/// # Safety
/// As [`child`]; the caller mends L1.
pub(super) unsafe fn set_child<B>(node: Node<B>, side: Side, child: Option<Node<B>>) {
    let child = child.map_or(ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: the caller's.
    unsafe {
        match side {
            Side::Left => (*node.as_ptr()).left = child,
            Side::Right => (*node.as_ptr()).right = child,
        }
    }
}

/// Makes `child` that child of `node`, both ways.
///
/// # Safety
/// As [`child`](fn@child); the caller mends what else L1 wants.
pub(super) unsafe fn join<B>(node: Node<B>, side: Side, new: Option<Node<B>>) {
    // SAFETY: the caller's.
    unsafe {
        set_child(node, side, new);
        if let Some(new) = new {
            (*new.as_ptr()).parent = node.as_ptr();
        }
    }
}

/// A node's parent and the side that it is on; nothing of the outermost.
///
/// # Safety
/// As [`child`].
pub(super) unsafe fn parent<B>(node: Node<B>) -> Option<(Node<B>, Side)> {
    // SAFETY: the caller's; a parent is never null (L1).
    unsafe {
        let parent = NonNull::new_unchecked((*node.as_ptr()).parent);
        let side = if (*parent.as_ptr()).left == node.as_ptr() { Side::Left } else { Side::Right };
        (parent != node).then_some((parent, side))
    }
}

/// The last node on `side` of those below `node`, or itself.
///
/// # Safety
/// As [`child`].
pub(super) unsafe fn last<B>(mut node: Node<B>, side: Side) -> Node<B> {
    // SAFETY: the caller's.
    while let Some(next) = unsafe { child(node, side) } {
        node = next;
    }
    node
}

/// The next node on `side`: right is the successor, left the predecessor. Of a balanced tree's first node the predecessor is its head.
///
/// # Safety
/// As [`child`].
pub(super) unsafe fn next<B>(mut node: Node<B>, side: Side) -> Option<Node<B>> {
    // SAFETY: the caller's.
    unsafe {
        if let Some(below) = child(node, side) {
            return Some(last(below, side.other()));
        }
        loop {
            let (above, of) = parent(node)?;
            if of != side {
                return Some(above);
            }
            node = above;
        }
    }
}

/// Puts `new`, or nothing, where `old` is below its parent; as the outermost, if `old` is that.
///
/// # Safety
/// As [`child`]; the caller mends `old`'s links.
pub(super) unsafe fn replace<B>(old: Node<B>, new: Option<Node<B>>) {
    // SAFETY: the caller's.
    unsafe {
        match (parent(old), new) {
            (Some((above, side)), _) => join(above, side, new),
            (None, Some(new)) => (*new.as_ptr()).parent = new.as_ptr(),
            (None, None) => {}
        }
    }
}

/// Exchanges a node with its parent, which is not the outermost of a balanced tree: the order stays.
///
/// # Safety
/// As [`child`]; it has a parent.
pub(super) unsafe fn rotate<B>(node: Node<B>) {
    // SAFETY: the caller's.
    unsafe {
        let Some((above, side)) = parent(node) else { return };
        let between = child(node, side.other());
        replace(above, Some(node));
        join(above, side, between);
        join(node, side.other(), Some(above));
    }
}

impl SplayLinks {
    /// Makes `node` the root of its tree, by the rotations that leave the tree shallower on the way.
    ///
    /// # Safety
    /// It is in a splay tree (L1), which nobody else accesses meanwhile.
    #[doc(alias = "RtlSplay")]
    pub unsafe fn splay(node: NonNull<Self>) {
        // SAFETY: the caller's.
        unsafe {
            while let Some((above, side)) = parent(node) {
                if let Some((_, outer)) = parent(above) {
                    // In a line the upper one turns first.
                    rotate(if outer == side { above } else { node });
                }
                rotate(node);
            }
        }
    }

    /// Takes `node` out of its tree; what is the root then.
    ///
    /// # Safety
    /// As [`splay`](Self::splay).
    #[doc(alias = "RtlDelete")]
    pub unsafe fn remove(node: NonNull<Self>) -> Option<NonNull<Self>> {
        // SAFETY: the caller's. As the root it has two trees below it; the left one's greatest node, made its root, has no right child.
        unsafe {
            Self::splay(node);
            let (left, right) = (child(node, Side::Left), child(node, Side::Right));
            for below in [left, right].into_iter().flatten() {
                (*below.as_ptr()).parent = below.as_ptr();
            }
            let Some(left) = left else { return right };
            let greatest = last(left, Side::Right);
            Self::splay(greatest);
            join(greatest, Side::Right, right);
            Some(greatest)
        }
    }
}
