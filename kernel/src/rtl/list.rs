//! LIST_ENTRY: NT's doubly linked list, whose links are in what is linked.
//!
//! IRQL:       any; who may access a list when is its owner's rule.
//! Sources:    WDK, "Singly and Doubly Linked Lists".

use core::ptr::NonNull;

/// A list's head, or the links of what is in one. NT's LIST_ENTRY, byte for byte.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "LIST_ENTRY")]
pub struct KListEntry {
    /// NT's Flink.
    pub next: *mut KListEntry,
    /// NT's Blink.
    pub previous: *mut KListEntry,
}

const _: () = assert!(size_of::<KListEntry>() == 16);

sync::nt_layout! { [] KListEntry = "LIST_ENTRY" { next => "Flink", previous => "Blink", } }

impl KListEntry {
    /// Neither a head nor in a list.
    pub const UNLINKED: Self = Self { next: core::ptr::null_mut(), previous: core::ptr::null_mut() };

    /// Makes `head` an empty list.
    ///
    /// # Safety
    /// It is valid, and nobody else accesses it.
    #[doc(alias = "InitializeListHead")]
    pub unsafe fn initialize(head: NonNull<Self>) {
        // SAFETY: the caller's.
        unsafe { head.write(Self { next: head.as_ptr(), previous: head.as_ptr() }) };
    }

    /// The first of the list; nothing: it is empty.
    ///
    /// # Safety
    /// `head` is a list's, which nobody changes meanwhile.
    #[doc(alias = "IsListEmpty")]
    pub unsafe fn first(head: NonNull<Self>) -> Option<NonNull<Self>> {
        // SAFETY: the caller's.
        unsafe { Self::after(head, head) }
    }

    /// The one behind `entry`; nothing: it is the last.
    ///
    /// # Safety
    /// As [`first`](Self::first); `entry` is in the list, or its head.
    pub unsafe fn after(head: NonNull<Self>, entry: NonNull<Self>) -> Option<NonNull<Self>> {
        // SAFETY: the caller's.
        let next = unsafe { entry.as_ref().next };
        NonNull::new(next).filter(|next| *next != head)
    }

    /// Links `entry` in front of `place`: of the head, so at the list's end.
    ///
    /// # Safety
    /// `place` is a list's head or in it, `entry` valid until it is removed; nobody else accesses the list meanwhile.
    #[doc(alias = "InsertTailList")]
    pub unsafe fn insert_before(place: NonNull<Self>, entry: NonNull<Self>) {
        // SAFETY: the caller's: both neighbours are in the list.
        unsafe {
            let previous = (*place.as_ptr()).previous;
            entry.write(Self { next: place.as_ptr(), previous });
            (*previous).next = entry.as_ptr();
            (*place.as_ptr()).previous = entry.as_ptr();
        }
    }

    /// Takes `entry` out.
    ///
    /// # Safety
    /// It is in a list, and nobody else accesses that meanwhile.
    #[doc(alias = "RemoveEntryList")]
    pub unsafe fn remove(entry: NonNull<Self>) {
        // SAFETY: the caller's: both neighbours are in the list.
        unsafe {
            let Self { next, previous } = entry.read();
            (*previous).next = next;
            (*next).previous = previous;
            entry.write(Self::UNLINKED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_and_go_from_anywhere() {
        let mut cells: [KListEntry; 4] = [const { KListEntry::UNLINKED }; 4];
        let base = NonNull::from(&mut cells).cast::<KListEntry>();
        // SAFETY: within the array.
        let [head, a, b, c] = [0, 1, 2, 3].map(|at| unsafe { base.add(at) });
        // SAFETY: all in this array, which nobody else has.
        unsafe {
            KListEntry::initialize(head);
            assert_eq!(KListEntry::first(head), None);
            [a, b, c].into_iter().for_each(|entry| KListEntry::insert_before(head, entry));
            assert_eq!(KListEntry::first(head), Some(a));
            KListEntry::remove(b);
            assert_eq!(KListEntry::after(head, a), Some(c));
            assert_eq!(KListEntry::after(head, c), None);
            KListEntry::insert_before(a, b);
            assert_eq!(KListEntry::first(head), Some(b));
            [a, b, c].into_iter().for_each(|entry| KListEntry::remove(entry));
            assert_eq!(KListEntry::first(head), None);
        }
    }
}
