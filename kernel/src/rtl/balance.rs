//! Balance of a tree of RTL_BALANCED_LINKS: the heights of a node's sides differ by one at most (AVL).
//!
//! IRQL:       any; who may access a tree when is its owner's rule.
//! Invariants: B1 `balance` is the height of the right side less that of the left one: -1, 0 or 1.
//!             B2 the root is the right child of the tree's head, whose links are of the same kind and which has no left child.
//! Tests:      tests/props/tests/rtl_tables.rs, which verifies both after each step.
//! Sources:    G. Adelson-Velsky and E. Landis, 1962; D. Knuth, "The Art of Computer Programming" vol. 3, 6.2.3; layout as in ddk/ntddk.h.

use core::ptr::null_mut;

use super::links::{Links, Node, Side, child, join, last, parent, replace, rotate};

/// What a balanced node has behind its links.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Balance {
    /// B1.
    pub balance: i8,
    /// Nobody's.
    pub reserved: [u8; 3],
}

/// NT's RTL_BALANCED_LINKS, byte for byte.
#[doc(alias = "RTL_BALANCED_LINKS")]
pub type BalancedLinks = Links<Balance>;

sync::nt_layout! {
    [] BalancedLinks = "RTL_BALANCED_LINKS" {
        parent => "Parent", left => "LeftChild", right => "RightChild", extra.balance => "Balance",
        extra.reserved => "Reserved",
    }
}

/// What a side adds to a balance.
fn weight(side: Side) -> i8 {
    match side {
        Side::Left => -1,
        Side::Right => 1,
    }
}

/// # Safety
/// `node` is a tree's, which nobody else accesses meanwhile.
unsafe fn balance<'a>(node: Node<Balance>) -> &'a mut i8 {
    // SAFETY: the caller's; each use here ends before the next begins.
    unsafe { &mut (*node.as_ptr()).extra.balance }
}

/// Mends `node`, whose `side` is higher by two. True: what stands in its place now is lower by one than `node` was.
///
/// # Safety
/// As [`balance`].
unsafe fn mend(node: Node<Balance>, side: Side) -> bool {
    let heavy = weight(side);
    // SAFETY: the caller's: a side that is higher by two has a node, and one more on the side that it is heavy on.
    unsafe {
        let Some(below) = child(node, side) else { return false };
        let of_below = *balance(below);
        if of_below == -heavy {
            let Some(middle) = child(below, side.other()) else { return false };
            let of_middle = *balance(middle);
            rotate(middle);
            rotate(middle);
            *balance(node) = if of_middle == heavy { -heavy } else { 0 };
            *balance(below) = if of_middle == -heavy { heavy } else { 0 };
            *balance(middle) = 0;
            return true;
        }
        rotate(below);
        // Only a removal finds it even; then the height stays.
        let was_even = of_below == 0;
        *balance(node) = if was_even { heavy } else { 0 };
        *balance(below) = if was_even { -heavy } else { 0 };
        !was_even
    }
}

/// Puts `node` into the tree of `head`, as the child of `above` on a side that has none. True: the tree is higher by one.
///
/// # Safety
/// `above` is in the tree, or its head with [`Side::Right`]; `node` is valid, in no tree, and the tree's until it is removed. Nobody else
/// accesses the tree meanwhile.
pub(super) unsafe fn insert(
    head: Node<Balance>,
    above: Node<Balance>,
    side: Side,
    mut node: Node<Balance>,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        node.write(Links {
            parent: above.as_ptr(),
            left: null_mut(),
            right: null_mut(),
            extra: Balance::default(),
        });
        join(above, side, Some(node));
        // The subtree at `node` is higher by one.
        while let Some((above, side)) = parent(node)
            && above != head
        {
            *balance(above) += weight(side);
            match *balance(above) {
                0 => return false,
                -1 | 1 => node = above,
                // Lower by one again.
                _ => return !mend(above, side),
            }
        }
    }
    true
}

/// Takes `node` out of the tree of `head`. True: the tree is lower by one.
///
/// # Safety
/// It is in the tree, which nobody else accesses meanwhile.
pub(super) unsafe fn remove(head: Node<Balance>, node: Node<Balance>) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let Some(mut from) = take_out(node) else { return false };
        // That side of that node is lower by one.
        loop {
            let (above, side) = from;
            if above == head {
                return true;
            }
            let top = match *balance(above) * weight(side) {
                0 => {
                    *balance(above) = -weight(side);
                    return false;
                }
                1 => {
                    *balance(above) = 0;
                    above
                }
                _ => {
                    if !mend(above, side.other()) {
                        return false;
                    }
                    // A rotation put that in its place.
                    let Some((top, _)) = parent(above) else { return false };
                    top
                }
            };
            let Some(next) = parent(top) else { return false };
            from = next;
        }
    }
}

/// Takes `node` out of its place, as to links: the node whose side is lower for that, and which.
///
/// # Safety
/// As [`remove`].
unsafe fn take_out(node: Node<Balance>) -> Option<(Node<Balance>, Side)> {
    // SAFETY: the caller's.
    unsafe {
        let (left, right) = (child(node, Side::Left), child(node, Side::Right));
        let (Some(left), Some(right)) = (left, right) else {
            let place = parent(node);
            replace(node, left.or(right));
            return place;
        };
        // Its successor has no left child, and takes its place and balance.
        let next = last(right, Side::Left);
        let place = match parent(next) {
            Some((above, _)) if above == node => Some((next, Side::Right)),
            place => {
                replace(next, child(next, Side::Right));
                join(next, Side::Right, child(node, Side::Right));
                place
            }
        };
        join(next, Side::Left, Some(left));
        *balance(next) = *balance(node);
        replace(node, Some(next));
        place
    }
}

/// The height of what is below `node`, itself included, if B1 holds there: for tests.
///
/// # Safety
/// As [`balance`].
pub(super) unsafe fn height(node: Option<Node<Balance>>) -> Option<i32> {
    let Some(node) = node else { return Some(0) };
    // SAFETY: the caller's.
    let (left, right, balance) =
        unsafe { (height(child(node, Side::Left))?, height(child(node, Side::Right))?, *balance(node)) };
    (right - left == i32::from(balance) && balance.abs() <= 1).then_some(left.max(right) + 1)
}
