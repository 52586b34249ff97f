//! NT's RTL_AVL_TABLE: elements of a driver, in their order, in a balanced tree.
//!
//! ```text
//! BalancedLinks (32 bytes) │ what was inserted, which callers know the element by
//! ```
//!
//! IRQL:       any at which the callbacks and the elements' memory may be; who accesses a table when is its owner's rule.
//! Invariants: A1 `balanced_root` is the head of a tree (balance.rs) of `count` nodes, which the table alone changes.
//!             A2 `restart_key` is null or in the tree: what an enumeration had last, or, where that was removed, what was before it.
//!             A3 `ordered` is null, or the element of number `which_ordered`, from 1 on. Insertion and removal forget it.
//! Not as NT:  there is no enumeration like a directory's.
//! Tests:      tests/props/tests/rtl_tables.rs.
//! Sources:    WDK, `RtlInitializeGenericTableAvl` and what its page leads to; RTL_AVL_TABLE's layout as in ddk/ntddk.h.

use core::ffi::c_void;
use core::ptr::{self, NonNull, null_mut};

use super::balance::{self, Balance, BalancedLinks};
use super::links::{self, Links, Node, Side, child, next};
use super::table::{Allocate, Compare, Found, Free, search};

/// Bytes in front of what was inserted.
const PREFIX: usize = size_of::<BalancedLinks>();

/// See the module. NT's bytes.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "RTL_AVL_TABLE")]
pub struct AvlTable {
    balanced_root: BalancedLinks,
    /// A3.
    ordered: *mut BalancedLinks,
    which_ordered: u32,
    count: u32,
    depth: u32,
    /// A2.
    restart_key: *mut BalancedLinks,
    /// Elements that were removed.
    delete_count: u32,
    compare: Compare<AvlTable>,
    allocate: Allocate<AvlTable>,
    free: Free<AvlTable>,
    /// The owner's.
    pub context: *mut c_void,
}

sync::nt_layout! {
    [] AvlTable = "RTL_AVL_TABLE" {
        balanced_root => "BalancedRoot", ordered => "OrderedPointer", which_ordered => "WhichOrderedElement",
        count => "NumberGenericTableElements", depth => "DepthOfTree", restart_key => "RestartKey",
        delete_count => "DeleteCount", compare => "CompareRoutine", allocate => "AllocateRoutine",
        free => "FreeRoutine", context => "TableContext",
    }
}

/// A table, wherever it is.
type Table = NonNull<AvlTable>;

fn element(node: Node<Balance>) -> NonNull<c_void> {
    // SAFETY: the table's elements are at least that long.
    unsafe { node.byte_add(PREFIX).cast() }
}

impl AvlTable {
    /// Makes `table` an empty one.
    ///
    /// # Safety
    /// It is memory for one, which stays where it is as long as it is used. The routines do what their types say, for this table, and
    /// don't change it; `compare` is an order.
    #[doc(alias = "RtlInitializeGenericTableAvl")]
    pub unsafe fn initialize(
        table: Table,
        compare: Compare<Self>,
        allocate: Allocate<Self>,
        free: Free<Self>,
        context: *mut c_void,
    ) {
        let head = table.cast::<BalancedLinks>().as_ptr();
        let balanced_root =
            Links { parent: head, left: null_mut(), right: null_mut(), extra: Balance::default() };
        let empty = Self {
            balanced_root,
            ordered: null_mut(),
            which_ordered: 0,
            count: 0,
            depth: 0,
            restart_key: null_mut(),
            delete_count: 0,
            compare,
            allocate,
            free,
            context,
        };
        // SAFETY: the caller's.
        unsafe { table.write(empty) };
    }

    /// The tree's head, by a pointer that may reach all of the table.
    fn head(table: Table) -> Node<Balance> {
        // It is the first field.
        table.cast()
    }

    /// # Safety
    /// As [`insert`](Self::insert).
    unsafe fn find(table: Table, key: *mut c_void) -> Found<Balance> {
        // SAFETY: the caller's: A1.
        unsafe {
            let compare = (*table.as_ptr()).compare;
            search(child(Self::head(table), Side::Right), |node| {
                compare(table.as_ptr(), key, element(node).as_ptr())
            })
        }
    }

    /// The element that is equal to `size` bytes at `key`; where there is none, a copy of them becomes it, and true comes with it. Nothing:
    /// there is no memory.
    ///
    /// # Safety
    /// `table` was [`initialize`](Self::initialize)d; nobody else accesses it meanwhile. `key` is what its compare routine takes, and of that
    /// many bytes.
    #[doc(alias = "RtlInsertElementGenericTableAvl")]
    pub unsafe fn insert(table: Table, key: *const c_void, size: u32) -> Option<(NonNull<c_void>, bool)> {
        // SAFETY: the caller's; A1. The block is as long as it was asked for, and new.
        unsafe {
            let (above, side) = match Self::find(table, key.cast_mut()) {
                Found::Here(node) => return Some((element(node), false)),
                Found::Below(above, side) => (above, side),
                Found::Empty => (Self::head(table), Side::Right),
            };
            let bytes = size.checked_add(PREFIX as u32)?;
            let block = ((*table.as_ptr()).allocate)(table.as_ptr(), bytes);
            let node = NonNull::new(block)?.cast::<BalancedLinks>();
            ptr::copy_nonoverlapping(key.cast::<u8>(), element(node).as_ptr().cast(), size as usize);
            let is_higher = balance::insert(Self::head(table), above, side, node);
            let it = &mut *table.as_ptr();
            it.count += 1;
            it.depth += u32::from(is_higher);
            (it.ordered, it.which_ordered) = (null_mut(), 0);
            Some((element(node), true))
        }
    }

    /// The element that is equal to `key`.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlLookupElementGenericTableAvl")]
    pub unsafe fn lookup(table: Table, key: *const c_void) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's.
        match unsafe { Self::find(table, key.cast_mut()) } {
            Found::Here(node) => Some(element(node)),
            _ => None,
        }
    }

    /// Removes the element that is equal to `key`, and frees it. False: there is none.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlDeleteElementGenericTableAvl")]
    pub unsafe fn remove(table: Table, key: *const c_void) -> bool {
        // SAFETY: the caller's; A1.
        unsafe {
            let Found::Here(node) = Self::find(table, key.cast_mut()) else { return false };
            let head = Self::head(table);
            if (*table.as_ptr()).restart_key == node.as_ptr() {
                // A2. The first one has the head before it.
                let before = next(node, Side::Left).filter(|before| *before != head);
                (*table.as_ptr()).restart_key = before.map_or(null_mut(), NonNull::as_ptr);
            }
            let is_lower = balance::remove(head, node);
            let it = &mut *table.as_ptr();
            it.count -= 1;
            it.depth -= u32::from(is_lower);
            it.delete_count = it.delete_count.wrapping_add(1);
            (it.ordered, it.which_ordered) = (null_mut(), 0);
            let free = it.free;
            free(table.as_ptr(), node.as_ptr().cast());
            true
        }
    }

    /// The first element, if `restart`, else the one behind what this said last; of what was removed meanwhile, the one behind that.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlEnumerateGenericTableAvl")]
    pub unsafe fn enumerate(table: Table, restart: bool) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; A2.
        unsafe {
            let mut key = if restart { null_mut() } else { (*table.as_ptr()).restart_key };
            let found = Self::enumerate_from(table, &mut key);
            (*table.as_ptr()).restart_key = key;
            found
        }
    }

    /// The same with the caller's own place, null at first. It must not be removed meanwhile.
    ///
    /// # Safety
    /// As [`insert`](Self::insert); `place` is null or what this has left there, and in the table.
    #[doc(alias = "RtlEnumerateGenericTableWithoutSplayingAvl")]
    pub unsafe fn enumerate_from(table: Table, place: &mut *mut BalancedLinks) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; A1.
        let node = unsafe {
            match NonNull::new(*place) {
                Some(node) => next(node, Side::Right),
                None => child(Self::head(table), Side::Right).map(|root| links::last(root, Side::Left)),
            }
        }?;
        *place = node.as_ptr();
        Some(element(node))
    }

    /// The element that so many are less than. Takes as many steps as it is away from the one asked for before, or from the first.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlGetElementGenericTableAvl")]
    pub unsafe fn get(table: Table, number: u32) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; A1, A3.
        unsafe {
            let it = &mut *table.as_ptr();
            if number >= it.count {
                return None;
            }
            let wanted = number + 1;
            let (mut node, mut at) = match NonNull::new(it.ordered) {
                Some(node) if it.which_ordered.abs_diff(wanted) < wanted => (node, it.which_ordered),
                _ => (links::last(child(Self::head(table), Side::Right)?, Side::Left), 1),
            };
            while at != wanted {
                let side = if at < wanted { Side::Right } else { Side::Left };
                node = next(node, side)?;
                at = if at < wanted { at + 1 } else { at - 1 };
            }
            let it = &mut *table.as_ptr();
            (it.ordered, it.which_ordered) = (node.as_ptr(), wanted);
            Some(element(node))
        }
    }

    /// How many elements there are.
    #[doc(alias = "RtlNumberGenericTableElementsAvl")]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Is there none?
    #[doc(alias = "RtlIsGenericTableEmptyAvl")]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Checks that sides are balanced, and as high as the table says: for tests.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    pub unsafe fn verify(table: Table) -> bool {
        // SAFETY: the caller's; A1.
        unsafe {
            let root = child(Self::head(table), Side::Right);
            balance::height(root) == Some((*table.as_ptr()).depth as i32)
        }
    }
}
