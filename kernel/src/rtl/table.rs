//! What NT's two generic tables share: callbacks that say what is an element's order and memory, and the search for an element.
//!
//! A table's element is a block of its allocate routine: the tree's links, then, in [`GenericTable`](super::GenericTable), those of the order
//! in which elements came, then a copy of what the caller inserted, which is what callers know an element by.
//!
//! Sources:    WDK, `RtlInitializeGenericTable`, `RtlInitializeGenericTableAvl`, RTL_GENERIC_COMPARE_RESULTS.

use core::ffi::c_void;

use super::links::{Node, Side, child};

/// How the first of two elements compares to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
#[doc(alias = "RTL_GENERIC_COMPARE_RESULTS")]
pub struct Comparison(pub u32);

impl Comparison {
    /// GenericLessThan.
    pub const LESS: Self = Self(0);
    /// GenericGreaterThan.
    pub const GREATER: Self = Self(1);
    /// GenericEqual.
    pub const EQUAL: Self = Self(2);
}

/// Compares an element that is looked for to one of the table `T`.
#[doc(alias = "PRTL_GENERIC_COMPARE_ROUTINE")]
pub type Compare<T> = unsafe extern "win64" fn(*mut T, *mut c_void, *mut c_void) -> Comparison;
/// Memory of so many bytes, aligned to 8; null: there is none.
#[doc(alias = "PRTL_GENERIC_ALLOCATE_ROUTINE")]
pub type Allocate<T> = unsafe extern "win64" fn(*mut T, u32) -> *mut c_void;
/// Takes it back.
#[doc(alias = "PRTL_GENERIC_FREE_ROUTINE")]
pub type Free<T> = unsafe extern "win64" fn(*mut T, *mut c_void);

/// Where a search has led.
pub(super) enum Found<B> {
    /// To the element.
    Here(Node<B>),
    /// To where it would be.
    Below(Node<B>, Side),
    /// Nowhere: there is no element.
    Empty,
}

/// Looks below `root`, by how what is looked for compares to a node.
///
/// # Safety
/// `root` is a tree's, which nobody else accesses meanwhile.
pub(super) unsafe fn search<B>(
    root: Option<Node<B>>,
    mut compare: impl FnMut(Node<B>) -> Comparison,
) -> Found<B> {
    let Some(mut node) = root else { return Found::Empty };
    loop {
        let side = match compare(node) {
            Comparison::LESS => Side::Left,
            Comparison::GREATER => Side::Right,
            _ => return Found::Here(node),
        };
        // SAFETY: the caller's.
        match unsafe { child(node, side) } {
            Some(below) => node = below,
            None => return Found::Below(node, side),
        }
    }
}
