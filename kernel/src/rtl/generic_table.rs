//! NT's RTL_GENERIC_TABLE: elements of a driver, in their order, in a tree that brings what is looked for to its root; and in a list, in the
//! order in which they came.
//!
//! ```text
//! SplayLinks (24 bytes) │ KListEntry (16) │ what was inserted, which callers know the element by
//! ```
//!
//! IRQL:       any at which the callbacks and the elements' memory may be. Every lookup changes the tree, so it, too, excludes all others.
//! Invariants: G1 `root` leads to a splay tree (links.rs) of `count` nodes, `list` is the head of a list of the same, which the table alone
//!                changes. The head may lie anywhere, as long as the table stays there.
//!             G2 `ordered` leads to the element of number `which_ordered` in the list, from 1 on, or with 0 to its head.
//! Tests:      tests/props/tests/rtl_tables.rs.
//! Sources:    WDK, `RtlInitializeGenericTable` and what its page leads to; RTL_GENERIC_TABLE's layout as in ddk/ntddk.h.

use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::{self, NonNull, null_mut};

use super::links::{Links, Node, Side, SplayLinks, join, last, next};
use super::list::KListEntry;
use super::table::{Allocate, Compare, Found, Free, search};

/// What stands in front of what was inserted.
#[repr(C)]
struct Prefix {
    links: SplayLinks,
    order: KListEntry,
}

const PREFIX: usize = size_of::<Prefix>();

/// See the module. NT's bytes.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "RTL_GENERIC_TABLE")]
pub struct GenericTable {
    root: *mut SplayLinks,
    list: KListEntry,
    /// G2.
    ordered: *mut KListEntry,
    which_ordered: u32,
    count: u32,
    compare: Compare<GenericTable>,
    allocate: Allocate<GenericTable>,
    free: Free<GenericTable>,
    /// The owner's.
    pub context: *mut c_void,
}

sync::nt_layout! {
    [] GenericTable = "RTL_GENERIC_TABLE" {
        root => "TableRoot", list => "InsertOrderList", ordered => "OrderedPointer",
        which_ordered => "WhichOrderedElement", count => "NumberGenericTableElements", compare => "CompareRoutine",
        allocate => "AllocateRoutine", free => "FreeRoutine", context => "TableContext",
    }
}

/// A table, wherever it is.
type Table = NonNull<GenericTable>;

fn element(node: Node<()>) -> NonNull<c_void> {
    // SAFETY: the table's elements are at least that long.
    unsafe { node.byte_add(PREFIX).cast() }
}

/// The node's place in the list, and back: both by pointers that may reach all of the element.
fn order(node: Node<()>) -> NonNull<KListEntry> {
    // SAFETY: as above.
    unsafe { node.byte_add(offset_of!(Prefix, order)).cast() }
}

fn list(table: Table) -> NonNull<KListEntry> {
    // SAFETY: within the table.
    unsafe { table.byte_add(offset_of!(GenericTable, list)).cast() }
}

impl GenericTable {
    /// Makes `table` an empty one.
    ///
    /// # Safety
    /// As [`AvlTable::initialize`](super::AvlTable::initialize).
    #[doc(alias = "RtlInitializeGenericTable")]
    pub unsafe fn initialize(
        table: Table,
        compare: Compare<Self>,
        allocate: Allocate<Self>,
        free: Free<Self>,
        context: *mut c_void,
    ) {
        let empty = Self {
            root: null_mut(),
            list: KListEntry::UNLINKED,
            ordered: list(table).as_ptr(),
            which_ordered: 0,
            count: 0,
            compare,
            allocate,
            free,
            context,
        };
        // SAFETY: the caller's.
        unsafe {
            table.write(empty);
            KListEntry::initialize(list(table));
        }
    }

    /// Where `key` is or would be; what it has come to is the root then.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    unsafe fn find(table: Table, key: *mut c_void) -> Found<()> {
        // SAFETY: the caller's: G1.
        unsafe {
            let it = &mut *table.as_ptr();
            let compare = it.compare;
            let root = NonNull::new(it.root);
            let found = search(root, |node| compare(table.as_ptr(), key, element(node).as_ptr()));
            if let Found::Here(node) | Found::Below(node, _) = found {
                Self::splay(table, node);
            }
            found
        }
    }

    /// # Safety
    /// As [`insert`](Self::insert); `node` is in the table.
    unsafe fn splay(table: Table, node: Node<()>) {
        // SAFETY: the caller's.
        unsafe {
            SplayLinks::splay(node);
            (*table.as_ptr()).root = node.as_ptr();
        }
    }

    /// The element that is equal to `size` bytes at `key`; where there is none, a copy of them becomes it, and true comes with it. Nothing:
    /// there is no memory.
    ///
    /// # Safety
    /// `table` was [`initialize`](Self::initialize)d; nobody else accesses it meanwhile. `key` is what its compare routine takes, and of that
    /// many bytes.
    #[doc(alias = "RtlInsertElementGenericTable")]
    pub unsafe fn insert(table: Table, key: *const c_void, size: u32) -> Option<(NonNull<c_void>, bool)> {
        // SAFETY: the caller's; G1. The block is as long as it was asked for, and new.
        unsafe {
            let place = match Self::find(table, key.cast_mut()) {
                Found::Here(node) => return Some((element(node), false)),
                Found::Below(above, side) => Some((above, side)),
                Found::Empty => None,
            };
            let bytes = size.checked_add(PREFIX as u32)?;
            let block = ((*table.as_ptr()).allocate)(table.as_ptr(), bytes);
            let node = NonNull::new(block)?.cast::<SplayLinks>();
            ptr::copy_nonoverlapping(key.cast::<u8>(), element(node).as_ptr().cast(), size as usize);
            node.write(Links { parent: node.as_ptr(), left: null_mut(), right: null_mut(), extra: () });
            if let Some((above, side)) = place {
                // `above` is the root, and `node` its neighbour: between it and what is on that side.
                let beyond = super::links::child(above, side);
                super::links::set_child(above, side, None);
                join(node, side, beyond);
                join(node, side.other(), Some(above));
            }
            (*table.as_ptr()).root = node.as_ptr();
            KListEntry::insert_before(list(table), order(node));
            (*table.as_ptr()).count += 1;
            Some((element(node), true))
        }
    }

    /// The element that is equal to `key`.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlLookupElementGenericTable")]
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
    #[doc(alias = "RtlDeleteElementGenericTable")]
    pub unsafe fn remove(table: Table, key: *const c_void) -> bool {
        // SAFETY: the caller's; G1.
        unsafe {
            let Found::Here(node) = Self::find(table, key.cast_mut()) else { return false };
            let root = SplayLinks::remove(node);
            KListEntry::remove(order(node));
            let it = &mut *table.as_ptr();
            it.root = root.map_or(null_mut(), NonNull::as_ptr);
            it.count -= 1;
            (it.ordered, it.which_ordered) = (list(table).as_ptr(), 0);
            let free = it.free;
            free(table.as_ptr(), node.as_ptr().cast());
            true
        }
    }

    /// The first element, if `restart`, else the one behind what was found last, by this or by a lookup. It is the root then.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlEnumerateGenericTable")]
    pub unsafe fn enumerate(table: Table, restart: bool) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; G1.
        unsafe {
            let root = NonNull::new((*table.as_ptr()).root)?;
            let node = if restart { last(root, Side::Left) } else { next(root, Side::Right)? };
            Self::splay(table, node);
            Some(element(node))
        }
    }

    /// The element behind `place`, the first if that is null, without a change of the tree. `place` must not be removed meanwhile.
    ///
    /// # Safety
    /// As [`insert`](Self::insert); `place` is null or what this has left there, and in the table.
    #[doc(alias = "RtlEnumerateGenericTableWithoutSplaying")]
    pub unsafe fn enumerate_from(table: Table, place: &mut *mut SplayLinks) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; G1.
        let node = unsafe {
            match NonNull::new(*place) {
                Some(node) => next(node, Side::Right),
                None => NonNull::new((*table.as_ptr()).root).map(|root| last(root, Side::Left)),
            }
        }?;
        *place = node.as_ptr();
        Some(element(node))
    }

    /// The element that so many came before. Takes as many steps as it is away from the one asked for before, or from either end.
    ///
    /// # Safety
    /// As [`insert`](Self::insert).
    #[doc(alias = "RtlGetElementGenericTable")]
    pub unsafe fn get(table: Table, number: u32) -> Option<NonNull<c_void>> {
        // SAFETY: the caller's; G1, G2.
        unsafe {
            let it = &mut *table.as_ptr();
            if number >= it.count {
                return None;
            }
            // The head stands in front of the first one and behind the last.
            let (wanted, head) = (number + 1, list(table).as_ptr());
            let starts = [(it.ordered, it.which_ordered), (head, 0), (head, it.count + 1)];
            let (mut entry, mut at) = starts.into_iter().min_by_key(|(_, at)| at.abs_diff(wanted))?;
            while at != wanted {
                (entry, at) = if at < wanted { ((*entry).next, at + 1) } else { ((*entry).previous, at - 1) };
            }
            let it = &mut *table.as_ptr();
            (it.ordered, it.which_ordered) = (entry, wanted);
            Some(NonNull::new_unchecked(entry).byte_add(PREFIX - offset_of!(Prefix, order)).cast())
        }
    }

    /// How many elements there are.
    #[doc(alias = "RtlNumberGenericTableElements")]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Is there none?
    #[doc(alias = "RtlIsGenericTableEmpty")]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
